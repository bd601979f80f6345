import os
import tempfile

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.deliver.destinations import Destinations
from qmq.deliver.manner import STALE, Manner, TLSFailure
from qmq.deliver.smtp import SMTPConnection
from qmq.interfaces import IConnection, IDialler, IWork
from qmq.mail import Address, DeliveryFailure, Envelope, FileBody, MemoryBody, Message, Reply, Token

MTA = "mx.example.org (192.0.2.1)"
EHLO = b"250-mx\r\n250-PIPELINING\r\n250-STARTTLS\r\n250 SIZE 1000000\r\n"


def message(*recipients: str, body=None) -> Message:
    addresses = tuple(Address(name.encode(), b"example.org") for name in recipients or ("a",))
    envelope = Envelope(Token(b"t", 1), Address(b"s", b"example.com"), addresses)
    return Message(envelope, b"", body or MemoryBody(b"Subject: x\r\n\r\nbody\r\n"))


class Long(FileBody):
    """A text in a file, of three pieces."""

    def __init__(self) -> None:
        super().__init__("/nowhere", 30000)

    def chunks(self, octets: int = 65536):
        """What is in it."""
        return iter([b"x" * 9998 + b"\r\n"] * 3)


@implementer(IWork)
class Work:
    """A site that gives what it has and writes down what it is told."""

    def __init__(self, *waiting: Message) -> None:
        self.waiting = list(waiting)
        self.told: list[tuple] = []

    def take(self) -> Message | None:
        return self.waiting.pop(0) if self.waiting else None

    def finished(self, message, replies) -> None:
        self.told.append(("finished", [reply.code for reply in replies]))
        self.last = list(replies)

    def idle(self, connection) -> None:
        self.told.append(("idle",))
        if self.waiting:
            connection.send(self.waiting.pop(0))

    def lost(self, connection, reason) -> None:
        self.told.append(("lost", reason.code if reason else None))


class Transport(StringTransport):
    """Can be cut and can begin TLS, as a test wishes."""

    aborted = False
    options = None

    def abortConnection(self) -> None:
        self.aborted = True

    def startTLS(self, options) -> None:
        self.options = options


