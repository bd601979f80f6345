from qmq.conf.ground import Ground
from qmq.conf.load import load
from qmq.conf.written import ConfErrors
from tests.conf.folders import HEAD, ROOT, USER, ConfTestCase


class ErrorTests(ConfTestCase):
    def error(self, conf, line, text, remedy="", here=USER, files=None, path="conf-qmq"):
        """The one error there is: its line, its text and remedy (parts of them)."""
        found = self.errors(conf, files, here)
        self.assertEqual([(e[0], e[1]) for e in found], [(path, line)], found)
        self.assertIn(text, found[0][2])
        self.assertIn(remedy, found[0][3])

    def test_no_file(self):
        """Without a conf-qmq the error says what writes one."""
        path = self.write("") + "-none"
        errors = self.assertRaises(ConfErrors, load, path, USER).errors

        self.assertEqual([(e.path, e.line) for e in errors], [(path, 0)])
        self.assertIn("qmq init", errors[0].remedy)

    def test_empty(self):
        """A file without an instance is no configuration."""
        found = self.errors("[instances]\n[qmq]\nme = a.example\n[primary]\nlisten = tcp:2525\n")

        self.assertEqual([e[2] for e in found], ["names no instance"])

    def test_all_at_once(self):
        """All errors are told at once, in the order of their lines."""
        text = HEAD + "lifetime = 24\nretry = often\nbogus = 1\n[nobody]\n"

        found = self.errors(text)

        self.assertEqual([e[1] for e in found], [10, 11, 12, 13])

    def test_no_unit(self):
        """A time without its unit is an error that says how times are written."""
        self.error(HEAD + "lifetime = 24\n", 10, "lifetime: '24' has no unit", "24h")

    def test_count_with_unit(self):
        """A count with a unit is an error."""
        self.error(HEAD + "concurrency = 1K\n", 10, "concurrency: '1K' is no count")

    def test_unknown_key(self):
        """An unknown key is answered with the nearest known one."""
        self.error(HEAD + "concurency = 5\n", 10, "[alpha] knows no concurency", "do you mean concurrency?")

    def test_key_of_elsewhere(self):
        """A key in the wrong section is answered with the right one."""
        self.error(HEAD + "listen = tcp:2525\n", 10, "[alpha] knows no listen", "[primary]")

    def test_unknown_section(self):
        """A section that is no instance is answered with the nearest name."""
        self.error(HEAD + "[alhpa]\n", 10, "[alhpa] is no instance", "do you mean [alpha]?")

    def test_key_twice(self):
        """A key twice is an error of the second line that names the first."""
        self.error(HEAD + "deliver = mx\n", 10, "deliver is there twice", "line 9")

    def test_section_twice(self):
        """A section twice is an error that names the first."""
        self.error(HEAD + "[qmq]\nuser =\n", 10, "section [qmq] is there twice", "line 3")

    def test_before_sections(self):
        """A line before the first section of a file with sections is an error."""
        self.error("me = x.example\n" + HEAD, 1, "before the first section", "[qmq]")

    def test_no_setting(self):
        """A line that is neither setting nor section is an error."""
        self.error(HEAD + "what is this\n", 10, "'what is this' is no setting")

    def test_word_of_a_later_line(self):
        """In a value of several lines an error has the line of the word that is wrong."""
        text = HEAD + "route = a.example=mx\n   # why\n   b.example=mx\n   c.example:mx\n"

        self.error(text, 13, "'c.example:mx' is no route")

    def test_duplicate_number(self):
        """A number twice is an error; 1 and 01 are one number."""
        self.error(HEAD.replace("01:alpha\n", "01:alpha\n1:beta\n"), 3, "number 1 is taken by alpha (line 2)", "2:beta")

    def test_duplicate_name(self):
        """A name twice is an error, also if only the case differs: it names a folder."""
        self.error(HEAD.replace("01:alpha\n", "01:alpha\n02:Alpha\n"), 3, "name Alpha is taken by 01")

    def test_reserved_name(self):
        """An instance cannot be called as a section of qmq's own."""
        for name in ("qmq", "primary", "instances"):
            self.assertIn(
                (3, f"the name {name} is taken by a section of qmq's own"),
                [e[1:3] for e in self.errors(HEAD.replace("01:alpha\n", f"01:alpha\n02:{name}\n"))],
            )

    def test_name_as_folder(self):
        """A name that could lead out of the spool folder is refused."""
        self.error(HEAD.replace("01:alpha\n", "01:alpha\n02:../beta\n"), 3, "'../beta' is no name")

    def test_port_overflow(self):
        """A number whose port would be above 65535 is an error that says how far numbers go."""
        self.error(HEAD.replace("01:alpha\n", "01:alpha\n60000:beta\n"), 3, "more than 65535", "54535")

    def test_no_me(self):
        """Somebody must say who this is."""
        self.error(HEAD.replace("me = mx.example.org", "log = -"), 0, "there is no me", "me = mx.example.org")

    def test_two_owners(self):
        """A domain of two instances is an error of the second that names the first's line."""
        text = HEAD.replace("01:alpha\n", "01:alpha\n02:beta\n") + "[beta]\ndomains = b.example Alpha.Example\n"

        self.error(text, 12, "alpha.example belongs to alpha already", "one instance")

    def test_two_bounce_instances(self):
        """One instance sends the bounces, not two."""
        text = HEAD.replace("01:alpha\n", "01:alpha\n02:b\n03:c\n") + "[b]\nrole = bounce\n[c]\nrole = bounce\n"

        self.error(text, 15, "b has role = bounce already")

    def test_bad_role(self):
        """An unknown role is an error that lists the known ones."""
        self.error(HEAD + "role = default\n", 10, "normal, bounce, storm")

    def test_out_of_bounds(self):
        """What is below its floor or above its ceiling is an error that says the bound."""
        for line, bound in (
            ("timeout = 60s", "5m or more"), ("line = 500B", "1000B or more"), ("command = 100B", "512B or more"),
            ("header = 1K", "64K or more"), ("recipients = 10", "100 or more"), ("handover-time = 121s", "2m or less"),
        ):  # fmt: skip
            self.error(HEAD.replace("[alpha]", f"{line}\n[alpha]"), 7, "than", bound)

    def test_bad_values(self):
        """Each kind of value says what is wrong with it."""
        for line, text in (
            ("deliver = bogus:x", "no next hop"), ("domains = a@b.example", "no domain"),
            ("bind = here", "no IP address"),
            ("retry = often", "no wait"), ("peers = 10.0.0.1/8", "within a network"), ("handover = uucp", "hand over"),
            ("qmtp-listen = 25", "place to listen"), ("doublebounceto = me", "no address"),
            ("helohost = a b", "host name"),
            ("delay-notice = soon", "no time"), ("tls = must", "none of"), ("limit-bytes = 5", "no unit"),
        ):  # fmt: skip
            conf = HEAD.replace("domains = alpha.example\n", "").replace("deliver = smtp:192.0.2.1\n", "")
            self.error(conf + line + "\n", 8, text)

    def test_low_port(self):
        """A port that needs root is an error for an ordinary user, that says both ways out."""
        self.error(HEAD.replace("127.0.0.1:2525", "tcp:25"), 6, "port 25, which needs root", "user = ACCOUNT")

    def test_low_port_as_root(self):
        """Root must not stay root on the Internet's ports."""
        self.error(HEAD.replace("127.0.0.1:2525", "tcp:25"), 6, "run as root", "user = ACCOUNT", ROOT)

    def test_low_port_after_the_drop(self):
        """Who is the configured user already may read a configuration with port 25 again: the port is open."""
        text = HEAD.replace("127.0.0.1:2525", "tcp:25").replace("[primary]", "user = qmq\n[primary]")
        after = Ground(account="qmq", lowest_port=1, accounts=frozenset({"qmq"}))

        self.assertEqual(self.warnings(text, here=after), [])
        self.assertEqual(self.warnings(text, here=ROOT), [])

    def test_no_account(self):
        """An account that does not exist is an error of root's start."""
        self.error(HEAD.replace("[primary]", "user = nobody-such\n[primary]"), 5, "no account nobody-such", here=ROOT)

    def test_ports_twice(self):
        """Two listeners on one port are an error, also if one listens on all addresses."""
        self.error(HEAD + "qmtp-listen = tcp:2525\n", 10, "both listen on port 2525")

    def test_missing_files(self):
        """A certificate, key, control or home folder that is not there is an error of its line."""
        self.error(HEAD.replace("[alpha]", "certificate = mx.pem\n[alpha]"), 7, "no file")
        self.error(HEAD.replace("[primary]", "control = ctl\n[primary]"), 5, "no folder")
        self.error(HEAD + "home = qmail-01\n", 10, "no folder")

    def test_key_without_certificate(self):
        """A key alone is an error."""
        self.error(HEAD.replace("[alpha]", "key = k.pem\n[alpha]"), 7, "without a certificate", files={"k.pem": ""})

    def test_one_spool_for_two(self):
        """Two instances cannot share a store."""
        text = (
            HEAD.replace("01:alpha\n", "01:alpha\n02:beta\n") + "spool = s\n[beta]\ndomains = b.example\nspool = ./s\n"
        )

        self.error(text, 14, "alpha's store")

    def test_handover_without_port(self):
        """A hand-over by SMTP needs a port; LMTP leads to other hosts only."""
        self.error(HEAD + "handover = smtp\nqmtp-listen = none\n", 10, "needs a port")
        self.error(HEAD + "handover = lmtp\n", 10, "takes no LMTP")

    def test_not_utf8(self):
        """A file that is no UTF-8 is an error, not a traceback."""
        path = self.write("")
        with open(path, "wb") as file:
            file.write(b"[instances]\n01:\xff\n")
        self.assertIn("UTF-8", str(self.assertRaises(ConfErrors, load, path, USER)))


