import struct
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.dns import DNSFailure, DNSTrouble, Exchange, NoData, NoSuchDomain, Resolver
from qmq.dns.resolver import absolute

Answers = Callable[[dns.message.Message], Sequence[bytes | OSError]]


def reply(question: dns.message.Message, *records: str, rcode: int = 0, soa: bool = False) -> bytes:
    """An answer with records such as "example.org. 300 IN A 192.0.2.1"."""
    message = dns.message.make_response(question)
    message.set_rcode(dns.rcode.Rcode(rcode))
    for record in records:
        name, ttl, _, kind, text = record.split(" ", 4)
        rrset = dns.rrset.from_text(name, int(ttl), "IN", kind, text)
        message.find_rrset(message.answer, rrset.name, rrset.rdclass, rrset.rdtype, create=True).update(rrset)
        message.find_rrset(message.answer, rrset.name, rrset.rdclass, rrset.rdtype).ttl = int(ttl)
    if soa:
        text = "ns.example.org. root.example.org. 1 2 3 4 60"
        message.authority.append(dns.rrset.from_text("org.", 60, "IN", "SOA", text))
    return message.to_wire(max_size=65535)


class Port:
    """One fresh UDP socket of the fake network; what is sent from it is answered at once."""

    def __init__(self, network: "Network", server: tuple[str, int]) -> None:
        self.network = network
        self.server = server
        self.open = True
        self.waiting: list[bytes | OSError] = []
        self.reader: Any = None

    def send(self, datagram: bytes) -> None:
        """Let the server answer."""
        question = dns.message.from_wire(datagram)
        self.network.asked.append((self.server[0], question))
        self.waiting += self.network.answers(question)

    def recv(self, octets: int) -> bytes:
        """The next datagram, or error."""
        if not self.waiting:
            raise BlockingIOError
        if isinstance(arrived := self.waiting.pop(0), OSError):
            raise arrived
        return arrived

    def deliver(self, datagram: bytes) -> None:
        """A datagram comes late."""
        self.waiting.append(datagram)
        self.reader.doRead()

    def getsockopt(self, level: int, option: int) -> int:
        """No error."""
        return 0

    def close(self) -> None:
        """Noted."""
        self.open = False


