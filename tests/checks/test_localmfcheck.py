import os

import cdbx
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.localmfcheck import Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISenderChecker
from qmq.rules.watched import BadLine
from tests.checks.lists import RECIPIENT, Control, client, mail, said

REFUSED = 553, "5.7.1", "Reject::ORIG::Invalid_Mailfrom", ""
RULES = b"joe:joe@ours.example\n192.0.2.1:@net.example\n=pc.lan.example:@lan.example\n"


class LocalMFCheckTests(SynchronousTestCase):
    def setUp(self):
        self.control = Control(self.mktemp())

    def made(self, **options):
        return Factory().make(self.control.context, options)

    def allowed(self, mode, sender, checker=None, **of):
        """Whether the client may use the sender: verified, with the letter M, or refused."""
        checker = checker or self.made()
        session = client(**{"relay": True, "localmfcheck": mode, **of})
        verdict = checker.sender(session, mail(sender))
        if verdict is not None and verdict.reply is None:
            self.assertEqual((verdict.reason, verdict.protocol), ("Accept::ORIG::Local_Sender", b"M"))
            recipient = checker.recipient(session, mail(sender), RECIPIENT)
            self.assertEqual((recipient.reason, recipient.vouch), ("Accept::ORIG::Local_Sender", False))
            return True
        self.assertEqual(said(verdict), REFUSED)
        return False

    def cdb(self, name, *entries):
        path = os.path.join(self.control.folder, name)
        made = cdbx.CDB.make(path + ".new")
        for key, value in entries:
            made.add(key, value)
        made.commit().close()
        os.rename(path + ".new", path)
        self.control.files.look()
        return path

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (ISenderChecker, IRecipientChecker):
            self.assertTrue(verifyObject(interface, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_not_asked(self):
        """Without LOCALMFCHECK, of strangers and of the null sender nothing is asked, and nothing verified."""
        for session, sender in [
            (client(relay=True), b"a@x.example"),
            (client(localmfcheck=""), b"a@x.example"),
            (client(relay=True, localmfcheck="="), b""),
        ]:
            self.assertIsNone(self.made().sender(session, mail(sender)))
            self.assertIsNone(self.made().recipient(session, mail(sender), RECIPIENT))

    def test_ours(self):
        """By nothing the sender must be in a domain that we take mail for, listed as text or compiled."""
        self.cdb("morercpthosts.cdb", (b"more.example", b""))
        senders = b"a@ours.example", b"A@OURS.example", b"a@more.example", b"a@x.example", b"a@a.ours.example", b"a"
        self.assertEqual([self.allowed("", sender) for sender in senders], [True] * 3 + [False] * 3)

    def test_domain(self):
        """By a domain it must be in that one, or in one that we take mail for."""
        senders = b"a@our.example", b"a@OUR.example", b"a@ours.example", b"a@x.our.example", b"a@x.example"
        self.assertEqual([self.allowed("Our.example", sender) for sender in senders], [True] * 3 + [False] * 2)

    def test_account(self):
        """By = it must be the account, in any case: whom the client is authenticated as, else TCPREMOTEINFO."""
        self.assertTrue(self.allowed("=", b"joe@ours.example", user=b"Joe@Ours.example"))
        self.assertTrue(self.allowed("=", b"Joe@ours.example", info=b"joe@ours.example"))
        self.assertFalse(self.allowed("=", b"joe@ours.example", user=b"joe"))
        self.assertFalse(self.allowed("=", b"joe@ours.example", user=b"ann@ours.example", info=b"joe@ours.example"))
        self.assertFalse(self.allowed("=", b"joe@ours.example"))

    def test_certificate(self):
        """By ? nobody is good: we ask clients for no certificate."""
        self.assertFalse(self.allowed("?", b"joe@ours.example", user=b"joe@ours.example"))

    def test_rules(self):
        """By ! it must be the client's by mailfromrules: of its account, address or name."""
        self.control.write("mailfromrules", RULES)
        for sender, of, allowed in [
            (b"joe@ours.example", {"user": b"joe"}, True),
            (b"joe@ours.example", {"info": b"joe"}, True),
            (b"x@net.example", {"user": b"joe"}, True),
            (b"x@lan.example", {"host": "pc.lan.example", "ip": "192.0.2.2"}, True),
            (b"joe@ours.example", {}, False),
            (b"x@net.example", {"ip": "192.0.2.2"}, False),
            (b"x@ours.example", {"user": b"joe"}, False),
        ]:
            self.assertEqual(self.allowed("!", sender, **of), allowed, (sender, of))

    def test_no_rules(self):
        """By ! without mailfromrules the sender must be in a domain that we take mail for; empty they allow nothing."""
        self.assertTrue(self.allowed("!", b"x@ours.example"))
        self.assertFalse(self.allowed("!", b"x@net.example"))
        self.control.write("mailfromrules", b"# none\n")
        self.assertFalse(self.allowed("!", b"x@ours.example"))

    def test_compiled(self):
        """Compiled rules are asked where there are none as text; edits of both hold for the next connection."""
        checker = self.made()
        self.cdb("mailfromrules.cdb", (b"192.0.2.1", b"+@net.example+a@x.example"))
        for sender, allowed in [(b"b@net.example", True), (b"a@x.example", True), (b"b@x.example", False)]:
            self.assertEqual(self.allowed("!", sender, checker), allowed)
        self.control.write("mailfromrules", b"192.0.2.1:b@x.example\n")
        for sender, allowed in [(b"b@net.example", False), (b"a@x.example", False), (b"b@x.example", True)]:
            self.assertEqual(self.allowed("!", sender, checker), allowed)

    def test_files(self):
        """Option file names the rules, compiled or not; bad ones keep us from starting."""
        path = self.cdb("other.cdb", (b"192.0.2.1", b""))
        self.assertTrue(self.allowed("!", b"x@y.example", self.made(file=path)))
        path = self.control.write("other", b"192.0.2.1:\n")
        self.assertTrue(self.allowed("!", b"x@y.example", self.made(file=path)))
        self.control.write("mailfromrules", b"a:b\n192.0.2.9-1:x@y.example\n")
        with self.assertRaises(BadLine) as caught:
            self.made()
        self.assertIn("mailfromrules:2: ", str(caught.exception))

    def test_defect_9_one_letter(self):
        """Each MAIL is given one M of its own, however many came before (2.20, 9)."""
        checker = self.made()
        session = client(relay=True, localmfcheck="")
        for _ in range(3):
            self.assertEqual(checker.sender(session, mail(b"a@ours.example")).protocol, b"M")

    def test_own_words(self):
        """The site's own words are put behind ours."""
        session = client(relay=True, localmfcheck="", replies={"REPLY_SENDERINVALID": "ask us"})
        self.assertTrue(self.made().sender(session, mail()).reply.text.endswith("specified ask us"))
