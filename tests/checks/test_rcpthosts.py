from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.rcpthosts import Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address
from qmq.receive.context import Context
from qmq.session import VOUCH, Session, Transaction

STRANGER = Session("192.0.2.1", 40000, "192.0.2.25", 25)
RELAY = Session("192.0.2.2", 40000, "192.0.2.25", 25, relay=True)
TRANSACTION = Transaction(b"spool-1", Address(b"a", b"x.example"))


class RcptHostsTests(SynchronousTestCase):
    def setUp(self):
        context = Context(lambda domain: domain == b"ours.example", 0, Clock())
        self.checker = Factory().make(context, {})

    def said(self, local, domain, session=STRANGER):
        verdict = self.checker.recipient(session, TRANSACTION, Address(local, domain))
        return verdict.reply.code if verdict.reply else verdict is VOUCH

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IRecipientChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_ours(self):
        """Recipients in a domain of ours are vouched for."""
        self.assertIs(self.said(b"b", b"ours.example"), True)

    def test_foreign(self):
        """A stranger's recipients elsewhere are refused; those that only look like ours too."""
        for local, domain in [
            (b"b", b"foreign.example"), (b"b", b"x.ours.example"), (b"b", b"xours.example"),
            (b"b", b"ours.example.evil"), (b"u%foreign.example", b"foreign.example"),
            (b"b", b"[192.0.2.9]"), (b"b", b""), (b"", b""),
        ]:  # fmt: skip
            self.assertEqual(self.said(local, domain), 553)

    def test_postmaster(self):
        """Bare <postmaster> is ours, in any case."""
        self.assertIs(self.said(b"PostMaster", b""), True)

    def test_relay(self):
        """A relay client may send anywhere."""
        self.assertIs(self.said(b"b", b"foreign.example", RELAY), True)

    def test_options(self):
        """An option is refused by name."""
        with self.assertRaises(ValueError) as caught:
            Factory().make(None, {"morercpthosts": "x"})
        self.assertIn("morercpthosts", str(caught.exception))