class Network(MemoryReactorClock):
    """A reactor whose name servers answer by *answers*."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[tuple[str, dns.message.Message]] = []
        self.ports: list[Port] = []
        self.reading: set[Any] = set()

    def connect(self, server: tuple[str, int]) -> Any:
        """A fresh UDP socket."""
        self.ports.append(Port(self, server))
        return self.ports[-1]

    def addReader(self, reader: Any) -> None:
        """Read what is there."""
        port = reader._socket
        port.reader = reader
        self.reading.add(reader)
        while port.waiting and not reader.over:
            reader.doRead()

    def removeReader(self, reader: Any) -> None:
        """Noted."""
        self.reading.discard(reader)


class Zone:
    """Answers from records; SERVFAIL, NXDOMAIN and silence by name."""

    def __init__(self, *records: str) -> None:
        self.records = records

    def __call__(self, question: dns.message.Message) -> list[bytes]:
        name = question.question[0].name.to_text()
        kind = question.question[0].rdtype.name
        if name.startswith("silent."):
            return []
        if name.startswith("broken."):
            return [reply(question, rcode=dns.rcode.SERVFAIL)]
        if name.startswith("absent."):
            return [reply(question, rcode=dns.rcode.NXDOMAIN, soa=True)]
        mine = [r for r in self.records if r.split(" ")[0] == name and r.split(" ")[3] in {kind, "CNAME"}]
        return [reply(question, *mine, soa=not mine)]


class ResolverTests(SynchronousTestCase):
    def resolver(self, answers: Answers, **options: Any) -> Resolver:
        self.network = Network(answers)
        options.setdefault("servers", [("192.0.2.53", 53)])
        options.setdefault("hosts", "/nonexistent")
        return Resolver(self.network, connect=self.network.connect, **options)

    def test_mx(self) -> None:
        """The exchangers of a domain come with the most preferred first, in lower case, without the final dot."""
        resolver = self.resolver(
            Zone("example.org. 300 IN MX 20 B.example.org.", "example.org. 300 IN MX 10 a.example.org.")
        )

        found = self.successResultOf(resolver.mx("Example.ORG."))

        self.assertEqual(found, (Exchange(10, "a.example.org"), Exchange(20, "b.example.org")))

    def test_null_mx(self) -> None:
        """A null MX (RFC 7505) is an exchanger with an empty name."""
        resolver = self.resolver(Zone("example.org. 300 IN MX 0 ."))

        self.assertEqual(self.successResultOf(resolver.mx("example.org")), (Exchange(0, ""),))

    def test_addresses(self) -> None:
        """A host's IPv4 and IPv6 addresses are both found."""
        resolver = self.resolver(Zone("h.example. 300 IN A 192.0.2.1", "h.example. 300 IN AAAA 2001:db8::1"))

        self.assertEqual(self.successResultOf(resolver.addresses("h.example")), ("192.0.2.1", "2001:db8::1"))

    def test_txt(self) -> None:
        """The strings of a text record are joined without anything between them."""
        resolver = self.resolver(Zone('example.org. 300 IN TXT "v=spf1 " "-all"'))

        self.assertEqual(self.successResultOf(resolver.txt(b"example.org")), (b"v=spf1 -all",))

    def test_ptr(self) -> None:
        """The names of an IPv4 and of an IPv6 address are found; text that is no address has none."""
        six = "1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa."
        resolver = self.resolver(
            Zone("1.2.0.192.in-addr.arpa. 300 IN PTR mail.example.org.", f"{six} 300 IN PTR six.example.org.")
        )

        self.assertEqual(self.successResultOf(resolver.ptr("192.0.2.1")), ("mail.example.org",))
        self.assertEqual(self.successResultOf(resolver.ptr("2001:db8::1")), ("six.example.org",))
        self.failureResultOf(resolver.ptr("fence"), NoSuchDomain)

    def test_failures(self) -> None:
        """NXDOMAIN, no record of the type, and a broken server are three different failures."""
        resolver = self.resolver(Zone("example.org. 300 IN A 192.0.2.1"))

        self.failureResultOf(resolver.mx("absent.example.org"), NoSuchDomain)
        self.failureResultOf(resolver.mx("example.org"), NoData)
        self.failureResultOf(resolver.mx("broken.example.org"), DNSTrouble)

    def test_no_name(self) -> None:
        """What can be no domain name does not exist, and no server is asked for it."""
        resolver = self.resolver(Zone())

        for name in [b"\xff.example", "a..b", "x" * 64 + ".example", "a." * 200, "\u0378.example", "y" * 5000]:
            self.failureResultOf(resolver.mx(name), NoSuchDomain)

        self.assertEqual(self.network.asked, [])

    def test_international(self) -> None:
        """An internationalised name is asked for by its A-labels."""
        resolver = self.resolver(Zone("xn--bcher-kva.example. 300 IN A 192.0.2.1"))

        self.assertEqual(self.successResultOf(resolver.a("Bücher.example")), ("192.0.2.1",))
        self.assertEqual(self.successResultOf(resolver.a("bücher.example".encode())), ("192.0.2.1",))

    def test_no_escapes(self) -> None:
        """A backslash in a name is a letter like others: nobody smuggles a dot into a label with it."""
        self.assertEqual(absolute(b"a\\046b.example").labels, (b"a\\046b", b"example", b""))

    def test_time_out(self) -> None:
        """A silent server is asked twice for 5 s each, a second server in between; then it is trouble."""
        resolver = self.resolver(Zone(), servers=[("192.0.2.1", 53), ("192.0.2.2", 53)])

        found = resolver.a("silent.example")
        for _ in range(4):
            self.assertNoResult(found)
            self.network.advance(5)

        self.failureResultOf(found, DNSTrouble)
        self.assertEqual([server for server, _ in self.network.asked], ["192.0.2.1", "192.0.2.2"] * 2)
        self.assertFalse(any(port.open for port in self.network.ports))
        self.assertEqual(self.network.reading, set())
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_next_server(self) -> None:
        """A server that fails or refuses the connection passes the question to the next at once."""

        def answers(question: dns.message.Message) -> Sequence[bytes | OSError]:
            server = self.network.asked[-1][0]
            if server == "192.0.2.1":
                return [ConnectionRefusedError()]
            if server == "192.0.2.2":
                return [reply(question, rcode=dns.rcode.REFUSED)]
            return [reply(question, "h.example. 300 IN A 192.0.2.9")]

        resolver = self.resolver(answers, servers=[("192.0.2.1", 53), ("192.0.2.2", 53), ("2001:db8::3", 53)])

        self.assertEqual(self.successResultOf(resolver.a("h.example")), ("192.0.2.9",))

    def test_port_lost(self) -> None:
        """A socket that the reactor reports as broken is trouble at once."""
        resolver = self.resolver(Zone(), tries=1)
        found = resolver.a("silent.example")

        self.network.ports[0].reader.connectionLost(Failure(ConnectionLost()))

        self.failureResultOf(found, DNSTrouble)

    def test_interface(self) -> None:
        """What reads datagrams is what the reactor asks for."""
        self.resolver(Zone()).a("silent.example")

        verifyObject(IReadDescriptor, self.network.ports[0].reader)

    def test_edns(self) -> None:
        """Questions carry EDNS; a server that does not know it is asked again without."""

        def answers(question: dns.message.Message) -> list[bytes]:
            if question.edns >= 0:
                return [reply(question, rcode=dns.rcode.FORMERR)]
            return [reply(question, "h.example. 300 IN A 192.0.2.9")]

        resolver = self.resolver(answers)

        self.assertEqual(self.successResultOf(resolver.a("h.example")), ("192.0.2.9",))
        self.assertEqual(self.network.asked[0][1].payload, 1232)

    def test_forgeries(self) -> None:
        """Wrong id, wrong question, a question sent back, and garbage are ignored; the right answer still counts."""

        def answers(question: dns.message.Message) -> list[bytes]:
            right = reply(question, "h.example. 300 IN A 192.0.2.9")
            other = dns.message.make_query("evil.example", "A", id=question.id)
            return [
                b"",
                right[:5],
                struct.pack(">H", question.id ^ 1) + right[2:],
                reply(other, "evil.example. 300 IN A 203.0.113.66"),
                question.to_wire(),
                right[:2] + b"\x84\x00" + b"\xc0\x0c" * 40,
                right[:-3],
                right,
                reply(question, "h.example. 300 IN A 203.0.113.66"),
            ]

        resolver = self.resolver(answers)

        self.assertEqual(self.successResultOf(resolver.a("h.example")), ("192.0.2.9",))

    @given(st.binary(max_size=80))
    def test_any_packet(self, noise: bytes) -> None:
        """No packet whatever makes the resolver stumble: the answer after it is taken."""

        def answers(question: dns.message.Message) -> list[bytes]:
            return [struct.pack(">H", question.id) + noise, reply(question, "h.example. 300 IN A 192.0.2.9")]

        resolver = self.resolver(answers, tries=1)

        found = resolver.a("h.example")
        self.network.advance(5)
        try:
            self.assertEqual(self.successResultOf(found), ("192.0.2.9",))
        except self.failureException:
            raise
        except DNSFailure:  # noise can be a SERVFAIL with the right id: an answer by RFC
            pass

    def test_tcp(self) -> None:
        """An answer cut short is asked for again by TCP, may come in any pieces, and 200 records of it are read."""

        def answers(question: dns.message.Message) -> list[bytes]:
            cut = dns.message.make_response(question)
            cut.flags |= dns.flags.TC
            return [cut.to_wire()]

        resolver = self.resolver(answers)
        found = resolver.mx("big.example")
        host, port, factory, *_ = self.network.tcpClients[0]
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        sent = transport.value()
        wire = reply(
            dns.message.from_wire(sent[2:]), *[f"big.example. 300 IN MX {n} h{n}.example." for n in range(1000)]
        )
        for octet in struct.pack(">H", len(wire)) + wire:
            protocol.dataReceived(bytes([octet]))

        self.assertEqual((host, port, len(sent) - 2), ("192.0.2.53", 53, struct.unpack(">H", sent[:2])[0]))
        exchanges = self.successResultOf(found)
        self.assertEqual(len(exchanges), 200)
        self.assertEqual([e.preference for e in exchanges], sorted(e.preference for e in exchanges))

    def test_tcp_trouble(self) -> None:
        """A TCP connection that is refused, cut, or carries nonsense is trouble, not an exception."""

        def answers(question: dns.message.Message) -> list[bytes]:
            cut = dns.message.make_response(question)
            cut.flags |= dns.flags.TC
            return [cut.to_wire()]

        resolver = self.resolver(answers, tries=3)
        found = resolver.mx("big.example")
        self.network.tcpClients[0][2].clientConnectionFailed(None, Failure(ConnectionLost()))
        cut = self.network.tcpClients[1][2].buildProtocol(None)
        cut.makeConnection(StringTransport())
        cut.connectionLost(Failure(ConnectionDone()))
        nonsense = self.network.tcpClients[2][2].buildProtocol(None)
        nonsense.makeConnection(StringTransport())
        nonsense.dataReceived(b"\x00\x05hello")
        nonsense.dataReceived(b"more")

        self.failureResultOf(found, DNSTrouble)

    def test_cname(self) -> None:
        """A CNAME is followed, within an answer and from answer to answer."""
        resolver = self.resolver(Zone("www.example. 300 IN CNAME a.example.", "a.example. 300 IN A 192.0.2.9"))

        self.assertEqual(self.successResultOf(resolver.a("www.example")), ("192.0.2.9",))

    def test_cname_loop(self) -> None:
        """A loop of CNAMEs, in one answer or over many, is trouble after a bounded number of questions."""

        def within(question: dns.message.Message) -> list[bytes]:
            return [reply(question, "a.example. 300 IN CNAME b.example.", "b.example. 300 IN CNAME a.example.")]

        over = Zone("a.example. 300 IN CNAME b.example.", "b.example. 300 IN CNAME a.example.")

        for answers in (within, over):
            resolver = self.resolver(answers)
            self.failureResultOf(resolver.a("a.example"), DNSTrouble)
            self.assertLessEqual(len(self.network.asked), 8)

    def test_cname_to_nothing(self) -> None:
        """A CNAME whose target has no such record is no data, known from the one answer if it has a SOA."""

        def answers(question: dns.message.Message) -> list[bytes]:
            return [reply(question, "a.example.org. 300 IN CNAME b.example.org.", soa=True)]

        resolver = self.resolver(answers)

        self.failureResultOf(resolver.aaaa("a.example.org"), NoData)
        self.assertEqual(len(self.network.asked), 1)

    def test_one_family_in_trouble(self) -> None:
        """Trouble with the AAAA records does not hide the A records; with no A record it is trouble."""

        def answers(question: dns.message.Message) -> list[bytes]:
            if question.question[0].rdtype == dns.rdatatype.AAAA:
                return [reply(question, rcode=dns.rcode.SERVFAIL)]
            return Zone("h.example. 300 IN A 192.0.2.1")(question)

        resolver = self.resolver(answers)

        self.assertEqual(self.successResultOf(resolver.addresses("h.example")), ("192.0.2.1",))
        self.failureResultOf(resolver.addresses("other.example"), DNSTrouble)
        self.failureResultOf(resolver.addresses("absent.broken.example"), DNSTrouble)

    def test_cache(self) -> None:
        """An answer is asked for once in its TTL, at least 5 s and at most an hour; so is a name that is not there."""
        resolver = self.resolver(
            Zone(
                "h.example. 300 IN A 192.0.2.1",
                "quick.example. 0 IN A 192.0.2.2",
                "slow.example. 999999 IN A 192.0.2.3",
            )
        )
        for name, lasts in [("h.example", 300), ("quick.example", 5), ("slow.example", 3600), ("absent.org", 60)]:
            before = len(self.network.asked)
            ask = lambda name=name: resolver.a(name).addErrback(lambda f: f.trap(NoSuchDomain))  # noqa: E731
            self.successResultOf(ask())
            self.network.advance(lasts - 0.1)
            self.successResultOf(ask())
            self.assertEqual(len(self.network.asked), before + 1, name)
            self.network.advance(0.2)
            self.successResultOf(ask())
            self.assertEqual(len(self.network.asked), before + 2, name)

    def test_trouble_not_cached(self) -> None:
        """Trouble is not remembered: the next one who asks may be luckier."""
        resolver = self.resolver(Zone())

        self.failureResultOf(resolver.a("broken.example"), DNSTrouble)
        self.network.answers = lambda question: [reply(question, "broken.example. 300 IN A 192.0.2.1")]

        self.assertEqual(self.successResultOf(resolver.a("broken.example")), ("192.0.2.1",))

    def test_cache_bounded(self) -> None:
        """The cache keeps the latest used answers, bounded in number and in octets."""
        many = Zone(*[f"h{n}.example. 300 IN A 192.0.2.1" for n in range(9)])
        for options in ({"entries": 3}, {"octets": 900}):
            resolver = self.resolver(many, **options)
            for n in range(9):
                self.successResultOf(resolver.a(f"h{n}.example"))
                self.successResultOf(resolver.a("h0.example"))
            self.assertLessEqual(len(resolver._cache), 3)
            self.assertEqual(len(self.network.asked), 9, "what is in use stays")

    def test_single_flight(self) -> None:
        """Those who ask the same at the same time share one question; one who gives up does not disturb the others."""
        waiting: list[dns.message.Message] = []

        def answers(question: dns.message.Message) -> list[bytes]:
            waiting.append(question)
            return []

        resolver = self.resolver(answers)
        first, second, third = [resolver.a("h.example") for _ in range(3)]
        first.cancel()
        self.failureResultOf(first)
        self.network.ports[0].deliver(reply(waiting[0], "h.example. 300 IN A 192.0.2.1"))

        self.assertEqual(self.successResultOf(second), ("192.0.2.1",))
        self.assertEqual(self.successResultOf(third), ("192.0.2.1",))
        self.assertEqual(len(waiting), 1)

    def test_flights_bounded(self) -> None:
        """More questions under way than the bound are trouble at once, not sockets."""
        resolver = self.resolver(Zone(), flights=3)

        under_way = [resolver.a(f"silent.{n}") for n in range(3)]

        self.failureResultOf(resolver.a("silent.3"), DNSTrouble)
        self.network.advance(5)
        self.network.advance(5)
        for found in under_way:
            self.failureResultOf(found, DNSTrouble)
        self.assertEqual(self.successResultOf(resolver.addresses("localhost")), ("127.0.0.1", "::1"))

    def test_no_socket(self) -> None:
        """Out of descriptors is trouble, not an exception in the face of the caller."""

        def connect(server: tuple[str, int]) -> Any:
            raise OSError(24, "Too many open files")

        resolver = Resolver(MemoryReactorClock(), servers=[("192.0.2.53", 53)], connect=connect)

        self.failureResultOf(resolver.a("h.example"), DNSTrouble)

    def test_local_names(self) -> None:
        """localhost, IP addresses and the names in the hosts file are known without asking a server."""
        with tempfile.NamedTemporaryFile("w") as hosts:
            hosts.write("192.0.2.7 Mail.customer.example mail # ours\nnonsense\n\n2001:db8::7 mail.customer.example\n")
            hosts.flush()
            resolver = self.resolver(Zone(), hosts=hosts.name)

            for name, found in [
                ("localhost", ("127.0.0.1", "::1")),
                (b"x.localhost.", ("127.0.0.1", "::1")),
                ("192.0.2.66", ("192.0.2.66",)),
                ("mail.customer.EXAMPLE", ("192.0.2.7", "2001:db8::7")),
            ]:
                self.assertEqual(self.successResultOf(resolver.addresses(name)), found)
            self.assertEqual(self.successResultOf(resolver.ptr("192.0.2.7")), ("mail.customer.example", "mail"))
            self.assertEqual(self.network.asked, [])

    def test_hosts_changes(self) -> None:
        """A change in the hosts file counts within 5 s."""
        with tempfile.NamedTemporaryFile("w") as hosts:
            resolver = self.resolver(Zone(), hosts=hosts.name)
            self.failureResultOf(resolver.addresses("mail.example"), NoData)
            hosts.write("192.0.2.7 mail.example\n")
            hosts.flush()
            self.network.advance(5)

            self.assertEqual(self.successResultOf(resolver.addresses("mail.example")), ("192.0.2.7",))

    def test_resolv_conf(self) -> None:
        """The first three servers of resolv.conf are asked; without any, this machine is."""
        with tempfile.NamedTemporaryFile("w") as conf:
            conf.write("# x\nsearch example\nnameserver 192.0.2.1\nnameserver 2001:db8::2\noptions edns0\n")
            conf.flush()
            resolver = self.resolver(Zone(), servers=None, resolv_conf=conf.name)
            self.failureResultOf(resolver.a("broken.example"), DNSTrouble)
        self.assertEqual([server for server, _ in self.network.asked], ["192.0.2.1", "2001:db8::2"] * 2)

        resolver = self.resolver(Zone(), servers=None, resolv_conf="/nonexistent")
        self.failureResultOf(resolver.a("broken.example"), DNSTrouble)
        self.assertEqual(self.network.asked[0][0], "127.0.0.1")
