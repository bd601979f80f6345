"""Threads of a checker that blocks: real threads, a pretended clock that goes with real time."""

import queue
import sys
import threading
import time

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from qmq.interfaces import IBlocking, IRecipientChecker
from qmq.receive import threads as module
from qmq.receive.guard import Guard, Stuck
from qmq.receive.policy import Policy, Terms
from qmq.receive.tally import Tally
from qmq.receive.threads import NoThread, Threads
from qmq.session import VOUCH
from tests.receive.hanging import swallow
from tests.receive.test_guard import BAD, GOOD, SESSION, TRANSACTION


class Turning(SynchronousTestCase):
    """A test's own turn of the reactor's loop."""

    def setUp(self):
        self.clock = Clock()
        self.calls = queue.SimpleQueue()
        self.guard = Guard(on=False)
        self.tally = Tally()
        self.end = threading.Event()
        self.addCleanup(self.end.set)
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(0.005)  # whatever a test before may have left
        self.interval = sys.getswitchinterval()

    def call_from_thread(self, call, *of):
        self.calls.put((call, of))

    def threads(self, **how):
        return Threads("x", self.clock, self.call_from_thread, self.guard, self.tally, **how)

    def turn(self, until, seconds=5):
        """Until it is so, or for so many seconds."""
        began = then = time.monotonic()
        while not until() and then - began < seconds:
            try:
                call, of = self.calls.get(timeout=0.01)
                call(*of)
            except queue.Empty:
                pass
            now = time.monotonic()
            self.clock.advance(now - then)
            then = now
        self.assertTrue(until())

    def result(self, answer):
        got = []
        answer.addBoth(got.append)
        self.turn(lambda: got)
        return got[0]