class WarningTests(ConfTestCase):
    def test_none(self):
        """A configuration that is right has no warning."""
        self.assertEqual(self.warnings(HEAD), [])

    def test_short_lifetime(self):
        """A lifetime under an hour is what somebody once did not mean."""
        self.assertEqual(self.warnings(HEAD + "lifetime = 24m\n"), [("conf-qmq", 10, "mail is given up after 24m")])

    def test_customer_by_mx(self):
        """A customer's domain that goes to its MX, because nobody said where to, may come back to us."""
        found = self.warnings(HEAD.replace("deliver = smtp:192.0.2.1\n", ""))

        self.assertEqual(found, [("conf-qmq", 8, "alpha.example is delivered to its MX, which may be this gateway")])

    def test_customer_by_mx_on_purpose(self):
        """Said so, it is as it was meant."""
        self.assertEqual(self.warnings(HEAD.replace("smtp:192.0.2.1", "mx")), [])

    def test_relay_without_default(self):
        """Relay clients without a default instance can send to our domains only."""
        found = self.warnings(HEAD.replace("[primary]", "relay = 127.0.0.1\n[primary]"))

        self.assertEqual(found, [("conf-qmq", 5, "relay clients can send to the listed domains only")])

    def test_no_domains(self):
        """Without a domain all mail is refused: nothing is open by default."""
        conf = self.load(HEAD.replace("domains = alpha.example\n", ""))

        self.assertEqual([w.text for w in conf.warnings], ["no domain is anybody's: all mail is refused"])
        self.assertFalse(conf.accepts(b"alpha.example"))
        self.assertIsNone(conf.instance_for(b"alpha.example"))

    def test_instance_without_domains(self):
        """An instance that no mail can reach is told."""
        found = self.warnings(HEAD.replace("01:alpha\n", "01:alpha\n02:beta\n"))

        self.assertEqual(found, [("conf-qmq", 3, "beta has no domains and gets no mail")])

    def test_unused_check(self):
        """Options of a check that is not asked are told."""
        found = self.warnings(HEAD + "[check mine]\nlimit = 1\n")

        self.assertEqual(found, [("conf-qmq", 10, "[check mine] is not used")])
