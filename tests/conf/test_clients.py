import os
from ipaddress import ip_network

from twisted.internet.task import Clock

from qmq.conf.clients import layers, listener_word
from qmq.conf.ground import Ground
from qmq.receive.clients import Clients
from qmq.rules.watched import Files
from tests.conf.folders import HEAD, USER, ConfTestCase


class ClientSettingsTestCase(ConfTestCase):
    def error(self, said, text, remedy="", line=10, path="conf-qmq", files=None):
        """The one error there is, with parts of its text and remedy."""
        found = self.errors(HEAD + said, files)
        self.assertEqual([e[:2] for e in found], [(path, line)], found)
        self.assertIn(text, found[0][2])
        self.assertIn(remedy, found[0][3])

    def primary(self, said, here=USER, files=None):
        """The Conf with these lines in [primary]."""
        return self.load(HEAD.replace("[alpha]", said + "[alpha]"), files, here)


class WordTests(ClientSettingsTestCase):
    def test_everywhere(self):
        """Each variable is a word of [primary], with units, and becomes the variable's text."""
        conf = self.primary(
            "helocheck = .\nmfdnscheck = yes\nlocalmfcheck = list\nspf = 3\ntarpitdelay = 5s\ngreetdelay = 1m\n"
            "qhpsi = /usr/bin/clamdscan\nqhpsiarg1 = --fdpass\nqhpsimaxsize = 2M\nrelayclient = @fix.me\n"
            "reply-helo = see https://example.org/helo#why\nbadmimetype = !\nbase64 = no\nrblsmtpd =\n"
            "recipients450 = none\n"
        )

        self.assertEqual(conf.primary.environment, {
            "HELOCHECK": ".", "MFDNSCHECK": "", "LOCALMFCHECK": "", "SPF": "3", "TARPITDELAY": "5", "GREETDELAY": "60",
            "QHPSI": "/usr/bin/clamdscan", "QHPSIARG1": "--fdpass", "QHPSIMAXSIZE": "2097152", "RELAYCLIENT": "@fix.me",
            "REPLY_HELO": "see https://example.org/helo#why", "BADMIMETYPE": "!", "BASE64": None, "RBLSMTPD": "",
            "RECIPIENTS450": None,
        })  # fmt: skip

    def test_special(self):
        """HELOCHECK's equals sign, and the 999 that is no delay, can be said."""
        conf = self.primary("helocheck = =\ntarpitdelay = notorious\n")

        self.assertEqual(conf.primary.environment, {"HELOCHECK": "=", "TARPITDELAY": "999"})

    def test_wrong(self):
        """A value that makes no sense is told at its line, with what to write instead."""
        for said, text, remedy in (
            ("spf = 7", "spf: 7 is not within", "0 to 6"), ("helocheck = B", "no HELO check", "! . = A M"),
            ("mfdnscheck = on", "neither yes nor no", "yes or no"), ("tarpitdelay = 5", "has no unit", "90s"),
            ("greetdelay = 500ms", "whole number", "1s"), ("greetdelay = 10m", "not within", "0 to 300"),
            ("maxrecipients = many", "no count", "bare number"), ("reply-helo = café", "printable", "plain text"),
            ("databytes = 1K", "less than 64K", "64K"), ("relayclient = a b", "part of an address", "blanks"),
            ("helochek = .", "knows no helochek", "helocheck"),
        ):  # fmt: skip
            self.error(f"[client 10.0.0.0/8]\n{said}\n", text, remedy, line=11)

    def test_elsewhere(self):
        """A word in an instance's section is answered with where it belongs."""
        self.error("helocheck = .\n", "[alpha] knows no helocheck", "[client NET]")


