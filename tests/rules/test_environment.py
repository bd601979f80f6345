from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Reply
from qmq.rules.environment import VARIABLES, BadVariable, environment, merged, of_process
from qmq.session import Environment


class EnvironmentTests(SynchronousTestCase):
    def wrong(self, name, text, remedy):
        """Is refused, by its name, with that in what to write."""
        bad = self.assertRaises(BadVariable, environment, {name: text})
        self.assertTrue(str(bad).startswith(f"{name}: "), str(bad))
        self.assertIn(remedy, bad.remedy)

    def test_nothing(self):
        """Without a variable nothing is set."""
        self.assertEqual(environment({}), Environment())

    def test_table(self):
        """Every variable sets an attribute that there is, and has a word of its own."""
        attributes = {v.attribute for v in VARIABLES.values()} - {""}

        self.assertEqual(attributes - set(Environment.__slots__), set())
        self.assertEqual(set(Environment.__slots__) - attributes, {"qhpsiargs", "replies", "variables"})
        self.assertEqual(len({v.word for v in VARIABLES.values()}), len(VARIABLES))
        self.assertEqual(VARIABLES["REPLY_HELO"].word, "reply-helo")

    def test_values(self):
        """Each value means what it meant to qmail-smtpd."""
        for raw, attribute, found in (
            ({"RELAYCLIENT": ""}, "relayclient", b""), ({"RELAYCLIENT": "@fix.me"}, "relayclient", b"@fix.me"),
            ({"HELOCHECK": ""}, "helocheck", ""), ({"HELOCHECK": "."}, "helocheck", "."),
            ({"HELOCHECK": "yes"}, "helocheck", ""), ({"MFDNSCHECK": ""}, "mfdnscheck", True),
            ({"LOCALMFCHECK": "Example.ORG"}, "localmfcheck", "example.org"), ({"SPF": "3"}, "spf", 3),
            ({"MAXRECIPIENTS": "20 "}, "maxrecipients", 20), ({"MAXRECIPIENTS": " 7up"}, "maxrecipients", 7),
            ({"TARPITDELAY": "999"}, "tarpitdelay", 999), ({"BADMIMETYPE": ""}, "badmimetype", ""),
            ({"BADMIMETYPE": "-"}, "badmimetype", None), ({"BADLOADERTYPE": "M"}, "badloadertype", "M"),
            ({"DATABYTES": "0"}, "databytes", 0), ({"QHPSI": ""}, "qhpsi", None), ({"QHPSIRC": "2"}, "qhpsirc", 2),
            ({"QHPSIARG1": "-x", "QHPSIARG3": "-z"}, "qhpsiargs", ("-x",)), ({"RBLSMTPD": ""}, "rblsmtpd", ""),
            ({"DELIVERTO": "a@b.example"}, "deliverto", b"a@b.example"), ({"TCPREMOTEINFO": "joe"}, "info", b"joe"),
        ):  # fmt: skip
            self.assertEqual(getattr(environment(raw), attribute), found, raw)

    def test_wrong(self):
        """A value that makes no sense is refused with what to write instead."""
        for name, text, remedy in (
            ("SPF", "7", "0 to 6"), ("SPF", "on", "digits"), ("HELOCHECK", "B", "! . = A M"),
            ("LOCALMFCHECK", "+", "! = ?"), ("MAXRECIPIENTS", "", "digits"), ("MAXRECIPIENTS", "-1", "digits"),
            ("GREETDELAY", "3600", "0 to 300"), ("BADMIMETYPE", "yes", "one character"),
            ("RELAYCLIENT", "a b", "without blanks"), ("QHPSIRC", "0", "1 to 255"), ("TCPREMOTEHOST", "a b", "a name"),
        ):  # fmt: skip
            self.wrong(name, text, remedy)

    def test_replies(self):
        """A site's own words go behind ours; what could end a reply, or is too long, is refused."""
        found = environment({"REPLY_HELO": "see https://example.org/", "REPLY_MINE": "x", "REPLY_CONTENT": ""})

        self.assertEqual(found.worded(Reply(550, "5.7.1", "no"), "REPLY_HELO").text, "no see https://example.org/")
        self.assertEqual(set(found.replies), {"REPLY_HELO", "REPLY_MINE"})
        for text in ("a\r\n250 ok", "a\n", "caf\xe9", "x" * 301):
            self.wrong("REPLY_HELO", text, "write")

    def test_strangers(self):
        """Unknown variables are kept for the checkers of others; what is unset is not there."""
        found = environment({"MYCHECK": "a\tb", "SPF": None, "HELOCHECK": "!"})

        self.assertEqual(found.variables, {"MYCHECK": "a\tb", "HELOCHECK": "!"})
        self.assertEqual(found.spf, 0)

    def test_layers(self):
        """A stronger layer wins, and may unset what a weaker one has set."""
        layers = {"SPF": "1", "MFDNSCHECK": ""}, {"SPF": "2"}, {"MFDNSCHECK": None}

        self.assertEqual(environment(merged(*layers)), environment({"SPF": "2"}))

    def test_process(self):
        """Of the process's variables those count that qmail-smtpd would have looked at."""
        self.assertEqual(of_process({"PATH": "/bin", "SPF": "3", "SMTPAUTH": ""}), {"SPF": "3", "SMTPAUTH": ""})

    @given(st.dictionaries(st.sampled_from([*VARIABLES, "OTHER", "REPLY_X"]), st.text(max_size=8)))
    def test_anything(self, raw):
        """Whatever is written, the answer is an Environment or BadVariable."""
        try:
            found = environment(raw)
        except BadVariable:
            return
        self.assertEqual(found.variables, raw)
        for text in found.replies.values():
            self.assertTrue(text.isprintable())
