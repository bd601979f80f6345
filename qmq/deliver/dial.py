"""
From a site's name to an open connection.

A site is where mail goes next: one or more hops, tried in order, each a way and
a place: ``mx:example.org``, ``smtp:mail.example.org:587``, ``smtp:[2001:db8::1]``,
``lmtp:host:24``, ``lmtp:/run/lmtp.sock``, ``qmtp:host``. Only ``mx`` looks for
MX records; an address needs no DNS at all. Of the hosts that a hop leads to the
first that greets us is taken.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.manner import Manner, TLSFailure
from qmq.deliver.mx import Candidate
from qmq.deliver.smtp import SMTPConnection
from qmq.interfaces import IDialler
from qmq.mail import DeliveryFailure, Reply, Seconds, value

_log = Logger()

_PORTS = {"smtp": 25, "lmtp": 24, "qmtp": 209, "mx": 25}  # LMTP's is a habit: it has none (RFC 2033 5)
# Underscores occur in names of real hosts.
_NAME = re.compile(r"[A-Za-z0-9_\x80-\U0010ffff](?:[A-Za-z0-9_.\x80-\U0010ffff-]{0,252})")


@value
class Hop:
    """One way to a site. *host* is a name or an address without brackets, or a socket's path (then *port* is 0)."""

    way: str  # smtp, lmtp, qmtp, mx
    host: str
    port: int

    @property
    def literal(self) -> bool:
        """Whether the host is an IP address."""
        return isIPAddress(self.host) or isIPv6Address(self.host)


def parse_site(site: bytes) -> tuple[Hop, ...]:
    """The hops of a site. Raises ValueError with a text for whoever wrote it."""
    try:
        words = site.decode().split()
    except UnicodeDecodeError:
        raise ValueError(f"{site!r} is not UTF-8") from None
    if not words:
        raise ValueError("no next hop; say mx:DOMAIN, smtp:HOST, lmtp:HOST:PORT, lmtp:/PATH or qmtp:HOST")
    return tuple(map(_hop, words))


