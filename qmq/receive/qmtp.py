"""Who may hand mail over by QMTP: the primary, other qmq peers, and plain QMTP clients such as qmail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from socket import socket
from typing import Protocol as Interface

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.internet.protocol import ServerFactory

from qmq.mail import Address, Clock, Message, Octets, Replies, Reply, Seconds, Token
from qmq.receive.draft import Drafts
from qmq.receive.qmtp_session import QMTPServer
from qmq.receive.trace import Trace
from qmq.wire.qmtp import QMTPServerWire

Networks = Sequence[IPv4Network | IPv6Network]


class InDoubtHop(Interface):
    """A next hop that also takes what a peer hands over; *low* as in ISpool.keep."""

    def send(self, message: Message) -> Deferred[Replies]:
        """As INextHop.send."""

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Replies]:
        """As INextHop.send, for a message under its peer's token."""


class QMTPFactory(ServerFactory):
    """
    QMTP sessions for one instance.

    *accept* decides on each recipient: None, or the refusal; it is told whether
    a peer vouches for the message. Over TCP only *peers* are let in, at most
    *sessions* at once; who may use the extension: every unix socket if
    *extension*, and *extension_peers*. Whoever connects to such a unix socket and is
    *kin* has looked for bare CR and LF already. To other clients *session_seconds* and
    *idle_seconds* apply. Within a package *least* octets must come every
    *stall_seconds*, and answers must be read as fast. Reading pauses while
    *window* packages or *held* octets of a session wait for the next hop.
    """

    noisy = False

    def __init__(
        self,
        *,
        clock: IReactorTime,
        wall: Clock,
        drafts: Drafts,
        hop: InDoubtHop,
        next_token: Callable[[], Token],
        accept: Callable[[Address, bool], Reply | None],
        me: bytes,
        peers: Networks = (),
        extension: bool = False,
        extension_peers: Networks = (),
        message_octets: Octets = 0,
        recipients: int = 1000,
        max_hops: int = 100,
        window: int = 64,
        held: Octets = 1 << 23,
        sessions: int = 100,
        session_seconds: Seconds = 3600,
        idle_seconds: Seconds = 300,
        stall_seconds: Seconds = 60,
        least: Octets = 16384,
        kin: Callable[[socket], bool] = lambda _: False,
    ) -> None:
        self.clock = clock
        self.drafts = drafts
        self.hop = hop
        self.next_token = next_token
        self.accept = accept
        self.trace = Trace(me, wall)
        self.max_hops = max_hops
        self.kin = kin
        self.held = held
        self.session_seconds = session_seconds
        self.idle_seconds = idle_seconds
        self.stall_seconds = stall_seconds
        self.least = least
        self.now: Seconds = clock.seconds()  # to the second: the latest sweep
        self._sessions: set[QMTPServer] = set()
        self._limit = sessions
        self._peers = peers
        self._extension = extension
        self._extension_peers = extension_peers
        self._wire = lambda extended: QMTPServerWire(
            extension=extended, message_octets=message_octets, recipients=recipients, window=window,
            whole=drafts.short,
        )  # fmt: skip
        self._sweeping = False
        self._stopped: Deferred[None] | None = None

    def buildProtocol(self, addr: IAddress | None) -> QMTPServer | None:
        """A session, or None: the connection is closed at once."""
        if self._stopped is not None or len(self._sessions) >= self._limit:
            return None
        if isinstance(addr, IPv4Address | IPv6Address):
            trusted = _within(addr.host, self._extension_peers)
            if trusted or _within(addr.host, self._peers):
                return QMTPServer(self, self._wire(trusted), addr.host, addr.port, trusted=trusted)
        if isinstance(addr, UNIXAddress):
            return QMTPServer(self, self._wire(self._extension), "", 0, trusted=self._extension)
        return None

    def stop(self) -> Deferred[None]:
        """Take no further package; fires when all that was taken is answered and every session is closed."""
        if self._stopped is None:
            self._stopped = Deferred()
            for session in tuple(self._sessions):
                session.end()
            if not self._sessions:
                self._stopped.callback(None)
        return self._stopped if not self._stopped.called else succeed(None)

    def opened(self, session: QMTPServer) -> None:
        """A session begins."""
        self._sessions.add(session)
        if not self._sweeping:
            self._sweeping = True
            self.now = self.clock.seconds()
            self.clock.callLater(1.0, self._sweep)

    def closed(self, session: QMTPServer) -> None:
        """A session is over."""
        self._sessions.discard(session)
        if not self._sessions and self._stopped is not None and not self._stopped.called:
            self._stopped.callback(None)

    def _sweep(self) -> None:
        self.now = self.clock.seconds()
        for session in tuple(self._sessions):
            session.sweep(self.now)
        self._sweeping = bool(self._sessions)
        if self._sweeping:
            self.clock.callLater(1.0, self._sweep)


def _within(host: str, networks: Networks) -> bool:
    """The address is in one of them; an IPv4 address in IPv6's clothes is IPv4."""
    found = ip_address(host.partition("%")[0])
    if found.version == 6 and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found.version == network.version and found in network for network in networks)
