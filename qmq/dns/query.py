"""
One question put to the name servers, by UDP, and by TCP if the answer is cut short.

Each datagram leaves from a fresh port with a fresh id, on a connected socket:
the kernel drops what comes from anywhere else. What is no answer to the
question (wrong id, wrong name, garbage) is as if it had not come, and we go on
listening, so that one forged packet cannot turn into a failure.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Octets, Seconds

# dns-oarc's flag day 2020: what passes every path without fragments.
PAYLOAD: Octets = 1232

# Records read of an answer: a thousand take 50 ms to parse, and a hostile domain has any number of names.
RECORDS = 200
# Packets taken in one go, so that a flood of forged ones leaves time for others.
_BURST = 16

Server = tuple[str, int]  # IP address and port
T = TypeVar("T")


class DNSFailure(Exception):
    """A name has no answer; which kind says whether to ask again."""


class NoSuchDomain(DNSFailure):
    """The name does not exist (NXDOMAIN), or cannot be a name at all."""


class NoData(DNSFailure):
    """The name exists, without a record of this type."""


class DNSTrouble(DNSFailure):
    """Nobody could say for now: time-out, SERVFAIL, no sense in the answer. Temporary."""


class Query:
    """
    Asks *servers* in order, each *tries* times for at most *timeout* seconds.

    *reactor* provides IReactorFDSet, IReactorTCP and IReactorTime; *connect* makes a UDP socket.
    """

    def __init__(
        self,
        reactor: Any,
        timeout: Seconds = 5,
        tries: int = 2,
        connect: Callable[[Server], socket.socket] | None = None,
    ) -> None:
        self._reactor = reactor
        self._connect = connect or _connected
        self._timeout = timeout
        self._tries = tries

    async def ask(
        self, servers: Sequence[Server], name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> dns.message.QueryMessage:
        """The first answer that is NOERROR or NXDOMAIN; raises DNSTrouble if no server has one."""
        edns = True
        trouble = "no name server"
        for _ in range(self._tries):
            for server in servers:
                question = dns.message.make_query(name, kind, use_edns=edns, payload=PAYLOAD if edns else None)
                try:
                    answer = await self._ask(server, question)
                except DNSTrouble as failure:
                    trouble = str(failure)
                    continue
                code = answer.rcode()
                if code in {dns.rcode.NOERROR, dns.rcode.NXDOMAIN}:
                    return answer
                if code in {dns.rcode.FORMERR, dns.rcode.BADVERS}:
                    edns = False  # RFC 6891 7: a server of before EDNS; the next try does without
                trouble = f"{server[0]} says {dns.rcode.to_text(code)}"
        raise DNSTrouble(f"{name.to_text(omit_final_dot=True)} {kind.name}: {trouble}")

    async def _ask(self, server: Server, question: dns.message.QueryMessage) -> dns.message.QueryMessage:
        answer = await self._by_udp(server, question)
        if answer.flags & dns.flags.TC:
            answer = await self._by_tcp(server, question)
        return answer

    async def _by_udp(self, server: Server, question: dns.message.QueryMessage) -> dns.message.QueryMessage:
        try:
            opened = self._connect(server)
        except OSError as failure:  # no descriptor, no such family, no way there: as good as no answer
            raise DNSTrouble(f"{server[0]}: {failure}") from failure
        datagrams = _Datagrams(opened, question)
        try:
            opened.send(question.to_wire())
            self._reactor.addReader(datagrams)
            return await self._timely(datagrams.answered, server)
        except OSError as failure:
            raise DNSTrouble(f"{server[0]}: {failure}") from failure
        finally:
            datagrams.over = True
            self._reactor.removeReader(datagrams)
            opened.close()

    async def _by_tcp(self, server: Server, question: dns.message.QueryMessage) -> dns.message.QueryMessage:
        stream = _Stream(question)
        connector = self._reactor.connectTCP(*server, _Streams(stream), timeout=self._timeout)
        try:
            return await self._timely(stream.answered, server)
        finally:
            stream.over = True
            connector.disconnect()

    async def _timely(self, answered: Deferred[T], server: Server) -> T:
        try:
            return await answered.addTimeout(self._timeout, self._reactor)
        except Late as late:
            raise DNSTrouble(f"{server[0]} is silent") from late


def _answer(question: dns.message.QueryMessage, wire: bytes) -> dns.message.QueryMessage | None:
    """The answer in *wire*, perhaps cut short (TC), or None if it is none to this question."""
    if len(wire) < 12 or int.from_bytes(wire[:2], "big") != question.id or int.from_bytes(wire[4:6], "big") > 1:
        return None
    many = int.from_bytes(wire[6:8], "big") > RECORDS
    if many:
        wire = wire[:6] + RECORDS.to_bytes(2, "big") + bytes(4) + wire[12:]
    try:
        answer = dns.message.from_wire(wire, raise_on_truncation=True, ignore_trailing=many)
    except dns.message.Truncated as cut:
        answer = cut.message()
    except Exception:  # noqa: BLE001 - whatever a hostile packet can raise, it is no answer
        return None
    if not isinstance(answer, dns.message.QueryMessage) or not question.is_response(answer):
        return None
    return answer


def _connected(server: Server) -> socket.socket:
    """A UDP socket at a port that the system draws, which hears *server* alone."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    datagrams = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        datagrams.connect(server)
    except OSError:
        datagrams.close()
        raise
    return datagrams


