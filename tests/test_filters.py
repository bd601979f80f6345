"""An instance's own filter: its word reaches the client, and it costs nobody else anything."""

import os
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.commands import Commands
from qmq.filters import Filtered
from qmq.interfaces import INextHop
from qmq.mail import Address, Envelope, MemoryBody, Message, Origin, Reply, Token
from tests.checks.programs import FakePrograms

K = Reply(250, "2.0.0", "ok", "one")
BOB, EVE = Address(b"bob", b"one.test"), Address(b"eve", b"one.test")
TEXT = b"Subject: x\r\n\r\nhello\r\n"


@implementer(INextHop)
class Queue:
    """Takes all."""

    def __init__(self):
        self.taken = []

    def send(self, message):
        self.taken.append((message, None))
        return succeed([K] * len(message.envelope.recipients))

    def send_in_doubt(self, message, low):
        self.taken.append((message, low))
        return succeed([K] * len(message.envelope.recipients))


class FilteredTests(SynchronousTestCase):
    """A filter in front of a queue."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.program = os.path.join(folder.name, "filter")
        Path(self.program).touch(0o755)
        self.programs = FakePrograms()
        self.queue = Queue()
        self.hop = Filtered(self.queue, Commands(self.programs, time=60), f"{self.program} -q", "one")
        verifyObject(INextHop, self.hop)

    def message(self, **origin):
        envelope = Envelope(Token(b"p", 1), Address(b"a", b"b.test"), (BOB, EVE), Origin(client=b"192.0.2.1", **origin))
        return Message(envelope, b"Received: x\r\n", MemoryBody(TEXT))

    def said(self, code):
        """What the client hears after the filter has ended so."""
        answer = self.hop.send_in_doubt(self.message(), 5)
        self.programs.end(code)
        return self.successResultOf(answer)

    def test_what_it_reads(self):
        """The message on 0, the envelope on 1, who brought it in its environment, and nothing of ours."""
        self.hop.send(self.message())

        ((argv, feeds, environ, seconds),) = self.programs.runs
        self.assertEqual((argv, seconds), ([self.program, "-q"], 60))
        self.assertEqual(feeds, {0: b"Received: x\r\n" + TEXT, 1: b"Fa@b.test\0Tbob@one.test\0Teve@one.test\0\0"})
        self.assertEqual(environ["TCPREMOTEIP"], "192.0.2.1")
        self.assertEqual(environ["MAILFROM"], "a@b.test")
        self.assertNotIn("HOME", environ)

    def test_taken(self):
        """Exit code 0: the queue takes it, under the same token, and its word is the client's."""
        self.assertEqual(self.said(0), [K, K])
        self.assertEqual([low for _, low in self.queue.taken], [5])

    def test_refused(self):
        """Codes 11 to 40 refuse for good, each recipient, and the queue never sees it."""
        for code in (11, 31, 32, 33, 34, 40, 115):
            replies = self.said(code)
            self.assertEqual([(r.code, r.mta) for r in replies], [(554, "one")] * 2, code)
        self.assertEqual(self.queue.taken, [])

    def test_no_verdict(self):
        """Any other code, a signal or no answer in time is 451: the client keeps it."""
        for code in (1, 71, 99, 111, "took longer than 60 s"):
            self.assertEqual([r.code for r in self.said(code)], [451, 451], code)
        self.assertEqual(self.queue.taken, [])

    def test_made_here(self):
        """Our own bounces are not asked about: a filter that refuses one would lose it."""
        self.assertEqual(self.successResultOf(self.hop.send(self.message(made_here=True))), [K, K])
        self.assertEqual(self.programs.runs, [])

    def test_waits(self):
        """Nothing is answered before the filter has spoken."""
        answer = self.hop.send(self.message())
        self.assertIsInstance(answer, Deferred)
        self.assertNoResult(answer)
