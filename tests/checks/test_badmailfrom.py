from types import SimpleNamespace

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.badmailfrom import Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISenderChecker
from qmq.mail import Address
from qmq.rules.watched import BadLine
from qmq.session import Environment
from tests.checks.lists import RECIPIENT, Control, client, mail, said


def refused(condition):
    return 553, "5.7.1", "Reject::ORIG::Bad_Mailfrom", condition


class BadMailFromTests(SynchronousTestCase):
    def setUp(self):
        self.alpha = SimpleNamespace(name="alpha", badmailfrom="")
        self.control = Control(
            self.mktemp(), owner=lambda domain: self.alpha if domain == b"alpha.example" else None,
            some=lambda true: true(self.alpha),
        )  # fmt: skip

    def made(self, text=None, **options):
        if text is not None:
            self.control.write("badmailfrom", text)
        return Factory().make(self.control.context, options)

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (ISenderChecker, IRecipientChecker):
            self.assertTrue(verifyObject(interface, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_conditions(self):
        """A refusal tells the log which condition it was, and the client nothing of it."""
        checker = self.made(
            b"a@x.example\n@o.example+\n@n.example-\n@h.example=\n~p.example\n*%*\n?f@x.example\n*@x.example\n"
        )
        for sender, host, condition in [
            (b"a@x.example", "h.z.example", "@"),
            (b"a@o.example", "h.z.example", "+"),
            (b"a@n.example", "unknown", "-"),
            (b"a@h.example", "h.z.example", "="),
            (b"a@z.example", "a.p.example", "~"),
            (b"a%b@z.example", "h.z.example", "*"),
        ]:
            verdict = checker.sender(client(host=host), mail(sender))
            self.assertEqual(said(verdict), refused(condition))
            self.assertNotIn("*", verdict.reply.text)
        for sender in (b"f@x.example", b"F@X.example", b"a@z.example", b""):
            self.assertIsNone(checker.sender(client(host="h.z.example"), mail(sender)))

    def test_concerns(self):
        """Senders are a matter for the check as soon as there is a file, recipients if an instance has its own."""
        self.control.files.come = list  # somebody would be told of a file that comes
        checker = self.made()

        self.assertFalse(checker.concerns(Environment(relayclient=b""), "sender"))
        self.control.write("badmailfrom", b"@enemy.example\n")
        self.assertTrue(checker.concerns(Environment(relayclient=b""), "sender"))
        self.assertFalse(checker.concerns(Environment(), "recipient"))
        self.alpha.badmailfrom = "bad"
        self.assertTrue(checker.concerns(Environment(relayclient=b""), "recipient"))

    def test_relay_clients(self):
        """Clients that may relay are asked too; of our own domains they may send."""
        checker = self.made(b"@o.example+\na@x.example\n*%*\n")
        relay = client(relay=True)
        self.assertIsNone(checker.sender(relay, mail(b"a@o.example")))
        self.assertEqual(said(checker.sender(relay, mail())), refused("@"))
        self.assertEqual(said(checker.sender(relay, mail(b"a%b@z.example"))), refused("*"))

    def test_own_words(self):
        """The site's own words are put behind ours."""
        checker = self.made(b"a@x.example\n")
        verdict = checker.sender(client(replies={"REPLY_BADMAILFROM": "see http://x.example/"}), mail())
        self.assertTrue(verdict.reply.text.endswith("badmailfrom list see http://x.example/"))

    def test_defect_13_own_words_stay_in_their_line(self):
        """Words with a line's end in them end no line of the dialogue (2.20, 13)."""
        checker = self.made(b"a@x.example\n")
        verdict = checker.sender(client(replies={"REPLY_BADMAILFROM": "x\r\n250 ok"}), mail())
        for line in verdict.reply.line.split(b"\r\n")[:-1]:
            self.assertTrue(line.startswith(b"553"))
            self.assertNotIn(b"\r", line)

    def test_edited(self):
        """An edit holds for the next connection; a slip leaves the rules as they were."""
        checker = self.made()
        self.assertIsNone(checker.sender(client(), mail()))
        self.control.write("badmailfrom", b"@x.example\n")
        self.assertEqual(said(checker.sender(client(), mail())), refused("@"))
        self.control.write("badmailfrom", b"@y.example\n[\n")
        self.assertEqual(said(checker.sender(client(), mail())), refused("@"))
        self.assertIn("badmailfrom:2: ", self.control.warnings[0])

    def test_bad_file(self):
        """A bad line keeps us from starting, and is named with what to write."""
        with self.assertRaises(BadLine) as caught:
            self.made(b"a@x.example\nb[x@y.example\n")
        self.assertIn("badmailfrom:2: a class without its ]; write \\[", str(caught.exception))

    def test_another_file(self):
        """Option file names the list."""
        path = self.control.write("senders", b"a@x.example\n")
        self.assertEqual(said(self.made(b"", file=path).sender(client(), mail())), refused("@"))

    def test_instance(self):
        """An instance's own list is asked for its recipients alone, beside the primary's."""
        checker = self.made(b"@y.example\n")
        self.alpha.badmailfrom = self.control.write("alpha", b"@x.example\n!b@y.example\n")
        theirs = Address(b"b", b"alpha.example")
        self.assertIsNone(checker.sender(client(), mail()))
        self.assertEqual(said(checker.recipient(client(), mail(), theirs)), refused("@"))
        self.assertIsNone(checker.recipient(client(), mail(), RECIPIENT))
        self.assertIsNone(checker.recipient(client(), mail(b"b@y.example"), theirs))
        self.assertEqual(said(checker.sender(client(), mail(b"b@y.example"))), refused("@"))
        self.alpha.badmailfrom = ""
        self.assertIsNone(checker.recipient(client(), mail(), theirs))

    def test_instance_bad_file(self):
        """An instance's bad list takes nothing for it: the policy makes a 451 of what is raised."""
        checker = self.made()
        self.alpha.badmailfrom = self.control.write("alpha", b"[\n")
        self.assertRaises(BadLine, checker.recipient, client(), mail(), Address(b"b", b"alpha.example"))
