import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.spf.field import handed_in, received_spf

# RFC 7208 9.1, folded.
FIELD = re.compile(
    rb"Received-SPF: (pass|fail|softfail|neutral|none|temperror|permerror)( \([^()\\\x00-\x1f\x7f-\xff]*\))?"
    rb'(\r\n\t[a-z-]+=([A-Za-z0-9!#$%&\'*+/=?^_`{|}~.-]+|"([^"\\\x00-\x1f\x7f-\xff]|\\["\\])*");)*\r\n'
)


class FieldTests(SynchronousTestCase):
    def test_field(self):
        """Plain words stand bare, others in quotes, and what is not known is left out."""
        field = received_spf(
            "pass", "mx: x.example (said) so", [("client-ip", "2001:db8::1"), ("helo", "h.example"), ("problem", "")]
        )

        self.assertEqual(
            field,
            b'Received-SPF: pass (mx: x.example ?said? so)\r\n\tclient-ip="2001:db8::1";\r\n\thelo=h.example;\r\n',
        )

    def test_strangers(self):
        """No value gets out of its quotes, its line or the field."""
        field = received_spf("fail", "", [("envelope-from", 'a"; result=pass; x="\\@x\r\nBcc: evil\x00ü')])

        self.assertEqual(
            field, b'Received-SPF: fail\r\n\tenvelope-from="a\\"; result=pass; x=\\"\\\\@x??Bcc: evil??";\r\n'
        )

    def test_handed_in(self):
        """The result of a wrapper is filled up with what the session knows."""
        field = handed_in("pass|mailfrom||||mx.us.example||ip4:192.0.2.1|", "192.0.2.1", "h.example", "a@x.example")

        self.assertEqual(
            field,
            b"Received-SPF: pass\r\n\tidentity=mailfrom;\r\n\tclient-ip=192.0.2.1;\r\n\thelo=h.example;\r\n"
            b'\tenvelope-from="a@x.example";\r\n\treceiver=mx.us.example;\r\n\tmechanism="ip4:192.0.2.1";\r\n',
        )

    def test_handed_in_whole(self):
        """What the wrapper says is not overwritten."""
        field = handed_in("fail|helo|192.0.2.9|w.example|b@y.example|us|p|m|", "192.0.2.1", "h.example", "a@x.example")

        self.assertNotIn(b"192.0.2.1;", field)
        self.assertIn(b"client-ip=192.0.2.9;", field)

    def test_handed_in_nonsense(self):
        """Without a result there is no field."""
        for info in ["", "|", "maybe|x", "pass evil|"]:
            self.assertEqual(handed_in(info, "192.0.2.1", "h", "s"), b"")

    @given(st.text(max_size=400), st.lists(st.tuples(st.just("helo"), st.text(max_size=400)), max_size=3))
    def test_any(self, comment, pairs):
        """Whatever strangers say, there is one well-formed field, and no line is too long."""
        field = received_spf("none", comment, pairs)

        self.assertRegex(field, re.compile(rb"\A" + FIELD.pattern + rb"\Z"))
        self.assertLess(max(map(len, field.split(b"\r\n"))), 998)

    @given(st.text(max_size=300), st.text(max_size=300))
    def test_any_handed_in(self, info, helo):
        """Nor can a wrapper break the field."""
        field = handed_in("pass|" + info, "192.0.2.1", helo, "a@x")

        self.assertRegex(field, re.compile(rb"\A" + FIELD.pattern + rb"\Z"))
