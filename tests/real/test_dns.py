"""The resolver against a name server on loopback that does all that hostile ones do."""

import itertools
import struct
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import pytest_twisted
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import DatagramProtocol, Factory
from twisted.protocols.basic import Int16StringReceiver

from qmq.deliver.mx import MX, Candidate
from qmq.dns import DNSTrouble, Exchange, NoSuchDomain, Resolver
from qmq.mail import DeliveryFailure


def answer(question: dns.message.Message, kind: str, *texts: str) -> bytes:
    """The question's name has records of *kind*."""
    message = dns.message.make_response(question)
    message.answer.append(dns.rrset.from_text(question.question[0].name, 300, "IN", kind, *texts))
    return message.to_wire(max_size=65535)


def failure(question: dns.message.Message, rcode: int, *, cut: bool = False) -> bytes:
    """An answer without records."""
    message = dns.message.make_response(question)
    message.set_rcode(dns.rcode.Rcode(rcode))
    if cut:
        message.flags |= dns.flags.TC
    return message.to_wire()


def misbehave(question: dns.message.Message, *, stream: bool) -> list[bytes]:
    """What a server says, by the first label of the name."""
    right = answer(question, "A", "192.0.2.1")
    behaviour = question.question[0].name.labels[0].decode()
    if question.question[0].rdtype.name == "AAAA":
        return [failure(question, dns.rcode.NOERROR)]
    match behaviour:
        case "wrongid":
            return [struct.pack(">H", question.id ^ n) + right[2:] for n in range(1, 50)] + [right]
        case "wrongquestion":
            other = dns.message.make_query("evil.example", "A", id=question.id)
            return [answer(other, "A", "203.0.113.66"), right]
        case "garbage":
            return [b"", b"\xff" * 11, right[:2] + b"\xc0\x0c" * 200, right[:-1], right[:12] + b"\xc0\x0c" * 9, right]
        case "question":
            return [question.to_wire(), right]
        case "servfail":
            return [failure(question, dns.rcode.SERVFAIL)]
        case "absent":
            return [failure(question, dns.rcode.NXDOMAIN)]
        case "cname":
            return [answer(question, "CNAME", "cname.two.example.") if "one" in str(question) else
                    answer(question, "CNAME", "cname.one.example.")]  # fmt: skip
        case "many" if stream:
            return [answer(question, "MX", *[f"{n % 7} wrongid.h{n}.example." for n in range(1000)])]
        case "cutagain" | "many":
            return [failure(question, dns.rcode.NOERROR, cut=True)]
        case "null":
            return [answer(question, "MX", "0 .")]
        case "silent":
            return []
    return [right]


class Datagrams(DatagramProtocol):
    """The UDP side; remembers where questions came from."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.ids: list[int] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer as the name says."""
        question = dns.message.from_wire(datagram)
        self.ports.append(addr[1])
        self.ids.append(question.id)
        for packet in misbehave(question, stream=False):
            assert self.transport is not None
            self.transport.write(packet, addr)


class Streams(Int16StringReceiver):
    """The TCP side."""

    def stringReceived(self, string: bytes) -> None:
        """Answer as the name says."""
        for packet in misbehave(dns.message.from_wire(string), stream=True):
            self.sendString(packet)


class Server:
    """The hostile server, and a resolver that has no other."""

    def __init__(self, reactor: Any) -> None:
        self.datagrams = Datagrams()
        self.listeners = list(self._listen(reactor))
        port = self.listeners[0].getHost().port
        self.resolver = Resolver(reactor, servers=[("127.0.0.1", port)], hosts="/nonexistent", timeout=0.3)

    def _listen(self, reactor: Any) -> tuple[Any, Any]:
        """UDP and TCP on the same port, which others may have taken for one of them."""
        while True:
            streams = reactor.listenTCP(0, Factory.forProtocol(Streams), interface="127.0.0.1")
            try:
                return reactor.listenUDP(streams.getHost().port, self.datagrams, interface="127.0.0.1"), streams
            except CannotListenError:
                streams.stopListening()

    async def stop(self) -> None:
        """Close both sides; again does nothing."""
        while self.listeners:
            await self.listeners.pop().stopListening()


@pytest_twisted.async_yield_fixture
async def server() -> AsyncIterator[Server]:
    """Listens on loopback for a test's time."""
    from twisted.internet import reactor

    server = Server(reactor)
    yield server
    await server.stop()


@pytest.mark.parametrize("behaviour", ["wrongid", "wrongquestion", "garbage", "question", "good"])
@pytest_twisted.ensureDeferred
async def test_forgeries(server: Server, behaviour: str) -> None:
    """Forged and broken packets are passed over, and the right answer behind them is taken."""
    assert await server.resolver.a(f"{behaviour}.example") == ("192.0.2.1",)


@pytest.mark.parametrize("behaviour", ["servfail", "cname", "cutagain", "silent"])
@pytest_twisted.ensureDeferred
async def test_trouble(server: Server, behaviour: str) -> None:
    """SERVFAIL, endless CNAMEs, an answer cut short even by TCP, and silence are temporary trouble."""
    with pytest.raises(DNSTrouble):
        await server.resolver.mx(f"{behaviour}.one.example")


@pytest_twisted.ensureDeferred
async def test_no_such_domain(server: Server) -> None:
    """NXDOMAIN is for good."""
    with pytest.raises(NoSuchDomain):
        await server.resolver.mx("absent.example")


@pytest_twisted.ensureDeferred
async def test_thousand_exchangers(server: Server) -> None:
    """Of a thousand MX records, which come by TCP, two hundred are read, and the best twenty hosts are to be tried."""
    mx = MX(server.resolver, own=list, own_names=[], random=Random(1))

    exchanges = await server.resolver.mx("many.example")
    candidates = await mx.candidates(b"many.example")

    assert len(exchanges) == 200
    assert {candidate.preference for candidate in candidates} == {0}
    assert isinstance(exchanges[0], Exchange)
    assert len(candidates) == 20
    assert candidates[0] == Candidate(candidates[0].host, "192.0.2.1", 25, 0)


@pytest_twisted.ensureDeferred
async def test_null_mx(server: Server) -> None:
    """A domain with a null MX takes no mail, for good."""
    mx = MX(server.resolver, own=list, own_names=[], random=Random(1))

    with pytest.raises(DeliveryFailure) as failure:
        await mx.candidates(b"null.example")

    assert (failure.value.reply.code, failure.value.reply.status) == (556, "5.1.10")


@pytest_twisted.ensureDeferred
async def test_fresh_ports(server: Server) -> None:
    """Each question leaves from a port of its own, with an id of its own, neither in a row."""
    for n in range(30):
        await server.resolver.a(f"good.n{n}.example")

    for numbers in (server.datagrams.ports, server.datagrams.ids):
        assert len(set(numbers)) > 25
        assert sum(abs(a - b) < 3 for a, b in itertools.pairwise(numbers)) < 5


@pytest_twisted.ensureDeferred
async def test_nobody_listens(server: Server) -> None:
    """A port where nobody listens is known at once, not after the time-out."""
    from twisted.internet import reactor

    port = server.listeners[0].getHost().port
    await server.stop()
    resolver = Resolver(reactor, servers=[("127.0.0.1", port)], timeout=15, tries=1)

    with pytest.raises(DNSTrouble, match="refused"):
        await resolver.a("good.example")
