import os
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.load import load  # isort: skip
from tests.bench import BENCH  # noqa: F401 - puts bed on the path

from bed.axes import AXES, BASE, address, plan  # isort: skip
from bed.growths import compared, goals  # isort: skip
from bed.load import Figures  # isort: skip
from bed.pages import Column, markdown, terse  # isort: skip
from bed.side import Configured, Load  # isort: skip


def figures(through, **more):
    return Figures(**dict.fromkeys(Figures.__dataclass_fields__, 0) | {"through": through} | more)


def row(axis, series, value, **more):
    return {"axis": axis, "series": series, "value": value, "cpu_ratio": 1.0, "rate_ratio": 1.0, "memory": 80e6,
            "rest": 80e6, "start": 1.0, "lost": 0, "doubled": 0, "base_wrong": 0, **more}  # fmt: skip


class PlanTests(SynchronousTestCase):
    def test_every_axis(self):
        """Each axis goes as far as is promised, and --quick not as far."""
        ends = {word: max(point.value for point in plan([word], quick=False)) for word in AXES}
        quick = {word: max(point.value for point in plan([word], quick=True)) for word in AXES}

        self.assertEqual(ends, {"depth": 1_000_000, "instances": 1000, "recipients": 1000, "size": 50 << 20,
                                "sessions": 5000, "destinations": 10_000})  # fmt: skip
        self.assertTrue(all(quick[word] <= ends[word] for word in AXES))

    def test_hosts_of_their_own(self):
        """No two hosts have the same address, so each is a site of its own; all are of loopback."""
        addresses = {address(n) for n in range(10_000)}

        self.assertEqual(len(addresses), 10_000)
        self.assertTrue(all(one.startswith("127.") for one in addresses))

    def test_configurations(self):
        """Every point is a configuration that the gateway takes, with the instances and routes it is about."""
        for point in (BASE, *plan(AXES, quick=True)):
            addresses = [f"127.2.0.1:{n}" for n in range(1, point.hosts + 1)]
            with tempfile.TemporaryDirectory() as folder:
                target = Configured(folder, 2525, point.sections(addresses), point.primary)
                os.makedirs(target.etc)
                target.prepare()

                conf = load(target.conf)

            self.assertEqual(len(conf.instances), point.instances + 1)
            for _, mail in point.loads:
                self.assertTrue(all(conf.owner(domain.encode()) is not None for domain in mail.domains))


class ComparedTests(SynchronousTestCase):
    def test_side_by_side(self):
        """Ratios are of rounds that stood side by side; a message of ten recipients counts once."""
        small, large = Load(100), Load(10, recipients=10)
        rounds = [((small, figures(1000 * n), 0.01 / n), (large, figures(5000 * n), 0.004 / n)) for n in (1, 2, 4)]

        found = compared(rounds)

        self.assertEqual((found["rate"], found["rate_ratio"]), (1000, 0.5))
        self.assertAlmostEqual(found["cpu_ratio"], 4.0)

    def test_goals(self):
        """A goal is judged if its figures are there: missed is told, and so is whatever was lost."""
        rows = [row("depth", "deferred", 1000), row("depth", "deferred", 1_000_000, cpu_ratio=1.4, lost=1)]

        found = goals(rows)

        self.assertEqual([met for _, _, met in found], [False, True, False])


class PagesTests(SynchronousTestCase):
    def test_markdown(self):
        """A table is Markdown that a page can include."""
        text = markdown("t", (Column("a", str, left=True), Column("b", lambda n: str(2 * n))), (1, 2))

        self.assertEqual(text, "**t**\n\n| a | b |\n|---|---:|\n| 1 | 2 |\n| 2 | 4 |\n")

    def test_terse(self):
        """Three digits are enough, whatever the size."""
        self.assertEqual([terse(value) for value in (None, 0, 0.01234, 1.234, 12.34, 1234.5)],
                         ["", "0.00", "0.0123", "1.23", "12.3", "1,234"])  # fmt: skip