class Conversation(SynchronousTestCase):
    """A connection whose server is the test."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.work = Work()
        self.gone: list[SMTPConnection] = []

    def connect(self, **manner) -> SMTPConnection:
        """A connection that waits for the banner."""
        self.connection = SMTPConnection(
            self.clock, self.work, "mx.example.org", "192.0.2.1", Manner(helo=b"me.example", **manner), self.gone.append
        )
        self.transport = Transport()
        self.connection.makeConnection(self.transport)
        return self.connection

    def said(self) -> bytes:
        """What was sent since the last time."""
        data = self.transport.value()
        self.transport.clear()
        return data

    def server(self, *answers: bytes) -> bytes:
        """The server says this; what is sent then."""
        self.said()
        for answer in answers:
            self.connection.dataReceived(answer)
        return self.said()

    def ready(self, **manner) -> SMTPConnection:
        """A connection past EHLO."""
        self.connect(**manner)
        self.server(b"220 hi\r\n", EHLO)
        self.assertIs(self.successResultOf(self.connection.ready), self.connection)
        return self.connection

    def pass_time(self, seconds: float) -> None:
        """One of the checks, and the first of those that come after so many *seconds* of them."""
        self.connection.check(self.clock.seconds())
        self.clock.advance(seconds)
        self.connection.check(self.clock.seconds())


class OpeningTests(Conversation):
    def test_interface(self) -> None:
        """It is an IConnection."""
        self.assertTrue(verifyObject(IConnection, self.connect()))

    def test_opens(self) -> None:
        """After banner and EHLO messages can be sent."""
        self.connect()

        self.assertEqual(self.server(b"220 hi\r\n"), b"EHLO me.example\r\n")
        self.assertNoResult(self.connection.ready)
        self.server(EHLO)
        self.successResultOf(self.connection.ready)
        self.assertTrue(self.connection.offered.pipelining)
        self.assertEqual(self.connection.mta, MTA)

    def test_lmtp(self) -> None:
        """LMTP says LHLO, and does not fall back."""
        self.connect(lmtp=True)

        self.assertEqual(self.server(b"220 hi\r\n"), b"LHLO me.example\r\n")
        self.server(b"500 what?\r\n")
        self.failureResultOf(self.connection.ready, DeliveryFailure)

    def test_cut_anywhere(self) -> None:
        """The opening may be cut at any octet."""
        for cut in range(len(EHLO)):
            self.connect()
            self.server(b"2", b"20 hi\r", b"\n", EHLO[:cut], EHLO[cut:])
            self.successResultOf(self.connection.ready)

    def test_helo(self) -> None:
        """A server that does not know EHLO is greeted with HELO, and offers nothing."""
        self.connect()

        self.assertEqual(self.server(b"220 hi\r\n", b"502 what?\r\n"), b"EHLO me.example\r\nHELO me.example\r\n")
        self.server(b"250-mx\r\n250 PIPELINING\r\n")
        self.successResultOf(self.connection.ready)
        self.assertFalse(self.connection.offered.pipelining)

    def refused(self, *answers: bytes) -> Reply:
        self.connect()
        self.server(*answers)
        self.assertTrue(self.transport.aborted)
        return self.failureResultOf(self.connection.ready, DeliveryFailure).value.reply

    def test_turned_away(self) -> None:
        """A host that does not greet is tried again later; but 554 and 521 are its last word."""
        self.assertEqual(self.refused(b"421 busy\r\n"), Reply(421, "4.0.0", "busy", MTA))
        self.assertEqual(self.refused(b"550 5.7.1 go\r\n"), Reply(450, "4.7.1", "go", MTA))
        self.assertEqual(self.refused(b"554 5.7.1 go\r\n"), Reply(554, "5.7.1", "go", MTA))
        self.assertEqual(self.refused(b"354 what\r\n").code, 451)
        self.assertEqual(self.refused(b"220 hi\r\n", b"450 later\r\n").code, 450)
        self.assertEqual(self.refused(b"220 hi\r\n", b"550 no\r\n", b"550 no\r\n").code, 450)

    def test_broken(self) -> None:
        """Garbage, an endless line, an endless banner or an answer before the question end the connection."""
        for data in (b"hello\r\n", b"2" * 9000, b"220-x\r\n" * 1000, b"220 hi\r\n250 mx\r\n", b"220 hi\r\n2"):
            self.assertEqual(self.refused(data).status, "4.5.0")

    def test_silent(self) -> None:
        """A server that says nothing, or drips, is left when the time for the banner is over."""
        self.connect()
        for _ in range(29):
            self.pass_time(10)
            self.server(b"2")
            self.assertNoResult(self.connection.ready)
        self.pass_time(10)

        self.assertEqual(self.failureResultOf(self.connection.ready, DeliveryFailure).value.reply.status, "4.4.2")
        self.assertTrue(self.transport.aborted)

    def test_closed(self) -> None:
        """A server that hangs up is a temporary failure."""
        self.connect()
        self.connection.connectionLost(Failure(ConnectionDone()))

        reply = self.failureResultOf(self.connection.ready, DeliveryFailure).value.reply
        self.assertEqual((reply.code, reply.mta), (451, ""))
        self.assertEqual(self.gone, [self.connection])

    def test_given_up(self) -> None:
        """Who does not want it any more cancels."""
        self.connect().ready.cancel()

        self.failureResultOf(self.connection.ready)
        self.assertTrue(self.transport.aborted)
        self.connection.connectionLost(Failure(ConnectionLost()))


class StartTLSTests(Conversation):
    def start(self, *behind: bytes) -> None:
        self.connect(tls=lambda host: "options for " + host, tls_text=lambda _: "TLSv1.3 X verified")
        self.assertEqual(self.server(b"220 hi\r\n", EHLO), b"EHLO me.example\r\nSTARTTLS\r\n")
        self.server(b"220 go\r\n" + b"".join(behind))

    def test_encrypted(self) -> None:
        """After the handshake all is asked anew inside; what was offered outside is forgotten."""
        self.start()
        self.assertEqual(self.transport.options, "options for mx.example.org")
        self.assertEqual(self.said(), b"")
        self.connection.handshakeCompleted()
        self.assertEqual(self.said(), b"EHLO me.example\r\n")
        self.server(b"250 mx\r\n")

        self.successResultOf(self.connection.ready)
        self.assertEqual(self.connection.tls, "TLSv1.3 X verified")
        self.assertFalse(self.connection.offered.pipelining)

    def test_response_injection(self) -> None:
        """Octets in clear behind the 220 end the connection: they may be another's."""
        for behind in (b"250 mx\r\n", b"2", b"\n"):
            self.start(behind)

            self.failureResultOf(self.connection.ready, DeliveryFailure)
            self.assertIsNone(self.transport.options)
            self.assertTrue(self.transport.aborted)

    def test_refused(self) -> None:
        """If STARTTLS is refused the connection goes on in clear, unless encryption is required."""
        for required in (False, True):
            self.connect(tls=lambda host: host, tls_required=required)
            self.server(b"220 hi\r\n", EHLO, b"454 not now\r\n")
            if required:
                self.failureResultOf(self.connection.ready, DeliveryFailure)
            else:
                self.successResultOf(self.connection.ready)
                self.assertEqual(self.connection.tls, "")

    def test_stripped(self) -> None:
        """If STARTTLS is not offered and encryption is required there is no connection."""
        self.connect(tls=lambda host: host, tls_required=True)
        self.server(b"220 hi\r\n", b"250 mx\r\n")

        self.assertEqual(self.failureResultOf(self.connection.ready, DeliveryFailure).value.reply.status, "4.7.10")

    def test_handshake_fails(self) -> None:
        """A handshake that fails, hangs, or whose session dies before EHLO is a failure of TLS, told apart."""
        self.start()
        self.connection.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(self.connection.ready, TLSFailure)

        self.start()
        self.pass_time(61)
        self.failureResultOf(self.connection.ready, TLSFailure)

        self.start()
        self.connection.handshakeCompleted()
        self.connection.connectionLost(Failure(ConnectionLost()))
        self.failureResultOf(self.connection.ready, TLSFailure)

    def test_impossible_name(self) -> None:
        """A host whose name no certificate can have is a failure of TLS, too."""

        def options(host: str) -> None:
            raise ValueError("no such name")

        self.connect(tls=options)
        self.server(b"220 hi\r\n", EHLO, b"220 go\r\n")
        self.failureResultOf(self.connection.ready, TLSFailure)


