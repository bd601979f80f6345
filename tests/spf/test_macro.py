from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.spf.macro import BadMacro, ends_in_macro, expand, letters, template

MEANINGS = {
    "s": "strong-bad@email.example.com", "l": "strong-bad", "o": "email.example.com", "d": "email.example.com",
    "i": "192.0.2.3", "p": "mx.example.org", "v": "in-addr", "h": "mx.example.org", "c": "192.0.2.3", "r": "us", "t": "1",
}  # fmt: skip


class MacroTests(SynchronousTestCase):
    def said(self, text, **how):
        return expand(template(text, **how), MEANINGS)

    def test_rfc(self):
        """The examples of RFC 7208 7.4."""
        for text, expanded in [
            ("%{s}", "strong-bad@email.example.com"), ("%{o}", "email.example.com"), ("%{d}", "email.example.com"),
            ("%{d4}", "email.example.com"), ("%{d3}", "email.example.com"), ("%{d2}", "example.com"),
            ("%{d1}", "com"), ("%{dr}", "com.example.email"), ("%{d2r}", "example.email"), ("%{l}", "strong-bad"),
            ("%{l-}", "strong.bad"), ("%{lr}", "strong-bad"), ("%{lr-}", "bad.strong"), ("%{l1r-}", "strong"),
            ("%{ir}.%{v}._spf.%{d2}", "3.2.0.192.in-addr._spf.example.com"),
            ("%{lr-}.lp._spf.%{d2}", "bad.strong.lp._spf.example.com"),
            ("%{lr-}.lp.%{ir}.%{v}._spf.%{d2}", "bad.strong.lp.3.2.0.192.in-addr._spf.example.com"),
            ("%{ir}.%{v}.%{l1r-}.lp._spf.%{d2}", "3.2.0.192.in-addr.strong.lp._spf.example.com"),
            ("%{d2}.trusted-domains.example.net", "example.com.trusted-domains.example.net"),
        ]:  # fmt: skip
            self.assertEqual(self.said(text), expanded)

    def test_escaped(self):
        """A macro in upper case is escaped for URLs, octet by octet."""
        self.assertEqual(expand(template("%{L}"), {"l": "a b&ü~"}), "a%20b%26%FC~")

    def test_signs(self):
        """%%, %_ and %- are a percent sign, a blank and a blank for URLs."""
        self.assertEqual(self.said("a%%b%_c%-d"), "a%b c%20d")

    def test_bad(self):
        """Unknown letters, lonely percent signs, blanks, no parts at all and, in domains, c, r and t are refused."""
        for text in [
            "%",
            "a%",
            "%a",
            "%{",
            "%{d",
            "%{}",
            "%{x}",
            "%{d0}",
            "%{d00r}",
            "%{d}%",
            "a b",
            "%{dd}",
            "%{c}",
            "%{R}",
            "%{t}",
            "\x00",
            "ü",
        ]:
            with self.assertRaises(BadMacro):
                template(text)
        for text in ["%{x}", "a\tb", "a\nb", "\x7f"]:
            with self.assertRaises(BadMacro):
                template(text, explanation=True)

    def test_explanation(self):
        """An explanation may have blanks, and the letters c, r and t."""
        self.assertEqual(self.said("%{c} says %{r} at %{t}", explanation=True), "192.0.2.3 says us at 1")

    def test_many_parts(self):
        """A number of parts beyond all reason is all parts, and costs nothing."""
        self.assertEqual(self.said("%{d" + "9" * 8000 + "}"), "email.example.com")

    def test_end(self):
        """A percent sign before the last letter is not always a macro."""
        for text, ends in [
            ("a%{d}", True),
            ("%%", True),
            ("a%_", True),
            ("a%%_", False),
            ("%{d}.com", False),
            ("", False),
        ]:
            self.assertIs(ends_in_macro(text), ends, text)

    def test_letters(self):
        """Which letters a template needs is known beforehand."""
        self.assertEqual(letters(template("%{P}.%{d2}.example")), {"p", "d"})

    @given(st.text(max_size=200) | st.text("%{}slodiphvcrtSLX0123r.-+,/_= ", max_size=80), st.booleans())
    def test_any(self, text, explanation):
        """Any text is a template or a BadMacro, and any template expands."""
        try:
            made = template(text, explanation=explanation)
        except BadMacro:
            return
        self.assertIsInstance(expand(made, MEANINGS), str)
