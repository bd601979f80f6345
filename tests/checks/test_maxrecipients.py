from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.maxrecipients import Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import address
from qmq.receive.context import Context
from qmq.session import Environment, Session, Transaction

BOB = address(b"bob@one.test")


class MaxRecipientsTests(SynchronousTestCase):
    def setUp(self):
        self.checker = Factory().make(Context(lambda _: True, 0, Clock()), {})

    def said(self, most, commands, relay=False):
        session = Session("192.0.2.1", 1, "192.0.2.2", 25, relay=relay, environment=Environment(maxrecipients=most))
        verdict = self.checker.recipient(session, Transaction(b"spool-1", BOB, commands=commands), BOB)
        return verdict and (verdict.reply.code, verdict.reason)

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IRecipientChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_limit(self):
        """So many RCPT commands a transaction may have, of relay clients too; the next ones are deferred."""
        for relay in (False, True):
            self.assertIs(self.said(3, 3, relay), None)
            self.assertEqual(self.said(3, 4, relay), (452, "Reject::RCPT::Toomany_Rcptto"))

    def test_unset(self):
        """Without MAXRECIPIENTS there is no limit here."""
        self.assertIs(self.said(0, 100_000), None)

    def test_options(self):
        """An option is refused by name."""
        with self.assertRaises(ValueError) as caught:
            Factory().make(None, {"limit": "3"})
        self.assertIn("limit", str(caught.exception))
