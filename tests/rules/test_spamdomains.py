import os
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from qmq.rules.spamdomains import read_thresholds
from qmq.rules.watched import BadLine


class ThresholdsTests(SynchronousTestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, "spamdomains")

    def of(self, text, *domains):
        Path(self.path).write_text(text)
        thresholds = read_thresholds(self.path)
        return [thresholds.of(domain) for domain in domains]

    def test_lines(self):
        """A domain is matched whole, in any case; who is not listed has no threshold; -1 is one."""
        text = "# ours\none.test:7.5\n@Two.Test: 3 # low\n\nthree.test:-1  \n"

        found = self.of(text, b"one.test", b"two.test", b"three.test", b"x.one.test", b"none.test", b"")

        self.assertEqual(found, [7.5, 3.0, -1.0, None, None, None])

    def test_below_and_all(self):
        """A dot means the hosts below, a star everything."""
        self.assertEqual(
            self.of(".one.test:4\n*:9\n", b"x.one.test", b"a.b.one.test", b"one.test", b"xone.test", b""), [9.0] * 5
        )
        self.assertEqual(
            self.of("*:9\n.one.test:4\n", b"x.one.test", b"a.b.one.test", b"one.test", b"xone.test", b""),
            [4.0, 4.0, 9.0, 9.0, 9.0],
        )

    def test_last_wins(self):
        """Of several lines that match the last one counts, whatever its form."""
        self.assertEqual(self.of("one.test:1\none.test:2\n", b"one.test"), [2.0])
        self.assertEqual(self.of(".one.test:1\nx.one.test:2\n.one.test:3\n", b"x.one.test"), [3.0])
        self.assertEqual(
            self.of("x.one.test:2\n.one.test:3\n.test:4\n*:5\nx.one.test:6\n", b"x.one.test", b"y.one.test"), [6.0, 5.0]
        )

    def test_bad(self):
        """What is no line is named, with what to write instead."""
        for line in (
            "one.test",
            "one.test:",
            "one.test:high",
            ":5",
            "a b:5",
            "one.test:5:6",
            "one.test:1e3",
            "one.test:nan",
        ):
            with self.assertRaises(BadLine) as caught:
                self.of("x.test:1\n" + line + "\n")
            self.assertIn(":2: ", str(caught.exception))
            self.assertIn("example.org:7.5", str(caught.exception))
