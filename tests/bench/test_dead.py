from twisted.trial.unittest import SynchronousTestCase

from tests.bench import BENCH  # noqa: F401 - puts bed on the path

from bed.dead import HEALTHY, asked, told, verdict, way_of  # isort: skip
from bed.load import Got, Sent, Unavailable, mix  # isort: skip


def pairs(*waits, zero=100.0):
    """Healthy messages, one a second, each with its wait; None: it never came."""
    return [
        (Sent(zero + n, zero + n, 250, 1, 0), Got(zero + n + wait, 1, 0) if wait is not None else Got(0.0, 0, 0))
        for n, wait in enumerate(waits)
    ]


class ToldTests(SynchronousTestCase):
    def test_all_came(self):
        """What came in time counts a second by second."""
        facts = told(pairs(0.1, 0.1, 0.1, 0.1), 100.0, 4, 110.0)

        self.assertEqual((facts["per_second"], facts["offered"], facts["came"]), (1.0, 1.0, [1, 1, 1, 1]))
        self.assertAlmostEqual(facts["p99"], 0.1)

    def test_what_never_came_waits(self):
        """A target that delivers few, and those at once, does not look quick: what has not come waits to the end."""
        facts = told(pairs(0.1, None, None, None), 100.0, 4, 110.0)

        self.assertEqual((facts["undelivered"], facts["per_second"]), (3, 0.25))
        self.assertAlmostEqual(facts["p50"], 8.0)
        self.assertEqual([second for second, *_ in facts["time"]], [0, 1, 2, 3])

    def test_refused(self):
        """A healthy message that was not taken is told."""
        sent = Sent(100.0, 0.0, 451, 1, 0)

        self.assertEqual(told([(sent, Got(0.0, 0, 0))], 100.0, 1, 101.0)["refused"], 1)


class VerdictTests(SynchronousTestCase):
    def test_allowed(self):
        """p99 may double or grow by 20 ms, whichever is more; nothing may be missing or doubled."""
        base = {"p99": 0.005}
        good = {"per_second": 10, "offered": 10, "p99": 0.024, "refused": 0, "undelivered": 0, "doubled": 0}

        self.assertEqual(verdict(good, base), [])
        self.assertEqual(verdict(good | {"p99": 0.026, "doubled": 1}, base), ["p99", "doubled"])
        self.assertEqual(verdict(good | {"p99": 0.19}, {"p99": 0.1}), [])
        self.assertEqual(verdict(good | {"per_second": 9}, base), ["deliveries"])


class LoadTests(SynchronousTestCase):
    def test_one_in_ten(self):
        """Each tenth message is for the healthy domain, however many are dead."""
        for count in (9, 50):
            turns = mix({HEALTHY: 1, tuple(f"dead{n}.test" for n in range(count)): 9})
            self.assertEqual(turns.count(HEALTHY) * 10, len(turns))

    def test_targets(self):
        """qmq-one is qmq with all domains in one instance; settings come behind."""
        found = [(label, kind.word, settings) for label, kind, settings in asked("qmq-one:workers=2,exim")]

        self.assertEqual(
            found, [("qmq-one:workers=2", "qmq", {"instances": "1", "workers": "2"}), ("exim", "exim", {})]
        )

    def test_ways(self):
        """A host may be slow by any time; a way that there is not is named."""
        self.assertEqual((way_of("slow:150"), way_of("refused")), ("slow:150", None))
        self.assertRaisesRegex(Unavailable, "no such way to be dead: asleep", way_of, "asleep")
