"""
The ESMTP listener: who may connect, and for how long.

Makes a session of each connection, bounds how many there are, and sweeps them
once a second for those that have exceeded a deadline: one timer for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.conversation import Conversation
from qmq.deadlines import Deadlines
from qmq.mail import Reply, value
from qmq.receive.clients import Deny
from qmq.receive.dialogue import Dialogue
from qmq.receive.reception import Reception
from qmq.rules.nets import Net, parsed
from qmq.sends import fast_writer
from qmq.session import Session
from qmq.wire.smtp_server import SMTPServerWire

TOO_MANY_SESSIONS = Reply(421, "4.3.2", "too many connections here, try again later")
TOO_MANY_OF_YOURS = Reply(421, "4.7.0", "too many connections from you, try again later")

SHUTTING_DOWN = Reply(421, "4.3.2", "shutting down, try again later")


@value
class Caller:
    """Whom a connection comes from: its address (None: a unix socket's), as text, and who is counted as one with it."""

    address: IPv4Address | IPv6Address | None
    ip: str
    whose: object


@value
class Crowd:
    """
    How many sessions at once, and whose.

    *exempt* clients may have as many sessions as there are. An IPv6 client is
    its /64: all of it is one customer's.
    """

    sessions: int = 1000
    each: int = 50
    exempt: tuple[Net, ...] = ()


# A client's IP address ("": a unix socket's) and port, and ours: who it is.
Who = Callable[[str, int, str, int], Session | Deny | Deferred[Session | Deny]]


def anybody(client: str, port: int, server: str, server_port: int) -> Session:
    """A client about whom nothing is known but its address; that of a unix socket is trusted."""
    return Session(client, port, server, server_port, relay=not client)


class SMTPFactory(ServerFactory):
    """
    Conversations with ESMTP clients.

    *context* is an OpenSSL context factory (IOpenSSLServerConnectionCreator)
    for STARTTLS; *reception.starttls* says whether it is offered, and is not
    without one.
    """

    noisy = False
    _log = Logger()

    def __init__(
        self,
        reception: Reception,
        *,
        who: Who = anybody,
        crowd: Crowd = Crowd(),  # noqa: B008 - a value
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - a value
        context: Any = None,
    ) -> None:
        if reception.starttls and context is None:
            raise ValueError("STARTTLS can't be offered without a TLS context")
        self.sessions: dict[Conversation, object] = {}  # and whose they are
        self._reception = reception
        self._who = who
        self._crowd = crowd
        self._deadlines = deadlines
        self._context = context
        self._each: dict[object, int] = {}  # how many sessions each has
        self._sweeping = LoopingCall(self.sweep)
        self._sweeping.clock = reception.clock

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """A conversation, or a word of regret."""
        caller = caller_of(addr)
        crowd = self._crowd
        if len(self.sessions) >= crowd.sessions:
            return self._regret(caller, addr, TOO_MANY_SESSIONS)
        if self._each.get(caller.whose, 0) >= crowd.each and not _within(caller, crowd.exempt):
            return self._regret(caller, addr, TOO_MANY_OF_YOURS)
        limits = self._reception.limits
        port = getattr(addr, "port", 0)

        def begin(conversation: Conversation) -> Dialogue:
            return self._begun(conversation, caller, port)

        conversation = Conversation(
            SMTPServerWire(line_octets=limits.line, command_octets=limits.command, classic=self._reception.classic),
            begin,
            ended=self._ended,
            context=self._context,
            deadlines=self._deadlines,
        )
        conversation.factory = self
        return conversation

    def _regret(self, caller: Caller, addr: IAddress | None, reply: Reply) -> Protocol:
        session = Session(caller.ip, getattr(addr, "port", 0), "", 0)
        self._reception.log.refused(session, None, None, reply, "Reject::SNDR::Toomany_Sessions")
        return _Regret(reply)

    def _begun(self, conversation: Conversation, caller: Caller, port: int) -> Dialogue:
        whose = caller.whose
        self.sessions[conversation] = whose
        self._each[whose] = self._each.get(whose, 0) + 1
        if not self._sweeping.running:
            self._sweeping.start(1, now=False).addErrback(self._sweep_broke)
        transport: Any = conversation.transport
        host = transport.getHost()
        begun = Session(caller.ip, port, getattr(host, "host", ""), getattr(host, "port", 0))
        who = self._who(begun.client, port, begun.server, begun.server_port)
        return Dialogue(begun, who, self._reception)

    def _ended(self, conversation: Conversation) -> None:
        whose = self.sessions.pop(conversation)
        self._each[whose] -= 1
        if not self._each[whose]:
            del self._each[whose]
        if not self.sessions and self._sweeping.running:
            self._sweeping.stop()

    def sweep(self) -> None:
        """Cut the sessions that have exceeded a deadline; called once a second while there are sessions."""
        now = self._reception.clock.seconds()
        for conversation in tuple(self.sessions):
            try:
                conversation.sweep(now)
            except Exception:  # noqa: BLE001 - one broken session must not keep the others for ever
                self._log.failure("a session could not be swept")

    def _sweep_broke(self, failure: Failure) -> None:
        self._log.failure("the sweep of the sessions broke", failure)

    def hang_up(self, reply: Reply = SHUTTING_DOWN) -> None:
        """End all sessions; those that await our answer, when they have it."""
        for conversation in tuple(self.sessions):
            conversation.hang_up(reply)


class _Regret(Protocol):
    """A connection too many."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def connectionMade(self) -> None:
        """Say so, and hang up."""
        assert self.transport is not None
        fast_writer(self.transport)(self._reply.line)
        self.transport.loseConnection()


def caller_of(addr: IAddress | None) -> Caller:
    """Whom a connection from there comes from."""
    host = getattr(addr, "host", None)
    return _NEIGHBOUR if host is None else _caller(host)


_NEIGHBOUR = Caller(None, "", None)


@lru_cache(maxsize=4096)
def _caller(host: str) -> Caller:
    ip = parsed(host.partition("%")[0])
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or ip
    return Caller(ip, str(ip), int(ip) >> 64 if isinstance(ip, IPv6Address) else str(ip))


def _within(caller: Caller, nets: Sequence[Net]) -> bool:
    """Also of those by a unix socket, of whom any number is welcome."""
    return caller.address is None or any(caller.address in net for net in nets)
