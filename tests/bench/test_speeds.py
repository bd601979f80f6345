from twisted.trial.unittest import SynchronousTestCase

from tests.bench import BENCH  # noqa: F401 - puts bed on the path

from bed.load import Unavailable  # isort: skip
from bed.peers import asked  # isort: skip
from bed.speeds import SCENARIOS, named, scaled, summary  # isort: skip


def run(label, rep, through, **more):
    return {
        "label": label, "rep": rep, "through": through, "accept": through, "p50": 0.0, "p99": 0.0, "due50": 0.0,
        "due99": 0.0, "lost": 0, "doubled": 0, "failed": 0, **more,
    }  # fmt: skip


class SummaryTests(SynchronousTestCase):
    def test_side_by_side(self):
        """A ratio is one of runs that stood side by side, so that a machine that drifts changes none."""
        runs = [run("a", 1, 100), run("b", 1, 800), run("a", 2, 50), run("b", 2, 400), run("a", 3, 10), run("b", 3, 80)]

        first, second = summary(runs, "a")

        self.assertEqual((first["through"], first["through_ratio"]), (50, 1.0))
        self.assertEqual((second["through"], second["through_ratio"]), (400, 8.0))

    def test_what_went_wrong(self):
        """What was lost or doubled is summed over all runs: a median would hide it."""
        self.assertEqual(summary([run("a", 1, 1, lost=1), run("a", 2, 1), run("a", 3, 1)], "a")[0]["lost"], 1)

    def test_without_the_first(self):
        """If the first target is not there, there are no ratios; a load alone has no CPU."""
        row = summary([run("direct", 1, 30_000)], "postfix")[0]

        self.assertEqual((row["through_ratio"], row["cpu"]), (None, None))

    def test_no_syncs(self):
        """A target that waits for no disk is marked; the load, which has none, is not."""
        rows = summary([run("a", 1, 1, flushes=0.0), run("b", 1, 1, flushes=0.09), run("direct", 1, 1)], "a")

        self.assertEqual([named(row) for row in rows], ["a (no syncs)", "b", "direct"])

    def test_the_clock_is_the_same_for_all(self):
        """A faster target gets more messages, but not by the clock."""
        self.assertEqual(scaled(SCENARIOS["many"], 5, quick=False).messages, 5 * SCENARIOS["many"].messages)
        self.assertEqual(scaled(SCENARIOS["latency"], 5, quick=False), SCENARIOS["latency"])


class AskedTests(SynchronousTestCase):
    def test_settings(self):
        """A target is told its settings behind colons."""
        found = [(label, kind.word, settings) for label, kind, settings in asked("postfix:concurrency=5:flow=1,qmq")]

        self.assertEqual(
            found, [("postfix:concurrency=5:flow=1", "postfix", {"concurrency": "5", "flow": "1"}), ("qmq", "qmq", {})]
        )

    def test_unknown(self):
        """One that there is not is named, with those that there are."""
        self.assertRaisesRegex(Unavailable, "no target sendmail; there are postfix", asked, "postfix,sendmail")
