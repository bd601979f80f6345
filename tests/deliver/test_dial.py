from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.deliver.dial import Dialler, Hop, parse_site
from qmq.deliver.manner import Manner
from qmq.deliver.mx import Candidate
from qmq.interfaces import IDialler
from qmq.mail import DeliveryFailure, Reply
from tests.deliver.test_smtp import EHLO, Transport, Work


class ParseSiteTests(SynchronousTestCase):
    def test_hops(self) -> None:
        """A site is one or more hops, each a way, a host and a port."""
        for text, hops in (
            (b"smtp:Mail.Example.org", [Hop("smtp", "mail.example.org", 25)]),
            (b"smtp:mail.example.org.:587", [Hop("smtp", "mail.example.org", 587)]),
            (b"smtp:192.0.2.1:26", [Hop("smtp", "192.0.2.1", 26)]),
            (b"smtp:[2001:DB8::1]", [Hop("smtp", "2001:db8::1", 25)]),
            (b"smtp:[IPv6:2001:db8::1]:26", [Hop("smtp", "2001:db8::1", 26)]),
            (b"lmtp:[192.0.2.1]:24", [Hop("lmtp", "192.0.2.1", 24)]),
            (b"lmtp:/run/lmtp.sock", [Hop("lmtp", "/run/lmtp.sock", 0)]),
            (b"qmtp:host", [Hop("qmtp", "host", 209)]),
            (b"mx:example.org", [Hop("mx", "example.org", 25)]),
            (b"mx:[192.0.2.1]", [Hop("mx", "192.0.2.1", 25)]),
            ("mx:b\u00fccher.example".encode(), [Hop("mx", "b\u00fccher.example", 25)]),
            (b" mx:a.example  smtp:b.example ", [Hop("mx", "a.example", 25), Hop("smtp", "b.example", 25)]),
        ):
            self.assertEqual(list(parse_site(text)), hops)

    def test_wrong(self) -> None:
        """What is no site is refused with a text that says what is wrong."""
        for text in (
            b"", b" ", b"mx", b"smtp", b"smtp:", b"http:host", b"smtp:a b", b"smtp:host:", b"smtp:host:0",
            b"smtp:host:65536", b"smtp:host:+1", b"smtp:host:1_0", "smtp:host:\u0661".encode(), b"smtp:host:999999999",
            b"smtp:2001:db8::1", b"smtp:[2001:db8::1", b"smtp:[x]", b"smtp:[192.0.2.1]x", b"smtp:/path", b"lmtp:host",
            b"smtp:-x", b"smtp:a..b", b"smtp:a/b", b"smtp:\xff", b"mx:a@b", b"smtp:a\0b", b"smtp:" + b"a" * 300,
        ):  # fmt: skip
            error = self.assertRaises(ValueError, parse_site, text)
            self.assertGreater(len(str(error)), 10)


class Exchangers:
    """Answers from a table."""

    def __init__(self, **table) -> None:
        self.table = table
        self.asked: list[str] = []

    def candidates(self, domain: str, port: int = 25):
        return self.addresses(domain, port)

    def addresses(self, host: str, port: int):
        self.asked.append(host)
        answer = self.table[host.partition(".")[0].strip("[")]
        if isinstance(answer, Reply):
            return fail(DeliveryFailure(answer))
        return succeed([Candidate(host, address, port, 0) for address in answer])


class DiallerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.mx = Exchangers(
            two=["192.0.2.1", "192.0.2.2"],
            six=["2001:db8::1", "192.0.2.6"],
            none=Reply(556, "5.1.10", "null MX"),
            later=Reply(451, "4.4.3", "DNS"),
            many=[f"192.0.2.{i}" for i in range(100, 130)],
        )
        self.work = Work()

    def dial(self, site: bytes, manner: Manner | None = None, **arguments) -> Deferred:
        self.dialler = Dialler(self.reactor, self.mx, manner or Manner(helo=b"me"), **arguments)
        return self.dialler.dial(site, self.work)

    def called(self) -> list[tuple[str, int]]:
        """Whom we have called so far."""
        return [(call[0], call[1]) for call in self.reactor.tcpClients]

    def refuse(self) -> None:
        """The last call is refused."""
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(Refused()))

    def answer(self, *answers: bytes) -> Transport:
        """The last call is answered, with these words."""
        transport = Transport()
        self.connection = self.reactor.tcpClients[-1][2].buildProtocol(None)
        self.connection.makeConnection(transport)
        for words in answers:
            self.connection.dataReceived(words)
        return transport

    def reply(self, dialled: Deferred) -> Reply:
        return self.failureResultOf(dialled, DeliveryFailure).value.reply

    def test_interface(self) -> None:
        """It is an IDialler."""
        self.dial(b"smtp:[192.0.2.9]")
        self.assertTrue(verifyObject(IDialler, self.dialler))

    def test_literal(self) -> None:
        """An address is called without a question to DNS, by its port and from our address."""
        dialled = self.dial(b"smtp:192.0.2.9:26", bind=["192.0.2.77"], timeout_connect=7)
        self.answer(b"220 hi\r\n", EHLO)

        self.assertIs(self.successResultOf(dialled), self.connection)
        self.assertEqual(
            self.reactor.tcpClients[0][0:2] + self.reactor.tcpClients[0][3:], ("192.0.2.9", 26, 7, ("192.0.2.77", 0))
        )
        self.assertEqual(self.mx.asked, [])
        self.assertEqual(self.connection.mta, "[192.0.2.9]")

    def test_mx_literal(self) -> None:
        """An address literal of a domain goes to the judge of loops, in its brackets."""
        self.dial(b"mx:[IPv6:2001:db8::5]").addErrback(lambda _: None)

        self.assertEqual(self.mx.asked, ["[IPv6:2001:db8::5]"])

    def test_next_candidate(self) -> None:
        """If a host can't be reached or does not greet the next is tried."""
        dialled = self.dial(b"mx:two.example")
        self.refuse()
        self.assertEqual(self.called(), [("192.0.2.1", 25), ("192.0.2.2", 25)])
        self.answer(b"220 hi\r\n", EHLO)

        self.assertEqual(self.successResultOf(dialled).mta, "two.example (192.0.2.2)")

        dialled = self.dial(b"mx:two.example")
        self.answer(b"554 no\r\n")
        self.answer(b"220 hi\r\n", EHLO)
        self.successResultOf(dialled)

    def test_all_fail(self) -> None:
        """If all hosts fail it is temporary, unless each said that it takes no mail."""
        dialled = self.dial(b"mx:two.example")
        self.answer(b"554 no\r\n")
        self.refuse()
        self.assertEqual(self.reply(dialled).status, "4.4.1")

        dialled = self.dial(b"mx:two.example")
        self.answer(b"554 no\r\n")
        self.answer(b"554 5.7.1 never\r\n")
        self.assertEqual(self.reply(dialled), Reply(554, "5.7.1", "never", "two.example (192.0.2.2)"))

        dialled = self.dial(b"mx:two.example")
        self.answer(b"421 busy\r\n")
        self.answer(b"550 no\r\n")
        self.assertEqual(self.reply(dialled).code, 450)

    def test_fallback(self) -> None:
        """If a hop leads nowhere the next is tried; its failure counts with the others."""
        dialled = self.dial(b"mx:none.example smtp:two.example:26")
        self.assertEqual(self.called(), [("192.0.2.1", 26)])
        self.answer(b"220 hi\r\n", EHLO)
        self.successResultOf(dialled)

        self.assertEqual(self.reply(self.dial(b"mx:none.example")).code, 556)
        self.assertEqual(self.reply(self.dial(b"mx:later.example mx:none.example")).code, 451)

    def test_silent_hosts_share_the_time(self) -> None:
        """Hosts that say nothing have a share of the time each; the last has what RFC 5321 grants."""
        dialled = self.dial(b"mx:two.example")
        self.answer()
        for _ in range(61):
            self.reactor.advance(1)
        self.assertEqual(len(self.called()), 2)
        self.answer()
        for _ in range(299):
            self.reactor.advance(1)
        self.assertNoResult(dialled)
        self.reactor.advance(1)

        self.assertEqual(self.reply(dialled).status, "4.4.2")
        self.reactor.advance(1)
        self.assertEqual(self.dialler.connections, set())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_ten_at_most(self) -> None:
        """Of many hosts ten are tried."""
        dialled = self.dial(b"mx:many.example")
        for _ in range(10):
            self.refuse()

        self.reply(dialled)
        self.assertEqual(len(self.called()), 10)

    def test_clear_after_tls(self) -> None:
        """If STARTTLS comes to nothing the same host is called once more, in clear; not if encryption is required."""
        for required in (False, True):
            self.reactor.tcpClients.clear()
            dialled = self.dial(b"smtp:[192.0.2.9]", Manner(tls=lambda host: host, tls_required=required))
            self.answer(b"220 hi\r\n", EHLO, b"220 go\r\n")
            self.connection.connectionLost(Failure(Refused()))
            if required:
                self.reply(dialled)
                self.assertEqual(len(self.called()), 1)
            else:
                self.answer(b"220 hi\r\n", EHLO)
                self.assertEqual(self.successResultOf(dialled).tls, "")

    def test_source_family(self) -> None:
        """A host is never called from an address that was not given."""
        dialled = self.dial(b"mx:six.example", bind=["192.0.2.77"])
        self.assertEqual(self.called(), [("192.0.2.6", 25)])
        self.refuse()

        self.assertEqual(self.reply(dialled).status, "4.4.1")

    def test_unix_socket(self) -> None:
        """LMTP goes to a socket in the file system, too."""
        dialled = self.dial(b"lmtp:/run/lmtp")
        path, factory = self.reactor.unixClients[0][:2]
        connection = factory.buildProtocol(None)
        transport = Transport()
        connection.makeConnection(transport)
        connection.dataReceived(b"220 hi\r\n")

        self.assertEqual((path, transport.value()), ("/run/lmtp", b"LHLO me\r\n"))
        connection.dataReceived(b"250 ok\r\n")
        self.successResultOf(dialled)

    def test_no_descriptor_left(self) -> None:
        """Where not even a socket can be made, the next hop is tried, and nothing is broken."""

        def connect(*_: object, **__: object) -> None:
            raise OSError(24, "Too many open files")

        self.patch(self.reactor, "connectUNIX", connect)
        reply = self.reply(self.dial(b"lmtp:/run/lmtp"))

        self.assertEqual((reply.code, reply.status), (451, "4.4.1"))
        self.assertIn("Too many open files", reply.text)

    def test_qmtp(self) -> None:
        """QMTP is for those who know it, host by host."""
        asked = []

        def qmtp(candidate: Candidate, work: Work):
            asked.append(candidate.address)
            return fail(DeliveryFailure(Reply(451, "4.4.1", "no"))) if len(asked) == 1 else succeed("connection")

        self.assertEqual(self.successResultOf(self.dial(b"qmtp:two.example", qmtp=qmtp)), "connection")
        self.assertEqual(asked, ["192.0.2.1", "192.0.2.2"])
        self.assertEqual(self.reply(self.dial(b"qmtp:two.example")).status, "4.3.5")

    def test_cancelled(self) -> None:
        """Who cancels leaves nothing behind."""
        for connected in (False, True):
            dialled = self.dial(b"smtp:[192.0.2.9]")
            transport = self.answer() if connected else None
            dialled.cancel()
            self.failureResultOf(dialled)
            self.reactor.advance(1)
            self.assertEqual(self.dialler.connections, set())
            self.assertEqual(self.reactor.getDelayedCalls(), [])
            if transport is not None:
                self.assertTrue(transport.aborted)

    def test_bad_site(self) -> None:
        """A site that can't be read defers."""
        self.assertEqual(self.reply(self.dial(b"nonsense")).code, 451)

    def test_idle_time_is_kept(self) -> None:
        """The dialler looks after the time of open connections until they are gone."""
        dialled = self.dial(b"smtp:[192.0.2.9]")
        transport = self.answer(b"220 hi\r\n", EHLO)
        self.successResultOf(dialled)
        for _ in range(31):
            self.reactor.advance(1)

        self.assertTrue(transport.value().endswith(b"QUIT\r\n"))
        self.connection.connectionLost(Failure(Refused()))
        self.reactor.advance(1)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_close_and_abort(self) -> None:
        """All connections can be ended in order, or cut."""
        self.dial(b"smtp:[192.0.2.9]")
        transport = self.answer(b"220 hi\r\n", EHLO)
        self.dialler.close()
        self.assertTrue(transport.value().endswith(b"QUIT\r\n"))
        self.dialler.abort()
        self.assertTrue(transport.aborted)
