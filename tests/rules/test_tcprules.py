import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.tcprules import read
from qmq.rules.watched import BadLine
from tests.rules import tcprules_reference as reference

# Few of each, so that they meet.
OCTETS = st.sampled_from(["1", "2", "10"])
IP4 = st.builds(lambda *parts: ".".join(parts), OCTETS, OCTETS, OCTETS, OCTETS)
IP6 = st.sampled_from(["2001:db8::1", "2001:db8:1::1", "2001:db8:1:2::3", "::1"])
IP = st.one_of(IP4, IP6)
LABEL = st.sampled_from(["a", "b", "mx"])
HOST = st.builds(".".join, st.lists(LABEL, min_size=1, max_size=3))
USER = st.sampled_from(["joe", "ann"])
PREFIX4 = st.builds(lambda parts: "".join(p + "." for p in parts), st.lists(OCTETS, min_size=1, max_size=3))
NET = st.one_of(st.builds("{}/{}".format, IP4, st.integers(1, 32)), st.builds("{}/{}".format, IP6, st.integers(1, 128)))
ADDRESS = st.one_of(
    IP, NET, PREFIX4, st.just(""), st.just("="), st.builds("={}".format, HOST), st.builds("=.{}".format, HOST),
    st.builds("{}@{}".format, USER, IP), st.builds("{}@={}".format, USER, HOST),
)  # fmt: skip


class TcprulesTestCase(SynchronousTestCase):
    def file(self, text, name="tcp.smtp"):
        path = os.path.join(self.mktemp(), name)
        os.makedirs(os.path.dirname(path))
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def again(self):
        """One path for all examples of a test."""
        if not hasattr(self, "_path"):
            self._path = self.file("")
        return self._path

    def rules(self, text):
        return read(self.file(text))

    def says(self, rule):
        """N of the rule, deny, or None."""
        return rule and ("deny" if rule.deny else rule.variables.get("N", "allow"))


