import os
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.qmailqueue import Factory, QmailQueue
from qmq.commands import Commands
from qmq.interfaces import ICheckerFactory, IMessageChecker
from qmq.mail import Address, Envelope, FileBody, MemoryBody, Message, Token
from qmq.receive.context import Context
from qmq.session import Environment, Session, Transaction
from tests.checks.programs import FakePrograms

SENDER, BOB = Address(b"a", b"b.test"), Address(b"bob", b"one.test")
TEXT = b"Subject: x\r\n\r\nhello\r\n"


class QmailQueueTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.filter = os.path.join(self.folder, "filter")
        Path(self.filter).touch(0o755)
        self.programs = FakePrograms()
        self.checker = self.made()

    def made(self, command=None):
        return QmailQueue(Commands(self.programs, time=60), command)

    def asked(self, body=None, **environment):
        environment.setdefault("qmailqueue", self.filter)
        session = Session("192.0.2.1", 40000, "192.0.2.25", 25, environment=Environment(**environment))
        message = Message(Envelope(Token(b"s", 1), SENDER, (BOB,)), b"Received: x\r\n", body or MemoryBody(TEXT))
        answer = self.checker.message(session, Transaction(b"s-1", SENDER), message)
        return answer if answer is None else Deferred.fromCoroutine(answer)

    def verdict(self, code, **environment):
        answer = self.asked(**environment)
        self.programs.end(code)
        return self.successResultOf(answer)

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IMessageChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_call(self):
        """The filter reads the message on 0 and the envelope on 1, with the session around it; in a file it is the same."""
        path = os.path.join(self.folder, "body")
        Path(path).write_bytes(TEXT)
        for body in (MemoryBody(TEXT), FileBody(path, len(TEXT))):
            self.asked(body, qmailqueue=f"{self.filter} -x")
            argv, feeds, environ, seconds = self.programs.runs[-1]
            self.assertEqual((argv, seconds), ([self.filter, "-x"], 60))
            self.assertEqual(feeds, {0: b"Received: x\r\n" + TEXT, 1: b"Fa@b.test\0Tbob@one.test\0\0"})
            self.assertEqual((environ["MAILFROM"], environ["RCPTTO"]), ("a@b.test", "bob@one.test "))

    def test_exit_codes(self):
        """0 goes on; what is permanent to qmail is refused, with the log's words for content; all else is deferred."""
        content = {32: ("Virus_Infected", "AV scanner"), 33: ("Spam_Message", "spam"), 34: ("MIME_Attach", "MIME")}

        self.assertIsNone(self.verdict(0))
        for code in range(1, 256):
            verdict = self.verdict(code, replies={"REPLY_CONTENT": "ask us"})
            found = verdict.reply.code, verdict.reply.status, verdict.reason, verdict.info
            if code in content:
                reason, info = content[code]
                self.assertEqual(found, (554, "5.3.2", f"Reject::DATA::{reason}", info))
                self.assertTrue(verdict.reply.text.endswith(" ask us"))
            elif 11 <= code <= 40 or code == 115:
                self.assertEqual(found, (554, "5.3.0", "Reject::DATA::Queue_Permanent", f"exit {code}"))
            else:
                self.assertEqual(found, (451, "4.3.0", "Reject::DATA::Queue_Temporary", f"exit {code}"))

    def test_no_exit_code(self):
        """A filter that takes too long, crashes or is not there defers."""
        self.assertEqual(self.verdict("took longer than 60 s").reply.code, 451)
        for command in ("/nowhere/filter", "no-such-filter-anywhere", "'"):
            self.assertEqual(self.successResultOf(self.asked(qmailqueue=command)).reply.code, 451)

    def test_off(self):
        """Without QMAILQUEUE nothing is asked, unless there is a filter for all clients; set to nothing is off then too."""
        self.assertIsNone(self.asked(qmailqueue=None))
        self.checker = self.made(self.filter)
        self.assertIsNone(self.asked(qmailqueue=None, variables={"QMAILQUEUE": ""}))
        self.asked(qmailqueue=None)
        self.assertEqual(len(self.programs.runs), 1)

    def test_client_gone(self):
        """If the client is gone the filter ends."""
        answer = self.asked()

        answer.cancel()

        self.failureResultOf(answer)
        self.assertEqual(self.programs.cancelled, 1)

    def test_options(self):
        """A filter that is not there, and other wrong options, are refused with what to write instead."""
        context = Context(lambda _: False, 0, Clock(), folder=self.folder, reactor=Clock())
        for options in ({"command": "/nowhere"}, {"time": "-1"}, {"waiting": "some"}, {"filter": "x"}):
            with self.assertRaises(ValueError) as caught:
                Factory().make(context, options)
            self.assertIn("qmailqueue", str(caught.exception))
        self.assertEqual(Factory().make(context, {"command": "./filter", "time": "2m"}).limit, 125)
