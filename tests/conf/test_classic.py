"""A site as SPAMCONTROL's documents describe it must start with its files unchanged."""

from qmq.conf.model import site_for
from qmq.mail import Address
from tests.conf.folders import ROOT, USER, ConfTestCase

PLAN = """\
# QMQ instances
#00:Internal_me
01:Customer_1   # the first
02:Customer_2
80:INTERNET
90:BOUNCES:192.0.2.90
99:BACKUP
"""
CONTROL = {
    "control/me": "mx.example.org\n",
    "control/rcpthosts": (
        "# ours\ncustomer1.example\n.customer1.example  \ncustomer2.example\nCustomer3.example\nbackup.example\n"
    ),
    "control/qmtproutes": (
        "customer1.example:127.0.0.1:1001\n.customer1.example:127.0.0.1:1001\ncustomer2.example:localhost;1002\n"
        "!@:127.0.0.1:1090\n:127.0.0.1:1080\n"
    ),
    "control/smtproutes": (
        "special.customer1.example:192.0.2.44:2525\nexempt.example:\npartner.example:[192.0.2.45]\n"
        "customer2.example:192.0.2.46\nCustomer3.example:[192.0.2.47]\n"
    ),
    "control/smtpgreeting": "mx.example.org no spam please\n",
    "control/timeoutsmtpd": "120\n",
    "control/concurrencyremote": "50\n",
    "control-01/me": "out1.example.org\n",
    "control-01/queuelifetime": "1440\n",
    "control-01/concurrencyremote": "120 # as shipped\n",
    "control-01/smtproutes": (
        "# to the customer\ncustomer1.example:mail.customer1.example\nmany.customer1.example:192.0.2.50:26\n"
    ),
    "control-01/qmtproutes": "many.customer1.example:192.0.2.51\n!@:127.0.0.1:1090\n:127.0.0.1:1080\n",
    "control-01/domainips": "*:192.0.2.11|c1.example.org\n",
    "control-02/smtproutes": ":mail.customer2.example\n",
    "control-02/timeoutremote": "600\n",
    "control-02/doublebounceto": "@drop\n",
    "control-90/queuelifetime": "86400\n",
}


class SiteTests(ConfTestCase):
    def setUp(self):
        self.conf = self.load(PLAN, CONTROL, ROOT)

    def instance(self, name):
        return self.conf.instance(name)

    def site(self, name, domain):
        return site_for(self.instance(name), Address(b"u", domain))

    def test_owners(self):
        """A loopback route to port 1000 + NN makes a domain instance NN's."""
        for domain, name in (
            (b"customer1.example", "Customer_1"), (b"www.customer1.example", "Customer_1"),
            (b"customer2.example", "Customer_2"), (b"any.example", "INTERNET"),
        ):  # fmt: skip
            self.assertEqual(self.conf.instance_for(domain).name, name)

    def test_roles(self):
        """The empty key marks the default instance, !@ the one for bounces."""
        self.assertEqual(self.conf.default.name, "INTERNET")
        self.assertEqual(self.conf.bounces.name, "BOUNCES")
        self.assertEqual([i.role for i in self.conf.instances], ["normal", "normal", "normal", "bounce", "normal"])

    def test_routes_elsewhere(self):
        """The primary's routes to other hosts are the default instance's, and win over shorter ones."""
        self.assertEqual(self.conf.instance_for(b"special.customer1.example").name, "INTERNET")
        self.assertEqual(self.site("INTERNET", b"special.customer1.example"), b"smtp:192.0.2.44:2525")
        self.assertEqual(self.site("INTERNET", b"partner.example"), b"smtp:192.0.2.45")
        self.assertEqual(self.site("INTERNET", b"exempt.example"), b"mx:exempt.example")
        self.assertEqual(self.site("INTERNET", b"any.example"), b"mx:any.example")
        self.assertEqual(self.site("INTERNET", b"customer3.example"), b"smtp:192.0.2.47")

    def test_qmtp_before_smtp(self):
        """At an equal key qmtproutes wins; the smtproutes line beside it is never looked at."""
        self.assertEqual(self.conf.instance_for(b"customer2.example").name, "Customer_2")
        self.assertEqual(self.site("Customer_1", b"many.customer1.example"), b"qmtp:192.0.2.51")

    def test_own_routes(self):
        """An instance's routes are those of its own folder; another instance's port is where it is here."""
        self.assertEqual(self.site("Customer_1", b"customer1.example"), b"smtp:mail.customer1.example")
        self.assertEqual(self.site("Customer_1", b"www.customer1.example"), b"qmtp:127.0.0.1:1080")
        self.assertEqual(self.site("Customer_2", b"customer2.example"), b"smtp:mail.customer2.example")

    def test_rcpthosts(self):
        """Strangers may send to rcpthosts and to nothing else, whatever has a route."""
        for domain in (b"customer1.example", b"a.customer1.example", b"customer2.example", b"customer3.example"):
            self.assertTrue(self.conf.accepts(domain), domain)
        for domain in (b"partner.example", b"exempt.example", b"any.example"):
            self.assertFalse(self.conf.accepts(domain), domain)
        self.assertEqual(self.conf.instance_for(b"backup.example").name, "INTERNET")

    def test_values(self):
        """A bare number in a classic file means what qmail meant; the primary's files are the instances' defaults."""
        one, two = self.instance("Customer_1"), self.instance("Customer_2")

        self.assertEqual((one.lifetime, one.concurrency, one.bind), (1440, 120, "192.0.2.11"))
        self.assertEqual((one.helohost, one.bouncehost), ("c1.example.org", "out1.example.org"))
        self.assertEqual((two.lifetime, two.concurrency, two.timeoutremote), (604800, 50, 600))
        self.assertEqual((two.helohost, two.doublebounceto), ("mx.example.org", None))
        self.assertEqual(self.instance("BOUNCES").bind, "192.0.2.90")
        self.assertEqual(self.conf.primary.timeout, 120)
        self.assertEqual(self.conf.primary.greeting, "mx.example.org no spam please")

    def test_ports(self):
        """Root serves the classic ports, 1000 + NN; and becomes qmail's or our account."""
        self.assertEqual([i.qmtp_listen[1] for i in self.conf.instances], [1001, 1002, 1080, 1090, 1099])
        self.assertEqual(self.conf.primary.listen, (("", 25),))
        self.assertEqual(self.conf.general.user, "qmq")

    def test_warnings(self):
        """What was not meant, or has no meaning here, is told with its line."""
        found = {(w.path.split("/", 2)[-1].rsplit("/", 2)[-2], w.line, w.text) for w in self.conf.warnings}

        self.assertIn(("control-01", 1, "mail is given up after 24m"), found)
        self.assertIn(("control", 1, "timeout: 120s is less than 5m; it is taken as it is"), found)

    def test_ids_keep_their_zeros(self):
        """The number's text names folders."""
        self.assertEqual([i.id for i in self.conf.instances], ["01", "02", "80", "90", "99"])


