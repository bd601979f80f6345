from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.databytes import Factory
from qmq.interfaces import ICheckerFactory, IMessageChecker, ISenderChecker
from qmq.mail import NULL_SENDER, Envelope, MemoryBody, Message, Token
from qmq.receive.context import Context
from qmq.session import Session, Transaction

SESSION = Session("192.0.2.1", 40000, "192.0.2.25", 25)


class DataBytesTests(SynchronousTestCase):
    def made(self, databytes=0, **options):
        return Factory().make(Context(lambda _: False, databytes, Clock()), options)

    def codes(self, checker, size):
        """At MAIL, and at the end of the data."""
        transaction = Transaction(b"spool-1", NULL_SENDER, size)
        message = Message(Envelope(Token(b"s", 1), NULL_SENDER, ()), b"Received: x\r\n", MemoryBody(b"x" * size))
        verdicts = checker.sender(SESSION, transaction), checker.message(SESSION, transaction, message)
        return [verdict and verdict.reply.code for verdict in verdicts]

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (ISenderChecker, IMessageChecker):
            self.assertTrue(verifyObject(interface, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_limit(self):
        """A message up to the limit is taken, a longer one refused: at MAIL if it says so, and at its end."""
        for checker in (self.made(1024), self.made(0, limit="1K"), self.made(5, limit="1024")):
            self.assertEqual(self.codes(checker, 1024), [None, None])
            self.assertEqual(self.codes(checker, 1025), [552, 552])

    def test_no_limit(self):
        """Without a limit anything goes."""
        self.assertEqual(self.codes(self.made(), 5000), [None, None])

    def test_options(self):
        """A wrong option, or a wrong size, is refused with what to write instead."""
        for options in (
            {"size": "1"},
            {"limit": "big"},
            {"limit": "-1"},
            {"limit": "1_0"},
            {"limit": ""},
            {"limit": "²"},
        ):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn("limit", str(caught.exception))
