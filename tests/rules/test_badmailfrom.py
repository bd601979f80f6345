import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import NULL_SENDER, Address, address
from qmq.rules.badmailfrom import UNKNOWN, BadMailFrom, read_badmailfrom, suffixes, within
from qmq.rules.watched import BadLine

# SPAMCONTROL Appendix A.3, column "ours": entries, host, relay, senders, condition
VECTORS = [
    (b"@yahoo.com=", "mail.yahoo.com", False, b"a@yahoo.com a@YAHOO.com", ""),
    (b"@yahoo.com=", "Mail.Yahoo.com", False, b"a@yahoo.com", ""),
    (b"@yahoo.com=", "mx.evil.net", False, b"a@yahoo.com", "="),
    (b"@yahoo.com=", "e.net", False, b"a@yahoo.com", "="),
    (b"@yahoo.com=", "notyahoo.com", False, b"a@yahoo.com", "="),
    (b"@yahoo.com=", UNKNOWN, False, b"a@yahoo.com", ""),
    (b"@x.com=", UNKNOWN, False, b"a@x.com", ""),
    (b"@yahoo.com-", UNKNOWN, False, b"a@yahoo.com", "-"),
    (b"@me.com+", UNKNOWN, False, b"a@me.com", "+"),
    (b"@me.com+", "a.me.com", False, b"a@me.com A@ME.com", "+"),
    (b"@me.com+", "a.me.com", True, b"a@me.com", ""),
    (b"a@me.com+", "b.example", False, b"a@me.com A@Me.com", "+"),
    (b"a@me.com+", "b.example", False, b"b@me.com", ""),
    (b"~yahoo.com", "web1.yahoo.com", False, b"a@gmail.com", "~"),
    (b"~yahoo.com", "web1.yahoo.com", False, b"a@yahoo.com", ""),
    (b"~yahoo.com", "web1.yahoo.com", False, b"a@m.yahoo.com", ""),
    (b"~yahoo.com", "yahoo.com", False, b"a@gmail.com", "~"),
    (b"~com", "yahoo.com", False, b"a@gmail.com", "~"),
    (b"~.com", "yahoo.com", False, b"a@gmail.com", ""),
    (b"~yahoo.com", "web1.yahoo.com", False, b"a@hoo.com", "~"),
    (b"~yahoo.com", "web1.yahoo.com", False, b"", ""),
    (b"?a@b.c @b.c", "x.example", False, b"a@b.c A@B.c", ""),
    (b"?a@b.c @b.c", "x.example", False, b"z@b.c", "@"),
    (b"@b.c", "x.example", True, b"Z@B.C", "@"),
    (b"?a@b.c", "x.example", False, b"ka@b.c", ""),
    (b"*", "x.example", True, b" a@b.c", "*"),
    (b"* !", "x.example", True, b"", ""),
    (b"* !", "x.example", True, b"a@b.c", "*"),
]

# What else follows from 2.8
MORE = [
    (b"a@b.c", "x.example", True, b"a@b.c A@b.c", "@"),
    (b"A@B.c", "x.example", False, b"a@b.c", "@"),
    (b"a@b.c", "x.example", False, b"aa@b.c a@b.c.d a@x.b.c", ""),
    (b"@b.c", "x.example", False, b"a@x.b.c a@xb.c", ""),
    (b"a@b.c !a@b.c", "x.example", False, b"a@b.c", "@"),
    (b"*@b.c !a@b.c", "x.example", False, b"a@b.c", ""),
    (b"*@b.c !a@b.c", "x.example", False, b"A@b.c x@b.c", "*"),
    (b"@b.c- @b.c=", "x.example", False, b"a@b.c", "="),
    (b"@b.c- @b.c=", UNKNOWN, False, b"a@b.c", "-"),
    (b"@b.c- @b.c=", "x.b.c", True, b"a@b.c", ""),
    (b"@b.c+ @b.c- @b.c= @b.c", UNKNOWN, False, b"a@b.c", "+"),
    (b"@b.c+ @b.c", "x.example", True, b"a@b.c", "@"),
    (b"a@b.c-", UNKNOWN, False, b"a@b.c", "-"),
    (b"a@b.c-", "x.example", False, b"a@b.c", ""),
    (b"a@b.c=", "x.example", True, b"a@b.c", "="),
    (b"a@b.c=", "x.b.c", False, b"a@b.c", ""),
    (b"~yahoo.com", UNKNOWN, False, b"a@gmail.com", ""),
    (b"~yahoo.com", "notyahoo.com", False, b"a@gmail.com", ""),
    (b"~web1.yahoo.com", "web1.yahoo.com", False, b"a@yahoo.com", ""),
    (b"~Yahoo.COM", "WEB1.Yahoo.com", True, b"a@gmail.com", "~"),
    (b"~yahoo.com a@gmail.com", "web1.yahoo.com", False, b"a@gmail.com", "~"),
    (b"? *", "x.example", False, b"", ""),
    (b"?@b.c", "x.example", False, b"a@b.c", "*"),
    (b"?@b.c", "x.example", False, b"aa@b.c", ""),
    (b"?*@b.c", "x.example", False, b"aa@b.c", "*"),
    (b"*@b.c+", "x.example", False, b"a@b.c", ""),
    (b"~*", "x.example", False, b"~a@b.c", "*"),
    (b"a@[1.2.3.4]", "x.example", False, b"a@[1.2.3.4]", "@"),
    (b"* ! !*@*.* *%*", "x.example", False, b"user@host u%v@h.tld", "*"),
    (b"* ! !*@*.* *%*", "x.example", False, b"user@h.tld", ""),
]


