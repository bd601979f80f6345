import base64
import inspect
import os
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.warlord import Factory
from qmq.interfaces import ICheckerFactory, IMessageChecker
from qmq.mail import NULL_SENDER, Envelope, FileBody, MemoryBody, Message, Token
from qmq.receive.context import Context
from qmq.rules.watched import Files
from qmq.session import Environment, Session, Transaction

HEAD = b"Subject: x\r\nContent-Transfer-Encoding: base64\r\n\r\n"
EXE = HEAD + base64.encodebytes(b"MZ\x90\x00\x03\x00\x00\x00\x04" + bytes(500)).replace(b"\n", b"\r\n")
LOADER = HEAD + base64.encodebytes(bytes(300) + b"KERNEL32.dll" + bytes(99)).replace(b"\n", b"\r\n")
PLAIN = b"Subject: x\r\n\r\nTVqQAAMAA\r\n"
CLEAN = HEAD + base64.encodebytes(b"hello" * 40).replace(b"\n", b"\r\n")
BLANKS = HEAD + b"QUJDREVGR0hJ SktM\r\n"


class WarlordTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.clock = Clock()
        self.clock.callLater = self.callLater
        self.turns = 0
        self.files = Files()
        self.checker = self.made(builtin="yes")

    def callLater(self, *args):
        self.turns += 1
        return Clock.callLater(self.clock, *args)

    def made(self, **options):
        context = Context(lambda _: False, 0, self.clock, folder=self.folder, control=self.folder, files=self.files)
        return Factory().make(context, options)

    def session(self, mime=None, loader=None, relay=False, replies=()):
        environment = Environment(badmimetype=mime, badloadertype=loader, replies=dict(replies))
        return Session("192.0.2.1", 40000, "192.0.2.25", 25, relay=relay, environment=environment)

    def asked(self, session, text, number=b"spool-1"):
        body = text if isinstance(text, FileBody) else MemoryBody(text)
        message = Message(Envelope(Token(b"s", 1), NULL_SENDER, ()), b"Received: x\r\n", body)
        return self.checker.message(session, Transaction(number, NULL_SENDER), message)

    def told(self, session, text):
        """The verdict, be it at once or, on a slow machine, in slices."""
        answer = self.asked(session, text)
        if not inspect.iscoroutine(answer):
            return answer
        verdict = Deferred.fromCoroutine(answer)
        while not verdict.called:
            self.clock.advance(0)
        return self.successResultOf(verdict)

    def info(self, text, **kw):
        verdict = self.told(self.session(**kw), text)
        return verdict and verdict.info

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IMessageChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_refusals(self):
        """A program is refused with 554 5.3.2, the site's words, and for the log what was found."""
        session = self.session("", "", replies={"REPLY_CONTENT": "ask postmaster"})

        verdict = self.told(session, EXE)
        self.assertEqual((verdict.reply.code, verdict.reply.status), (554, "5.3.2"))
        self.assertTrue(verdict.reply.text.endswith(" ask postmaster"))
        self.assertEqual((verdict.reason, verdict.info), ("Reject::DATA::Bad_MIME", "TVqQAAMAA"))
        verdict = self.told(session, LOADER)
        self.assertEqual((verdict.reply.code, verdict.reason), (554, "Reject::DATA::Bad_Loader"))
        self.assertIn(verdict.info, {"Mi5kb", "MzIuZ", "MyLmR"})
        for text in (PLAIN, CLEAN, BLANKS, b""):
            self.assertIsNone(self.told(session, text))

    def test_off(self):
        """Not set, or -, is off."""
        for modes in ({}, {"mime": "-"}, {"loader": "-"}, {"mime": "-", "loader": "-"}, {"loader": "M"}):
            self.assertIsNone(self.info(EXE, **modes))
        self.assertIsNone(self.info(LOADER, mime="!"))

    def test_mime_modes(self):
        """The empty text is on; ! wants no blanks either; + is that for strangers, and off for relay clients."""
        for mode, relay, exe, blanks in (
            ("", False, "TVqQAAMAA", None),
            ("", True, "TVqQAAMAA", None),
            ("x", False, "TVqQAAMAA", None),
            ("!", False, "TVqQAAMAA", "QUJDREVGR"),
            ("!", True, "TVqQAAMAA", "QUJDREVGR"),
            ("+", False, "TVqQAAMAA", "QUJDREVGR"),
            ("+", True, None, None),
        ):
            self.assertEqual(self.info(EXE, mime=mode, relay=relay), exe, mode)
            self.assertEqual(self.info(BLANKS, mime=mode, relay=relay), blanks, mode)

    def test_loader_modes(self):
        """A character looks for those that begin with it, nothing for all; + for all, but not of relay clients."""
        for mode, relay, found in (
            ("M", False, True), ("M", True, True), ("", False, True), ("A", False, False), ("+", False, True), ("+", True, False),
        ):  # fmt: skip
            self.assertEqual(self.info(LOADER, loader=mode, relay=relay) is not None, found, mode)

    def test_second_message(self):
        """The second message of a session is looked at as the first was."""
        session = self.session("")

        infos = [(v := self.told(session, text)) and v.info for text in (EXE, EXE, CLEAN, EXE)]

        self.assertEqual(infos, ["TVqQAAMAA", "TVqQAAMAA", None, "TVqQAAMAA"])

    def test_notes(self):
        """Whether a message has base64 in it is noted for the scanner, with the message's id."""
        session = self.session("")
        for number, text, base64_in in (
            (b"1", PLAIN, False),
            (b"2", CLEAN, True),
            (b"3", PLAIN.replace(b"x", b"base64"), False),
        ):
            self.asked(session, text, number)
            self.assertEqual(session.conduct.notes["base64"], (number, base64_in))

    def test_no_lists(self):
        """Without the files nothing is listed; blanks are found all the same."""
        self.checker = self.made()

        self.assertIsNone(self.info(EXE, mime="", loader=""))
        self.assertEqual(self.info(BLANKS, mime="!"), "QUJDREVGR")

    def test_files(self):
        """The lists are the control folder's; an edit holds from the next connection on."""
        Path(self.folder, "badmimetypes").write_text("aGVsbG9oZ\n")
        self.files.look()
        self.assertEqual(self.info(CLEAN, mime=""), "aGVsbG9oZ")
        self.assertIsNone(self.info(EXE, mime=""))

        Path(self.folder, "badmimetypes").write_text("TVqQAAMAA\n# more to come\n")
        self.files.look()

        self.assertIsNone(self.info(CLEAN, mime=""))
        self.assertEqual(self.info(EXE, mime=""), "TVqQAAMAA")

    def test_beyond(self):
        """What is nested without end is refused, or passes if that is wanted."""
        text = (
            b"".join(b"Content-Type: multipart/mixed; boundary=b%d.\r\n\r\n--b%d.\r\n" % (i, i) for i in range(40))
            + b"base64\r\n"
        )
        many = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nbase64\r\n" * 30

        verdict = self.told(self.session(""), text)
        self.assertEqual(
            (verdict.reply.code, verdict.reason, verdict.info), (554, "Reject::DATA::Bad_MIME", "nested too deeply")
        )
        self.checker = self.made(beyond="pass")
        self.assertIsNone(self.info(text, mime=""))
        self.checker = self.made(depth="50", parts="100")
        self.assertIsNone(self.info(text, mime=""))
        self.checker = self.made(parts="20")
        self.assertEqual(self.info(many, mime=""), "too many parts")

    def test_long(self):
        """A long message is looked at in turns of the loop, and hit at its end; in a file too."""
        text = (
            b'Content-Type: multipart/mixed; boundary="=_x"\r\n\r\n'
            + (b"--=_x\r\n" + CLEAN) * 20_000
            + b"--=_x\r\n"
            + EXE
        )
        path = os.path.join(self.folder, "body")
        Path(path).write_bytes(text)
        self.checker = self.made(builtin="yes", parts="30000")
        for body in (text, FileBody(path, len(text))):
            verdict = Deferred.fromCoroutine(self.asked(self.session(""), body))

            self.assertNoResult(verdict)
            self.turns = 0
            self.clock.advance(0)
            self.assertEqual(self.successResultOf(verdict).info, "TVqQAAMAA")
            self.assertGreater(self.turns, 5)

    def test_client_gone(self):
        """If the client is gone the looking ends."""
        text = b'Content-Type: multipart/mixed; boundary="=_x"\r\n\r\n' + (b"--=_x\r\n" + CLEAN) * 20_000
        verdict = Deferred.fromCoroutine(self.asked(self.session(""), text))

        verdict.cancel()

        self.failureResultOf(verdict)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_options(self):
        """A wrong option is refused with what to write instead; so is a file that is not there."""
        for options in (
            {"mime": "x"},
            {"builtin": "perhaps"},
            {"depth": "0"},
            {"mimetypes": "nowhere"},
            {"beyond": "accept"},
        ):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn("warlord", str(caught.exception))