class LookUpTests(TcprulesTestCase):
    def test_order(self):
        """The first of user@ip, user@=host, ip, =host, networks, host suffixes, =, and the empty address counts alone."""
        order = (
            "joe@192.0.2.7", "joe@=mx.a.example", "192.0.2.7", "=mx.a.example", "192.0.2.0/25", "192.0.2.",
            "192.0.2.0/24", "192.0.0.0/16", "192.", "=.a.example", "=.example", "=", "",
        )  # fmt: skip
        for first in range(len(order)):
            text = "".join(f"{address}:allow,N='{n}'\n" for n, address in enumerate(order) if n >= first)
            rule = self.rules(text).find("192.0.2.7", "mx.a.example", "joe")
            self.assertEqual(rule.variables, {"N": str(first)})

    def test_nothing(self):
        """A client of whom no rule speaks has none."""
        self.assertIsNone(self.rules("192.0.2.1:deny\n=:deny\n").find("192.0.2.2"))
        self.assertIsNone(self.rules("").find("::1", "a.example"))

    def test_host_unknown(self):
        """Without a name no rule with = is looked at; the name's case is no matter."""
        rules = self.rules("=MX.example:deny\n=:allow,N='1'\n:allow,N='2'\n")

        self.assertTrue(rules.by_host)
        self.assertEqual([self.says(rules.find("192.0.2.1", h)) for h in ("mx.example", "x", "")], ["deny", "1", "2"])
        self.assertFalse(self.rules(":allow\n192.0.2.:deny\n").by_host)

    def test_range(self):
        """A range is all its addresses, in any place, and ends at 255."""
        rules = self.rules("192.0.2.37-53:deny\n10.1-2.:deny\njoe@10.9.9.1-2:deny\n10.0.0.250-999:deny\n")
        hit = ["192.0.2.37", "192.0.2.53", "10.1.9.9", "10.2.0.0", "10.0.0.255"]

        self.assertEqual([self.says(rules.find(ip)) for ip in hit], ["deny"] * 5)
        self.assertEqual([rules.find(ip) for ip in ("192.0.2.36", "192.0.2.54", "10.3.0.1", "10.9.9.1")], [None] * 4)
        self.assertTrue(rules.find("10.9.9.2", user="joe").deny)

    def test_ipv6(self):
        """The colon before the instruction is the last one: prefixes, addresses and networks of IPv6 can be told."""
        for line, hit, missed in (
            ("2001:db8::allow", "2001:db8:5::1", "2001:db9::1"),  # the prefix 2001:db8:
            ("2001:db8:::allow", "2001:db8::", "2001:db8::1"),  # the address 2001:db8::
            ("[2001:db8::]:allow", "2001:db8::", "2001:db8::1"), ("2001:DB8:0::1:allow", "2001:db8::1", "2001:db8::2"),
            ("::1:allow", "::1", "::2"), ("2001:db8::/32:allow", "2001:db8:ffff::", "2001:db9::"),
            ("[2001:db8::]/33:allow", "2001:db8:7fff::", "2001:db8:8000::"),
            ("[2001:db8::/33]:allow", "2001:db8:7fff::", "2001:db8:8000::"),
            ("::ffff:192.0.2.1:allow", "192.0.2.1", "192.0.2.2"), ("127./8:allow", "127.9.9.9", "128.0.0.1"),
            ("10.1/16:allow", "10.1.2.3", "10.2.0.0"), ("10.1.2.3/8:allow", "10.9.9.9", "11.0.0.0"),
        ):  # fmt: skip
            rules = self.rules(line + "\n")
            self.assertIsNotNone(rules.find(hit), line)
            self.assertIsNone(rules.find(missed), line)

    def test_variables(self):
        """Any character may stand for the quotes; commas, colons and equals signs within are text; the last one counts."""
        rules = self.rules(':allow,RELAYCLIENT="",DATABYTES=\'0\',A=/x,y="z:/,B=|1|,B=.2.\n')

        self.assertEqual(
            rules.find("192.0.2.1").variables,
            {"RELAYCLIENT": "", "DATABYTES": "0", "A": 'x,y="z:', "B": "2"},
        )

    def test_lines(self):
        """Comments and empty lines are passed over, blanks at the end cut; of two for one address the first counts."""
        rules = self.rules("# all:deny\n\n192.0.2.1:deny \t\n192.0.2.1:allow\n192.0.2.0/24:allow\n192.0.2.5/24:deny")

        self.assertTrue(rules.find("192.0.2.1").deny)
        self.assertFalse(rules.find("192.0.2.2").deny)

    def test_one_rule(self):
        """Lines that say the same are one rule, so that what comes of them is made once."""
        rules = self.rules("192.0.2.1:allow,SPF='1'\n192.0.2.2:allow,SPF='1'\n192.0.2.3:allow,SPF='2'\n")
        one, two, three = (rules.find(f"192.0.2.{n}") for n in (1, 2, 3))

        self.assertIs(one, two)
        self.assertIsNot(one, three)

    def test_not_here(self):
        """A variable that we have not yet is told once, with its first line."""
        rules = self.rules(":allow,SPF='3'\n10.:allow,SMTPAUTH='!'\n11.:allow,SMTPAUTH='-'\n")

        self.assertEqual([(n.line, n.text.split()[0]) for n in rules.notices], [(2, "SMTPAUTH")])


