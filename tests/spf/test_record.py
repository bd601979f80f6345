from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.spf.record import LONGEST_RECORD, BadRecord, Result, is_record, mechanisms, parse

WORDS = st.sampled_from(
    ["all", "a", "mx", "ptr", "ip4", "ip6", "include", "exists", "redirect", "exp", "=", ":", "/", "//", " ", "-", "~", "?", "+",
     "24", "32", "192.0.2.1", "2001:db8::", "::", "example.org", "%{d}", "%{", "%", ".", "\x00", "é"]
)  # fmt: skip


class RecordTests(SynchronousTestCase):
    def test_record(self):
        """Mechanisms come in order with what their match means, modifiers wherever they stand."""
        record = parse(b"v=spf1 exp=e.example  +a ~mx:m.example/24//64 ?ip4:192.0.2.0/24 redirect=r.example -ALL ")

        self.assertEqual([m.kind for m in record.mechanisms], ["a", "mx", "ip4", "all"])
        self.assertEqual(
            [m.result for m in record.mechanisms], [Result.PASS, Result.SOFTFAIL, Result.NEUTRAL, Result.FAIL]
        )
        self.assertEqual((record.mechanisms[1].prefix4, record.mechanisms[1].prefix6), (24, 64))
        self.assertEqual(record.mechanisms[1].target, ("m.example",))
        self.assertEqual((record.explanation, record.redirect), (("e.example",), ("r.example",)))

    def test_is_record(self):
        """A record of SPF is one of version 1 exactly."""
        for text, is_one in [
            (b"v=spf1", True),
            (b"V=SPF1 -all", True),
            (b"v=spf10", False),
            (b" v=spf1", False),
            (b"v=spf1\t", False),
            (b"", False),
        ]:
            self.assertIs(is_record(text), is_one)

    def test_bad(self):
        """A mistake anywhere spoils the record, and the error shows where."""
        for terms in [
            "moo", "-all moo", "--all", "all:x", "a:", "a/", "a/33", "a//129", "a/024", "a/24/64", "a:x", "a:x.1", "a:x.-y",
            "include", "include:", "exists", "ptr/8", "ip4", "ip4:1.2.3", "ip4:1.2.3.4.5", "ip4:1.2.3.256", "ip4:01.2.3.4",
            "ip4:1.2.3.4/33", "ip4:1.2.3.4/", "ip4:1.2.3.4.", "ip6:1.2.3.4", "ip6::::", "ip6:fe80::1%eth0", "redirect=", "exp=",
            "redirect=a.b redirect=a.b", "exp=a.b exp=c.d", "x=%", "1x=", "a:%%_", "a\tmx", "all\n", "ip4:1.2.3.4\n", "x=\n",
        ]:  # fmt: skip
            with self.assertRaises(BadRecord, msg=terms):
                parse(b"v=spf1 " + terms.encode())
        with self.assertRaises(BadRecord) as caught:
            parse(b"v=spf1 a -alll")
        self.assertIn("'-alll'", str(caught.exception))

    def test_odd(self):
        """What looks wrong, but is not."""
        for terms in [
            "a:foo:bar/baz.example.com",
            "a:x.xn--p1ai",
            "a:x.y.",
            "a:%{d}/24",
            "a//0",
            "ip4:0.0.0.0/0",
            "ip6:::1",
            "ip6:::ffff:1.2.3.4",
            "a=b",
            "x=",
            "a:%%%_",
            "a:_x.y",
        ]:
            parse(b"v=spf1 " + terms.encode())

    def test_long(self):
        """A record longer than any honest one is not read."""
        with self.assertRaises(BadRecord):
            parse(b"v=spf1 " + b"a " * LONGEST_RECORD)

    def test_mechanisms(self):
        """Mechanisms may stand alone; modifiers may not stand with them."""
        self.assertEqual([m.kind for m in mechanisms(b"ip4:192.0.2.1 include:x.example")], ["ip4", "include"])
        for terms in [b"redirect=x.example", b"a exp=x.example", b"foo=bar"]:
            with self.assertRaises(BadRecord):
                mechanisms(terms)

    @given(st.binary(max_size=200) | st.lists(WORDS, max_size=30).map(lambda words: "".join(words).encode()))
    def test_any(self, text):
        """Any octets are a record or a BadRecord."""
        try:
            parse(b"v=spf1 " + text)
        except BadRecord as error:
            self.assertTrue(str(error).isprintable())