class MessageTests(Conversation):
    OK = b"250 ok\r\n250 ok\r\n354 go\r\n"

    def test_delivered(self) -> None:
        """A message is sent at once, reported when it is answered, and the connection is idle then."""
        self.ready().send(message())
        self.assertTrue(self.said().startswith(b"MAIL"))
        self.assertEqual(self.server(self.OK), b"Subject: x\r\n\r\nbody\r\n.\r\n")
        self.server(b"250 ok\r\n")

        self.assertEqual(self.work.told, [("finished", [250]), ("idle",)])

    def test_next(self) -> None:
        """The next message is begun as soon as the one before is answered, and not sooner."""
        self.work.waiting = [message(), message()]
        self.ready().send(message())
        envelope = b"MAIL FROM:<s@example.com> SIZE=20\r\nRCPT TO:<a@example.org>\r\nDATA\r\n"
        for _ in range(2):
            self.assertTrue(self.server(self.OK).endswith(b"body\r\n.\r\n"))
            self.assertEqual(self.server(b"250 ok\r\n"), envelope)
        self.server(self.OK, b"250 ok\r\n")

        self.assertEqual(self.work.told, [("finished", [250])] * 3 + [("idle",)])

    def test_many(self) -> None:
        """Ten thousand messages on one connection, answered or refused here, need no deeper stack than one."""
        too_long = message(body=MemoryBody(b"x" * 1000001))
        self.work.waiting = [message(), too_long] * 2500 + [too_long] * 5000
        self.ready(messages=100000).send(message())
        for _ in range(2501):
            self.server(self.OK, b"250 ok\r\n")

        self.assertEqual(len(self.work.told), 10002)
        self.assertEqual(self.work.told[-1], ("idle",))

    def test_refused_answer_out_of_order(self) -> None:
        """A host that would answer the next envelope before the text is cut, its message tried again."""
        self.work.waiting = [message()]
        self.ready().send(message())
        self.server(self.OK + b"250 next sender ok\r\n", b"554 spam\r\n")

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
        self.assertEqual(len(self.work.waiting), 1)

    def test_sent_from_idle(self) -> None:
        """The site may send again as it is told that the connection is idle."""
        self.connect()
        self.server(b"220 hi\r\n", b"250 mx\r\n")
        self.work.waiting = []
        self.connection.send(message())
        self.server(b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n")
        self.work.waiting = [message()]

        self.assertEqual(self.server(b"250 ok\r\n")[:5], b"MAIL ")
        self.assertEqual(self.work.told, [("finished", [250])])

    def test_refused_here(self) -> None:
        """What the server can't take is reported later, not inside send."""
        self.ready().send(message(body=MemoryBody(b"x" * 1000001)))
        self.assertEqual(self.work.told, [])
        self.clock.advance(0)

        self.assertEqual(self.work.told, [("finished", [552]), ("idle",)])

    def test_timed_out(self) -> None:
        """Each stage has its time; then the connection is cut and the message deferred, unknown after the text."""
        ok = b"250 ok\r\n"
        for answers, seconds, text in (
            ([], 300, "command"),
            ([ok], 300, "command"),
            ([ok, ok], 120, "initiation"),
            ([self.OK], 600, "end"),
        ):
            self.setUp()
            self.ready().send(message())
            self.server(*answers)
            self.pass_time(seconds - 1)
            self.assertEqual(self.work.told, [])
            self.pass_time(1)
            self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
            self.assertIn(text, self.work.last[0].text)
            self.assertEqual("unknown" in self.work.last[0].text, text == "end")
            self.assertTrue(self.transport.aborted)
            self.connection.connectionLost(Failure(ConnectionLost()))
            self.assertEqual(len(self.work.told), 2)

    def test_progress_between_checks(self) -> None:
        """Between two checks there is no clock: the server's time begins with the one that follows its answer."""
        self.ready().send(message())
        self.pass_time(200)
        self.clock.advance(0.5)
        self.server(b"250 ok\r\n")
        self.clock.advance(0.5)
        self.pass_time(299)
        self.assertEqual(self.work.told, [])
        self.pass_time(1)
        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])

    def test_dripping(self) -> None:
        """Single octets win a server no time."""
        self.ready().send(message())
        for _ in range(10):
            self.pass_time(29)
            self.server(b"2")
        self.pass_time(10)

        self.assertEqual(self.work.told[-1], ("lost", 451))

    def test_cut_everywhere(self) -> None:
        """A connection that ends at any octet reports each message once."""
        answers = b"250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n"
        for octets in range(len(answers)):
            self.setUp()
            self.ready().send(message("a", "b"))
            self.server(answers[:octets])
            self.connection.connectionLost(Failure(ConnectionLost()))
            refused = answers[:octets].count(b"\n") >= 2
            self.assertEqual(self.work.told, [("finished", [550 if refused else 451, 451]), ("lost", 451)])
            self.assertEqual(self.work.last[1].mta, "")

    def test_reset_after_dot(self) -> None:
        """A connection cut between the dot and its answer leaves the message's fate unknown."""
        self.ready().send(message())
        self.server(self.OK)
        self.connection.connectionLost(Failure(ConnectionLost()))

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
        self.assertIn("unknown", self.work.last[0].text)

    def test_broken(self) -> None:
        """A breach of protocol cuts the connection."""
        self.ready().send(message())
        self.assertEqual(self.server(self.OK + b"250 early\r\n"), b"")

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
        self.assertTrue(self.transport.aborted)

    def test_stale(self) -> None:
        """A kept connection that turns out to be closed marks the message as not tried."""
        self.ready().send(message())
        self.server(self.OK)
        self.server(b"250 ok\r\n")
        self.connection.send(message())
        self.connection.connectionLost(Failure(ConnectionDone()))

        self.assertIs(self.work.last[0], STALE)
        self.assertEqual(self.work.told[-1], ("lost", None))

    def test_closed_behind_an_answer(self) -> None:
        """So it is with the next message where a host takes so many on a connection, and hangs up without a word."""
        self.work.waiting = [message()]
        self.ready().send(message())
        self.server(self.OK, b"250 ok\r\n")
        self.connection.connectionLost(Failure(ConnectionDone()))

        self.assertIs(self.work.last[0], STALE)
        self.assertEqual(self.work.told[-1], ("lost", None))

    def test_after_the_end(self) -> None:
        """What is sent on a closed connection is reported as not tried."""
        self.ready().abort()
        self.connection.send(message())
        self.clock.advance(0)

        self.assertEqual(self.work.told, [("lost", 451), ("finished", [451])])


