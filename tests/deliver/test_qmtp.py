import os
import shutil
import tempfile

from twisted.internet import error
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.deliver.qmtp import QMTPClient, dial_qmtp
from qmq.deliver.qmtp_line import Line
from qmq.interfaces import IConnection, INextHop, IWork
from qmq.mail import (
    Address,
    Body,
    DeliveryFailure,
    Envelope,
    FileBody,
    MemoryBody,
    Message,
    Origin,
    Replies,
    Reply,
    Token,
)
from qmq.receive.draft import Drafts
from qmq.receive.qmtp import QMTPFactory
from qmq.wire.qmtp_forms import pack_reply

A, B = Address(b"a", b"b.c"), Address(b"d", b"e.f")
OK = Reply(250, "2.0.0", "ok")
NO = Reply(550, "5.1.1", "no such mailbox")
FULL = Reply(452, "4.3.1", "full")


def message(seq: int = 1, *recipients: Address, body: Body | None = None, body_type: bytes = b"7BIT") -> Message:
    envelope = Envelope(Token(b"mx", seq), Address(b"", b""), recipients or (A,), Origin(), body_type)
    return Message(envelope, b"", body or MemoryBody(b"%d\r\n" % seq))


def codes(replies: Replies) -> list[tuple[int, str, str]]:
    return [(reply.code, reply.status, reply.mta) for reply in replies]


def folder(test: SynchronousTestCase) -> str:
    path = tempfile.mkdtemp()
    test.addCleanup(shutil.rmtree, path, ignore_errors=True)
    return path


class Transport(StringTransport):
    """Asks a pull producer for all it has, as one whose peer takes everything."""

    greedy = True

    def registerProducer(self, producer, streaming):
        super().registerProducer(producer, streaming)
        while self.greedy and not streaming and self.producer is not None and not self.disconnected:
            producer.resumeProducing()


class Calls:
    """What the client's *connect* began: answered by hand."""

    def __init__(self) -> None:
        self.factories: list[ClientFactory] = []
        self.taken_back = 0

    def __call__(self, factory: ClientFactory) -> "Calls":
        self.factories.append(factory)
        return self

    def disconnect(self) -> None:
        self.taken_back += 1
        self.refuse()

    def answer(self, number: int = -1) -> tuple[Line, Transport]:
        line = self.factories[number].buildProtocol(UNIXAddress("x"))
        assert isinstance(line, Line)
        transport = Transport()
        line.makeConnection(transport)
        return line, transport

    def refuse(self, number: int = -1) -> None:
        self.factories[number].clientConnectionFailed(self, Failure(error.ConnectionRefusedError()))


class QMTPClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.calls = Calls()

    def client(self, *, extension: bool = True, **options: object) -> QMTPClient:
        return QMTPClient(self.clock, self.calls, extension=extension, low=lambda: 9, mta="alpha", **options)  # type: ignore[arg-type]  # of many types

    def answer(self, line: Line, *replies: Reply) -> None:
        line.dataReceived(b"".join(pack_reply(reply, extended=True) for reply in replies))

    def test_interface(self) -> None:
        """A client is a next hop."""
        verifyObject(INextHop, self.client())

    def test_one_message(self) -> None:
        """The first message opens a connection; its recipients are answered in the instance's name."""
        client = self.client()
        sent = client.send(message(1, A, B))
        line, transport = self.calls.answer()
        self.assertIn(b"\x011\0mx\x001\x009\0", transport.value())
        self.assertNoResult(sent)
        self.answer(line, OK, NO)

        self.assertEqual(codes(self.successResultOf(sent)), [(250, "2.0.0", "alpha"), (550, "5.1.1", "alpha")])

    def test_kept_and_pipelined(self) -> None:
        """The connection is kept; messages follow each other on it without waiting, and leave together."""
        client = self.client()
        first = client.send(message(1))
        line, transport = self.calls.answer()
        self.answer(line, OK)
        self.successResultOf(first)
        transport.clear()
        second = [client.send(message(seq)) for seq in (2, 3, 4)]
        self.assertEqual(transport.value().count(b"\x01"), 1)
        self.clock.advance(0)
        self.assertEqual(transport.value().count(b"\x01"), 3)
        self.answer(line, OK, NO, OK)

        self.assertEqual([self.successResultOf(sent)[0].code for sent in second], [250, 550, 250])
        self.assertEqual(len(self.calls.factories), 1)

    def test_nothing_to_send(self) -> None:
        """A message without recipients has no answers, and needs no connection."""
        envelope = Envelope(Token(b"mx", 1), A, ())
        self.assertEqual(len(self.successResultOf(self.client().send(Message(envelope, b"", MemoryBody(b""))))), 0)
        self.assertEqual(self.calls.factories, [])

    def test_plain_peer(self) -> None:
        """A plain peer gets no extension, and no message that it has no word for."""
        client = self.client(extension=False)
        refused = client.send(message(1, A, B, body_type=b"BINARYMIME"))
        self.assertEqual(codes(self.successResultOf(refused)), [(554, "5.6.3", "")] * 2)
        sent = client.send(message(1))
        line, transport = self.calls.answer()
        self.assertEqual(transport.value(), b"4:\r1\r\n,0:,8:5:a@b.c,,")
        line.dataReceived(b"21:Dnever again (#5.7.1),")

        self.assertEqual(codes(self.successResultOf(sent)), [(554, "5.7.1", "alpha")])

    def test_field_that_cannot_travel(self) -> None:
        """A message whose envelope cannot be said is answered 451, and the connection is as good as before."""
        client = self.client()
        bad = message(1)
        bad = Message(Envelope(bad.envelope.token, A, (A,), Origin(helo=b"\0")), b"", bad.body)
        first, second = client.send(bad), client.send(message(2))
        line, _ = self.calls.answer()
        self.answer(line, OK)

        self.assertEqual(codes(self.successResultOf(first)), [(451, "4.3.0", "")])
        self.assertEqual(codes(self.successResultOf(second)), [(250, "2.0.0", "alpha")])

    def test_more_connections(self) -> None:
        """Another connection is opened only when those there are busy, up to the limit; then each takes its share."""
        client = self.client(connections=2, crowd=2, window=3)
        client.send(message(0))
        one, _ = self.calls.answer()
        for seq in range(1, 3):
            client.send(message(seq))
        self.assertEqual(len(self.calls.factories), 2)
        two, transport = self.calls.answer()
        waiting = [client.send(message(seq)) for seq in range(3, 8)]
        self.clock.advance(0)
        self.assertEqual((transport.value().count(b"\x01"), len(self.calls.factories)), (3, 2))
        self.answer(two, OK)
        self.answer(one, OK)
        self.clock.advance(0)

        self.assertEqual(transport.value().count(b"\x01"), 4)
        self.assertEqual(sum(sent.called for sent in waiting), 1)

    def test_waiting_is_bounded(self) -> None:
        """Beyond the bound of messages waiting for room, the answer is 451 at once."""
        client = self.client(waiting=2)
        sent = [client.send(message(seq)) for seq in range(3)]

        self.assertEqual([one.called for one in sent], [False, False, True])
        self.assertEqual(codes(self.successResultOf(sent[2])), [(451, "4.3.2", "")])

    def test_nobody_listens(self) -> None:
        """If no connection can be had, all that wait are in doubt at once; the next attempt comes after a moment."""
        client = self.client()
        sent = [client.send(message(1, A, B)), client.send(message(2))]
        self.calls.refuse()

        self.assertEqual(codes(self.successResultOf(sent[0])), [(451, "4.4.1", "")] * 2)
        self.assertEqual(codes(self.successResultOf(sent[1])), [(451, "4.4.1", "")])
        for pause in (0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
            attempts = len(self.calls.factories)
            self.clock.advance(pause * 0.9)
            self.assertEqual(codes(self.successResultOf(client.send(message(3)))), [(451, "4.4.1", "")])
            self.assertEqual(len(self.calls.factories), attempts)
            self.clock.advance(pause * 0.11)
            again = client.send(message(4))
            self.assertEqual(len(self.calls.factories), attempts + 1)
            self.calls.refuse()
            self.successResultOf(again)

    def test_no_descriptor_left(self) -> None:
        """A call that cannot even be begun leaves the message in doubt; a later one is made, and a stop ends."""
        client = QMTPClient(self.clock, self.connect, extension=True, low=lambda: 9, mta="alpha")
        self.broken = True
        self.assertEqual(codes(self.successResultOf(client.send(message(1)))), [(451, "4.4.1", "")])
        self.broken = False
        self.clock.advance(10)
        sent = client.send(message(2))
        line, _ = self.calls.answer()
        self.answer(line, OK)

        self.assertEqual(self.successResultOf(sent)[0].code, 250)
        stopped = client.stop()
        line.connectionLost(Failure(error.ConnectionDone()))
        self.successResultOf(stopped)

    def connect(self, factory: ClientFactory) -> Calls:
        if self.broken:
            raise OSError(24, "Too many open files")
        return self.calls(factory)

    def test_peer_that_hangs_up(self) -> None:
        """A peer that hangs up on every connection is not called for every message."""
        client = self.client()
        sent = client.send(message(1))
        line, _ = self.calls.answer()
        line.connectionLost()

        self.assertEqual(codes(self.successResultOf(sent)), [(451, "4.4.2", "")])
        self.assertEqual(codes(self.successResultOf(client.send(message(2)))), [(451, "4.4.1", "")])
        self.assertEqual(len(self.calls.factories), 1)

    def test_cut(self) -> None:
        """After a cut what was answered counts, the rest is in doubt; those that waited go by a new one."""
        client = self.client(window=2, connections=1)
        line_answered = client.send(message(1))
        half, none, waits = client.send(message(2, A, B)), client.send(message(3)), client.send(message(4))
        line, _ = self.calls.answer()
        self.answer(line, OK, NO)
        line.connectionLost()

        self.assertEqual(codes(self.successResultOf(line_answered)), [(250, "2.0.0", "alpha")])
        self.assertEqual(codes(self.successResultOf(half)), [(550, "5.1.1", "alpha"), (451, "4.4.2", "")])
        self.assertEqual(codes(self.successResultOf(none)), [(451, "4.4.2", "")])
        self.assertNoResult(waits)
        line, transport = self.calls.answer()
        self.assertIn(b"mx\x004\x009", transport.value())
        self.answer(line, OK)
        self.successResultOf(waits)

    def test_silence(self) -> None:
        """No message waits longer than its time: its connection is cut, and all on it are in doubt."""
        client = self.client(connections=1, window=2, seconds=120)
        sent = [client.send(message(seq)) for seq in range(3)]
        _, transport = self.calls.answer()
        for _ in range(119):
            self.clock.advance(1)
        self.assertFalse(any(one.called for one in sent))
        self.clock.advance(1)

        self.assertTrue(transport.disconnected)
        self.assertEqual([codes(self.successResultOf(one)) for one in sent[:2]], [[(451, "4.4.2", "")]] * 2)
        self.assertEqual(codes(self.successResultOf(sent[2])), [(451, "4.4.1", "")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_late_answer(self) -> None:
        """What a connection says after it was cut is not heard."""
        client = self.client(seconds=1)
        sent = client.send(message(1))
        line, _ = self.calls.answer()
        self.clock.advance(1)
        self.answer(line, OK)
        line.connectionLost()

        self.assertEqual(codes(self.successResultOf(sent)), [(451, "4.4.2", "")])

    def test_not_qmtp(self) -> None:
        """A peer that does not speak QMTP is cut off, and what it had is in doubt."""
        client = self.client()
        sent = client.send(message(1))
        line, transport = self.calls.answer()
        line.dataReceived(b"220 mx ESMTP\r\n")

        self.assertTrue(transport.disconnected)
        self.assertEqual(codes(self.successResultOf(sent)), [(451, "4.5.0", "")])

    def test_cancelled(self) -> None:
        """A message that its sender gives up before there was room for it is never sent."""
        client = self.client()
        sent = [client.send(message(seq)) for seq in (1, 2)]
        sent[0].cancel()
        self.failureResultOf(sent[0])
        line, transport = self.calls.answer()
        self.answer(line, OK)

        self.assertEqual(transport.value().count(b"\x01"), 1)
        self.assertEqual(codes(self.successResultOf(sent[1])), [(250, "2.0.0", "alpha")])

    def large(self, octets: int) -> FileBody:
        path = os.path.join(folder(self), "body")
        with open(path, "wb") as file:
            file.write(b"x" * octets)
        return FileBody(path, octets)

    def test_large_body(self) -> None:
        """A large body leaves piece by piece as the peer takes it; meanwhile others go by another connection."""
        client = self.client(connections=2)
        client.send(message(1))
        line, slow = self.calls.answer()
        self.answer(line, OK)
        slow.greedy = False
        slow.clear()
        large = client.send(message(2, body=self.large(200000)))
        small = client.send(message(3))
        self.assertLess(len(slow.value()), 200)
        self.assertNoResult(small)
        other, quick = self.calls.answer()
        self.assertIn(b"mx\x003\x00", quick.value())
        self.answer(other, OK)
        self.successResultOf(small)
        while slow.producer is not None:
            before = len(slow.value())
            slow.producer.resumeProducing()
            self.assertLess(len(slow.value()) - before, 66000)
        self.answer(line, OK)

        self.assertGreater(len(slow.value()), 200000)
        self.successResultOf(large)

    def test_large_body_unreadable(self) -> None:
        """A body that cannot be read ends its connection in the package: nobody takes half a message for one."""
        client = self.client(connections=1)
        body = self.large(100)
        os.unlink(body.path)
        sent, waits = client.send(message(1, body=body)), client.send(message(2))
        line, transport = self.calls.answer()
        self.assertTrue(transport.disconnected)
        line.connectionLost()

        self.assertEqual(codes(self.successResultOf(sent)), [(451, "4.3.0", "")])
        self.assertTrue(waits.called)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)

    def test_waits_behind_a_large_body(self) -> None:
        """With one connection only, what comes after a large body leaves when that has left."""
        client = self.client(connections=1)
        first = client.send(message(1, body=self.large(200000)))
        second = client.send(message(2))
        line, transport = self.calls.answer()
        self.clock.advance(0)
        self.assertIn(b"mx\x002\x00", transport.value()[200000:])
        self.answer(line, OK, NO)

        self.assertEqual([self.successResultOf(one)[0].code for one in (first, second)], [250, 550])

    def test_stop(self) -> None:
        """Stopping sends nothing further, waits for the answers to what was sent, and closes."""
        client = self.client(connections=2, window=1)
        sent = client.send(message(1))
        line, transport = self.calls.answer()
        waits = client.send(message(2))
        stopped = client.stop()
        self.assertEqual(codes(self.successResultOf(waits)), [(451, "4.4.1", "")])
        self.assertEqual(codes(self.successResultOf(client.send(message(3)))), [(451, "4.4.1", "")])
        self.assertEqual((self.calls.taken_back, transport.disconnecting), (1, False))
        self.answer(line, OK)
        self.successResultOf(sent)
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(stopped)
        line.connectionLost()

        self.successResultOf(stopped)
        self.successResultOf(client.stop())

    def test_stop_idle(self) -> None:
        """Idle connections are closed when the client stops."""
        client = self.client()
        client.send(message(1))
        line, transport = self.calls.answer()
        self.answer(line, OK)
        stopped = client.stop()
        self.assertTrue(transport.disconnecting)
        line.connectionLost()

        self.successResultOf(stopped)


class BackToBackTests(SynchronousTestCase):
    """Client and server in memory, the octets carried by hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.kept: list[tuple[int, bytes]] = []
        self.ends: list[tuple[Line, object, StringTransport, StringTransport]] = []

    def send(self, message: Message) -> Deferred[Replies]:
        raise AssertionError("not a peer's")

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Replies]:
        self.kept.append((message.envelope.token.seq, b"".join(message.body.chunks())))
        deferred: Deferred[Replies] = Deferred()
        # A later message may well be decided earlier.
        self.clock.callLater(
            7 - message.envelope.token.seq % 7, deferred.callback, [OK, NO, FULL][: len(message.envelope.recipients)]
        )
        return deferred

    def client(self) -> QMTPClient:
        drafts = folder(self)
        factory = QMTPFactory(
            clock=self.clock, wall=lambda: 0.0, drafts=Drafts(drafts, inline=5000), hop=self,
            next_token=lambda: Token(b"x", 1), accept=lambda _, trusted: None if trusted else NO, me=b"alpha",
            extension=True,
        )  # fmt: skip

        def connect(calling: ClientFactory) -> None:
            line, server = calling.buildProtocol(UNIXAddress("x")), factory.buildProtocol(UNIXAddress("x"))
            assert isinstance(line, Line)
            assert server is not None
            ends = line, server, Transport(), StringTransport()
            self.ends.append(ends)
            server.makeConnection(ends[3])
            line.makeConnection(ends[2])

        return QMTPClient(self.clock, connect, extension=True, low=lambda: 1, mta="alpha", connections=1)  # type: ignore[arg-type]  # no connector is asked for

    def carry(self, size: int = 1 << 30) -> bool:
        """All that was written, in pieces; whether there was anything."""
        moved = False
        for line, server, there, back in self.ends:
            for source, sink in ((there, server), (back, line)):
                data = source.value()
                source.clear()
                moved = moved or bool(data)
                for start in range(0, len(data), size):
                    sink.dataReceived(data[start : start + size])
        return moved

    def run_all(self, size: int = 1 << 30) -> None:
        for _ in range(12):
            self.clock.advance(1)
            while self.carry(size):
                pass

    def test_many(self) -> None:
        """Many messages, small and large, each once and whole at the other side, each recipient with its answer."""
        client = self.client()
        path = os.path.join(folder(self), "body")
        with open(path, "wb") as file:
            file.write(b"large\r\n" * 2000)
        messages = [
            message(seq, A, *([B, A] if seq % 2 else []), body=FileBody(path, 14000) if seq % 5 == 0 else None)
            for seq in range(40)
        ]
        sent = [client.send(one) for one in messages]
        self.run_all(1000)

        self.assertEqual(self.kept, [(one.envelope.token.seq, b"".join(one.body.chunks())) for one in messages])
        for one, deferred in zip(messages, sent, strict=True):
            self.assertEqual(
                [reply.code for reply in self.successResultOf(deferred)],
                [250, 550, 452][: len(one.envelope.recipients)],
            )

    def test_cut_at_every_octet(self) -> None:
        """Cut at any octet of the package: all is in doubt and nothing kept; of the answer: kept, some in doubt."""
        client = self.client()
        client.send(message(1, A, B))
        line, server, there, back = self.ends.pop()
        length = len(there.value())
        self.kept.clear()
        for place in range(length + 1):
            client = self.client()
            sent = client.send(message(1, A, B))
            line, server, there, back = self.ends.pop()
            server.dataReceived(there.value()[:place])
            self.clock.advance(6)
            server.connectionLost()
            line.connectionLost()
            self.assertEqual(codes(self.successResultOf(sent)), [(451, "4.4.2", "")] * 2)
            self.assertEqual(len(self.kept), 1 if place == length else 0)
        answer = back.value()
        ends = [len(pack_reply(OK, extended=True)), len(answer)]
        for place in range(len(answer) + 1):
            client = self.client()
            sent = client.send(message(1, A, B))
            line, *_ = self.ends.pop()
            line.dataReceived(answer[:place])
            line.connectionLost()
            expected = [
                (250, "2.0.0", "alpha") if place >= ends[0] else (451, "4.4.2", ""),
                (550, "5.1.1", "alpha") if place >= ends[1] else (451, "4.4.2", ""),
            ]
            self.assertEqual(codes(self.successResultOf(sent)), expected)


@implementer(IWork)
class Work:
    """A site's work, and what was told to it."""

    def __init__(self, *ready: Message) -> None:
        self.ready = list(ready)
        self.told: list[tuple[str, object]] = []

    def take(self) -> Message | None:
        return self.ready.pop(0) if self.ready else None

    def finished(self, message: Message, replies: Replies) -> None:
        self.told.append(("finished", (message.envelope.token.seq, [reply.code for reply in replies])))

    def idle(self, connection: object) -> None:
        self.told.append(("idle", None))

    def lost(self, connection: object, reason: Reply | None) -> None:
        self.told.append(("lost", reason and reason.status))


class SiteTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()

    def dial(self, work: Work) -> Deferred[object]:
        return dial_qmtp(
            self.reactor, "192.0.2.5", 209, work, timeout_connect=7, timeout_remote=60, bind=("192.0.2.1", 0)
        )

    def connected(self, *ready: Message) -> tuple[object, Work, Line, Transport]:
        work = Work(*ready)
        ready_connection = self.dial(work)
        line = self.reactor.tcpClients[-1][2].buildProtocol(IPv4Address("TCP", "192.0.2.5", 209))
        transport = Transport()
        line.makeConnection(transport)
        connection = self.successResultOf(ready_connection)
        verifyObject(IConnection, connection)
        return connection, work, line, transport

    def test_called(self) -> None:
        """The site is called at its address, from ours, for as long as we are told."""
        self.dial(Work())
        self.assertEqual(
            self.reactor.tcpClients[0][:2] + self.reactor.tcpClients[0][3:], ("192.0.2.5", 209, 7, ("192.0.2.1", 0))
        )

    def test_not_reached(self) -> None:
        """A site that cannot be called is a failure with a 451."""
        ready = self.dial(Work())
        self.reactor.tcpClients[0][2].clientConnectionFailed(
            self.reactor.connectors[0], Failure(error.ConnectionRefusedError())
        )
        self.assertEqual(self.failureResultOf(ready, DeliveryFailure).value.reply.status, "4.4.1")

    def test_cancelled(self) -> None:
        """Cancelling hangs up."""
        ready = self.dial(Work())
        ready.cancel()
        self.failureResultOf(ready)
        self.assertTrue(self.reactor.connectors[0]._disconnected)

    def test_two_at_a_time(self) -> None:
        """Messages follow each other, two unanswered at most; then the connection is idle and stays open."""
        connection, work, line, transport = self.connected(message(2), message(3))
        connection.send(message(1))
        self.assertEqual(transport.value().count(b"5:a@b.c"), 2)
        line.dataReceived(b"1:K,")
        self.assertEqual(transport.value().count(b"5:a@b.c"), 3)
        line.dataReceived(b"1:D,1:Z,")

        self.assertEqual(
            work.told, [("finished", (1, [250])), ("finished", (2, [554])), ("finished", (3, [451])), ("idle", None)]
        )
        self.assertFalse(transport.disconnecting)
        self.reactor.advance(60)
        self.assertEqual((self.reactor.getDelayedCalls(), transport.disconnected), ([], False))

    def test_no_word_for(self) -> None:
        """A BINARYMIME message is refused, after send has returned, and the next one goes."""
        connection, work, _, transport = self.connected(message(2, body_type=b"BINARYMIME"), message(3))
        connection.send(message(1, body_type=b"BINARYMIME"))
        self.assertEqual(work.told, [])
        self.reactor.advance(0)

        self.assertEqual(work.told, [("finished", (1, [554])), ("finished", (2, [554]))])
        self.assertEqual(transport.value().count(b"5:a@b.c"), 1)

    def test_silent(self) -> None:
        """A site that gives no answer in time is hung up on; an answer or a piece of a large body gives it more."""
        path = os.path.join(folder(self), "body")
        with open(path, "wb") as file:
            file.write(b"x" * 200000)
        connection, work, line, transport = self.connected(message(2), message(3))
        connection.send(message(1))
        self.reactor.advance(59)
        line.dataReceived(b"1:K,")
        self.reactor.advance(59)
        self.assertFalse(transport.disconnected)
        self.reactor.advance(2)
        self.assertTrue(transport.disconnected)
        self.assertEqual(work.told[1:], [("finished", (2, [451])), ("finished", (3, [451])), ("lost", "4.4.2")])
        connection, work, line, transport = self.connected()
        transport.greedy = False
        connection.send(message(1, body=FileBody(path, 200000)))
        for _ in range(3):
            self.reactor.advance(55)
            transport.producer.resumeProducing()
        self.reactor.advance(55)
        self.assertFalse(transport.disconnected)
        self.reactor.advance(66)
        self.assertTrue(transport.disconnected)

    def test_lost(self) -> None:
        """What was outstanding is reported before the loss; a loss while idle is in order; sending later is a 451."""
        connection, work, line, _ = self.connected()
        connection.send(message(1, A, B))
        line.dataReceived(b"1:K,")
        line.connectionLost()
        connection.send(message(2))
        self.reactor.advance(0)
        self.assertEqual(work.told, [("finished", (1, [250, 451])), ("lost", "4.4.2"), ("finished", (2, [451]))])
        _, work, line, _ = self.connected()
        line.connectionLost()
        self.assertEqual(work.told, [("lost", None)])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_close(self) -> None:
        """Closing waits for what is outstanding, and takes nothing more."""
        connection, work, line, transport = self.connected()
        connection.send(message(1))
        work.ready.append(message(2))
        connection.close()
        self.assertFalse(transport.disconnecting)
        line.dataReceived(b"1:K,")
        self.assertEqual((transport.disconnecting, len(work.ready)), (True, 1))
        connection, _, _, transport = self.connected()
        connection.close()
        self.assertTrue(transport.disconnecting)

    def test_abort(self) -> None:
        """Aborting cuts at once; what was outstanding is reported as 451."""
        connection, work, _, transport = self.connected()
        connection.send(message(1))
        connection.abort()

        self.assertTrue(transport.disconnected)
        self.assertEqual(work.told, [("finished", (1, [451])), ("lost", "4.4.2")])
