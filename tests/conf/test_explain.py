from qmq.conf.explain import attempts, describe, explain
from qmq.conf.load import load
from qmq.mail import address
from tests.conf.folders import HEAD, USER, ConfTestCase
from tests.conf.test_model import SITE


class ExplainTests(ConfTestCase):
    def facts(self, recipient, conf=SITE):
        loaded = self.load(conf)
        return {f.name: (f.value, f.place.rpartition("/")[2]) for f in explain(loaded, address(recipient))}

    def test_customer(self):
        """For a customer's address: who gets it and where it goes, each with the line that says so."""
        facts = self.facts(b"u@www.alpha.example")

        self.assertEqual(facts["accepted"], ("yes, from everybody", ""))
        self.assertEqual(facts["instance"], ("01:alpha, by .alpha.example", "conf-qmq:15"))
        self.assertEqual(facts["deliver"], ("smtp:192.0.2.1 mx:www.alpha.example", "conf-qmq:16"))
        self.assertIn("0s, 6m40s, 26m40s, 1h, 1h46m", facts["retry"][0])
        self.assertEqual(facts["lifetime"], ("7d, then a bounce by bounces", ""))

    def test_wishes(self):
        """What the checks do otherwise for an instance is shown if it is said, with its line."""
        said = "recipients = r\nbadmailfrom = b\nspf = 4\nspam-threshold = 7.5\ncallout = closed\n"
        path = self.write(HEAD + said, {"r": "", "b": ""})
        facts = {
            f.name: (f.value, f.place.rpartition(":")[2])
            for f in explain(load(path, USER), address(b"u@alpha.example"))
        }

        self.assertEqual(facts["spf"], ("level 4", "12"))
        self.assertEqual(facts["spam-threshold"], ("mail is refused from 7.5 on", "13"))
        self.assertIn("deferred (450)", facts["callout"][0])
        self.assertEqual([facts[k][1] for k in ("recipients", "badmailfrom")], ["10", "11"])
        self.assertNotIn("spf", self.facts(b"u@alpha.example", HEAD))

    def test_limits(self):
        """When the door closes is shown: limits, what stays free, and where the mail goes instead."""
        plain = self.facts(b"u@alpha.example")
        said = "limit-disk = 25%\nlimit-age = 2d\nreserve = 1G\noverflow = beta\nprocess = own\nmemory = 512M\n"
        full = self.facts(b"u@alpha.example", SITE.replace("[alpha]\n", "[alpha]\n" + said))

        self.assertEqual(plain["limit-messages"][0], "1000000 messages or 50G in its store, then 452")
        self.assertEqual(plain["reserve"], ("100M and 1000 inodes stay free on its device, then 452", ""))
        self.assertFalse({"limit-disk", "limit-age", "overflow"} & set(plain))
        self.assertEqual(full["limit-disk"], ("25% of its device, then to beta", "conf-qmq:15"))
        self.assertEqual(full["limit-age"][0], "while its oldest message is older than 2d, then to beta")
        self.assertEqual(full["overflow"], ("beta gets what comes while this one takes none", "conf-qmq:18"))
        self.assertIn("a worker of its own with 512M of memory", full["handover"][0])

    def test_route(self):
        """A route is named with its own line."""
        facts = self.facts(b"u@a.shop.alpha.example")

        self.assertEqual(
            facts["deliver"], ("mx:a.shop.alpha.example, by the route of .shop.alpha.example", "conf-qmq:18")
        )

    def test_elsewhere(self):
        """For another domain: relay clients only, and the line that lists them."""
        facts = self.facts(b"u@elsewhere.example")

        self.assertEqual(facts["accepted"], ("from relay clients only: elsewhere.example is in no list", "conf-qmq:8"))
        self.assertEqual(facts["instance"], ("80:internet, by *", "conf-qmq:23"))

    def test_nobody(self):
        """What is nobody's is not accepted, and that is all there is to say."""
        self.assertEqual(self.facts(b"u@x.example", HEAD), {"accepted": ("no: x.example is no instance's", "")})

    def test_attempts(self):
        """Qmail's trap: with 1440 seconds there are exactly three attempts, the last after the lifetime."""
        conf = self.load(HEAD + "lifetime = 1440s\n")

        self.assertEqual(list(attempts(conf.instances[0])), [0, 400, 1600])

    def test_describe(self):
        """The whole is one line an instance."""
        lines = [f"{f.name} {f.value}" for f in describe(self.load(SITE))]

        self.assertEqual(lines[0], "primary mx.alpha.example at *:2525")
        self.assertEqual(lines[1], "01:alpha alpha.example .alpha.example -> smtp:192.0.2.1 mx, 2 routes")
        self.assertEqual(lines[4], "90:bounces bounce, no domains -> mx")