class KeptTests(Conversation):
    def test_idle_time(self) -> None:
        """An idle connection is closed with QUIT when its time is over."""
        self.ready(idle_seconds=30)
        self.pass_time(29)
        self.assertEqual(self.said(), b"")
        self.pass_time(1)

        self.assertEqual(self.said(), b"QUIT\r\n")
        self.assertEqual(self.work.told, [("lost", None)])
        self.server(b"221 bye\r\n")
        self.assertTrue(self.transport.disconnecting)

    def test_quit_unanswered(self) -> None:
        """QUIT's answer is not waited for long."""
        self.ready().close()
        self.pass_time(5)

        self.assertTrue(self.transport.aborted)

    def test_closed_by_server(self) -> None:
        """A server may close an idle connection, with 421 or without a word."""
        self.ready().connectionLost(Failure(ConnectionDone()))

        self.assertEqual(self.work.told, [("lost", None)])

    def test_close_when_done(self) -> None:
        """Asked to close, it ends after what is outstanding, and takes nothing more."""
        self.ready().send(message())
        self.server(MessageTests.OK)
        self.work.waiting = [message()]
        self.connection.close()

        self.assertEqual(self.server(b"250 ok\r\n"), b"QUIT\r\n")
        self.assertEqual(self.work.told, [("finished", [250]), ("lost", None)])

    def test_close_before_the_end(self) -> None:
        """Asked to close before a text has left whole, it is cut at once: nobody can have the message."""
        for answered in ([], [b"250 ok\r\n250 ok\r\n"]):
            self.work.told.clear()
            self.ready().send(message())
            self.server(*answered)

            self.connection.close()

            self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
            self.assertEqual(self.work.last[0].mta, "")
            self.assertTrue(self.transport.aborted)

    def test_close_within_a_long_text(self) -> None:
        """Likewise in the middle of a long text, whose end was not said."""
        self.ready().send(message(body=Long()))
        self.server(MessageTests.OK)
        self.connection.resumeProducing()

        self.connection.close()

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])

    def test_messages(self) -> None:
        """After so many messages the connection ends."""
        self.work.waiting = [message(), message()]
        self.ready(messages=2).send(message())
        self.server(MessageTests.OK, b"250 ok\r\n", MessageTests.OK)

        self.assertEqual(self.server(b"250 ok\r\n"), b"QUIT\r\n")
        self.assertEqual(self.work.told, [("finished", [250])] * 2 + [("lost", None)])

    def test_abort(self) -> None:
        """Cut now: what is outstanding is deferred."""
        self.ready().send(message())
        self.connection.abort()

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
        self.assertTrue(self.transport.aborted)


