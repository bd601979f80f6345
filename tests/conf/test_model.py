from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.model import site_for
from qmq.mail import Address
from qmq.rules.hosts import spellings, walk
from tests.conf.folders import HEAD, ConfTestCase

SITE = """\
[instances]
01:alpha
02:beta
80:internet
90:bounces
[qmq]
me = mx.alpha.example
relay = 10.0.0.0/8
[primary]
listen = tcp:2525
checks = rcpthosts databytes badhelo
[check databytes]
limit = 20M
[alpha]
domains = alpha.example .alpha.example
deliver = smtp:192.0.2.1 mx
route = shop.alpha.example=lmtp:192.0.2.7:24
   .shop.alpha.example=mx
[beta]
domains = beta.example deep.alpha.example .deep.alpha.example bücher.example
deliver = qmtp:[2001:db8::1]:6209
[internet]
domains = *
[bounces]
role = bounce
"""


class WalkTests(SynchronousTestCase):
    def test_order(self):
        """The domain first, then its suffixes from long to short, then everything."""
        self.assertEqual(list(walk(b"a.b.example")), [b"a.b.example", b".b.example", b".example", b""])
        self.assertEqual(list(walk(b"localhost")), [b"localhost", b""])
        self.assertEqual(list(walk(b"")), [b""])

    @given(st.binary(max_size=30))
    def test_ends(self, domain):
        """Any domain has as many keys as dots, and two at most more."""
        keys = list(walk(domain))

        self.assertEqual(keys[-1], b"")
        self.assertLessEqual(len(keys), domain.count(b".") + 2)


class LookupTests(ConfTestCase):
    def setUp(self):
        self.conf = self.load(SITE)

    def owner(self, domain):
        found = self.conf.instance_for(domain)
        return found and found.name

    def test_owner(self):
        """The exact domain wins, then the longest suffix, then the default instance."""
        self.assertEqual(self.owner(b"alpha.example"), "alpha")
        self.assertEqual(self.owner(b"www.alpha.example"), "alpha")
        self.assertEqual(self.owner(b"deep.alpha.example"), "beta")
        self.assertEqual(self.owner(b"x.deep.alpha.example"), "beta")
        self.assertEqual(self.owner(b"elsewhere.example"), "internet")
        self.assertEqual(self.owner(b"xalpha.example"), "internet")

    def test_own_mail(self):
        """Mail for <postmaster> goes where the gateway's own name belongs."""
        self.assertEqual(self.owner(b""), "alpha")

    def test_spellings(self):
        """A domain beyond ASCII is found in UTF-8 and in its DNS form."""
        self.assertEqual(self.owner("bücher.example".encode()), "beta")
        self.assertEqual(self.owner(b"xn--bcher-kva.example"), "beta")

    def test_spellings_of_patterns(self):
        """However a pattern is written, both forms are its keys; IDNA 2003's third ones are others' domains."""
        both = {"stra\u00dfe.example".encode(), b"xn--strae-oqa.example"}
        self.assertEqual(set(spellings("stra\u00dfe.example".encode())), both)
        self.assertEqual(set(spellings(b"xn--strae-oqa.example")), both)
        self.assertEqual(set(spellings(b".xn--strae-oqa.example")), {b"." + one for one in both})
        self.assertEqual(list(spellings(b"xn--a.example")), [b"xn--a.example"])
        self.assertEqual([list(spellings(one)) for one in (b"*", b"a.example")], [[b""], [b"a.example"]])

    def test_accepts(self):
        """Strangers may send to listed domains only; the default instance opens nothing."""
        self.assertTrue(self.conf.accepts(b"alpha.example"))
        self.assertTrue(self.conf.accepts(b"any.alpha.example"))
        self.assertFalse(self.conf.accepts(b"elsewhere.example"))

    def test_roles(self):
        """The instances with a role are found."""
        self.assertEqual(self.conf.bounces.name, "bounces")
        self.assertEqual(self.conf.default.name, "internet")
        self.assertIsNone(self.conf.storm)
        self.assertIs(self.conf.instance("beta"), self.conf.instances[1])
        self.assertRaises(KeyError, self.conf.instance, "gamma")

    def test_checks(self):
        """Checks come in their order, with their options."""
        self.assertEqual(
            self.conf.primary.checks, (("rcpthosts", {}), ("databytes", {"limit": "20M"}), ("badhelo", {}))
        )

    def test_sites(self):
        """A route wins over deliver; mx is the recipient's own domain."""
        alpha, internet = self.conf.instance("alpha"), self.conf.instance("internet")

        def site(instance, domain):
            return site_for(instance, Address(b"u", domain))

        self.assertEqual(site(alpha, b"alpha.example"), b"smtp:192.0.2.1 mx:alpha.example")
        self.assertEqual(site(alpha, b"shop.alpha.example"), b"lmtp:192.0.2.7:24")
        self.assertEqual(site(alpha, b"x.shop.alpha.example"), b"mx:x.shop.alpha.example")
        self.assertEqual(site(internet, b"elsewhere.example"), b"mx:elsewhere.example")

    def test_ports_and_folders(self):
        """An instance's port is base + number, its store a folder below the spool."""
        beta = self.conf.instance("beta")

        self.assertEqual(beta.qmtp_listen, ("127.0.0.1", 11002))
        self.assertTrue(beta.spool.endswith("/var/spool/beta"))
        self.assertTrue(beta.spool.startswith("/"))

    def test_rcpthosts_setting(self):
        """With rcpthosts in [primary] strangers may send to these only."""
        conf = self.load(HEAD.replace("[alpha]", "rcpthosts = other.example\n[alpha]"))

        self.assertFalse(conf.accepts(b"alpha.example"))
        self.assertTrue(conf.accepts(b"other.example"))
