from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.tarpit import Factory
from qmq.interfaces import ICheckerFactory, IDataChecker, IRecipientChecker
from qmq.mail import address
from qmq.receive.context import Context
from qmq.session import Conduct, Environment, Session, Transaction

BOB = address(b"bob@one.test")


class TarpitTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.conduct = Conduct()
        self.tarpit = self.made()

    def made(self, **options):
        return Factory().make(Context(lambda _: True, 0, self.clock), options)

    def session(self, count, delay, relay=False):
        environment = Environment(tarpitcount=count, tarpitdelay=delay)
        return Session("192.0.2.1", 1, "192.0.2.2", 25, relay=relay, environment=environment, conduct=self.conduct)

    def rcpt(self, count, delay, commands=1, relay=False):
        """What becomes of an RCPT: a code, or for how long it is held back."""
        transaction = Transaction(b"spool-1", BOB, commands=commands)
        verdict = self.tarpit.recipient(self.session(count, delay, relay), transaction, BOB)
        if verdict is None:
            return 0
        return verdict.reply.code if verdict.reply else verdict.delay

    def data(self, relay=False):
        return self.tarpit.data(self.session(1, 999, relay), Transaction(b"spool-1", BOB))

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (IRecipientChecker, IDataChecker):
            self.assertTrue(verifyObject(interface, self.tarpit))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_unset(self):
        """Without TARPITCOUNT nobody is slowed down, whatever he does."""
        self.conduct.failed_recipients = 1000
        self.assertEqual(self.rcpt(0, 30, commands=1000), 0)

    def test_unknown_recipients(self):
        """After so many unknown recipients in the session all further ones are deferred, with any delay."""
        for delay in (0, 5, 999, 2000):
            self.conduct.failed_recipients = 1
            self.assertEqual(self.rcpt(2, delay), 0)
            self.conduct.failed_recipients = 2
            self.assertEqual(self.rcpt(2, delay), 452)

    def test_delay(self):
        """From the n-th RCPT of a transaction on the answer is held back; neither at 999 nor above."""
        for delay, held in ((0, 0), (1, 1), (998, 998), (999, 0), (1000, 0), (-1, 0)):
            self.assertEqual([self.rcpt(3, delay, commands=n) for n in (1, 2, 3, 4)], [0, 0, held, held])

    def test_notorious(self):
        """At 999 whoever is deferred is notorious, and cut off at DATA; before that, and at others, nobody."""
        self.assertIs(self.data(), None)
        for delay in (0, 5, 1000):
            self.conduct.failed_recipients = 2
            self.rcpt(2, delay)
            self.assertIs(self.data(), None)

        self.rcpt(2, 999)

        verdict = self.data()
        self.assertEqual((verdict.reply.code, verdict.close, verdict.reason), (503, True, "Reject::SNDR::Notorious"))

    def test_relay(self):
        """Relay clients go free."""
        self.conduct.failed_recipients = 9
        self.conduct.notorious = True

        self.assertEqual(self.rcpt(1, 5, commands=9, relay=True), 0)
        self.assertIs(self.data(relay=True), None)

    def test_full(self):
        """When the pit is full others are answered at once, until somebody wakes up; deferred they are all the same."""
        self.tarpit = self.made(sleepers="2")
        self.assertEqual([self.rcpt(1, 10) for _ in range(3)], [10, 10, 0])

        self.clock.advance(10)

        self.assertEqual([self.rcpt(1, 10) for _ in range(3)], [10, 10, 0])
        self.conduct.failed_recipients = 1
        self.assertEqual(self.rcpt(1, 10), 452)

    def test_options(self):
        """A wrong option is refused with what to write instead."""
        for options in ({"sleepers": "many"}, {"count": "1"}):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn("tarpit", str(caught.exception))