def rules(*entries):
    return BadMailFrom(enumerate(entries, 1), "badmailfrom")


class BadMailFromTests(SynchronousTestCase):
    def assertVectors(self, vectors):
        for entries, host, relay, senders, condition in vectors:
            made = rules(*entries.split(b" "))
            for sender in senders.split() or [b""]:
                said = made.condition(address(sender), host, relay)
                self.assertEqual(said, condition, (entries, host, relay, sender))

    def test_appendix(self):
        """The vectors of Appendix A.3, as ours should be."""
        self.assertVectors(VECTORS)

    def test_more(self):
        """The order of conditions, patterns that look like them, and exemptions."""
        self.assertVectors(MORE)

    def test_defect_5_no_name(self):
        """Clients without a name in DNS are refused by - (2.20, 5), however long the domain."""
        for domain in (b"b.c", b"quite-long.example"):
            made = rules(b"@" + domain + b"-")
            self.assertEqual(made.condition(Address(b"a", domain), UNKNOWN, False), "-")
            self.assertEqual(made.condition(Address(b"a", domain), "x.example", False), "")

    def test_defect_7_whole_labels(self):
        """What only ends in the same letters is another domain (2.20, 7)."""
        made = rules(b"@example.com=", b"~provider.net")
        self.assertEqual(made.condition(Address(b"a", b"example.com"), "notexample.com", False), "=")
        self.assertEqual(made.condition(Address(b"a", b"b.c"), "notprovider.net", False), "")
        self.assertEqual(made.condition(Address(b"a", b"notprovider.net"), "h.provider.net", False), "~")

    def test_defect_8_null_sender(self):
        """The null sender is of no provider, and so not refused by ~ (2.20, 8)."""
        made = rules(b"~provider.net")
        made.condition(Address(b"a", b"b.c"), "h.provider.net", False)
        self.assertEqual(made.condition(NULL_SENDER, "h.provider.net", False), "")

    def test_exempts(self):
        """A sender behind a question mark is exempt, in any case, and nobody else."""
        made = rules(b"?A@b.c", b"?*@d.c", b"?@e.c")
        senders = b"a@b.c", b"A@B.C", b"b@b.c", b"xa@b.c", b"x@d.c", b"x@e.c", b""
        self.assertEqual([made.exempts(address(sender)) for sender in senders], [True, True] + [False] * 5)

    def test_read(self):
        """A file is read as qmail reads lists; a bad pattern is refused by line."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(b"# senders\n*\n! \t\n\n!*@*.*\n@b.c\r\n")
        made = read_badmailfrom(path)
        said = [made.condition(address(sender), "h.example", False) for sender in (b"", b"a@d.c", b"a", b"a@b.c")]
        self.assertEqual(said, ["", "", "*", "@"])
        with open(path, "ab") as file:
            file.write(b"[0-9@x.c\n")
        with self.assertRaises(BadLine) as caught:
            read_badmailfrom(path)
        self.assertIn(f"{path}:7: ", str(caught.exception))

    def test_names(self):
        """A name is within itself and what it stands under, by whole labels."""
        self.assertTrue(within(b"a.b.c", b"b.c"))
        self.assertTrue(within(b"b.c", b"b.c"))
        self.assertFalse(within(b"ab.c", b"b.c"))
        self.assertFalse(within(b"a.", b""))
        self.assertEqual(list(suffixes(b"a.b.c")), [b"a.b.c", b"b.c", b"c"])

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=20), st.binary(max_size=20), st.sampled_from([UNKNOWN, "a.b.c", "c"]), st.booleans())
    def test_any_sender(self, entry, sender, host, relay):
        """Any line is an entry or refused by line, and any sender can be asked for."""
        try:
            made = rules(b"~c", entry)
        except BadLine:
            return
        self.assertIn(made.condition(address(sender), host, relay), {"", "+", "-", "=", "~", "@", "*"})

    def test_long_lists(self):
        """A thousand entries cost no more than a few."""
        made = rules(
            *(b"u%d@d%d.example" % (n, n) for n in range(1000)), *(b"*@*.bad%d.example" % n for n in range(20))
        )
        senders = [Address(b"user%d" % n, b"some%d.example" % n) for n in range(1000)]
        started = time.process_time()
        for sender in senders:
            made.condition(sender, "h.example", False)
        self.assertLess(time.process_time() - started, 0.1)