@implementer(IDialler)
class Host:
    """A site's host, at the other end of each connection: it greets, and then says what the test wants."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.connections: list[SMTPConnection] = []

    def dial(self, site, work):
        connection = SMTPConnection(self.clock, work, "mx.example.org", "192.0.2.1", Manner(), lambda _: None)
        self.connections.append(connection)
        connection.makeConnection(Transport())
        connection.dataReceived(b"220 hi\r\n")
        connection.dataReceived(EHLO)
        return connection.ready

    def heard(self) -> list[bytes]:
        """The first word of what came on each connection since the last time."""
        heard = []
        for connection in self.connections:
            words = connection.transport.value().partition(b"EHLO localhost\r\n")
            heard.append((words[2] or words[0])[:4])
            connection.transport.clear()
        return heard

    def say(self, number: int, *answers: bytes) -> None:
        """On the connection of this number."""
        for answer in answers:
            self.connections[number].dataReceived(answer)


class HangingTextTests(SynchronousTestCase):
    def test_nothing_waits_behind_a_text(self) -> None:
        """
        No message waits behind a text that a host takes its time for.

        It goes over a new connection, an idle one, or, if the site may have no more, over the first that is free.
        """
        clock = Clock()
        host = Host(clock)
        site = Destinations(host, clock, slots=2, slots_max=2)
        done: list[tuple[Message, int]] = []

        def add() -> None:
            sent = message()
            site.add(sent, lambda _, replies: done.append((sent, replies[0].code)), b"s")

        add()
        host.say(0, MessageTests.OK)
        self.assertEqual(host.heard(), [b"MAIL"])
        add()
        self.assertEqual(host.heard(), [b"", b"MAIL"])  # a new one
        host.say(1, MessageTests.OK, b"250 ok\r\n")
        host.heard()
        add()
        self.assertEqual(host.heard(), [b"", b"MAIL"])  # the idle one
        add()
        host.say(1, MessageTests.OK)
        self.assertEqual(host.heard(), [b"", b"Subj"])
        host.say(1, b"250 ok\r\n")
        self.assertEqual(host.heard(), [b"", b"MAIL"])  # the one that is free first
        host.say(1, MessageTests.OK, b"250 ok\r\n")
        host.say(0, b"554 spam\r\n")

        self.assertEqual([code for _, code in done], [250, 250, 250, 554])


class LongTextTests(Conversation):
    def test_pieces(self) -> None:
        """A long text is sent a piece at a time, as the transport has room; each gives the server its time anew."""
        handle, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        with open(handle, "wb") as file:
            file.write(b"0123456789abc\r\n" * 20000)
        self.work.waiting = [message()]
        self.ready().send(message(body=FileBody(path, 300000)))
        text = self.server(MessageTests.OK)
        while self.transport.producer is not None:
            self.pass_time(179)
            self.transport.producer.resumeProducing()
            piece = self.said()
            self.assertLessEqual(len(piece), 66000)
            text += piece
        self.clock.advance(0)

        self.assertEqual(text, b"0123456789abc\r\n" * 20000 + b".\r\n")
        self.assertEqual(self.server(b"250 ok\r\n")[:5], b"MAIL ")
        self.server(MessageTests.OK, b"250 ok\r\n")
        self.assertEqual(self.work.told, [("finished", [250]), ("finished", [250]), ("idle",)])

    def test_not_taken(self) -> None:
        """A server that does not take the next piece in time is left."""
        handle, path = tempfile.mkstemp()
        self.addCleanup(os.unlink, path)
        with open(handle, "wb") as file:
            file.write(b"x" * 300000)
        self.ready().send(message(body=FileBody(path, 300000)))
        self.server(MessageTests.OK)
        self.pass_time(180)

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", 451)])
        self.assertNotIn("unknown", self.work.last[0].text)

    def test_unreadable(self) -> None:
        """A text that can't be read defers the message, without a mark against the server."""
        self.ready().send(message(body=FileBody("/nonexistent/x", 300000)))
        self.server(MessageTests.OK)
        self.transport.producer.resumeProducing()
        self.clock.advance(0)

        self.assertEqual(self.work.told, [("finished", [451]), ("lost", None)])
        self.assertTrue(self.transport.aborted)
