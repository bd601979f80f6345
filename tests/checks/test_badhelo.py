from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.badhelo import Factory
from qmq.dns.query import DNSTrouble
from qmq.interfaces import ICheckerFactory, IHeloChecker, IRecipientChecker
from qmq.rules.watched import BadLine
from tests.checks.lists import DNS, RECIPIENT, Control, client, mail, said

LIST = b"localhost\n*.dyn.example\n!mail.dyn.example\nFriend.example!\nbad.example\n*friend*\n"


def bad(condition):
    return 550, "5.7.1", "Reject::SNDR::Bad_Helo", condition


def dns(condition, code=550, status="5.7.1"):
    return code, status, "Reject::SNDR::DNS_Helo", condition


class BadHeloTests(SynchronousTestCase):
    def setUp(self):
        self.dns = DNS(
            mx={b"mx.example": ["h.example"], b"null.example": [""], b"nullhost.example": [""], b"slow.example": DNSTrouble("slow")},
            addresses={b"h.example": ["192.0.2.9"], b"bad.example": ["192.0.2.9"], b"nullhost.example": ["192.0.2.9"],
                       b"slow.example": DNSTrouble("slow")},
        )  # fmt: skip
        self.control = Control(self.mktemp(), resolver=self.dns)

    def made(self, text=LIST, **options):
        if text is not None:
            self.control.write("badhelo", text)
        return Factory().make(self.control.context, options)

    def helo(self, checker, mode, name, **of):
        """What is said of a name."""
        return said(checker.helo(client(helo=name, helocheck=mode, **of)))

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (IHeloChecker, IRecipientChecker):
            self.assertTrue(verifyObject(interface, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_unset(self):
        """Without HELOCHECK, and from clients that may relay, any name is good, and so is none."""
        checker = self.made()
        for of in ({"mode": None}, {"mode": ".", "relay": True}, {"mode": "A", "relay": True}):
            for name in (b"localhost", b"bad.example", b""):
                self.assertIsNone(self.helo(checker, name=name, **of))
        for session in (client(), client(helocheck="!", relay=True)):
            self.assertIsNone(checker.recipient(session, mail(), RECIPIENT))

    def test_list(self):
        """The list refuses names in any case and by pattern; ! in front exempts by pattern, behind a name from all."""
        checker = self.made()
        for mode in ("", "long", "."):
            for name, answer in [
                (b"localhost", bad(".")),
                (b"LOCALHOST", bad(".")),
                (b"a.dyn.example", bad("*")),
                (b"a.DYN.example", None),
                (b"mail.dyn.example", None),
                (b"friend.example", None),
                (b"FRIEND.example", None),
                (b"afriend", bad("*")),
                (b"friend.example!", bad("*")),
                (b"good.example", None),
            ]:
                self.assertEqual(self.helo(checker, mode, name), answer, (mode, name))

    def test_empty(self):
        """An empty name is refused by ! and by the dot; by ! that is all, the list is not asked."""
        checker = self.made()
        self.assertEqual(self.helo(checker, "!", b""), bad("!"))
        self.assertEqual(self.helo(checker, ".", b""), bad("!"))
        self.assertIsNone(self.helo(checker, "!", b"localhost"))
        self.assertIsNone(self.helo(checker, "", b""))

    def test_empty_exempt(self):
        """A lone ! exempts the empty name from the list, wherever it stands, and from DNS."""
        for text in (b"*\n!\n", b"!\n*\n"):
            checker = self.made(text)
            self.assertIsNone(self.helo(checker, "", b""))
            self.assertIsNone(self.helo(checker, "A", b""))
            self.assertEqual(self.helo(checker, "", b"x"), bad("*"))
            self.assertEqual(self.helo(checker, ".", b""), bad("!"))

    def test_own_name(self):
        """By = the name must be the client's in DNS, in any case; a client without one has none to say."""
        checker = self.made()
        self.assertIsNone(self.helo(checker, "=", b"MX.good.example", host="mx.good.example"))
        for name, host in [(b"mx.good.example", "good.example"), (b"mx", "mx.good.example"), (b"", "mx.good.example"),
                           (b"unknown", "unknown"), (b"friend.example", "mx.good.example")]:  # fmt: skip
            self.assertEqual(self.helo(checker, "=", name, host=host), dns("="), name)
        self.assertEqual(self.helo(checker, "=", b"localhost", host="localhost"), bad("."))

    def test_address(self):
        """By A the name must have an address; a literal is one, an exempted name needs none."""
        checker = self.made()
        for name, answer in [
            (b"h.example", None), (b"mx.example", dns("A")), (b"no.example", dns("A")), (b"bad.example", bad(".")),
            (b"[192.0.2.1]", None), (b"[IPv6:2001:db8::1]", None), (b"192.0.2.1", None), (b"[x]", dns("A")),
            (b"", dns("A")), (b"friend.example", None), (b"slow.example", dns("A", 451, "4.3.0")),
        ]:  # fmt: skip
            self.assertEqual(self.helo(checker, "A", name), answer, name)
        self.assertNotIn(b"friend.example", self.dns.asked)
        self.assertNotIn(b"bad.example", self.dns.asked)

    def test_exchanger(self):
        """By M an MX does too, a null one does not."""
        checker = self.made()
        for name, answer in [
            (b"h.example", None), (b"mx.example", None), (b"no.example", dns("M")), (b"null.example", dns("M")),
            (b"nullhost.example", None), (b"[192.0.2.1]", None), (b"slow.example", dns("M", 451, "4.3.0")),
        ]:  # fmt: skip
            self.assertEqual(self.helo(checker, "M", name), answer, name)

    def test_missing(self):
        """No HELO is refused at RCPT where HELOCHECK is one character."""
        checker = self.made()
        for mode in "!.=AM":
            self.assertEqual(said(checker.recipient(client(helocheck=mode), mail(), RECIPIENT)), bad("0"))
        for mode in ("", "long"):
            self.assertIsNone(checker.recipient(client(helocheck=mode), mail(), RECIPIENT))

    def test_said_but_empty(self):
        """A name that was said and empty is not a missing one; if it is good, nothing is said at RCPT."""
        checker = self.made()
        for mode, host, answer in [("!", "unknown", bad("!")), ("=", "h.example", dns("=")), ("", "unknown", None)]:
            session = client(helocheck=mode, host=host)
            self.assertEqual(said(checker.helo(session)), answer)
            self.assertEqual(said(checker.recipient(session, mail(), RECIPIENT)), answer)

    def test_forgotten_by_starttls(self):
        """After STARTTLS a HELO said in clear is a missing one."""
        checker = self.made()
        session = client(helocheck=".", helo=b"good.example")
        self.assertIsNone(checker.helo(session))
        self.assertIsNone(checker.recipient(session, mail(), RECIPIENT))
        encrypted = replace(session, helo=b"", tls="TLSv1.3")
        self.assertEqual(said(checker.recipient(encrypted, mail(), RECIPIENT)), bad("0"))
        again = replace(encrypted, helo=b"good.example")
        self.assertIsNone(checker.helo(again))
        self.assertIsNone(checker.recipient(again, mail(), RECIPIENT))

    def test_defect_6_one_answer(self):
        """While DNS has no answer there is one verdict, for later, and it is no refusal for good (2.20, 6)."""
        checker = self.made()
        verdict = said(checker.helo(client(helocheck="A", helo=b"slow.example")))
        self.assertEqual(verdict, dns("A", 451, "4.3.0"))

    def test_defect_10_not_sticky(self):
        """A correct HELO clears what an earlier one has earned, in every mode (2.20, 10)."""
        checker = self.made()
        for mode, wrong in [
            ("=", b"x.example"),
            ("A", b"no.example"),
            ("A", b"slow.example"),
            (".", b"localhost"),
            ("M", b""),
        ]:
            session = client(helocheck=mode, helo=wrong, host="h.example")
            self.assertIsNotNone(said(checker.helo(session)))
            right = replace(session, helo=b"h.example")
            self.assertIsNone(said(checker.helo(right)))
            self.assertIsNone(checker.recipient(right, mail(), RECIPIENT))

    def test_own_words(self):
        """The site's own words are put behind ours."""
        verdict = self.made().helo(client(helocheck="", helo=b"localhost", replies={"REPLY_HELO": "who?"}))
        self.assertTrue(verdict.reply.text.endswith("greeting who?"))

    def test_files(self):
        """Without the file any name is good; option file names another."""
        self.assertIsNone(self.helo(self.made(None), "", b"localhost"))
        other = self.made(None, file=self.control.write("other", b"x.example\n"))
        self.assertEqual(self.helo(other, "", b"x.example"), bad("."))

    def test_bad_file(self):
        """A pattern with ! behind it exempts nothing, and is refused with what to write; so is what is no pattern."""
        for line, remedy in [(b"*.x.example!", "in front"), (b"[x", "\\[")]:
            with self.assertRaises(BadLine) as caught:
                self.made(b"a\n" + line + b"\n")
            self.assertIn("badhelo:2: ", str(caught.exception))
            self.assertIn(remedy, str(caught.exception))
