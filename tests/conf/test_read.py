import configparser

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.read import parse
from qmq.conf.written import Findings

LINES = st.lists(
    st.sampled_from([
        "[one]", "[two]", "a = 1", "b: 2", "c=x y", "d =", "e = 1 ; two", "f = a#b", "# comment", "; comment", "",
        "  more", "   # comment", "g = h = i", "j : k: l", "A2 = x",
    ]),
    max_size=12,
)  # fmt: skip


class DialectTests(SynchronousTestCase):
    @given(LINES)
    def test_as_configparser(self, lines):
        """What configparser reads without complaint, we read the same (an indented [section] is one, though)."""
        text = "\n".join(["[zero]", *lines])
        theirs = configparser.RawConfigParser(inline_comment_prefixes=("#", ";"), empty_lines_in_values=False)
        try:
            theirs.read_string(text)
        except configparser.Error:
            return
        findings = Findings()

        ours = parse("conf-qmq", text, findings)

        if not findings.errors:  # we want our lines in order: an indented key is no key
            self.assertEqual(
                {name: {k: w.text.strip("\n") for k, w in s.settings.items()} for name, s in ours.sections.items()},
                {name: {k: v.strip("\n") for k, v in theirs.items(name)} for name in theirs.sections()},
            )

    @given(st.text(alphabet="01:a#[]= \t\r\n\x00é;", max_size=60))
    def test_anything(self, text):
        """No text is a surprise: what cannot be read is an error with its line."""
        findings = Findings()

        parse("conf-qmq", text, findings)

        self.assertTrue(all(0 < note.line <= text.count("\n") + 1 for note in findings.errors))


class PlanTests(SynchronousTestCase):
    def plan(self, text):
        findings = Findings()
        document = parse("conf-qmq", text, findings)
        self.assertEqual(findings.errors, [])
        return [(p.text, p.number, p.name, p.bind, p.at.line) for p in document.plan]

    def errors(self, text):
        findings = Findings()
        parse("conf-qmq", text, findings)
        return [(note.line, note.text) for note in findings.errors]

    def test_classic(self):
        """A classic file is a row of NUMBER:NAME with comments; numbers are decimal, with zeros in front."""
        text = "# plan\n00:Internal_me\n01:Customer_1 # the first\n #x\n\n08:a\r\n80:INTERNET"

        self.assertEqual(
            self.plan(text),
            [("00", 0, "Internal_me", "", 2), ("01", 1, "Customer_1", "", 3), ("08", 8, "a", "", 6),
             ("80", 80, "INTERNET", "", 7)],
        )  # fmt: skip

    def test_several_on_a_line(self):
        """Several records may stand on one line, as the original had it."""
        self.assertEqual(self.plan("01:a 02:b"), [("01", 1, "a", "", 1), ("02", 2, "b", "", 1)])

    def test_third_field(self):
        """The third field of s/qmail's format is the source address; IPv6 has its colons."""
        self.assertEqual(
            self.plan("90:bounces:192.0.2.9\n91:b:2001:db8::1"),
            [("90", 90, "bounces", "192.0.2.9", 1), ("91", 91, "b", "2001:db8::1", 2)],
        )

    def test_in_a_section(self):
        """The same lines below [instances] mean the same."""
        self.assertEqual(self.plan("[instances]\n01:a\n02 = b\n[qmq]\nme = x.y"),
                         [("01", 1, "a", "", 2), ("02", 2, "b", "", 3)])  # fmt: skip

    def test_errors(self):
        """What is no record is an error of its line, and all of them are told."""
        text = "01:two words\nx1:b\n03:\njust\n01:c\n01:d\n04:C\n123456:e"

        self.assertEqual(
            self.errors(text),
            [
                (1, "the name 'two words' has a blank"),
                (2, "'x1' is no number"),
                (3, "'03:' is no instance"),
                (4, "'just' is no instance"),
                (8, "'123456' is no number"),
                (6, "number 01 is taken by c (line 5)"),
                (7, "name C is taken by 01 (line 5)"),
            ],
        )
