"""What all sessions of a listener share, and what each may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

from qmq.interfaces import INextHop
from qmq.mail import Address, Clock, Octets, Reply, Seconds, Token, value
from qmq.receive.draft import Drafts
from qmq.receive.policy import Policy
from qmq.receive.trace import Trace
from qmq.session import Session
from qmq.wire.smtp_server import COMMAND_OCTETS
from qmq.wire.text import LINE_OCTETS


class EventLog(Protocol):
    """Facts we tell; *recipient* None: of the whole message, or before there was any."""

    def accepted(
        self,
        id: bytes,  # noqa: A002 - that is what everybody calls it
        session: Session,
        sender: Address,
        recipients: Sequence[Address],
        size: Octets,
    ) -> None:
        """The next hop has it, for these recipients; they know it by this id."""

    def refused(
        self, session: Session, sender: Address | None, recipient: Address | None, reply: Reply, reason: str
    ) -> None:
        """Somebody said no; *reason* is for us alone."""


@value
class Limits:
    """What one session may ask for."""

    databytes: Octets = 0  # of one message; 0: any
    line: Octets = LINE_OCTETS  # of a text, CRLF included
    command: Octets = COMMAND_OCTETS
    recipients: int = 1000  # of one message; RFC 5321 4.5.3.1.8: no less than 100
    errors: int = 20  # refusals (5yz) since the last message we took
    talk: int = 100  # commands that are no mail (NOOP, RSET, EHLO...) since then
    hops: int = 100  # Received and Delivered-To fields; RFC 5321 6.3: no less than 100
    delay: Seconds = 120  # that checkers may hold an answer back


def _nothing(token: Token) -> None:
    """Nobody asks how far tokens are in doubt."""


class Reception:
    """What all sessions of a listener share."""

    def __init__(
        self,
        *,
        me: bytes,
        policy: Policy,
        hop: INextHop,
        drafts: Drafts,
        next_token: Callable[[], Token],
        forget_token: Callable[[Token], None] = _nothing,
        log: EventLog,
        clock: IReactorTime,
        wall: Clock,
        limits: Limits = Limits(),  # noqa: B008 - a value
        starttls: bool = False,
        greeting: str = "",
    ) -> None:
        self.policy = policy
        self.hop = hop
        self.drafts = drafts
        self.next_token = next_token
        self.forget_token = forget_token
        self.log = log
        self.clock = clock
        self.limits = limits
        self.starttls = starttls
        self.trace = Trace(me, wall)
        name = me.decode("ascii")
        offers = (
            f"{name}\nPIPELINING\nSIZE {limits.databytes}\n8BITMIME\nSMTPUTF8\n"
            "ENHANCEDSTATUSCODES\nCHUNKING\nBINARYMIME"
        )
        self.banner = Reply(220, "", f"{greeting or name} ESMTP")
        self.helo = Reply(250, "", name)
        self.ehlo = Reply(250, "", f"{offers}\nSTARTTLS\nHELP" if starttls else f"{offers}\nHELP")
        self.ehlo_in_tls = Reply(250, "", f"{offers}\nHELP")