class ClassicTests(ConfTestCase):
    def test_home(self):
        """HOME-NN/control is read for instance NN, and so is the folder that home names."""
        path = self.write(
            "[instances]\n01:a\n[qmq]\nme = x.example\n[primary]\nlisten=tcp:2525\n[a]\nhome = q1\ndomains=a.example\n",
            {"q1/control/smtproutes": ":192.0.2.1\n", "q1/control/queuelifetime": "7200\n"},
        )
        from qmq.conf.load import load

        a = load(path, USER).instance("a")

        self.assertEqual((a.routes, a.lifetime), (((b"", b"smtp:192.0.2.1"),), 7200))
        self.assertTrue(a.home.endswith("/q1"))

    def test_sections_win(self):
        """What conf-qmq's sections say wins over the classic files."""
        conf = self.load(
            "[instances]\n01:a\n[qmq]\nme = new.example\n[primary]\nlisten = tcp:2525\ndatabytes = 1M\n"
            "[a]\nlifetime = 2d\ndomains = b.example\nroute = a.example=mx\n",
            {
                "control/me": "old.example", "control/databytes": "500000", "control-01/queuelifetime": "7200",
                "control/rcpthosts": "a.example", "control/qmtproutes": "a.example:127.0.0.1:1001",
                "control-01/smtproutes": "a.example:192.0.2.1",
            },
        )  # fmt: skip

        self.assertEqual((conf.general.me, conf.primary.databytes, conf.instances[0].lifetime),
                         ("new.example", 1 << 20, 172800))  # fmt: skip
        self.assertEqual(site_for(conf.instances[0], Address(b"u", b"a.example")), b"mx:a.example")
        self.assertTrue(conf.accepts(b"a.example"))
        self.assertTrue(conf.accepts(b"b.example"))

    def classic(self, **files):
        return {"control/" + name: text for name, text in {"me": "mx.example.org\n", **files}.items()}

    SECTIONS = "[instances]\n01:a\n80:i\n[primary]\nlisten = tcp:2525\n"

    def test_no_rcpthosts(self):
        """Without rcpthosts the original relayed everything; here the routed domains are taken, and no others."""
        conf = self.load(self.SECTIONS, self.classic(qmtproutes="a.example:127.0.0.1:1001\n:127.0.0.1:1080\n"))

        self.assertTrue(conf.accepts(b"a.example"))
        self.assertFalse(conf.accepts(b"other.example"))
        self.assertIn("there is none", "".join(w.text for w in conf.warnings))

    def test_no_rcpthosts_but_a_partner(self):
        """A route to another host does not open that domain to strangers."""
        conf = self.load(
            self.SECTIONS,
            self.classic(qmtproutes="a.example:127.0.0.1:1001\n:127.0.0.1:1080\n", smtproutes="p.example:192.0.2.1\n"),
        )

        self.assertTrue(conf.accepts(b"a.example"))
        self.assertFalse(conf.accepts(b"p.example"))

    def test_empty_rcpthosts(self):
        """An empty rcpthosts takes nothing from strangers, as in qmail."""
        conf = self.load(self.SECTIONS, self.classic(rcpthosts="", qmtproutes="a.example:127.0.0.1:1001\n"))

        self.assertFalse(conf.accepts(b"a.example"))

    def test_morercpthosts(self):
        """Morercpthosts is the rest of rcpthosts."""
        conf = self.load(
            self.SECTIONS,
            self.classic(rcpthosts="a.example\n", morercpthosts="b.example\n",
                         qmtproutes="a.example:127.0.0.1:1001\nb.example:127.0.0.1:1001\n"),
        )  # fmt: skip

        self.assertTrue(conf.accepts(b"b.example"))

    def test_ordinary_user(self):
        """Without root the classic ports below 1024 cannot be had: others are used, and it is told."""
        conf = self.load(self.SECTIONS, self.classic(qmtproutes="a.example:127.0.0.1:1001\n"))

        self.assertEqual(conf.general.base, 11000)
        self.assertEqual(conf.instance_for(b"a.example").name, "a")
        self.assertIn("port 1001 needs root", "".join(w.text for w in conf.warnings))

    def test_high_numbers(self):
        """With numbers from 24 on an ordinary user has the classic ports."""
        conf = self.load(
            "[instances]\n24:a\n[primary]\nlisten = tcp:2525\n", self.classic(qmtproutes="a.example:127.0.0.1:1024\n")
        )

        self.assertEqual(conf.instances[0].qmtp_listen, ("127.0.0.1", 1024))

    def test_no_limit(self):
        """Qmail's 0, without limit, does not exist here: the default limit stays, and it is told."""
        conf = self.load(self.SECTIONS, self.classic(databytes="0\n"))

        self.assertEqual(conf.primary.databytes, 50 << 20)
        self.assertIn("0 meant without limit", "".join(w.text for w in conf.warnings))

    def test_not_used(self):
        """Classic files that have no meaning here are told, once each."""
        conf = self.load(self.SECTIONS, self.classic(locals="here.example\n", authsenders="a@b:relay\n"))

        self.assertEqual(sorted(w.text for w in conf.warnings if "is not used" in w.text),
                         ["authsenders is not used", "locals is not used"])  # fmt: skip

    def error(self, line, path, text, **files):
        found = self.errors(self.SECTIONS, self.classic(**files))
        self.assertEqual([e[:2] for e in found], [(path, line)], found)
        self.assertIn(text, found[0][2])
        self.assertTrue(found[0][3])

    def test_unlisted_port(self):
        """A loopback route to an instance that is not listed is an error of its line."""
        self.error(2, "control/qmtproutes", "port 1007", qmtproutes="#\nc.example:127.0.0.1:1007\n")

    def test_rcpthosts_without_route(self):
        """A domain that is taken but belongs to nobody is an error of its line."""
        self.error(2, "control/rcpthosts", "no instance delivers mail for c.example",
                   rcpthosts="a.example\nc.example\n", qmtproutes="a.example:127.0.0.1:1001\n")  # fmt: skip

    def test_local_domain(self):
        """A domain that qmail delivered itself is a warning: the site starts, and that mail is refused."""
        files = self.classic(rcpthosts="mx.example.org\n", locals="mx.example.org\n")

        self.assertIn("its mail is refused here", "".join(t for _, _, t in self.warnings(self.SECTIONS, files)))

    def test_route_without_default(self):
        """A route to another host needs a default instance to go by."""
        self.error(1, "control/smtproutes", "no instance delivers to 192.0.2.1", smtproutes="p.example:192.0.2.1\n")

    def test_bad_routes(self):
        """Routes with credentials, bad ports, or without a host in qmtproutes are errors."""
        self.error(1, "control/smtproutes", "user and password", smtproutes="p.example:192.0.2.1|u|p\n")
        self.error(1, "control/smtproutes", "no port", smtproutes="p.example:192.0.2.1:99999\n")
        self.error(1, "control/qmtproutes", "needs a host", qmtproutes="p.example:\n")

    def test_star_in_rcpthosts(self):
        """No line of rcpthosts opens the gateway to every domain."""
        self.error(1, "control/rcpthosts", "every domain", rcpthosts="*\n")

    def test_two_bounce_instances(self):
        """Two instances marked by !@ are an error."""
        found = self.errors(
            self.SECTIONS,
            {**self.classic(qmtproutes="!@:127.0.0.1:1001\n"), "control-80/qmtproutes": "!@:127.0.0.1:1080\n"},
        )

        self.assertEqual([(e[0], e[1]) for e in found], [("control-80/qmtproutes", 1)])