class SectionTests(ClientSettingsTestCase):
    def test_listen(self):
        """[listen WORD] is for one word of listen, also one with brackets."""
        text = HEAD.replace("listen = 127.0.0.1:2525", "listen = 127.0.0.1:2525 [::1]:2526")
        conf = self.load(text + "[listen [::1]:2526]\nhelocheck = !\n[listen 127.0.0.1:2525]\nspf = 1\n")

        self.assertEqual(conf.primary.listeners, {("::1", 2526): {"HELOCHECK": "!"}, ("127.0.0.1", 2525): {"SPF": "1"}})

    def test_client(self):
        """[client NET ...] is for one network or several."""
        conf = self.load(HEAD + "[client 10.0.0.0/8 2001:db8::/32]\nspf = 1\n[client 10.1.2.3]\nspf = 2\n")

        self.assertEqual(conf.primary.clients, (
            (ip_network("10.0.0.0/8"), {"SPF": "1"}), (ip_network("2001:db8::/32"), {"SPF": "1"}),
            (ip_network("10.1.2.3/32"), {"SPF": "2"}),
        ))  # fmt: skip

    def test_wrong(self):
        """A section for nobody, or for somebody who has one, is told."""
        self.error("[listen tcp:26]\n", "nothing listens at tcp:26", "listen = of [primary]")
        self.error("[listen everywhere]\n", "no place to listen", "tcp:25")
        self.error("[listen]\n", "does not say which", "[listen tcp:25]")
        self.error("[client]\n", "does not say which", "[client 192.0.2.0/24]")
        self.error("[client 10.0.0.1/8]\n", "within a network", "10.0.0.0/8")
        self.error("[client 10.0.0.0/8 192.0.2.1]\n[client 10.0.0.0/8]\n", "has a section already", "", line=11)

    def test_all_at_once(self):
        """All errors are told at once."""
        found = self.errors(HEAD + "[listen tcp:26]\nspf = 9\nbogus = 1\n[client x]\nspf = no\n")

        self.assertEqual(sorted(e[1] for e in found), [10, 11, 12, 13, 14])


class RulesTests(ClientSettingsTestCase):
    def test_default(self):
        """The first of the usual files is read; none, and none is."""
        for files, found in (
            ({}, ""), ({"control/rules.smtpd": ""}, "control/rules.smtpd"),
            ({"control/tcp.smtp": "", "control/rules.smtpd": ""}, "control/tcp.smtp"),
            ({"tcp.smtp": "", "control/tcp.smtp": ""}, "tcp.smtp"),
        ):  # fmt: skip
            conf = self.load(HEAD, files)
            expected = os.path.join(os.path.dirname(conf.path), found) if found else ""
            self.assertEqual(conf.primary.rules, expected)
        self.assertEqual(self.primary("rules = none\n", files={"tcp.smtp": ""}).primary.rules, "")

    def test_bad_line(self):
        """A bad line of the rules is told with their file and line."""
        self.error("", "SPF: 9 is not within", "0 to 6", 2, "tcp.smtp", {"tcp.smtp": "# x\n:allow,SPF='9'\n"})
        self.error("", "no cdb", "", 0, "tcp.smtp.cdb", {"tcp.smtp.cdb": "x"})

    def test_no_file(self):
        """Rules that are named must be there."""
        found = self.errors(HEAD.replace("[alpha]", "rules = my.rules\n[alpha]"))

        self.assertEqual([e[1] for e in found], [7])
        self.assertIn("there is no file", found[0][2])

    def test_programs(self):
        """A scanner or filter that cannot be run is told where it is named; until it is there mail is deferred."""
        rules = ":allow,X='y'\n=a.test:allow,QHPSI='/bin/sh -c'\n192.0.2.1:allow,QMAILQUEUE='scan/missing x'\n"
        said = HEAD.replace("[alpha]", "qhpsi = no-such-scanner\n[alpha]")

        found = self.warnings(said, {"tcp.smtp": rules}, Ground(environment={"QHPSI": "'"}))

        found = [w for w in found if "mail is deferred" in w[2]]
        places = [(os.path.basename(w[0]), w[1]) for w in found]
        self.assertEqual(places, [("conf-qmq", 7), ("environment", 0), ("tcp.smtp", 3)])
        self.assertIn("scan/missing cannot be run", found[2][2])

    def test_not_here(self):
        """A variable that does nothing yet is told, in the rules and in the process's environment."""
        found = self.warnings(HEAD, {"tcp.smtp": ":allow,SMTPAUTH='!'\n"}, Ground(environment={"UCSPITLS": ""}))

        self.assertEqual([(w[0], w[1]) for w in found if w[0].endswith("tcp.smtp")], [("tcp.smtp", 1)])
        self.assertIn("UCSPITLS is not used", "".join(w[2] for w in found))

    def test_process(self):
        """A variable of the process that makes no sense is an error."""
        found = self.errors(HEAD, here=Ground(environment={"SPF": "9"}))

        self.assertIn("SPF: 9 is not within", found[0][2])


