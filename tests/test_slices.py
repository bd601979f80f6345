from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.slices import sliced


class SlicedTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.time = 0.0
        self.closed = False

    def now(self):
        return self.time

    def steps(self, *durations):
        try:
            for duration in durations:
                self.time += duration
                yield
            return "done"
        finally:
            self.closed = True

    def test_short(self):
        """What is short is answered at once."""
        self.assertEqual(sliced(self.steps(0.0001, 0.0001), self.clock, self.now), "done")

    def test_long(self):
        """What is long goes on in later turns of the loop."""
        answer = Deferred.fromCoroutine(sliced(self.steps(*[0.001] * 20), self.clock, self.now))

        self.assertNoResult(answer)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(answer), "done")

    def test_trouble(self):
        """What goes wrong is raised where the answer is waited for."""

        def steps():
            self.time += 1
            yield
            raise OSError("gone")

        answer = Deferred.fromCoroutine(sliced(steps(), self.clock, self.now))
        self.clock.advance(0)

        self.failureResultOf(answer, OSError)

    def test_cancelled(self):
        """Nobody goes on with what nobody waits for."""
        answer = Deferred.fromCoroutine(sliced(self.steps(*[0.01] * 20), self.clock, self.now))

        answer.cancel()

        self.failureResultOf(answer)
        self.assertTrue(self.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])
