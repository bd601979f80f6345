import os

import cdbx
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address, address
from qmq.rules.badmailfrom import UNKNOWN
from qmq.rules.cdb import CDB
from qmq.rules.mailfrom import MailFromRules, allows, read_mailfromrules
from qmq.rules.watched import BadLine

TEXT = b"""\
# who may send as whom
joe:joe@ours.example,@joe.example
joe@192.0.2.9:nine@ours.example
joe@=pc.lan.example:pc@ours.example
192.0.2.7:seven@ours.example
=pc.lan.example:host@ours.example
192.0.2.:@net.example
192.0.2.37-39:range@ours.example
=.lan.example:lan.example
=:.sub.example
10.1-3.:ten@ours.example
10.9.9.9:
2001:db8::7:v6@ours.example
2001:db8::v6net@ours.example
Plus:a+tag@ours.example
192.0.2.7:second@ours.example
"""


def rules(text):
    return MailFromRules(enumerate(text.splitlines(), 1), "mailfromrules")


class MailFromRulesTests(SynchronousTestCase):
    def setUp(self):
        self.rules = rules(TEXT.partition(b"\n")[2])

    def said(self, sender, ip="192.0.2.7", host=UNKNOWN, account=b""):
        return allows(self.rules, ip, host, account, address(sender))

    def test_keys(self):
        """A client is known by account, account and place, address, name, net, domain, or having a name."""
        for sender, ip, host, account in [
            (b"joe@ours.example", "198.51.100.1", UNKNOWN, b"joe"),
            (b"Joe@ours.example", "198.51.100.1", UNKNOWN, b"JOE"),
            (b"nine@ours.example", "192.0.2.9", UNKNOWN, b"joe"),
            (b"pc@ours.example", "198.51.100.1", "PC.lan.example", b"joe"),
            (b"seven@ours.example", "192.0.2.7", UNKNOWN, b""),
            (b"host@ours.example", "198.51.100.1", "pc.lan.example", b""),
            (b"x@net.example", "192.0.2.200", UNKNOWN, b""),
            (b"range@ours.example", "192.0.2.38", UNKNOWN, b""),
            (b"x@lan.example", "198.51.100.1", "a.b.lan.example", b""),
            (b"x@y.sub.example", "198.51.100.1", "any.example", b""),
            (b"ten@ours.example", "10.2.0.1", UNKNOWN, b""),
            (b"v6@ours.example", "2001:db8::7", UNKNOWN, b""),
        ]:
            self.assertTrue(self.said(sender, ip, host, account), (sender, ip, host, account))

    def test_others(self):
        """Whom no line of its allows, a client may not use."""
        for sender, ip, host, account in [
            (b"joe@ours.example", "198.51.100.1", UNKNOWN, b""),
            (b"joe@ours.example", "198.51.100.1", UNKNOWN, b"jo"),
            (b"nine@ours.example", "192.0.2.9", UNKNOWN, b""),
            (b"nine@ours.example", "192.0.2.8", UNKNOWN, b"joe"),
            (b"seven@ours.example", "192.0.2.77", UNKNOWN, b""),
            (b"range@ours.example", "192.0.2.40", UNKNOWN, b""),
            (b"range@ours.example", "192.0.2.36", UNKNOWN, b""),
            (b"x@lan.example", "198.51.100.1", "lan.example", b""),
            (b"x@lan.example", "198.51.100.1", "pc.wlan.example", b""),
            (b"x@y.sub.example", "198.51.100.1", UNKNOWN, b""),
            (b"ten@ours.example", "10.4.0.1", UNKNOWN, b""),
            (b"v6@ours.example", "2001:db8::8", UNKNOWN, b""),
        ]:
            self.assertFalse(self.said(sender, ip, host, account), (sender, ip, host, account))

    def test_search_goes_on(self):
        """A client's own line that does not have the sender leaves it to those of its net and name."""
        self.assertTrue(self.said(b"x@net.example", "192.0.2.7", UNKNOWN, b"joe"))
        self.assertTrue(self.said(b"x@y.sub.example", "192.0.2.7", "pc.lan.example", b"joe"))

    def test_first_line(self):
        """The first line of a client counts, as in the compiled file."""
        self.assertFalse(self.said(b"second@ours.example"))

    def test_whole_names(self):
        """Defect 7: a sender that only ends in the same letters is another."""
        for sender, allowed in [
            (b"x@joe.example", True), (b"x@notjoe.example", False), (b"x@a.joe.example", False),
            (b"xjoe@ours.example", False), (b"joe@ours.example", True),
        ]:  # fmt: skip
            self.assertEqual(self.said(sender, account=b"joe"), allowed, sender)
        for sender, allowed in [
            (b"x@lan.example", True), (b"x@a.lan.example", True), (b"x@wlan.example", False),
            (b"x@sub.example", False), (b"x@a.sub.example", True), (b"x@asub.example", False),
        ]:  # fmt: skip
            self.assertEqual(self.said(sender, "198.51.100.1", "pc.lan.example"), allowed, sender)

    def test_any(self):
        """Nothing behind the colon allows every sender."""
        self.assertTrue(self.said(b"any@body.example", "10.9.9.9"))

    def test_plus(self):
        """A plus sign in an address is a part of it."""
        self.assertTrue(self.said(b"a+tag@ours.example", account=b"plus"))
        self.assertFalse(self.said(b"tag@ours.example", account=b"plus"))

    def test_compiled(self):
        """A file compiled by qmail-mfrules, its addresses each behind a plus, says the same."""
        path = self.mktemp() + ".cdb"
        made = cdbx.CDB.make(path)
        for key, value in [
            (b"joe", b"+joe@ours.example+@joe.example"), (b"plus", b"+a+tag@ours.example"),
            (b"192.0.2.", b"+@net.example"), (b"10.9.9.9", b""), (b"=.lan.example", b"+lan.example"),
        ]:  # fmt: skip
            made.add(key, value)
        made.commit().close()
        self.rules = read_mailfromrules(path)
        self.assertIsInstance(self.rules, CDB)
        for sender, ip, host, account, allowed in [
            (b"Joe@ours.example", "192.0.2.7", UNKNOWN, b"Joe", True),
            (b"x@joe.example", "192.0.2.7", UNKNOWN, b"joe", True),
            (b"x@notjoe.example", "192.0.2.7", UNKNOWN, b"joe", False),
            (b"x@net.example", "192.0.2.7", UNKNOWN, b"joe", True),
            (b"a+tag@ours.example", "192.0.3.7", UNKNOWN, b"plus", True),
            (b"any@body.example", "10.9.9.9", UNKNOWN, b"", True),
            (b"x@a.lan.example", "192.0.3.7", "pc.lan.example", b"", True),
            (b"x@lan.example", "192.0.3.7", "pc.example", b"", False),
        ]:
            self.assertEqual(self.said(sender, ip, host, account), allowed, (sender, ip, host, account))

    def test_bad_lines(self):
        """What is no rule is refused by line, with what to write."""
        for line in (b"joe", b":a@b.c", b"joe:a@b.c,,d@e.f", b"joe: ", b"192.0.2.9-3:a@b.c", b"192.0.2.3-300:a@b.c",
                     b"192.0.2.3-:a@b.c", b"1-2.0.3-4.1:a@b.c"):  # fmt: skip
            with self.assertRaises(BadLine) as caught:
                rules(b"a:b@c.d\n" + line)
            self.assertIn("mailfromrules:2: ", str(caught.exception))
            self.assertIn("write", str(caught.exception))

    def test_read(self):
        """Text is read where the name does not end in .cdb."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(TEXT)
        self.rules = read_mailfromrules(path)
        self.assertTrue(self.said(b"seven@ours.example"))
        os.remove(path)
        self.assertRaises(FileNotFoundError, read_mailfromrules, path)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=30), st.binary(max_size=20), st.binary(max_size=10))
    def test_any_octets(self, line, sender, account):
        """Any line is a rule or refused, and anybody may ask."""
        try:
            made = MailFromRules([(1, line)], "x")
        except BadLine:
            return
        self.assertIn(allows(made, "192.0.2.7", "a.b.c", account, Address(sender, b"b.c")), (True, False))