class LayersTests(ClientSettingsTestCase):
    def environment(self, conf, ip="192.0.2.1", listen=("127.0.0.1", 2525)):
        """What a client has that comes there."""
        clients = Clients(layers(conf), Files(), None, Clock())
        return clients.session(ip, 1, "192.0.2.25", 25, listener_word(listen)).environment

    def test_order(self):
        """Process, [primary], [listen], the rule, [client]: each stronger than the one before."""
        said = "reverse = no\nhelocheck = !\nspf = 2\nmaxrecipients = 2\ntarpitcount = 2\n"
        sections = "[listen 127.0.0.1:2525]\nspf = 3\nmaxrecipients = 3\ntarpitcount = 3\n[client 192.0.2.1]\ntarpitcount = 5\n"
        conf = self.load(
            HEAD.replace("[alpha]", said + "[alpha]") + sections, {"tcp.smtp": ":allow,MAXRECIPIENTS='4',TARPITCOUNT='4'\n"},
            Ground(environment={"MFDNSCHECK": "", "HELOCHECK": "A"}),
        )  # fmt: skip
        found = self.environment(conf)

        self.assertEqual(
            (found.mfdnscheck, found.helocheck, found.spf, found.maxrecipients, found.tarpitcount), (True, "!", 3, 4, 5)
        )
        self.assertEqual(self.environment(conf, listen=("", 25)).spf, 2)

    def test_databytes(self):
        """Databytes of [primary] is everybody's default; what is larger, or none, has its limit in databytes-most."""
        sections = "[client 192.0.2.2]\ndatabytes = 200M\n[client 192.0.2.3]\ndatabytes = none\n"
        text = HEAD.replace("[alpha]", "reverse = no\ndatabytes = 20M\ndatabytes-most = 100M\n[alpha]") + sections
        conf = self.load(text)
        found = [self.environment(conf, f"192.0.2.{n}").databytes >> 20 for n in (1, 2, 3)]

        self.assertEqual(found, [20, 100, 100])

    def test_databytes_of_classics(self):
        """DATABYTES of the process is stronger than control/databytes, and weaker than conf-qmq."""
        here = Ground(environment={"DATABYTES": "90000"})
        control = {"control/databytes": "100000"}
        by_process = self.load(HEAD.replace("[alpha]", "reverse = no\n[alpha]"), control, here)
        by_conf = self.load(HEAD.replace("[alpha]", "reverse = no\ndatabytes = 20M\n[alpha]"), control, here)

        self.assertEqual(self.environment(by_process).databytes, 90000)
        self.assertEqual(self.environment(by_conf).databytes, 20 << 20)
        self.assertEqual(
            self.environment(self.load(HEAD.replace("[alpha]", "reverse = no\n[alpha]"), control)).databytes, 100000
        )

    def test_relay(self):
        """Clients in relay are trusted."""
        conf = self.load(HEAD.replace("[primary]", "relay = 10.0.0.0/8\n[primary]\nreverse = no"))

        self.assertEqual(self.environment(conf, "10.1.1.1").relayclient, b"")
        self.assertIsNone(self.environment(conf).relayclient)

    def test_general(self):
        """Name servers, log format, localiphost, and the rest have their defaults and their words."""
        conf = self.load(HEAD)
        self.assertEqual((conf.general.nameservers, conf.general.log_format), ((), "classic"))
        primary = conf.primary
        self.assertEqual((primary.reverse, primary.reverse_time, primary.verdicts, primary.codes, primary.helo),
                         ("yes", 5, "rcpt", "rfc", "optional"))  # fmt: skip
        self.assertEqual(primary.localiphost, "mx.example.org")
        self.assertFalse(layers(conf).loopback_by_dns)

        said = self.load(
            HEAD.replace("[primary]", "nameservers = 127.0.0.1:5353 2001:db8::53\n[primary]"),
            {"control/localiphost": "ip.example.org\n"},
        )
        self.assertEqual(said.general.nameservers, (("127.0.0.1", 5353), ("2001:db8::53", 53)))
        self.assertEqual(said.primary.localiphost, "ip.example.org")
        self.assertTrue(layers(said).loopback_by_dns)
        self.assertIn(
            "no name server", self.errors(HEAD.replace("[primary]", "nameservers = dns.example\n[primary]"))[0][2]
        )

    def test_instance(self):
        """An instance's own wishes: absolute paths, a level, a threshold, a call-out."""
        plain = self.load(HEAD).instances[0]
        self.assertEqual(
            (plain.recipients, plain.badmailfrom, plain.spf, plain.spam_threshold, plain.callout),
            ("", "", None, None, "no"),
        )
        said = "recipients = r\nbadmailfrom = b\nspf = 4\nspam-threshold = -1\ncallout = open\n"
        conf = self.load(HEAD + said, {"r": "", "b": ""})
        folder, alpha = os.path.dirname(conf.path), conf.instances[0]

        self.assertEqual((alpha.recipients, alpha.badmailfrom), (os.path.join(folder, "r"), os.path.join(folder, "b")))
        self.assertEqual((alpha.spf, alpha.spam_threshold, alpha.callout), (4, -1.0, "open"))
        self.error("recipients = none-such\n", "there is no file", "create it")
        self.error("spf = 9\n", "no SPF level", "0 to 6")
        self.error("spam-threshold = high\n", "no number", "7.5")
