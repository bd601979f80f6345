import os

from qmq.conf.explain import census, describe, explain
from qmq.conf.model import site_for
from qmq.conf.retired import successor
from qmq.conf.settings import Handover
from qmq.mail import Address, address
from tests.conf.folders import HEAD, ConfTestCase

RETIRED = (
    HEAD.replace("[primary]", "retired = old=alpha\n[primary]")
    + "concurrency = 7\nroute = shop.alpha.example=mx\nlifetime = 2d\n"
)  # `retired` is line 5, [alpha] 8 to 13


class RetiredTests(ConfTestCase):
    def setUp(self):
        self.conf = self.load(RETIRED)
        self.old = self.conf.instance("old")

    def test_manners(self):
        """A retired instance has its successor's manners, and nothing of what makes one."""
        alpha, old = self.conf.instances

        self.assertIs(old, self.old)
        self.assertEqual((old.concurrency, old.lifetime, old.helohost), (7, 172800, alpha.helohost))
        self.assertEqual((old.role, old.id, old.number, old.domains), ("retired", "", 0, ()))
        self.assertEqual((old.qmtp_listen, old.handover, old.process), (None, Handover("qmtp"), "shared"))
        self.assertEqual((old.retired, alpha.retired, successor(old), successor(alpha)), (True, False, "alpha", ""))

    def test_next_hop(self):
        """All that is left goes to its successor's queue, whatever that one's routes are."""
        for domain in (b"alpha.example", b"shop.alpha.example", b"x.example"):
            self.assertEqual(site_for(self.old, Address(b"u", domain)), b"queue:alpha")

    def test_store(self):
        """Its store stays where it was: below the spool, unless its section still says another folder."""
        said = self.load(RETIRED + "[old]\nspool = elsewhere\nprocess = own\n")

        self.assertEqual(self.old.spool, os.path.join(self.conf.general.spool, "old"))
        self.assertEqual(said.instance("old").spool, os.path.join(os.path.dirname(said.path), "elsewhere"))
        self.assertEqual(said.instance("old").process, "own")

    def test_gets_nothing(self):
        """It is nobody's instance, and has no role."""
        conf = self.load(HEAD.replace("[primary]", "retired = a=alpha b=alpha\n[primary]") + "role = bounce\n")

        self.assertEqual([i.name for i in conf.instances], ["alpha", "a", "b"])
        self.assertEqual((conf.bounces.name, conf.default, conf.storm), ("alpha", None, None))
        self.assertEqual(conf.instance_for(b"alpha.example").name, "alpha")
        self.assertEqual(conf.owner(b"alpha.example")[0].name, "alpha")
        self.assertEqual(conf.warnings, ())

    def test_several(self):
        """Numbers, ports and files of their own they have none, so several do not get in each other's way."""
        text = HEAD.replace("[primary]", "retired = a=alpha b=alpha, c=alpha\n[primary]") + "recipients = r\n"

        conf = self.load(text, {"r": ""})

        self.assertEqual([i.recipients != "" for i in conf.instances], [True, False, False, False])

    def test_shown(self):
        """It is shown as retired, counted apart, and told to who asks for an address of its successor's."""
        facts = {f.name: f.value for f in explain(self.conf, address(b"u@alpha.example"))}

        self.assertEqual(census(self.conf), "1 instances and 1 retired")
        self.assertIn(("old", "retired, what is left goes to alpha"), [(f.name, f.value) for f in describe(self.conf)])
        self.assertEqual(facts["retired"], "what is left in old's queue goes here too")


class MistakeTests(ConfTestCase):
    def error(self, said, text, remedy="", line=5, more=""):
        """What one word of `retired` is answered with."""
        conf = HEAD.replace("01:alpha\n", "01:alpha\n02:beta\n").replace("[primary]", f"retired = {said}\n[primary]")
        found = self.errors(conf + "[beta]\ndomains = b.example\ndeliver = smtp:192.0.2.2\n" + more)
        self.assertEqual([e[1] for e in found], [line + 1], found)
        self.assertIn(text, found[0][2])
        self.assertIn(remedy, found[0][3])

    def test_no_pair(self):
        """A word without = does not say where the mail goes."""
        self.error("old", "does not say where its mail goes", "OLD=NEW")

    def test_still_listed(self):
        """Who is retired has no line in [instances], in no spelling: it is a folder's name."""
        self.error("alpha=beta", "alpha is in [instances] (line 2)", "cut 01:alpha there")
        self.error("ALPHA=beta", "ALPHA is in [instances] (line 2)")

    def test_successor(self):
        """The mail goes to an instance that is one, and another."""
        self.error("old=gamma", "gamma is no instance of [instances]", "write old=alpha")
        self.error("old=old", "old cannot get its own mail", "write old=alpha")
        self.error("old=older older=beta", "older is retired itself", "that older's mail goes to")

    def test_twice(self):
        """One mail goes to one place."""
        self.error("old=alpha old=beta", "old is retired already, by old=alpha")

    def test_reserved(self):
        """The primary's own folder is no instance's."""
        self.error("primary=alpha", "primary is a section of qmq's own")

    def test_section(self):
        """What counts no more is told once, with all its names."""
        section = "[old]\nspool = s\ndomains = o.example\nlifetime = 2d\n"

        self.error(
            "old=alpha", "old is retired: its domains, lifetime count no more", "cut what stands in [old]", 16, section
        )

    def test_store_of_another(self):
        """A retired instance's store is its own too."""
        self.error("old=alpha", "alpha's store", "a folder of its own", 15, "[old]\nspool = var/spool/alpha\n")
