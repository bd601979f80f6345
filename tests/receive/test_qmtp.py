import os
import shutil
import tempfile
from ipaddress import ip_network

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, Envelope, MemoryBody, Message, Origin, Replies, Reply, Token
from qmq.receive.draft import Drafts
from qmq.receive.qmtp import QMTPFactory
from qmq.receive.qmtp_session import QMTPServer
from qmq.wire.netstring import pack
from qmq.wire.qmtp_client import QMTPClientWire
from qmq.wire.qmtp_forms import pack_extension

OK = Reply(250, "2.0.0", "ok")
NO = Reply(550, "5.1.1", "no such mailbox")
NOT_OURS = Reply(553, "5.7.1", "not ours")
K = pack(b"Kok (#2.0.0)")
HEADER = b"Subject: x\r\n\r\n"
PEER = IPv4Address("TCP", "192.0.2.7", 999)


def package(
    text: bytes = b"\r" + HEADER, sender: bytes = b"me@x.y", recipients: tuple[bytes, ...] = (b"a@b.c",)
) -> bytes:
    return pack(text) + pack(sender) + pack(b"".join(map(pack, recipients)))


def folder(test: SynchronousTestCase) -> str:
    path = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    return path


class Hop:
    """Keeps what it is sent; answers at once if it was told what."""

    def __init__(self) -> None:
        self.answer: Reply | None = OK
        self.sent: list[tuple[Message, Deferred[Replies]]] = []
        self.lows: list[int | None] = []
        self.texts: list[bytes] = []

    def send(self, message: Message) -> Deferred[Replies]:
        self.lows.append(None)
        return self.keep(message)

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Replies]:
        self.lows.append(low)
        return self.keep(message)

    def keep(self, message: Message) -> Deferred[Replies]:
        self.texts.append(b"".join(message.body.chunks()))
        deferred: Deferred[Replies] = Deferred()
        self.sent.append((message, deferred))
        if self.answer is not None:
            deferred.callback([self.answer] * len(message.envelope.recipients))
        return deferred

    def say(self, number: int, *replies: Reply) -> None:
        self.sent[number][1].callback(replies)


class QMTPServerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.hop = Hop()
        self.folder = folder(self)
        self.seq = 0

    def factory(self, **options: object) -> QMTPFactory:
        arguments: dict[str, object] = {
            "clock": self.clock, "wall": lambda: 1700000000.0, "drafts": Drafts(self.folder, inline=4000),
            "hop": self.hop,
            "next_token": self.next_token, "accept": self.accept, "me": b"alpha.example",
            "peers": (ip_network("192.0.2.0/24"),), "extension": True,
        }  # fmt: skip
        return QMTPFactory(**(arguments | options))  # type: ignore[arg-type]  # of many types

    def next_token(self) -> Token:
        self.seq += 1
        return Token(b"alpha", self.seq)

    def accept(self, recipient: Address, trusted: bool) -> Reply | None:
        return None if trusted or recipient.domain == b"b.c" else NOT_OURS

    def session(
        self, factory: QMTPFactory | None = None, peer: object = PEER, **options: object
    ) -> tuple[QMTPServer, StringTransport]:
        server = (factory or self.factory(**options)).buildProtocol(peer)  # type: ignore[arg-type]  # as Twisted gives it
        assert server is not None
        transport = StringTransport()
        server.makeConnection(transport)
        return server, transport

    def test_plain(self) -> None:
        """A plain client's message goes on with a token of ours, a Received field, and the client's address."""
        server, transport = self.session()
        server.dataReceived(package(b"\nSubject: x\n\nhi\n"))

        ((message, _),) = self.hop.sent
        self.assertEqual(message.envelope, Envelope(
            Token(b"alpha", 1), Address(b"me", b"x.y"), (Address(b"a", b"b.c"),), Origin(b"QMTP", b"192.0.2.7", 999),
        ))  # fmt: skip
        self.assertEqual(self.hop.texts, [HEADER + b"hi\r\n"])
        field = (
            b"Received: from unknown ([192.0.2.7])\r\n\tby alpha.example with QMTP id alpha-1;\r\n"
            b"\tTue, 14 Nov 2023 22:13:20 +0000\r\n"
        )
        self.assertEqual(message.fields, field)
        self.assertEqual(self.hop.lows, [None])
        self.assertEqual(transport.value(), K)

    def test_eight_bit_and_utf8(self) -> None:
        """What QMTP carries without a word is declared for the next hop: eight bits, and UTF-8 addresses."""
        server, _ = self.session()
        server.dataReceived(package("\n\né".encode()) + package(b"\n\n", sender="jörg@x.y".encode()))

        self.assertEqual(
            [(m.envelope.body_type, m.envelope.smtputf8) for m, _ in self.hop.sent],
            [(b"8BITMIME", False), (b"7BIT", True)],
        )

    def test_from_a_peer(self) -> None:
        """A peer's hand-over keeps its token, origin and parameters, and says what is in doubt; answers are in full."""
        envelope = Envelope(
            Token(b"mx1", 77), Address(b"", b""), (Address(b"a", b"other.example"),),
            Origin(b"ESMTPS", b"203.0.113.1", 5, b"h", b"u", made_here=True),
            b"BINARYMIME", smtputf8=True,
        )  # fmt: skip
        server, transport = self.session(peer=UNIXAddress("x"))
        wire = QMTPClientWire(extension=True, mta="m")
        for data in wire.send(Message(envelope, b"", MemoryBody(HEADER + b"a\rb")), 70):
            server.dataReceived(data)

        self.assertEqual(self.hop.sent[0][0].envelope, envelope)
        self.assertEqual((self.hop.lows, self.hop.texts), ([70], [HEADER + b"a\rb"]))
        self.assertIn(b"with QMTP id mx1-4d;", self.hop.sent[0][0].fields)
        self.assertEqual(transport.value(), pack(b"K250 2.0.0 ok"))

    def test_extension_only_for_peers(self) -> None:
        """The extension from a client that may not use it ends the connection unanswered; a named peer may."""
        data = pack_extension(Envelope(Token(b"p", 1), Address(b"", b""), ()), 0) + package()
        for options, taken in (({}, 0), ({"extension_peers": (ip_network("192.0.2.7/32"),)}, 1)):
            self.hop.sent.clear()
            server, transport = self.session(**options)
            server.dataReceived(data)
            self.assertEqual((len(self.hop.sent), transport.disconnecting), (taken, not taken))
            self.assertEqual(transport.value(), pack(b"K250 2.0.0 ok") * taken)

    def test_peers(self) -> None:
        """Only the peers named may connect by TCP, IPv4 in IPv6's clothes too; a unix socket asks nobody."""
        factory = self.factory(peers=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")))
        for host, let_in in (
            ("192.0.2.1", True), ("192.0.3.1", False), ("2001:db8::1", True), ("2001:db9::1", False),
            ("::ffff:192.0.2.1", True), ("fe80::1%eth0", False),
        ):  # fmt: skip
            kind = IPv6Address if ":" in host else IPv4Address
            self.assertEqual(factory.buildProtocol(kind("TCP", host, 1)) is not None, let_in, host)
        self.assertIsNotNone(factory.buildProtocol(UNIXAddress("x")))
        self.assertIsNone(self.factory(peers=()).buildProtocol(PEER))
        self.assertIsNone(factory.buildProtocol(None))

    def test_sessions_limited(self) -> None:
        """Beyond the limit of sessions a connection is closed at once; one that ends makes room."""
        factory = self.factory(sessions=1)
        server, _ = self.session(factory)

        self.assertIsNone(factory.buildProtocol(PEER))
        server.connectionLost()
        self.assertIsNotNone(factory.buildProtocol(PEER))

    def test_each_recipient_its_answer(self) -> None:
        """Recipients that are refused here never reach the next hop, and the answers stay in order."""
        self.hop.answer = None
        server, transport = self.session()
        server.dataReceived(package(recipients=(b"x@no.where", b"a@b.c", b"\0@b.c", b"d@b.c")))
        self.hop.say(0, OK, NO)

        self.assertEqual(self.hop.sent[0][0].envelope.recipients, (Address(b"a", b"b.c"), Address(b"d", b"b.c")))
        self.assertEqual(
            transport.value(),
            pack(b"Dnot ours (#5.7.1)")
            + K
            + pack(b"Drecipient address not acceptable (#5.1.3)")
            + pack(b"Dno such mailbox (#5.1.1)"),
        )

    def test_all_refused(self) -> None:
        """A message with no acceptable recipient is thrown away; so is one without recipients, and nothing is said."""
        server, transport = self.session()
        server.dataReceived(package(b"\r" + b"x\r\n" * 4000, recipients=(b"a@no.where",)) + package(recipients=()))

        self.assertEqual((self.hop.sent, transport.value()), ([], pack(b"Dnot ours (#5.7.1)")))
        self.assertEqual(os.listdir(self.folder), [])

    def test_loop(self) -> None:
        """A message that has been handed on a hundred times is refused, as qmail's QMTP server does not."""
        server, transport = self.session(max_hops=100)
        server.dataReceived(
            package(b"\r" + b"Received: x\r\n" * 99 + HEADER) + package(b"\r" + b"received: x\r\n" * 100 + HEADER)
        )

        self.assertEqual(transport.value(), K + pack(b"Dtoo many hops, this message is looping (#5.4.6)"))

    def test_loop_in_any_text(self) -> None:
        """Only the header's fields are counted, be the text short or long, with an empty header or with no body."""
        received = b"Received: x\r\n"
        for text, loops in (
            (received * 4, False), (received * 5, True), (received * 4 + b"\r\n" + received * 9, False),
            (b"\r\n" + received * 9, False), (b"\r\n" + received * 9 + b"\r\n", False),
            (b"X: y\r\n" * 9 + received * 5 + b"\r\n", True), (b"delivered-to: x\r\n" * 5 + b"\r\n\r\n", True),
            (received * 4 + b"\r\n" + b"x\r\n" * 4000, False), (received * 5 + b"\r\n" + b"x\r\n" * 4000, True),
        ):  # fmt: skip
            server, transport = self.session(max_hops=5)
            server.dataReceived(package(b"\r" + text))
            self.assertEqual(transport.value()[3:5] == b"Dt", loops, text[:200])

    def test_bare_lines_never_go_on(self) -> None:
        """A text with a bare CR or LF is refused and thrown away."""
        server, transport = self.session()
        server.dataReceived(package(b"\rSubject: x\r\n\n.\r\n"))

        self.assertEqual((self.hop.sent, transport.value()), ([], pack(b"Dbare CR or LF in the message (#5.6.0)")))

    def test_too_big(self) -> None:
        """A message over the limit is refused after its end, and takes no room meanwhile."""
        server, transport = self.session(message_octets=10000)
        server.dataReceived(b"20000:\r" + b"x" * 19998)
        self.assertEqual((os.listdir(self.folder), transport.value()), ([], b""))
        server.dataReceived(b"x," + pack(b"") + pack(pack(b"a@b.c")) + package())

        self.assertEqual(transport.value(), pack(b"Dmessage too big (#5.3.4)") + K)

    def test_disk_trouble(self) -> None:
        """A text that cannot be kept here is answered Z, and the session goes on."""
        server, transport = self.session(drafts=Drafts(os.path.join(self.folder, "gone"), inline=10))
        server.dataReceived(package(b"\r" + b"x\r\n" * 9) + package(b"\rx"))

        self.assertEqual(transport.value(), pack(b"Zno space for this message now, try again later (#4.3.1)") + K)

    def test_next_hop_fails(self) -> None:
        """If the next hop breaks its promise and raises, the answer is Z, and the failure is in the log."""
        self.hop.keep = lambda _: fail(RuntimeError())  # type: ignore[method-assign]
        server, transport = self.session()
        server.dataReceived(package())

        self.assertEqual(transport.value(), pack(b"Ztry again later (#4.3.0)"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_window(self) -> None:
        """Packages are taken without waiting for answers, up to the window; then reading stops."""
        self.hop.answer = None
        server, transport = self.session(window=3)
        server.dataReceived(package() * 5)

        self.assertEqual((len(self.hop.sent), transport.producerState), (3, "paused"))
        self.hop.say(0, OK)
        self.assertEqual((len(self.hop.sent), transport.producerState), (4, "paused"))
        self.hop.say(1, OK)
        self.assertEqual(len(self.hop.sent), 5)
        self.hop.say(2, OK)
        self.assertEqual(transport.producerState, "producing")

    def test_held_octets(self) -> None:
        """Reading stops too while too many octets wait for the next hop."""
        self.hop.answer = None
        server, transport = self.session(held=5000)
        server.dataReceived(package(b"\r" + b"x" * 3000) * 4)

        self.assertEqual((len(self.hop.sent), transport.producerState), (2, "paused"))
        self.hop.say(1, OK)
        self.assertEqual((len(self.hop.sent), transport.producerState), (3, "paused"))

    def test_answers_of_a_batch_leave_together(self) -> None:
        """Answers leave in order, and those that one commit gives leave in one write."""
        self.hop.answer = None
        server, _ = self.session()
        writes: list[bytes] = []
        server._write = writes.append
        server.dataReceived(package() * 4)
        self.hop.say(1, NO)
        self.hop.say(0, OK)
        self.hop.say(2, OK)
        self.assertEqual(writes, [])
        self.clock.advance(0)

        self.assertEqual(writes, [K + pack(b"Dno such mailbox (#5.1.1)") + K])
        self.hop.say(3, OK)
        self.assertEqual(writes[1:], [K])

    def test_ten_thousand_at_once(self) -> None:
        """Ten thousand pipelined packages that are answered at once do not exhaust the stack."""
        server, transport = self.session(window=4)
        server.dataReceived(package() * 10000)

        self.assertEqual(transport.value(), K * 10000)

    def test_cut_in_a_package(self) -> None:
        """A connection cut in a package, at any octet, takes it with it: nothing goes on, no draft stays."""
        data = package(b"\r" + b"x\r\n" * 2000)
        for place in (*range(30), 5000, *range(len(data) - 30, len(data))):
            server, transport = self.session()
            server.dataReceived(data[:place])
            server.connectionLost()
            self.assertEqual((self.hop.sent, transport.value(), os.listdir(self.folder)), ([], b"", []))

    def test_cut_before_the_answer(self) -> None:
        """What the next hop had in hand when the connection was lost is finished there, and its file then goes."""
        self.hop.answer = None
        server, transport = self.session()
        server.dataReceived(package(b"\r" + b"x\r\n" * 2000))
        server.connectionLost()
        self.assertEqual(len(os.listdir(self.folder)), 1)
        self.hop.say(0, OK)
        self.clock.advance(1)

        self.assertEqual((transport.value(), os.listdir(self.folder)), (b"", []))

    def test_protocol_error(self) -> None:
        """After a protocol error nothing more is taken; packages before it are answered, and the connection closed."""
        self.hop.answer = None
        server, transport = self.session()
        server.dataReceived(package() + b"00:" + package())
        server.dataReceived(package())
        self.assertEqual((len(self.hop.sent), transport.value(), transport.disconnecting), (1, b"", False))
        self.hop.say(0, OK)

        self.assertEqual((transport.value(), transport.disconnecting), (K, True))

    def test_protocol_error_in_a_text(self) -> None:
        """The draft of a package that turns out not to be one is thrown away."""
        server, transport = self.session()
        server.dataReceived(b"6000:\r" + b"x" * 5999 + b";")

        self.assertEqual((transport.value(), transport.disconnecting, os.listdir(self.folder)), (b"", True, []))

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1)

    def test_stall(self) -> None:
        """A package that does not come on is cut, also one that drips; one that comes slowly but steadily is not."""
        for drip, alive in ((0, False), (1, False), (400, True)):
            server, transport = self.session(peer=UNIXAddress("x"))
            server.dataReceived(b"9000000:\r")
            for _ in range(200):
                server.dataReceived(b"x" * drip) if drip else None
                self.clock.advance(1)
            self.assertEqual(transport.disconnected, not alive, drip)
            server.connectionLost()

    def test_waiting_is_no_stall(self) -> None:
        """A client is not cut for what we keep it waiting for, nor a peer for being idle."""
        self.hop.answer = None
        server, transport = self.session(window=1, peer=UNIXAddress("x"))
        server.dataReceived(package() + package()[:5])
        self.pass_time(5000)
        self.assertFalse(transport.disconnected or transport.disconnecting)
        self.hop.say(0, OK)
        server.dataReceived(package()[5:])
        self.hop.say(1, OK)
        self.pass_time(5000)

        self.assertFalse(transport.disconnected or transport.disconnecting)

    def test_idle_and_session_time(self) -> None:
        """A plain client that is idle too long, or whose hour is over, is let go between packages."""
        _, transport = self.session()
        self.pass_time(299)
        self.assertFalse(transport.disconnecting)
        self.pass_time(2)
        self.assertTrue(transport.disconnecting)
        server, transport = self.session()
        for _ in range(36):
            self.assertFalse(transport.disconnecting)
            server.dataReceived(package())
            self.pass_time(100)
        self.pass_time(2)
        self.assertTrue(transport.disconnecting)

    def test_answers_not_read(self) -> None:
        """A client that does not read its answers gets no more of its packages taken, and is cut after a while."""
        server, transport = self.session(peer=UNIXAddress("x"))
        server.pauseProducing()
        server.dataReceived(package())
        self.assertEqual((self.hop.sent, transport.producerState), ([], "paused"))
        server.resumeProducing()
        self.assertEqual((len(self.hop.sent), transport.producerState), (1, "producing"))
        server.pauseProducing()
        self.pass_time(61)

        self.assertTrue(transport.disconnected)

    def test_last_words_not_read(self) -> None:
        """A session that was ended, but does not go, is cut."""
        factory = self.factory()
        _, transport = self.session(factory, UNIXAddress("x"))
        factory.stop()
        self.assertTrue(transport.disconnecting)
        self.pass_time(61)

        self.assertTrue(transport.disconnected)

    def test_stop(self) -> None:
        """Stopping takes nothing further, answers what was taken, and is over when all sessions are."""
        self.hop.answer = None
        factory = self.factory()
        idle, idle_transport = self.session(factory)
        busy, busy_transport = self.session(factory)
        busy.dataReceived(package() + package()[:-1])
        stopped = factory.stop()
        busy.dataReceived(b",")
        self.assertIsNone(factory.buildProtocol(PEER))
        self.assertTrue(idle_transport.disconnecting)
        self.assertFalse(busy_transport.disconnecting)
        self.hop.say(0, OK)
        self.assertEqual((busy_transport.value(), busy_transport.disconnecting, len(self.hop.sent)), (K, True, 1))
        idle.connectionLost()
        self.assertNoResult(stopped)
        busy.connectionLost()

        self.successResultOf(stopped)
        self.successResultOf(factory.stop())
        self.pass_time(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nothing_to_stop(self) -> None:
        """Without sessions, stopping is over at once."""
        self.successResultOf(self.factory().stop())
