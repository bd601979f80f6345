from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.databytes import Factory
from qmq.interfaces import ICheckerFactory, IMessageChecker, IRecipientChecker, ISenderChecker
from qmq.mail import NULL_SENDER, Envelope, MemoryBody, Message, Token, address
from qmq.receive.context import Context
from qmq.session import Environment, Session, Transaction

SESSION = Session("192.0.2.1", 40000, "192.0.2.25", 25)


class Owner:
    def __init__(self, databytes):
        self.databytes = databytes


OWNERS = {b"small.test": Owner(100), b"big.test": Owner(10_000), b"any.test": Owner(0)}


class DataBytesTests(SynchronousTestCase):
    instances = (*OWNERS.values(),)

    def made(self, databytes=0, **options):
        context = Context(
            lambda _: False, databytes, Clock(), owner=OWNERS.get, some=lambda true: any(map(true, self.instances))
        )
        return Factory().make(context, options)

    def codes(self, checker, size, **environment):
        """At MAIL, and at the end of the data."""
        session = Session("192.0.2.1", 40000, "192.0.2.25", 25, environment=Environment(**environment))
        transaction = Transaction(b"spool-1", NULL_SENDER, size)
        verdicts = checker.sender(session, transaction), checker.message(session, transaction, self.letter(size))
        return [verdict and verdict.reply.code for verdict in verdicts]

    def letter(self, size):
        return Message(Envelope(Token(b"s", 1), NULL_SENDER, ()), b"Received: x\r\n", MemoryBody(b"x" * size))

    def recipients(self, checker, said, came, *domains):
        """What becomes of each recipient, and of the message for those accepted."""
        addresses = [address(b"bob@" + domain) for domain in domains]
        transaction = Transaction(b"spool-1", NULL_SENDER, said)
        verdicts = [checker.recipient(SESSION, transaction, recipient) for recipient in addresses]
        accepted = tuple(a for a, verdict in zip(addresses, verdicts, strict=True) if verdict is None)
        end = checker.message(SESSION, Transaction(b"s", NULL_SENDER, said, recipients=accepted), self.letter(came))
        return [verdict and verdict.reply.code for verdict in (*verdicts, end)]

    def test_concerns(self):
        """Everybody, from MAIL to the end; at RCPT if an instance has a limit of its own."""
        checker = self.made()
        phases = "sender", "recipient", "message"
        self.assertTrue(all(checker.concerns(Environment(), phase) for phase in phases))
        self.instances = (OWNERS[b"any.test"],)
        self.assertEqual([checker.concerns(Environment(), phase) for phase in phases], [True, False, True])

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (ISenderChecker, IRecipientChecker, IMessageChecker):
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

    def test_least_counts(self):
        """Of the listener's and the client's limit the lower one counts; one that is 0 or not set is none."""
        for limit, databytes, size, code in (
            (1000, None, 1001, 552), (1000, 0, 1001, 552), (1000, 2000, 1001, 552), (1000, 500, 501, 552),
            (0, 500, 501, 552), (1000, 500, 500, None), (0, 0, 9999, None), (0, None, 9999, None),
        ):  # fmt: skip
            self.assertEqual(self.codes(self.made(limit), size, databytes=databytes), [code, code])

    def test_instances(self):
        """What an instance takes counts for its own recipients; at the end of the data for all, they have one answer."""
        checker = self.made(20_000)

        domains = b"small.test", b"big.test", b"any.test", b"nobodys.test"
        self.assertEqual(self.recipients(checker, 100, 100, *domains), [None] * 5)
        self.assertEqual(self.recipients(checker, 101, 101, *domains), [552, None, None, None, None])
        self.assertEqual(self.recipients(checker, 0, 101, *domains), [None] * 4 + [552])
        self.assertEqual(self.recipients(checker, 0, 10_001, *domains[1:]), [None] * 3 + [552])
        self.assertEqual(self.recipients(checker, 0, 10_001, *domains[2:]), [None] * 3)

    def test_words(self):
        """The site's own words, REPLY_MAXSIZE, are spoken; the log knows it as SPAMCONTROL did."""
        session = Session("192.0.2.1", 1, "192.0.2.2", 25, environment=Environment(replies={"REPLY_MAXSIZE": "20 MB"}))

        verdict = self.made(1).sender(session, Transaction(b"spool-1", NULL_SENDER, 2))

        self.assertTrue(verdict.reply.text.endswith("20 MB"))
        self.assertEqual(verdict.reason, "Reject::DATA::Invalid_Size")

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
