from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from qmq.queue.schedule import Intervals, Quadratic, Schedule, expired, parse_schedule


def attempts(schedule: Schedule, lifetime: float, born: float = 1000.0) -> list[float]:
    """When a message is tried, in seconds after its birth, if attempts take no time and all fail."""
    now, times = born, []
    while True:
        times.append(now - born)
        if expired(born, now, lifetime):
            return times
        now = schedule.next_attempt(born, now, len(times) - 1, 0.0)


class QuadraticTests(SynchronousTestCase):
    # SPAMCONTROL 4.1: lifetime, remote attempts, the last of them, local ones, the last of them
    TABLE = (
        (1440, 3, 1600, 5, 1600),
        (3600, 5, 6400, 8, 4900),
        (7200, 6, 10000, 10, 8100),
        (14400, 8, 19600, 14, 16900),
        (43200, 12, 48400, 22, 44100),
        (86400, 16, 90000, 31, 90000),
        (172800, 22, 176400, 43, 176400),
        (259200, 27, 270400, 52, 260100),
        (432000, 34, 435600, 67, 435600),
        (604800, 40, 608400, 79, 608400),
    )

    def test_table(self) -> None:
        """A message is tried as often as by qmail, and for the last time when qmail would."""
        for lifetime, remote, last, local, last_local in self.TABLE:
            times = attempts(Quadratic(20), lifetime)
            local_times = attempts(Quadratic(10), lifetime)

            self.assertEqual((len(times), times[-1]), (remote, last), lifetime)
            self.assertEqual((len(local_times), local_times[-1]), (local, last_local), lifetime)

    def test_first_times(self) -> None:
        """Attempt n falls (20 n) squared seconds after birth."""
        times = attempts(Quadratic(), 7200)

        self.assertEqual(times, [0, 400, 1600, 3600, 6400, 10000])

    def test_clock_set_back(self) -> None:
        """A message that seems to be born in the future is tried again soon, not after the jump."""
        due = Quadratic().next_attempt(born=5000, now=1400, attempts=3, jitter=0)

        self.assertEqual(due, 1800)

    @given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))
    def test_jitter(self, born: float, now: float, jitter: float) -> None:
        """Jitter makes a wait longer, by a tenth at most."""
        plain = Quadratic().next_attempt(born, now, 0, 0.0) - now
        due = Quadratic().next_attempt(born, now, 0, jitter) - now

        self.assertTrue(plain - 1e-3 <= due <= plain * 1.1 + 1e-3)
        self.assertTrue(due >= 1 - 1e-3)


class IntervalsTests(SynchronousTestCase):
    def test_last_repeats(self) -> None:
        """Waits come in their order, and the last again and again."""
        times = attempts(Intervals((60, 300)), 1000)

        self.assertEqual(times, [0, 60, 360, 660, 960, 1260])

    def test_jitter(self) -> None:
        """Jitter lengthens a wait by its part of a tenth."""
        self.assertEqual(Intervals((100,)).next_attempt(0, 0, 0, 0.5), 105)


class ParseTests(SynchronousTestCase):
    def test_quadratic(self) -> None:
        """`quadratic` is qmail's schedule, with its skip or ours."""
        self.assertEqual(parse_schedule("quadratic"), Quadratic(20))
        self.assertEqual(parse_schedule(" quadratic  10 "), Quadratic(10))

    def test_intervals(self) -> None:
        """A list of waits has units, and repeats are written with a star."""
        self.assertEqual(parse_schedule("1m 5m*3 1h*2 4h"), Intervals((60, 300, 300, 300, 3600, 3600, 14400)))
        self.assertEqual(parse_schedule("90s 1d"), Intervals((90, 86400)))

    def test_refused(self) -> None:
        """What is no schedule is refused with a text that says what to write."""
        for text in (
            "", "quadratic 0", "quadratic x", "quadratic 1 2", "quadratic \u00b2", "5", "5m*0", "0s", "5m*", "m", "-5m",
            "1.5h", "31d", "\u0661m", "1m*9999", "1m, 5m", "999999999999999999999s",
        ):  # fmt: skip
            error = self.assertRaises(ValueError, parse_schedule, text)

            self.assertTrue(len(str(error)) > 20, text)

    @given(st.text(alphabet="quadratic 0123456789smhd*\x00é", max_size=30))
    def test_any_text(self, text: str) -> None:
        """Any text gives a schedule or a ValueError."""
        try:
            schedule = parse_schedule(text)
        except ValueError:
            return
        self.assertTrue(schedule.next_attempt(0, 0, 0, 0.0) >= 1)


class ExpiredTests(SynchronousTestCase):
    def test_start_counts(self) -> None:
        """An attempt that starts within the lifetime is not the last, however long it takes."""
        self.assertFalse(expired(0, 100, 100))
        self.assertTrue(expired(0, 100.1, 100))
