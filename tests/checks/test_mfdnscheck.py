from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.mfdnscheck import Factory
from qmq.dns.query import DNSTrouble
from qmq.interfaces import ICheckerFactory, ISenderChecker
from tests.checks.lists import DNS, Control, answered, client, mail, said

REFUSED = 553, "5.7.1", "Reject::ORIG::DNS_MF", ""
LATER = 451, "4.3.0", "Reject::ORIG::DNS_MF", "temporary"


class MFDNSCheckTests(SynchronousTestCase):
    def setUp(self):
        trouble = DNSTrouble("slow")
        self.dns = DNS(
            mx={b"mx.example": ["h.example"], b"null.example": [""], b"slow.example": trouble, b"bare.example": ()},
            addresses={b"a.example": ["192.0.2.9"], b"null.example": ["192.0.2.9"], b"halfslow.example": trouble},
        )
        self.control = Control(self.mktemp(), resolver=self.dns)

    def said(self, sender, options=(), **of):
        checker = Factory().make(self.control.context, dict(options))
        return said(checker.sender(client(**{"mfdnscheck": True, **of}), mail(sender)))

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(ISenderChecker, Factory().make(self.control.context, {})))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_domains(self):
        """A sender's domain must have an MX or an address, and no null MX; a literal is an address."""
        for sender, answer in [
            (b"a@mx.example", None), (b"a@a.example", None), (b"a@[192.0.2.1]", None), (b"a@[ipv6:2001:db8::1]", None),
            (b"a@no.example", REFUSED), (b"a@bare.example", REFUSED), (b"a@null.example", REFUSED),
        ]:  # fmt: skip
            self.assertEqual(self.said(sender), answer, sender)

    def test_not_asked(self):
        """Without MFDNSCHECK, from relay clients and of the null sender nothing is asked."""
        self.assertIsNone(self.said(b"a@no.example", mfdnscheck=False))
        self.assertIsNone(self.said(b"a@no.example", relay=True))
        self.assertIsNone(self.said(b""))
        self.assertEqual(self.dns.asked, [])

    def test_exempt(self):
        """A sender behind a question mark in badmailfrom is exempt, in any case, and nobody else."""
        self.control.write("badmailfrom", b"?a@no.example\n")
        self.assertIsNone(self.said(b"A@No.example"))
        self.assertEqual(self.said(b"b@no.example"), REFUSED)
        other = self.control.write("other", b"?b@no.example\n")
        self.assertIsNone(self.said(b"b@no.example", {"badmailfrom": other}))

    def test_defect_6_temporary(self):
        """While DNS has no answer there is one verdict, 451, and it is no refusal for good (2.20, 6)."""
        self.assertEqual(self.said(b"a@slow.example"), LATER)
        self.assertEqual(self.said(b"a@halfslow.example"), LATER)

    def test_own_words(self):
        """The site's own words are put behind ours."""
        checker = Factory().make(self.control.context, {})
        session = client(mfdnscheck=True, replies={"REPLY_SENDEREXIST": "really"})
        verdict = answered(checker.sender(session, mail(b"a@no.example")))
        self.assertTrue(verdict.reply.text.endswith("must exist really"))
