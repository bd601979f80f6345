import os
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.qhpsi import QHPSI, Factory
from qmq.commands import Commands
from qmq.interfaces import ICheckerFactory, IMessageChecker
from qmq.mail import NULL_SENDER, Address, Envelope, FileBody, MemoryBody, Message, Token
from qmq.receive.context import Context
from qmq.session import Environment, Session, Transaction
from tests.checks.programs import FakePrograms

TEXT = b"Subject: x\r\n\r\nhello\r\n"
ENCODED = b"Content-Transfer-Encoding: base64\r\n\r\nQUJD\r\n"


class QHPSITests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.clock = Clock()
        self.programs = FakePrograms()
        self.scanner = os.path.join(self.folder, "scanner")
        Path(self.scanner).touch(0o755)
        self.checker = self.made()

    def made(self, command=None, spool=None):
        return QHPSI(Commands(self.programs, time=60), self.clock, self.folder if spool is None else spool, command)

    def session(self, **environment):
        environment.setdefault("qhpsi", self.scanner)
        return Session("192.0.2.1", 40000, "192.0.2.25", 25, environment=Environment(**environment))

    def asked(self, session, body=TEXT):
        body = body if isinstance(body, FileBody) else MemoryBody(body)
        message = Message(
            Envelope(Token(b"s", 1), NULL_SENDER, (Address(b"bob", b"one.test"),)), b"Received: x\r\n", body
        )
        answer = self.checker.message(session, Transaction(b"s-1", NULL_SENDER), message)
        return answer if answer is None else Deferred.fromCoroutine(answer)

    def verdict(self, code, **environment):
        answer = self.asked(self.session(**environment))
        self.programs.end(code)
        return self.successResultOf(answer)

    def scanned(self, body=TEXT, **environment):
        """Whether the scanner is called."""
        self.asked(self.session(**environment), body)
        return bool(self.programs.runs)

    def files(self):
        return [name for name in os.listdir(self.folder) if name != "scanner"]

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IMessageChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_call(self):
        """The scanner is called with the whole message's file, further words, then its arguments; the file goes with it."""

        def look(argv):
            self.seen = Path(argv[1]).read_bytes(), os.stat(argv[1]).st_mode & 0o777

        self.programs.seen = look
        answer = self.asked(self.session(qhpsi=f"{self.scanner} --fdpass 'a b'", qhpsiargs=("--one", "--two")))

        argv, feeds, environ, seconds = self.programs.runs[0]
        self.assertEqual([argv[0], *argv[2:]], [self.scanner, "--fdpass", "a b", "--one", "--two"])
        self.assertEqual(self.seen, (b"Received: x\r\n" + TEXT, 0o600))
        self.assertEqual((feeds, environ["RCPTTO"], seconds), ({}, "bob@one.test ", 60))
        self.assertEqual(len(self.files()), 1)
        self.programs.end(0)
        self.assertIsNone(self.successResultOf(answer))
        self.assertEqual(self.files(), [])

    def test_infected(self):
        """The exit code 1 refuses, or the one that QHPSIRC says; the log has the scanner's name."""
        for settings, code in (({}, 1), ({"qhpsirc": 7}, 7)):
            verdict = self.verdict(code, replies={"REPLY_CONTENT": "ask us"}, **settings)
            self.assertEqual((verdict.reply.code, verdict.reply.status), (554, "5.3.2"))
            self.assertTrue(verdict.reply.text.endswith(" ask us"))
            self.assertEqual((verdict.reason, verdict.info), ("Reject::DATA::Virus_Infected", self.scanner))

    def test_no_verdict(self):
        """Any other exit code, a time-out and a scanner that is not there defer; no file stays."""
        for code, settings in ((2, {}), (1, {"qhpsirc": 7}), ("took longer than 60 s", {})):
            verdict = self.verdict(code, **settings)
            self.assertEqual(
                (verdict.reply.code, verdict.reply.status, verdict.reason),
                (451, "4.3.0", "Reject::DATA::QHPSI_Trouble"),
            )
        for command in ("/nowhere/scanner", "no-such-scanner-anywhere", "'", self.folder):
            self.assertEqual(self.successResultOf(self.asked(self.session(qhpsi=command))).reply.code, 451)
        self.assertEqual(self.files(), [])

    def test_no_space(self):
        """Without a place for the file the message is deferred."""
        self.checker = self.made(spool="/nowhere")

        self.assertEqual(self.successResultOf(self.asked(self.session())).reply.code, 451)

    def test_taken_away(self):
        """A scanner may take the file away."""
        self.programs.seen = lambda argv: os.unlink(argv[1])

        self.assertEqual(self.verdict(1).reply.code, 554)

    def test_file(self):
        """A long message is scanned where it lies, and stays there."""
        path = os.path.join(self.folder, "body")
        Path(path).write_bytes(TEXT)

        answer = self.asked(self.session(), FileBody(path, len(TEXT)))

        self.assertEqual(self.programs.runs[0][0], [self.scanner, path])
        self.programs.end(0)
        self.assertIsNone(self.successResultOf(answer))
        self.assertEqual(self.files(), ["body"])

    def test_client_gone(self):
        """If the client is gone the scanner ends, and its file goes."""
        answer = self.asked(self.session())

        answer.cancel()

        self.failureResultOf(answer)
        self.assertEqual((self.programs.cancelled, self.files()), (1, []))

    def test_sizes(self):
        """Messages below the smallest and above the largest size are not scanned; 0 is no bound."""
        size = len(TEXT) + len(b"Received: x\r\n")
        for least, most, expected in ((0, 0, True), (size, size, True), (size + 1, 0, False), (0, size - 1, False)):
            self.programs.runs.clear()
            self.assertEqual(self.scanned(qhpsiminsize=least, qhpsimaxsize=most), expected, (least, most))

    def test_off(self):
        """Without QHPSI nothing is scanned, unless there is a scanner for all clients; set to nothing is off then too."""
        self.assertFalse(self.scanned(qhpsi=None))
        self.checker = self.made(self.scanner)
        self.assertFalse(self.scanned(qhpsi=None, variables={"QHPSI": ""}))
        self.assertTrue(self.scanned(qhpsi=None))

    def test_base64(self):
        """With BASE64 only messages with base64 in them are scanned."""
        self.assertFalse(self.scanned(TEXT, base64=True))
        self.assertTrue(self.scanned(ENCODED, base64=True))

    def test_base64_noted(self):
        """What another checker has found out of this message is believed; what it knows of another is not."""
        for note, body, expected in (
            ((b"s-1", True), TEXT, True), ((b"s-1", False), ENCODED, False), ((b"s-0", True), TEXT, False), ((b"s-0", False), ENCODED, True),
        ):  # fmt: skip
            session = self.session(base64=True)
            session.conduct.notes["base64"] = note
            self.programs.runs.clear()
            self.asked(session, body)
            self.assertEqual(bool(self.programs.runs), expected, note)

    def test_base64_long(self):
        """Base64 is looked for in turns of the loop if the message is long."""
        body = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 9000 + b"--b\r\n" + ENCODED
        answer = self.asked(self.session(base64=True), body)

        self.assertEqual(self.programs.runs, [])
        self.clock.advance(0)
        self.assertEqual(len(self.programs.runs), 1)
        self.programs.end(0)
        self.assertIsNone(self.successResultOf(answer))

    def test_options(self):
        """A scanner that is not there, and other wrong options, are refused with what to write instead."""
        context = Context(lambda _: False, 0, self.clock, folder=self.folder, reactor=self.clock)
        for options in (
            {"command": "/nowhere"},
            {"command": "' '"},
            {"command": "a'b"},
            {"command": ""},
            {"time": "soon"},
            {"at-once": "0"},
            {"scanner": "x"},
        ):
            with self.assertRaises(ValueError) as caught:
                Factory().make(context, options)
            self.assertIn("qhpsi", str(caught.exception))
        checker = Factory().make(context, {"command": "./scanner --x", "time": "2m"})
        self.assertEqual(checker.limit, 130)