@implementer(IReadDescriptor)
class _Datagrams:
    """
    One question's socket.

    Not a Twisted UDP port: that writes two lines to the log when it opens and
    closes, for every question.
    """

    def __init__(self, datagrams: socket.socket, question: dns.message.QueryMessage) -> None:
        self.answered: Deferred[dns.message.QueryMessage] = Deferred()
        self.over = False
        self._socket = datagrams
        self._question = question

    def fileno(self) -> int:
        return self._socket.fileno()

    def logPrefix(self) -> str:
        return "dns"

    def doRead(self) -> None:
        for _ in range(_BURST):
            try:
                datagram = self._socket.recv(65535)
            except BlockingIOError:
                return
            except OSError as failure:
                self._failed(str(failure))
                return
            if self.over:
                return
            if (answer := _answer(self._question, datagram)) is not None:
                self.over = True
                self.answered.callback(answer)
                return

    def connectionLost(self, reason: Failure) -> None:
        # On epoll an ICMP "port unreachable" comes this way.
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._failed(os.strerror(number) if number else reason.getErrorMessage())

    def _failed(self, why: str) -> None:
        if not self.over:
            self.over = True
            self.answered.errback(DNSTrouble(why))


class _Stream(Protocol):
    """RFC 1035 4.2.2: each message has its length in two octets before it."""

    def __init__(self, question: dns.message.QueryMessage) -> None:
        self.answered: Deferred[dns.message.QueryMessage] = Deferred()
        self.over = False
        self._question = question
        self._pieces = bytearray()

    def connectionMade(self) -> None:
        assert self.transport is not None
        self.transport.write(self._question.to_wire(prepend_length=True))

    def dataReceived(self, data: bytes) -> None:
        if self.over:
            return
        self._pieces += data
        length = int.from_bytes(self._pieces[:2], "big")
        if len(self._pieces) < 2 + length or len(self._pieces) < 2:
            return
        answer = _answer(self._question, bytes(self._pieces[2 : 2 + length]))
        if answer is None or answer.flags & dns.flags.TC:
            # In a stream nobody else can speak: it is the server that makes no sense.
            self.failed(DNSTrouble("no sense in the answer"))
        else:
            self.over = True
            self.answered.callback(answer)

    def connectionLost(self, reason: Failure = Failure(ConnectionError())) -> None:  # noqa: B008 - Twisted's signature
        self.failed(DNSTrouble("cut off"))

    def failed(self, trouble: DNSTrouble) -> None:
        if not self.over:
            self.over = True
            self.answered.errback(trouble)


class _Streams(ClientFactory):
    noisy = False

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def buildProtocol(self, addr: Any) -> _Stream:
        return self._stream

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._stream.failed(DNSTrouble(f"no connection: {reason.getErrorMessage()}"))