class ThreadsTests(Turning):
    def test_answers(self):
        """A call is made in another thread, with what it was given; its exception is its answer too."""
        threads = self.threads()

        name = self.result(threads.call(lambda of: (of, threading.current_thread().name), 7))

        self.assertEqual(name, (7, "qmq-check-x"))
        self.result(threads.call(lambda: 1 / 0)).trap(ZeroDivisionError)
        self.result(threads.call(sys.exit)).trap(SystemExit)
        self.assertEqual(self.tally.threads, {"busy": 0, "idle": 1, "lost": 0})

    def test_at_once(self):
        """Several calls are made at once, in as many threads as are allowed; the rest wait their turn."""
        threads = self.threads(most=3)
        together = threading.Barrier(3)

        answers = [threads.call(together.wait, 5) for _ in range(6)]

        self.assertEqual(self.tally.threads["busy"], 3)
        self.assertEqual(sorted(self.result(a) for a in answers), [0, 0, 1, 1, 2, 2])

    def test_idle(self):
        """Threads without work end after half a minute."""
        threads = self.threads()
        before = set(threading.enumerate())
        self.result(threads.call(int))
        made = set(threading.enumerate()) - before
        self.assertEqual(len(made), 2)  # and the one that watches it

        for _ in range(5):
            self.clock.advance(11)

        self.turn(lambda: made.isdisjoint(threading.enumerate()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_late(self):
        """A call that has had its time loses its thread; its late answer is nobody's."""
        threads = self.threads(limit=0.05)

        self.result(threads.call(self.end.wait)).trap(Stuck)

        self.assertEqual(self.tally.threads, {"busy": 0, "idle": 0, "lost": 1})
        self.assertEqual(self.result(threads.call(int)), 0)
        self.end.set()
        self.turn(lambda: self.tally.threads["lost"] == 0)

    def test_computes(self):
        """A call that computes for too long is ended, even if it catches everything; the second time sooner."""

        def loop():
            while True:
                pass

        for kind in (loop, swallow):
            threads = self.threads(cpu=0.15)

            def ended(threads=threads, kind=kind):
                began = time.process_time()
                self.result(threads.call(kind)).trap(Stuck)
                took = time.process_time() - began
                self.turn(lambda: self.tally.threads["lost"] == 0)
                return took

            ended()
            # Once of some times: on a busy machine who strikes comes late.
            self.assertTrue(any(ended() < 0.1 for _ in range(10)))

    def test_traced(self):
        """While a lost thread sleeps, and once threads have ended, the guard (or a debugger) can trace as ever."""
        threads = self.threads(limit=0.05)
        before = set(threading.enumerate())

        def traced():
            sys.settrace(lambda *_: None)
            threading.current_thread()  # any traced call

        def trace():
            tracing = threading.Thread(target=traced, daemon=True)
            tracing.start()
            tracing.join(2)
            self.assertFalse(tracing.is_alive())

        self.result(threads.call(self.end.wait)).trap(Stuck)
        made = set(threading.enumerate()) - before
        trace()
        self.end.set()
        self.turn(lambda: self.tally.threads["lost"] == 0)

        for _ in range(5):
            self.clock.advance(11)
        self.turn(lambda: made.isdisjoint(threading.enumerate()))
        trace()

    def test_gone(self):
        """A client that leaves does not keep the thread's answer from coming, nor anybody else's."""
        threads = self.threads(most=1)
        answer = threads.call(self.end.wait)
        second = threads.call(int)

        answer.cancel()
        self.failureResultOf(answer)
        self.end.set()

        self.assertEqual(self.result(second), 0)

    def test_room(self):
        """While calls wait for a thread, one that does not end gives up its own."""
        self.patch(module, "LONG", 0.1)
        threads = self.threads(most=2)
        hung = [threads.call(self.end.wait) for _ in range(2)]

        self.assertEqual(self.result(threads.call(int)), 0)

        self.result(hung[0]).trap(Stuck)
        self.assertNoResult(hung[1])

    def test_all_lost(self):
        """When as many threads are lost as may be, calls are refused at once."""
        self.patch(module, "LOST", 2)
        threads = self.threads(limit=0.05)
        for _ in range(2):
            self.result(threads.call(self.end.wait)).trap(Stuck)

        self.failureResultOf(threads.call(int)).trap(NoThread)

        self.end.set()
        self.turn(lambda: self.tally.threads["lost"] == 0)
        self.assertEqual(self.result(threads.call(int)), 0)

    def test_room_for_none(self):
        """When no thread can be had in their stead, calls that do not end keep theirs, and who waits is refused."""
        self.patch(module, "LOST", 1)
        self.patch(module, "LONG", 0.1)
        threads = self.threads(most=2)
        hung = [threads.call(self.end.wait) for _ in range(2)]
        waiting = [threads.call(self.end.wait) for _ in range(2)]

        for each in waiting:
            self.result(each).trap(NoThread)

        self.result(hung[0]).trap(Stuck)
        self.assertNoResult(hung[1])
        self.assertEqual(self.tally.threads, {"busy": 1, "idle": 0, "lost": 1})
        self.end.set()
        self.turn(lambda: self.tally.threads["lost"] == 0)

    def test_brisk(self):
        """While a thread works, threads change places more often; afterwards as before."""
        threads = self.threads()
        answer = threads.call(self.end.wait)
        self.assertLess(sys.getswitchinterval(), self.interval)

        self.end.set()
        self.result(answer)

        self.assertEqual(sys.getswitchinterval(), self.interval)


@implementer(IRecipientChecker, IBlocking)
class Blocks:
    def __init__(self, hang):
        self.hang = hang

    def recipient(self, session, transaction, recipient):
        self.thread = threading.current_thread()
        return self.hang() if recipient == BAD else VOUCH


class BlockingTests(Turning):
    """What the policy makes of it."""

    def policy(self, checker, **terms):
        return Policy(
            [("x", checker)], self.clock, terms={"x": Terms(**terms)}, call_from_thread=self.call_from_thread,
        )  # fmt: skip

    def test_policy(self):
        """A checker that declares that it blocks is called in a thread; when it is late its session gets 451."""
        checker = Blocks(self.end.wait)
        policy = self.policy(checker, timeout=0.1)

        self.assertEqual(self.result(policy.recipient(SESSION, TRANSACTION, GOOD)), VOUCH)
        self.assertIsNot(checker.thread, threading.main_thread())
        refusal = self.result(policy.recipient(SESSION, TRANSACTION, BAD))

        self.assertEqual(refusal.verdict.reply.code, 451)
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)
        facts = policy.tallies()["x"]
        self.assertEqual((facts["asked"], facts["late"], facts["stuck"]), (2, 1, 0))
        self.end.set()
        self.turn(lambda: policy.tallies()["x"]["threads"]["lost"] == 0)

    def test_policy_computes(self):
        """One that computes for ever is stuck."""
        policy = self.policy(Blocks(swallow), cpu=0.1)

        refusal = self.result(policy.recipient(SESSION, TRANSACTION, BAD))

        self.assertEqual(refusal.verdict.reply.code, 451)
        self.assertEqual(len(self.flushLoggedErrors(Stuck)), 1)
        self.assertEqual(policy.tallies()["x"]["stuck"], 1)
        self.turn(lambda: policy.tallies()["x"]["threads"]["lost"] == 0)

    def test_in_memory(self):
        """Without a reactor's threads it is called like any other."""
        policy = Policy([("x", Blocks(None))], self.clock)

        self.assertEqual(policy.recipient(SESSION, TRANSACTION, GOOD), VOUCH)
