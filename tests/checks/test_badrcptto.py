import time

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.badrcptto import BadRcptTo, Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address, address
from qmq.rules.watched import BadLine
from qmq.session import Environment
from tests.checks.lists import Control, client, mail, said

REFUSED = 553, "5.7.1", "Reject::RCPT::Bad_Rcptto", ""


class BadRcptToTests(SynchronousTestCase):
    def setUp(self):
        self.control = Control(self.mktemp())

    def made(self, text=None, **options):
        if text is not None:
            self.control.write("badrcptto", text)
        return Factory().make(self.control.context, options)

    def refused(self, checker, recipients, **of):
        """Which of them are refused."""
        found = []
        for recipient in recipients.split():
            answer = said(checker.recipient(client(**of), mail(), address(recipient)))
            self.assertIn(answer, (None, REFUSED))
            if answer:
                found.append(recipient)
        return b" ".join(found)

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IRecipientChecker, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_concerns(self):
        """Everybody, as soon as there is a file."""
        self.control.files.come = list  # somebody would be told of a file that comes
        checker = self.made()
        self.assertFalse(checker.concerns(Environment(), "recipient"))
        self.control.write("badrcptto", b"@enemy.example\n")
        self.assertTrue(checker.concerns(Environment(relayclient=b""), "recipient"))

    def test_addresses_and_domains(self):
        """An address or domain is refused in any case, from relay clients too; others are not."""
        checker = self.made(b"# nobody\nBoss@ours.example\n@Old.example\npostmaster\n")
        asked = b"boss@ours.example BOSS@OURS.example x@old.example x@a.old.example x@ours.example postmaster b"
        refused = b"boss@ours.example BOSS@OURS.example x@old.example postmaster"
        self.assertEqual(self.refused(checker, asked), refused)
        self.assertEqual(self.refused(checker, asked, relay=True), refused)

    def test_patterns(self):
        """Patterns are walked, ! exempts, and the last that matches decides; of patterns case counts."""
        checker = self.made(b"*\n!user1@d.c\n!*@e.f\n")
        self.assertEqual(self.refused(checker, b"user1@d.c USER1@d.c x@d.c q@e.f x"), b"USER1@d.c x@d.c x")

    def test_sample(self):
        """The sample that SPAMCONTROL ships takes back what it refuses, but for recipients without a dot."""
        checker = self.made(b"*%*\n*\\ *@*\n!*@*.*\n")
        self.assertEqual(self.refused(checker, b"u%x@d.c u%x@d u@d u@d.c"), b"u%x@d")
        self.assertTrue(BadRcptTo([(1, b"*\\ *@*")], "").refuses(Address(b"a b", b"d")))

    def test_listed_outweighs_exemption(self):
        """What is listed as such is refused, whatever a line below exempts."""
        checker = self.made(b"a@d.c\n@e.f\n!a@d.c\n!*@e.f\n")
        self.assertEqual(self.refused(checker, b"a@d.c b@e.f"), b"a@d.c b@e.f")

    def test_own_words(self):
        """The site's own words are put behind ours."""
        verdict = self.made(b"*\n").recipient(
            client(replies={"REPLY_BADRCPTTO": "so sorry"}), mail(), Address(b"b", b"c.d")
        )
        self.assertTrue(verdict.reply.text.endswith("badrcptto list so sorry"))

    def test_files(self):
        """Without the file nobody is refused; an edit holds for the next connection; option file names another."""
        checker = self.made()
        self.assertEqual(self.refused(checker, b"a@d.c"), b"")
        self.control.write("badrcptto", b"a@d.c\n")
        self.assertEqual(self.refused(checker, b"a@d.c"), b"a@d.c")
        other = self.made(file=self.control.write("other", b"b@d.c\n"))
        self.assertEqual(self.refused(other, b"a@d.c b@d.c"), b"b@d.c")

    def test_bad_file(self):
        """A bad line keeps us from starting, and is named with what to write."""
        with self.assertRaises(BadLine) as caught:
            self.made(b"*\n!a\\\n")
        self.assertIn("badrcptto:2: a backslash with nothing behind it; write \\\\", str(caught.exception))

    def test_long_lists(self):
        """A thousand addresses cost no more than a few."""
        lines = [b"u%d@d%d.example" % (n, n) for n in range(1000)] + [b"*@*.bad%d.example" % n for n in range(20)]
        rules = BadRcptTo(enumerate(lines, 1), "")
        started = time.process_time()
        for n in range(1000):
            rules.refuses(Address(b"user%d" % n, b"ours.example"))
        self.assertLess(time.process_time() - started, 0.1)