class BadLineTests(TcprulesTestCase):
    def test_places(self):
        """A line that is no rule, or can match nobody, is told with its number and what to write instead."""
        for line, text, remedy in (
            ("192.0.2.1", "is no rule", "ADDRESS:allow"), ("192.0.2.1:alow", "is no rule", "ADDRESS:allow"),
            ("allow", "is no rule", "ADDRESS:allow"), ("192.0.2.1:allowed", "is no rule", "ADDRESS:allow"),
            ("192.0.2:deny", "matches nobody", "192.0.2. with a dot"), ("mx.example:deny", "nobody", "=mx.example"),
            ("192.0.2.256:deny", "nobody", "write"), ("1.2.3.4.:deny", "nobody", "write"),
            ("192.0.2.0/33:deny", "is no network", "write"), ("2001:db8::/129:deny", "is no network", "write"),
            ("192.0.2.9-3:deny", "empty range", "192.0.2.3-9"), ("joe@192.0.2.:deny", "nobody", "one address"),
            ("joe@=.example:deny", "nobody", "whole name"), ("=a b:deny", "names no host", "=mx.example.org"),
            ("joe@:deny", "nobody", "one address"), (":allow,SPF=3", "sets no variable", 'NAME="VALUE"'),
            (':allow,SPF="3" ,A="1"', "sets no variable", "without blanks"),
            (':allow,SPF="9"', "SPF: 9 is not within 0 and 6", "0 to 6"), (":allow;SPF='1'", "is no rule", ""),
            (':allow,REPLY_HELO="a\x07"', "REPLY_HELO", "plain text"), (":allow,='1'", "sets no variable", ""),
        ):  # fmt: skip
            path = self.file("# rules\n" + line + "\n")
            with self.assertRaises(BadLine, msg=line) as caught:
                read(path)
            bad = caught.exception
            self.assertEqual((bad.path, bad.line), (path, 2))
            self.assertIn(text, bad.text)
            self.assertIn(remedy, bad.remedy)

    def test_no_file(self):
        """A file that is not there is the caller's to tell."""
        for name in ("none", "none.cdb"):
            with self.assertRaises(FileNotFoundError):
                read(os.path.join(self.mktemp(), name))

    @given(st.text(alphabet="01.:/-@=[]abdelnowy,\"'SPF#", max_size=40))
    @settings(max_examples=300)
    def test_anything(self, text):
        """Whatever is written, the answer is rules or BadLine."""
        path = self.again()
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n" + text + ":allow\n")
        try:
            rules = read(path)
        except BadLine as bad:
            self.assertGreater(bad.line, 0)
            return
        rules.find("10.0.0.1", "b.example")


class CompiledTests(TcprulesTestCase):
    def test_values(self):
        """D denies; +NAME=VALUE sets; what else stands there is passed over, as tcpserver does."""
        path = reference.compiled([("192.0.2.1", b"D\0"), ("10.", b"+RELAYCLIENT=\0+B=a=b\0xyz\0+C"), ("", b"")])
        self.addCleanup(os.unlink, path)
        rules = read(path)

        self.assertTrue(rules.find("192.0.2.1").deny)
        self.assertEqual(rules.find("10.1.1.1").variables, {"RELAYCLIENT": "", "B": "a=b"})
        self.assertEqual(rules.find("192.0.2.9").variables, {})

    def test_bad_value(self):
        """A value that makes no sense is told, without a line."""
        path = reference.compiled([("10.", b"+SPF=9\0")])
        self.addCleanup(os.unlink, path)

        with self.assertRaises(BadLine) as caught:
            read(path)
        self.assertEqual((caught.exception.path, caught.exception.line), (path, 0))

    def test_damaged(self):
        """What is no cdb is told."""
        path = self.file("10.:allow\n", "tcp.smtp.cdb")

        with self.assertRaises(BadLine):
            read(path)

    @given(
        st.lists(st.tuples(ADDRESS, st.integers(0, 9)), max_size=12),
        IP, st.one_of(st.just(""), HOST), st.one_of(st.just(""), USER), st.sampled_from([b"", b"\0"]),
    )  # fmt: skip
    @settings(max_examples=150, deadline=None)
    def test_same(self, rows, ip, host, user, null):
        """Text, the cdb made of it, and tcpserver's order written out plainly find the same rule."""
        said = [(address, "deny" if n == 0 else str(n)) for address, n in rows]
        path = self.again()
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(
                f"{address}:" + ("deny\n" if what == "deny" else f"allow,N='{what}'\n") for address, what in said
            )
        cdb = reference.compiled([(a, b"D\0" if w == "deny" else b"+N=%s\0" % w.encode()) for a, w in said], null)

        expected = reference.find(said, ip, host, user)
        try:
            self.assertEqual(self.says(read(path).find(ip, host, user)), expected)
            self.assertEqual(self.says(read(cdb).find(ip, host, user)), expected)
        finally:
            os.unlink(cdb)
