import os
import tempfile
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.spamdomains import Factory
from qmq.interfaces import ICheckerFactory, IMessageChecker, IRecipientChecker
from qmq.mail import NULL_SENDER, Address, Envelope, MemoryBody, Message, Token
from qmq.receive.context import Context
from qmq.rules.watched import Files
from qmq.session import Environment, Session, Transaction
from qmq.spamd import SpamdTrouble


def box(text):
    local, _, domain = text.encode().partition(b"@")
    return Address(local, domain)


class Instance:
    """Whose domain it is."""

    def __init__(self, spam_threshold):
        self.spam_threshold = spam_threshold


class FakeScores:
    """In spamd's place: answers with *score*, or raises it."""

    score_ = 0.0

    def __init__(self):
        self.asked = 0

    async def score(self, message, seconds):
        self.asked += 1
        if isinstance(self.score_, Exception):
            raise self.score_
        return self.score_


class SpamDomainsTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.instances = {}
        Path(self.folder, "spamdomains").write_text("one.test:5\ntwo.test:5\nthree.test:8\noff.test:-1\n")
        self.spamd = FakeScores()
        self.checker = self.made()

    def made(self, **options):
        context = Context(lambda _: True, 0, Clock(), control=self.folder, files=Files(), owner=self.instances.get)
        checker = Factory().make(context, {"spamd": "127.0.0.1:783", **options})
        checker._spamd = self.spamd
        return checker

    def session(self, relay=False):
        return Session(
            "192.0.2.1",
            40000,
            "192.0.2.25",
            25,
            relay=relay,
            environment=Environment(replies={"REPLY_CONTENT": "ask us"}),
        )

    def recipient(self, text, *before, relay=False):
        transaction = Transaction(b"s-1", NULL_SENDER, recipients=tuple(map(box, before)))
        verdict = self.checker.recipient(self.session(relay), transaction, box(text))
        return verdict and verdict.reply.code

    def verdict(self, score, *recipients, relay=False, body=b"hi\r\n"):
        self.spamd.score_ = score
        boxes = tuple(map(box, recipients or ("bob@one.test",)))
        message = Message(Envelope(Token(b"s", 1), NULL_SENDER, boxes), b"Received: x\r\n", MemoryBody(body))
        answer = self.checker.message(self.session(relay), Transaction(b"s-1", NULL_SENDER, recipients=boxes), message)
        return answer if answer is None else self.successResultOf(Deferred.fromCoroutine(answer))

    def code(self, *asked, **kw):
        verdict = self.verdict(*asked, **kw)
        return verdict and verdict.reply and verdict.reply.code

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (IRecipientChecker, IMessageChecker):
            self.assertTrue(verifyObject(interface, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_spam(self):
        """From the threshold on a message is refused, with the site's words and the log's."""
        verdict = self.verdict(5.0)

        self.assertEqual((verdict.reply.code, verdict.reply.status), (554, "5.3.2"))
        self.assertTrue(verdict.reply.text.endswith(" ask us"))
        self.assertEqual((verdict.reason, verdict.info), ("Reject::DATA::Spam_Message", "spam"))
        self.assertIsNone(self.verdict(4.9))
        self.assertIsNone(self.verdict(7.9, "bob@three.test"))
        self.assertEqual(self.code(8.0, "bob@three.test"), 554)

    def test_not_scanned(self):
        """Domains with -1 and those not listed are not scanned, nor relay clients and long messages."""
        self.assertIsNone(self.verdict(99, "bob@off.test"))
        self.assertIsNone(self.verdict(99, "bob@other.test"))
        self.assertIsNone(self.verdict(99, relay=True))
        self.assertIsNone(self.verdict(99, body=b"x" * 600_000))
        self.assertEqual(self.spamd.asked, 0)

    def test_instance(self):
        """An instance's own threshold counts before the file's."""
        self.instances.update({b"one.test": Instance(20.0), b"two.test": Instance(None), b"three.test": Instance(-1)})

        self.assertEqual([self.code(8, f"bob@{name}.test") for name in ("one", "two", "three")], [None, 554, None])

    def test_one_threshold(self):
        """Recipients with another threshold than the first are asked to come in another message."""
        self.assertIsNone(self.recipient("bob@one.test"))
        for text, code in (
            ("x@one.test", None),
            ("x@two.test", None),
            ("x@three.test", 452),
            ("x@off.test", 452),
            ("x@other.test", 452),
        ):
            self.assertEqual(self.recipient(text, "bob@one.test"), code, text)
        self.assertIsNone(self.recipient("x@off.test", "y@other.test"))
        self.assertIsNone(self.recipient("x@three.test", "bob@one.test", relay=True))

    def test_options(self):
        """Options say the other choices."""
        self.checker = self.made(threshold="6", relay="yes", largest="20", header="yes")

        self.assertEqual(self.code(6, "bob@other.test"), 554)
        self.assertIsNone(self.verdict(99, "bob@off.test"))
        self.assertEqual(self.code(6, relay=True), 554)
        self.assertIsNone(self.verdict(99, body=b"x" * 20))
        verdict = self.verdict(-0.26)
        self.assertEqual((verdict.reply, verdict.fields), (None, b"X-Spam-Score: -0.3\r\n"))

    def test_trouble(self):
        """Without an answer the message is taken, or deferred if that is wanted."""
        for trouble in (SpamdTrouble("no answer within 30 s"), OSError("cannot read")):
            self.assertIsNone(self.verdict(trouble))
        self.checker = self.made(fail="closed")
        verdict = self.verdict(SpamdTrouble("no answer within 30 s"))
        self.assertEqual((verdict.reply.code, verdict.reply.status), (451, "4.3.0"))

    def test_inert(self):
        """Without a spamd nothing is asked and all recipients may come together."""
        self.checker._spamd = None

        self.assertIsNone(self.verdict(99))
        self.assertIsNone(self.recipient("x@three.test", "bob@one.test"))

    def test_bad_options(self):
        """A wrong option is refused with what to write instead."""
        for options in (
            {"spamd": "localhost"}, {"threshold": "high"}, {"threshold": "nan"}, {"fail": "perhaps"}, {"largest": "0"}, {"time": "0"},
            {"user": "a\nb"}, {"score": "5"},
        ):  # fmt: skip
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn("spamdomains", str(caught.exception))
        self.assertIsNone(Factory().make(Context(lambda _: True, 0, Clock(), control=os.devnull), {})._spamd)
