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
from qmq.session import Environment, Session, Transaction
from qmq.wire.smtp_server import COMMAND_OCTETS
from qmq.wire.text import LINE_OCTETS

# As many sizes as there may be rules for are few; a bound all the same.
_EHLOS = 1000


class EventLog(Protocol):
    """
    Facts we tell.

    *reason* is SPAMCONTROL's Action::Type::Condition, *info* what stands
    between its quotes; both are for us alone. *transaction* None: there was none.
    """

    def accepted(
        self,
        id: bytes,  # noqa: A002 - that is what everybody calls it
        session: Session,
        sender: Address,
        recipients: Sequence[Address],
        size: Octets,
    ) -> None:
        """The next hop has it, for these recipients; they know it by this id."""

    def passed(
        self, session: Session, transaction: Transaction, recipient: Address, reason: str, info: str = ""
    ) -> None:
        """A recipient was accepted."""

    def refused(
        self,
        session: Session,
        transaction: Transaction | None,
        recipient: Address | None,
        reply: Reply,
        reason: str,
        info: str = "",
    ) -> None:
        """Somebody said no; *recipient* None: to all of it, or before there was any."""

    def noted(
        self,
        session: Session,
        transaction: Transaction | None,
        recipient: Address | None,
        reason: str,
        info: str = "",
    ) -> None:
        """Nobody was told, but an operator may look for it."""


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
    helo: bool = False  # MAIL needs a HELO before it (RFC 5321 4.1.4; qmail never asked for it)
    held: bool = True  # refusals before RCPT wait for RCPT


def _nothing(token: Token) -> None:
    """Nobody asks how far tokens are in doubt."""


class Reception:
    """
    What all sessions of a listener share.

    *classic*: enhanced codes stand as ``(#x.y.z)`` at the end of a refusal, as
    qmail wrote them; else where RFC 2034 wants them.
    """

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
        localiphost: str = "",
        classic: bool = False,
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
        self.classic = classic
        self.trace = Trace(me, wall)
        self._wall = wall
        name = me.decode("ascii")
        self._localiphost = (localiphost or name).lower().encode()
        enhanced = "" if classic else "ENHANCEDSTATUSCODES\n"
        self._offers = f"{name}\nPIPELINING\nSIZE %d\n8BITMIME\nSMTPUTF8\n{enhanced}CHUNKING\nBINARYMIME\n"
        self._ehlos: dict[tuple[Octets, bool], Reply] = {}  # by size, and whether STARTTLS is offered
        self.banner = Reply(220, "", f"{greeting or name} ESMTP")
        self.helo = Reply(250, "", name)

    def databytes(self, environment: Environment) -> Octets:
        """The longest message that such a client may send; 0: any."""
        hard, own = self.limits.databytes, environment.databytes or 0
        return min(hard, own) if hard and own else hard or own

    def ehlo(self, session: Session) -> Reply:
        """What we offer this client (RFC 5321 4.1.1.1, RFC 1870)."""
        offered = self.databytes(session.environment), self.starttls and not session.tls
        if (reply := self._ehlos.get(offered)) is None:
            size, starttls = offered
            reply = Reply(250, "", self._offers % size + ("STARTTLS\nHELP" if starttls else "HELP"))
            if len(self._ehlos) < _EHLOS:
                self._ehlos[offered] = reply
        return reply

    def at_home(self, recipient: Address, server: str) -> Address:
        """The recipient, with our name for the literal of the address that the client came to (localiphost)."""
        literal = b"[ipv6:%s]" % server.encode() if ":" in server else b"[%s]" % server.encode()
        return Address(recipient.local, self._localiphost) if recipient.domain == literal else recipient

    def taken(self, queue_id: bytes) -> bytes:
        """What the client is told when its message is safe."""
        if self.classic:
            return b"250 ok %d qp %s\r\n" % (self._wall(), queue_id)
        return b"250 2.0.0 ok %s\r\n" % queue_id
