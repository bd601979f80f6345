import os
from dataclasses import replace

import cdbx
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.rcpthosts import Factory
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address
from qmq.receive.context import Context
from qmq.rules.watched import BadLine
from tests.checks.lists import Control, client, mail

OURS = "Accept::RCPT::Rcpthosts_Rcptto"


class RcptHostsTests(SynchronousTestCase):
    def setUp(self):
        self.control = Control(self.mktemp())
        self.checker = Factory().make(self.control.context, {})

    def said(self, local, domain, **of):
        verdict = self.checker.recipient(client(**of), mail(), Address(local, domain))
        self.assertEqual(verdict.vouch, verdict.reply is None)
        self.assertEqual(verdict.reply is not None, verdict.reason == "Reject::SNDR::Invalid_Relay")
        return verdict.reason if verdict.vouch else verdict.reply.code

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IRecipientChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_ours(self):
        """Recipients in a domain of ours are vouched for."""
        self.assertEqual(self.said(b"b", b"ours.example"), OURS)

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
        self.assertEqual(self.said(b"PostMaster", b""), OURS)

    def test_relay(self):
        """A relay client may send anywhere, and the log says why."""
        self.assertEqual(self.said(b"b", b"foreign.example", relay=True), "Accept::SNDR::Relay_Client")

    def test_defect_14_no_files(self):
        """With nothing listed nothing is taken (2.20, 14)."""
        self.checker = Factory().make(Context(lambda _: False, 0, Clock(), control=self.control.folder), {})
        self.assertEqual(self.said(b"b", b"ours.example"), 553)

    def test_edited(self):
        """An edit of control/rcpthosts holds for the next connection; what conf-qmq says itself it cannot take away."""
        context = replace(self.control.context, says=lambda domain: domain == b"said.example")
        self.checker = Factory().make(context, {})
        self.assertEqual(self.said(b"b", b"ours.example"), OURS)

        for text, ours, below, said in (
            ("ours.example\n", OURS, 553, OURS), (".ours.example\n", 553, OURS, OURS), ("# none\n", 553, 553, OURS),
        ):  # fmt: skip
            self.control.write("rcpthosts", text.encode())
            context.files.look()
            found = [self.said(b"b", domain) for domain in (b"ours.example", b"a.ours.example", b"said.example")]
            self.assertEqual(found, [ours, below, said], text)

        self.control.write("rcpthosts", b"*\n")
        context.files.look()
        self.assertEqual(self.said(b"b", b"said.example"), OURS)
        self.assertEqual(self.said(b"b", b"foreign.example"), 553)

    def test_not_asked(self):
        """Where conf-qmq has `rcpthosts` the file is not asked."""
        self.control.write("rcpthosts", b"foreign.example\n")
        self.checker = Factory().make(self.control.context, {})
        self.assertEqual(self.said(b"b", b"ours.example"), OURS)
        self.assertEqual(self.said(b"b", b"foreign.example"), 553)

    def more(self, *keys):
        path = os.path.join(self.control.folder, "morercpthosts.cdb")
        made = cdbx.CDB.make(path + ".new")
        for key in keys:
            made.add(key, b"")
        made.commit().close()
        os.rename(path + ".new", path)
        self.control.files.look()
        return path

    def test_more(self):
        """Domains in morercpthosts.cdb are ours too: exactly, or under a key that begins with a dot."""
        self.assertEqual(self.said(b"b", b"more.example"), 553)
        self.more(b"more.example", b".sub.example")
        for domain, answer in [
            (b"more.example", OURS), (b"ours.example", OURS), (b"a.more.example", 553), (b"a.sub.example", OURS),
            (b"b.a.sub.example", OURS), (b"sub.example", 553), (b"asub.example", 553),
        ]:  # fmt: skip
            self.assertEqual(self.said(b"b", domain), answer, domain)

    def test_more_damaged(self):
        """What is no cdb keeps us from starting; later it leaves the domains as they were."""
        path = self.more(b"more.example")
        with open(path, "r+b") as file:
            file.truncate(2050)
        with self.assertRaises(BadLine) as caught:
            Factory().make(Context(lambda _: False, 0, Clock(), control=self.control.folder), {})
        self.assertIn(path, str(caught.exception))
        self.control.files.look()
        self.assertEqual(self.said(b"b", b"more.example"), 553)
        self.assertIn(path, self.control.warnings[0])

    def test_own_words(self):
        """The site's own words are put behind ours."""
        session = client(replies={"REPLY_NOGATEWAY": "go away"})
        verdict = self.checker.recipient(session, mail(), Address(b"b", b"foreign.example"))
        self.assertEqual(verdict.reply.text, "relaying denied go away")

    def test_options(self):
        """It takes no options."""
        self.assertEqual(Factory().options, {})
