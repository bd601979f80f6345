import json
import os
import sys
from unittest.mock import patch

from click.testing import CliRunner

import twisted.plugins
from qmq.cli.main import commands
from qmq.receive.tally import Tallies
from tests.conf.folders import HEAD, ConfTestCase

PLUGIN = """\
from zope.interface import implementer
from qmq.interfaces import ICheckerFactory


@implementer(ICheckerFactory)
class Factory:
    name, help = "lookout", "looks [out]"
    options = {"far": "how far (1)"}

    def make(self, context, options):
        raise AssertionError


lookout = Factory()
"""


class CheckersTests(ConfTestCase):
    """With a plug-in beside conf-qmq."""

    def setUp(self):
        before = list(twisted.plugins.__path__)
        self.addCleanup(setattr, twisted.plugins, "__path__", before)
        self.addCleanup(sys.modules.pop, "twisted.plugins.qmq_test_lookout", None)

    def qmq(self, *arguments, code=0):
        result = CliRunner().invoke(commands, arguments)
        self.assertEqual(result.exit_code, code, result.output + repr(result.exception))
        return result.output

    def conf(self, checks):
        head = HEAD.replace("[primary]\n", f"[primary]\nchecks = {checks}\n")
        return self.write(head, {"twisted/plugins/qmq_test_lookout.py": PLUGIN})

    def test_list(self):
        """All that are installed are listed with help and options: first those that are asked, in their order."""
        output = self.qmq("checkers", "--conf", self.conf("databytes rcpthosts"))

        asked, _, rest = output.partition("installed, but not asked")
        self.assertLess(asked.index("databytes"), asked.index("rcpthosts"))
        self.assertIn("looks [out]", rest)
        self.assertIn("how far (1)", rest)
        self.assertIn("qmq_test_lookout", rest)

    def test_one(self):
        """One that is named is shown with where it comes from and what any checker may be told."""
        path = self.conf("rcpthosts")

        output = self.qmq("checkers", "lookout", "--conf", path)

        self.assertIn(os.path.join(os.path.dirname(path), "twisted", "plugins", "qmq_test_lookout.py"), output)
        for word in ("far", "timeout", "threads", "cpu", "not named"):
            self.assertIn(word, output)

    def test_json(self):
        """For programs each is an object."""
        lines = self.qmq("checkers", "--json", "--conf", self.conf("rcpthosts")).splitlines()

        facts = {fact["name"]: fact for fact in map(json.loads, lines)}
        self.assertEqual(facts["lookout"]["options"], {"far": "how far (1)"})
        self.assertFalse(facts["lookout"]["asked"])
        self.assertTrue(facts["rcpthosts"]["asked"])

    def test_without_conf(self):
        """Without a conf-qmq it lists what is installed; a name that is not there is an error."""
        missing = os.path.join(self.folder(), "conf-qmq")

        self.assertIn("rcpthosts", self.qmq("checkers", "--conf", missing))
        self.assertIn("rcpthosts", self.qmq("checkers", "bogus", "--conf", missing, code=1))


class StatTests(ConfTestCase):
    def setUp(self):
        tallies = Tallies()
        tally = tallies.of("scanner")
        tally.asked, tally.late, tally.threads = 4, 1, {"busy": 0, "idle": 1, "lost": 2}
        tally.waited(2)
        facts = [{"process": "main", "primary": {"checks": tallies.facts()}}, {"process": "worker-1"}]
        asked = patch("qmq.cli.queues.ask", lambda *_, **__: iter(facts))
        asked.start()
        self.addCleanup(asked.stop)

    def test_table(self):
        """`qmq stat --checks` has a line a checker, with its times, and its threads if it has some."""
        output = CliRunner().invoke(commands, ["stat", "--checks"]).output

        self.assertRegex(output, r"scanner +4 +0 +0 +0 +1 +0 +500.0 ms +2.0 s")
        self.assertIn("threads of scanner: 0 busy, 1 idle, 2 lost", output)

    def test_json(self):
        """For programs each checker is an object."""
        row = json.loads(CliRunner().invoke(commands, ["stat", "--checks", "--json"]).output)

        self.assertEqual((row["check"], row["process"], row["asked"], row["mean"]), ("scanner", "main", 4, 0.5))
