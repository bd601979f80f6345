from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.callout import Callout, Factory
from qmq.deliver.callout_line import NoAnswer
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import address
from qmq.receive.context import Context
from qmq.session import Conduct, Environment, Session, Transaction

TRANSACTION = Transaction(b"spool-1", address(b"a@x.example"))


class Owner:
    def __init__(self, callout):
        self.callout = callout


OWNERS = {b"%b.test" % word.encode(): Owner(word) for word in ("open", "closed", "no")}


class CalloutTests(SynchronousTestCase):
    def setUp(self):
        self.asked = []
        self.answer = True
        self.conduct = Conduct()
        self.checker = Callout(OWNERS.get, lambda recipient: b"smtp:" + recipient.domain, self.ask)

    def ask(self, site, recipient):
        self.asked.append((site, bytes(recipient)))
        return self.answer

    def judged(self, raw, relay=False, **environment):
        session = Session(
            "192.0.2.1", 1, "192.0.2.2", 25,
            relay=relay, environment=Environment(**environment), conduct=self.conduct,
        )  # fmt: skip
        return self.checker.recipient(session, TRANSACTION, address(raw))

    def waited(self, raw):
        self.answer = Deferred()
        return Deferred.fromCoroutine(self.judged(raw))

    def test_interfaces(self):
        """The checker and its factory keep their word, and nothing is asked for while they are made."""
        made = Factory().make(Context(lambda _: True, 0, Clock()), {"time": "5s", "exists": "2h", "entries": "100"})
        for checker in (self.checker, made):
            self.assertTrue(verifyObject(IRecipientChecker, checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_concerns(self):
        """Clients are concerned that may not relay, once an instance wants its host to be asked."""
        owners = [OWNERS[b"no.test"]]
        checker = Callout(OWNERS.get, bytes, self.ask, some=lambda true: any(map(true, owners)))

        self.assertFalse(checker.concerns(Environment(), "recipient"))
        owners.append(OWNERS[b"open.test"])
        self.assertTrue(checker.concerns(Environment(), "recipient"))
        self.assertFalse(checker.concerns(Environment(relayclient=b""), "recipient"))

    def test_nobody_is_asked(self):
        """Nobody is asked for relay clients, for domains of no instance, and where the instance does not want it."""
        for raw, relay in (
            (b"bob@open.test", True),
            (b"bob@no.test", False),
            (b"bob@nobodys.test", False),
            (b"postmaster", False),
        ):
            self.assertIs(self.judged(raw, relay=relay), None)
        self.assertEqual(self.asked, [])

    def test_remembered(self):
        """What is remembered is answered at once: accepted with its reason, or refused as by recipients."""
        self.assertEqual(self.judged(b"bob@open.test").reason, "Accept::RCPT::Recipients_Callout")
        self.assertEqual(self.conduct.failed_recipients, 0)
        self.answer = False
        verdict = self.judged(b"bob@closed.test", recipients450=True, replies={"REPLY_MAILBOX": "call us"})
        self.assertEqual((verdict.reply.code, verdict.reason), (450, "Reject::RCPT::Failed_Rcptto"))
        self.assertTrue(verdict.reply.text.endswith("call us"))
        self.assertEqual(self.judged(b"bob@closed.test").reply.code, 550)
        self.assertEqual(self.conduct.failed_recipients, 2)
        self.assertEqual(self.asked[0], (b"smtp:open.test", b"bob@open.test"))

    def test_waits(self):
        """What is not known yet is waited for."""
        for exists, code in ((True, None), (False, 550)):
            waiting = self.waited(b"bob@open.test")
            self.assertNoResult(waiting)

            self.answer.callback(exists)

            verdict = self.successResultOf(waiting)
            self.assertEqual(verdict.reply and verdict.reply.code, code)

    def test_trouble(self):
        """If the host does not tell, an open instance takes the mail and a closed one defers it; it counts for nothing."""
        for raw, code in ((b"bob@open.test", None), (b"bob@closed.test", 450)):
            waiting = self.waited(raw)

            self.answer.errback(NoAnswer("down"))

            verdict = self.successResultOf(waiting)
            self.assertEqual(verdict and verdict.reply.code, code)
        self.assertEqual(self.conduct.failed_recipients, 0)

    def test_client_gone(self):
        """If the client is gone the question is taken back."""
        waiting = self.waited(b"bob@open.test")

        waiting.cancel()

        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(self.answer.called)

    def test_options(self):
        """A wrong option is refused with what to write instead."""
        for options in ({"time": "0"}, {"connections": "0"}, {"exists": "long"}, {"entries": "x"}, {"site": "x"}):
            with self.assertRaises(ValueError) as caught:
                Factory().make(Context(lambda _: True, 0, Clock()), options)
            self.assertIn("callout", str(caught.exception))
