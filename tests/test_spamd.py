from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import NULL_SENDER, Envelope, FileBody, MemoryBody, Message, Token
from qmq.spamd import Spamd, SpamdTrouble, endpoint

ANSWER = b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; 1000.0 / 5.0\r\n\r\n"


class FakeSpamd:
    """An endpoint whose connections a test answers."""

    def __init__(self):
        self.dials = []
        self.connections = []

    def connect(self, factory):
        self.factory = factory
        self.dials.append(Deferred(self.dials.remove))
        return self.dials[-1]

    def accept(self):
        protocol = self.factory.buildProtocol(None)
        transport = StringTransport()
        self.connections.append((protocol, transport))
        protocol.makeConnection(transport)
        self.dials.pop(0).callback(protocol)
        return transport

    def answer(self, *pieces):
        protocol, _ = self.connections.pop(0)
        for piece in pieces:
            protocol.dataReceived(piece)

    def hang_up(self, *pieces):
        protocol, _ = self.connections[0]
        self.answer(*pieces)
        protocol.connectionLost(Failure(ConnectionDone()))


def message(body=b"Subject: x\r\n\r\nhi\r\n"):
    return Message(
        Envelope(Token(b"s", 1), NULL_SENDER, ()),
        b"Received: x\r\n",
        body if isinstance(body, FileBody) else MemoryBody(body),
    )


class SpamdTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.fake = FakeSpamd()
        self.spamd = Spamd(self.fake, self.clock, at_once=2, waiting=1)

    def asked(self, *of):
        return Deferred.fromCoroutine(self.spamd.score(message(*of), 30))

    def trouble(self, asked):
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return str(self.failureResultOf(asked, SpamdTrouble).value)

    def test_question(self):
        """The whole message is sent with its length, and whose preferences count."""
        self.spamd = Spamd(self.fake, self.clock, user="bob")
        self.asked()

        said = self.fake.accept().value()

        self.assertEqual(
            said, b"CHECK SPAMC/1.5\r\nContent-length: 31\r\nUser: bob\r\n\r\nReceived: x\r\nSubject: x\r\n\r\nhi\r\n"
        )

    def test_scores(self):
        """The score is read, however the answer comes."""
        for answer, score in (
            (ANSWER, 1000.0),
            (b"SPAMD/1.5 0 EX_OK\r\nContent-length: 0\r\nspam: False ; -2.3 / 5.0\r\n\r\n", -2.3),
            (b"SPAMD/1.1 0 EX_OK\nSpam: Yes;7/5\n\n", 7.0),
        ):
            for pieces in ((answer,), [answer[i : i + 1] for i in range(len(answer))]):
                asked = self.asked()
                transport = self.fake.accept()
                self.fake.answer(*pieces)
                self.assertEqual(self.successResultOf(asked), score)
                self.assertTrue(transport.disconnected)
        asked = self.asked()
        self.fake.accept()
        self.fake.hang_up(ANSWER[:-2])
        self.assertEqual(self.successResultOf(asked), 1000.0)

    def test_no_score(self):
        """What is no answer is trouble, and an answer that was cut, or does not end, too."""
        for answer in (
            b"SPAMD/1.0 76 Bad header line\r\n\r\n", b"HTTP/1.1 400 no\r\n\r\n", b"SPAMD/1.1 0 EX_OK\r\n\r\n", b"\r\n\r\n", b"", b"x" * 5000,
            b"SPAMD/1.1 0 EX_OK\r\nSpam: True ; many / 5.0\r\n\r\n", ANSWER.partition(b" /")[0],
        ):  # fmt: skip
            asked = self.asked()
            self.fake.accept()
            self.fake.hang_up(answer)
            self.assertTrue(self.trouble(asked))

    def test_cannot_connect(self):
        """If nobody listens there, that is said."""
        asked = self.asked()

        self.fake.dials.pop().errback(ConnectError(string="refused"))

        self.assertIn("cannot connect", self.trouble(asked))

    def test_unreadable(self):
        """A message that cannot be read is an error of ours, without a connection."""
        asked = self.asked(FileBody("/nowhere", 3))

        self.failureResultOf(asked, OSError)
        self.assertEqual(self.fake.dials, [])

    def test_late(self):
        """After its time there is trouble, wherever it stands; the connection is cut, and the next has its turn."""
        for begin in (lambda: None, self.fake.accept):
            asked = self.asked()
            begin()
            self.clock.advance(30)
            self.assertIn("30 s", self.trouble(asked))
        self.assertTrue(self.fake.connections[-1][1].disconnected)
        self.fake.connections.clear()
        self.fake.dials.clear()
        asked = self.asked(), self.asked()
        self.assertEqual(len(self.fake.dials), 2)

    def test_bounded(self):
        """So many at once; so many more wait for their turn; more are trouble at once."""
        first, second, third, fourth = (self.asked() for _ in range(4))

        self.assertEqual(len(self.fake.dials), 2)
        self.assertIn("wait", self.failureResultOf(fourth, SpamdTrouble).getErrorMessage())
        self.fake.accept()
        self.fake.answer(ANSWER)
        self.assertEqual(self.successResultOf(first), 1000.0)
        self.assertEqual(len(self.fake.dials), 2)
        self.assertNoResult(second)
        self.assertNoResult(third)

    def test_waits_too_long(self):
        """The wait for a turn is part of the time."""
        first, second, third = (self.asked() for _ in range(3))

        self.clock.advance(30)

        for asked in (first, second, third):
            self.assertIn("30 s", self.trouble(asked))
        self.assertEqual(self.spamd._slots.tokens, 2)

    def test_cancelled(self):
        """If nobody wants to know any more the connection is cut."""
        asked = self.asked()
        transport = self.fake.accept()

        asked.cancel()

        self.failureResultOf(asked)
        self.assertTrue(transport.disconnected)
        self.assertEqual((self.clock.getDelayedCalls(), self.spamd._slots.tokens), ([], 2))

    def test_endpoint(self):
        """An address with or without a port, or a socket; a name is none."""
        for text, host, port in (
            ("127.0.0.1:8783", "127.0.0.1", 8783),
            ("127.0.0.1", "127.0.0.1", 783),
            ("[::1]:1", "::1", 1),
            ("[::1]", "::1", 783),
        ):
            found = endpoint(text, self.clock)
            self.assertEqual((found._host, found._port), (host, port))
        self.assertEqual(endpoint("/run/spamd.sock", self.clock)._path, "/run/spamd.sock")
        for text in ("", "localhost:783", "127.0.0.1:0", "127.0.0.1:99999", "::1", "[x]:1", "1.2.3:783", "127.0.0.1:"):
            with self.assertRaises(ValueError):
                endpoint(text, self.clock)