def _hop(word: str) -> Hop:
    way, colon, place = word.partition(":")
    if not colon or way not in _PORTS:
        raise ValueError(f"{word!r} is no next hop; say mx:DOMAIN, smtp:HOST, lmtp:HOST:PORT, lmtp:/PATH or qmtp:HOST")
    if place.startswith("/"):
        if way != "lmtp":
            raise ValueError(f"{word!r}: only lmtp goes to a socket in the file system")
        return Hop(way, place, 0)
    if place.startswith("["):
        host, bracket, rest = place[1:].partition("]")
        host = host[5:] if host[:5].lower() == "ipv6:" else host  # RFC 5321 4.1.3
        if not bracket or not (isIPv6Address(host) or isIPAddress(host)):
            raise ValueError(f"{word!r}: {place!r} is no address in brackets")
    else:
        host, colon, rest = place.partition(":")
        rest = colon + rest
        host = host.removesuffix(".")
        if not _NAME.fullmatch(host) or ".." in host:
            raise ValueError(f"{word!r}: {host!r} is no host's name or address; IPv6 stands in brackets")
    if way == "lmtp" and not rest:
        raise ValueError(f"{word!r}: lmtp has no usual port; say lmtp:{place}:PORT")
    port = rest[1:]
    if rest and not (rest[0] == ":" and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise ValueError(f"{word!r}: {port!r} is no port; say a number from 1 to 65535")
    return Hop(way, host.lower(), int(port) if rest else _PORTS[way])


@implementer(IDialler)
class Dialler:
    """
    Opens connections to sites, and keeps time for all of them.

    *mx* answers ``candidates(domain)`` and ``addresses(host, port)`` (see
    qmq.deliver.mx); *qmtp* opens a QMTP connection to a Candidate for an IWork.
    *bind* are the addresses that we call from, one a family at most; a host of
    a family that is not among them is not called.
    """

    def __init__(
        self,
        reactor: Any,
        mx: Any,
        manner: Manner,
        *,
        bind: Sequence[str] = (),
        qmtp: Callable[[Candidate, Any], Deferred[Any]] | None = None,
        timeout_connect: Seconds = 60,
        timeout_dial: Seconds = 120,
        tries: int = 10,
    ) -> None:
        self._reactor = reactor
        self._mx = mx
        self._manners = {"smtp": manner, "mx": manner, "lmtp": replace(manner, lmtp=True)}
        self._bind = bind
        self._qmtp = qmtp
        self._timeout_connect = timeout_connect
        self._timeout_dial = timeout_dial
        self._tries = tries
        self.connections: set[SMTPConnection] = set()  # open or opening
        self._sweep = LoopingCall(self._check)
        self._sweep.clock = reactor

    def dial(self, site: bytes, work: Any) -> Deferred[Any]:
        """
        An IConnection for *work*; fails with DeliveryFailure. Cancelling gives up.

        At most *tries* hosts are called. They share *timeout_dial* between them,
        but none has less than ten seconds, and the last of them has all the time
        that RFC 5321 grants it.
        """
        return Deferred.fromCoroutine(self._dial(site, work))

    def close(self) -> None:
        """End all connections in order; those with something outstanding after it."""
        for connection in tuple(self.connections):
            connection.close()

    def abort(self) -> None:
        """Cut all connections."""
        for connection in tuple(self.connections):
            connection.abort()

    async def _dial(self, site: bytes, work: Any) -> Any:
        try:
            hops = parse_site(site)
        except ValueError as error:
            raise DeliveryFailure(Reply(451, "4.3.5", f"cannot tell the next hop: {error}")) from None
        until = self._reactor.seconds() + self._timeout_dial
        left = self._tries
        failures: list[Reply] = []
        for number, hop in enumerate(hops):
            try:
                candidates = (await self._candidates(hop))[:left]
            except DeliveryFailure as failure:
                failures.append(failure.reply)
                continue
            left -= len(candidates)
            others = min(left, len(hops) - number - 1)  # to be called after these, one a hop at least
            for place, candidate in enumerate(candidates):
                behind = len(candidates) - place - 1 + others
                share = max(10, (until - self._reactor.seconds()) / (behind + 1)) if behind else None
                try:
                    return await self._call(hop, candidate, work, share)
                except DeliveryFailure as failure:
                    failures.append(failure.reply)
        raise DeliveryFailure(_verdict(failures))

    async def _candidates(self, hop: Hop) -> Sequence[Candidate]:
        found: Sequence[Candidate]
        if hop.way == "mx":
            # A literal goes there, too: it needs no DNS, but is looked at for a loop.
            domain = hop.host
            if hop.literal:
                domain = f"[IPv6:{domain}]" if isIPv6Address(domain) else f"[{domain}]"
            found = await self._mx.candidates(domain, hop.port)
        elif hop.port == 0 or hop.literal:
            return (Candidate(hop.host, hop.host, hop.port, 0),)
        else:
            found = await self._mx.addresses(hop.host, hop.port)
        if not found:
            raise DeliveryFailure(Reply(451, "4.4.4", f"{hop.host} has no address"))
        return found

    async def _call(self, hop: Hop, candidate: Candidate, work: Any, share: Seconds | None) -> Any:
        """A ready connection to this candidate, within *share* seconds if given."""
        if hop.way == "qmtp":
            if self._qmtp is None:
                raise DeliveryFailure(Reply(451, "4.3.5", "QMTP is not available here"))
            return await self._qmtp(candidate, work)
        manner = self._manners[hop.way]
        try:
            return await self._open(candidate, work, manner, share)
        except TLSFailure:
            if manner.tls_required:
                raise
        # RFC 7435 4: what is encrypted only where it can be goes in clear where it can't.
        return await self._open(candidate, work, replace(manner, tls=None), share)

    async def _open(self, candidate: Candidate, work: Any, manner: Manner, share: Seconds | None) -> SMTPConnection:
        reactor = self._reactor
        connection = SMTPConnection(reactor, work, candidate.host, candidate.address, manner, self.connections.discard)
        timeout = self._timeout_connect if share is None else min(share, self._timeout_connect)
        source = self._source(candidate)
        call = _Call(connection)
        try:
            connector = (
                reactor.connectTCP(candidate.address, candidate.port, call, timeout=timeout, bindAddress=source)
                if candidate.port
                else reactor.connectUNIX(candidate.address, call, timeout=timeout)
            )
        except OSError as error:  # no descriptor left for a unix socket; a TCP connector would report it
            raise DeliveryFailure(Reply(451, "4.4.1", f"cannot connect to {connection.mta}: {error}")) from error
        self._watch(connection)
        timer = None if share is None else reactor.callLater(share, connection.check, math.inf)
        try:
            return await connection.ready
        except BaseException:  # cancelled, too
            self.connections.discard(connection)
            connector.disconnect()
            raise
        finally:
            if timer is not None and timer.active():
                timer.cancel()

    def _source(self, candidate: Candidate) -> tuple[str, int] | None:
        """The address to call this candidate from; None: whichever the kernel takes."""
        if not self._bind or not candidate.port:
            return None
        six = isIPv6Address(candidate.address)
        for address in self._bind:
            if isIPv6Address(address) == six:
                return (address, 0)
        text = f"no source address to reach {candidate.host} ({candidate.address}) from"
        raise DeliveryFailure(Reply(451, "4.4.1", text))

    def _watch(self, connection: SMTPConnection) -> None:
        self.connections.add(connection)
        if not self._sweep.running:
            self._sweep.start(1, now=False)

    def _check(self) -> None:
        """Once a second, while there are connections: whose time is over?"""
        now = self._reactor.seconds()
        for connection in tuple(self.connections):
            try:
                connection.check(now)
            except Exception:  # noqa: BLE001 - whatever one site does with its news, the others' time is kept
                _log.failure("closing {mta}", mta=connection.mta)
        if not self.connections:
            self._sweep.stop()


class _Call(ClientFactory):
    """Brings a connection together with its transport, or tells it why not."""

    noisy = False

    def __init__(self, connection: SMTPConnection) -> None:
        self._connection = connection

    def buildProtocol(self, addr: Any) -> SMTPConnection:
        return self._connection

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._connection.not_reached(reason)


def _verdict(failures: Sequence[Reply]) -> Reply:
    """Of all that was tried: the last word, but a permanent one only if nobody gave hope."""
    return next((reply for reply in reversed(failures) if not reply.permanent), failures[-1])
