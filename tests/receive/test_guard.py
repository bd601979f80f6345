"""The guard of the reactor's thread: real time, real signals; a tenth of a second each."""

import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address
from qmq.receive import guard as module
from qmq.receive.catalogue import make
from qmq.receive.guard import LEAST, Guard, Stuck
from qmq.receive.policy import Policy, Refusal
from qmq.receive.tally import Tallies
from qmq.rules.watched import Files
from qmq.session import VOUCH, Session, Transaction, Verdict
from tests.receive.hanging import KINDS, Hangs, Slow, callback, generator, loop, sleep

SESSION = Session("192.0.2.1", 40000, "192.0.2.25", 25)
TRANSACTION = Transaction(b"spool-1", Address(b"a", b"x.example"))
GOOD = Address(b"good", b"ours.example")
BAD = Address(b"bad", b"ours.example")
PATIENCE = 0.02


class GuardTests(SynchronousTestCase):
    """Its timer is given back after each test."""

    def setUp(self):
        self.clock = Clock()
        self.guard = Guard(PATIENCE)
        self.addCleanup(self.guard.stop)
        self.tallies = Tallies()

    def policy(self, *checkers):
        named = [(f"c{n}", checker) for n, checker in enumerate(checkers)]
        return Policy(named, self.clock, guard=self.guard, tallies=self.tallies)

    def ask(self, policy, recipient):
        answer = policy.recipient(SESSION, TRANSACTION, recipient)
        return self.successResultOf(answer) if isinstance(answer, Deferred) else answer

    def timed(self, policy, recipient, clock=time.perf_counter):
        began = clock()
        answer = self.ask(policy, recipient)
        return answer, clock() - began

    def assert_stuck(self, answer):
        self.assertIsInstance(answer, Refusal)
        self.assertEqual((answer.verdict.reply.code, answer.verdict.info), (451, "c0"))

    def test_kinds(self):
        """A loop, a sleep, a regular expression that explodes, even a loop that catches everything, cost a 451."""
        before = sys.gettrace()
        for kind, hang in KINDS.items():
            with self.subTest(kind):
                answer, took = self.timed(self.policy(Hangs(hang)), BAD)

                self.assert_stuck(answer)
                self.assertLess(took, 5)
                self.assertIs(sys.gettrace(), before)
        self.flushLoggedErrors(Stuck)

    def test_unheard(self):
        """A ring that comes at the moment when a sleep begins, and does not end it, is not the last."""
        self.patch(module, "AGAIN", PATIENCE)

        def unheard():
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            signal.sigwait({signal.SIGALRM})
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
            time.sleep(2)

        self.assert_stuck(self.ask(self.policy(Hangs(unheard)), BAD))
        self.flushLoggedErrors(Stuck)

    def test_told(self):
        """The log names the checker, and shows where it was; once a minute, with how often."""
        policy = self.policy(Hangs(sleep))

        for _ in range(3):
            self.ask(policy, BAD)
        told = self.flushLoggedErrors(Stuck)
        self.assertEqual(len(told), 1)
        self.assertIn("time.sleep(20)", told[0].getTraceback())
        self.clock.advance(61)
        self.ask(policy, BAD)

        self.assertEqual(len(self.flushLoggedErrors(Stuck)), 1)
        self.assertEqual(self.tallies.facts()["c0"]["stuck"], 4)

    def test_again(self):
        """Who hangs again and again holds up the others less and less, and its good calls are answered as ever."""
        for kind, clock in (("loop", time.thread_time), ("sleep", time.perf_counter)):
            policy = self.policy(Hangs(KINDS[kind]))
            self.timed(policy, BAD)

            # Once of many times: the machine may be busy.
            self.assertTrue(any(self.timed(policy, BAD, clock)[1] < 4 * LEAST for _ in range(50)))

            self.assertEqual(self.ask(policy, GOOD), VOUCH)
        self.flushLoggedErrors(Stuck)

    def test_forgiven(self):
        """A checker with its credit back is asked as if nothing had been."""
        policy = self.policy(Hangs(sleep))
        check = policy._panels.of(SESSION.environment).recipient[0]
        self.ask(policy, BAD)
        self.assertNotEqual(check.ask, check.method)
        check.credit._at -= 1000

        self.ask(policy, GOOD)

        self.assertEqual(check.ask, check.method)
        self.flushLoggedErrors(Stuck)

    def test_others(self):
        """A checker that hung is no reason to interrupt another, or the same in another session."""

        def slow():
            time.sleep(PATIENCE / 2)
            return VOUCH

        policy = self.policy(Hangs(sleep), Hangs(slow))
        self.ask(policy, BAD)

        self.assertEqual(self.ask(policy, GOOD), Verdict(vouch=True))
        only_slow = self.policy(Hangs(slow))
        for _ in range(5):
            self.assertEqual(self.ask(only_slow, BAD), VOUCH)
        self.flushLoggedErrors(Stuck)

    def test_steps(self):
        """Each step of a coroutine is guarded."""
        for hang in (loop, sleep):
            waiting = Deferred()

            async def later(hang=hang, waiting=waiting):
                await waiting
                hang()

            answer = self.policy(Hangs(later)).recipient(SESSION, TRANSACTION, BAD)
            waiting.callback(None)

            self.assert_stuck(self.successResultOf(answer))
        self.flushLoggedErrors(Stuck)

    def test_generator(self):
        """So is each step of what inlineCallbacks makes, from the first."""

        @inlineCallbacks
        def old():
            yield
            loop()

        self.assert_stuck(self.ask(self.policy(Hangs(old)), BAD))
        self.flushLoggedErrors(Stuck)

    def test_callbacks(self):
        """So is what a checker does when something happens that it waits for, in whatever way it is called."""
        for later in (callback, generator):
            happens = Deferred()
            policy = self.policy(Hangs(lambda later=later, happens=happens: later(happens)))
            answer = policy.recipient(SESSION, TRANSACTION, BAD)
            began = time.perf_counter()

            happens.callback(None)

            self.assertLess(time.perf_counter() - began, 5)
            self.assert_stuck(self.successResultOf(answer))
            self.assertLess(policy._panels.of(SESSION.environment).recipient[0].credit.left(time.monotonic()), PATIENCE)
        self.flushLoggedErrors(Stuck)

    def test_made_anew(self):
        """A reload that takes long while a checker is awaited is left alone."""
        waiting = Deferred()
        answer = self.policy(Hangs(lambda: waiting)).recipient(SESSION, TRANSACTION, BAD)

        make("slow", PATIENCE * 4, {}, {"slow": Slow()})

        waiting.callback(VOUCH)
        self.assertEqual(self.successResultOf(answer), VOUCH)

    def test_long_wait(self):
        """An answer that is waited for holds nobody up, however long it takes."""
        waiting = Deferred()

        async def later():
            return await waiting

        answer = self.policy(Hangs(later)).recipient(SESSION, TRANSACTION, BAD)
        time.sleep(PATIENCE * 4)
        waiting.callback(VOUCH)

        self.assertEqual(self.successResultOf(answer), VOUCH)

    def test_reading(self):
        """Rules that take long to read are read to the end."""
        with tempfile.NamedTemporaryFile() as file:

            def read(path):
                text = Path(path).read_bytes()
                if text:
                    end = time.perf_counter() + PATIENCE * 5
                    while time.perf_counter() < end:
                        pass
                return text

            files = Files()
            rules = files.watch(file.name, read, b"")
            Path(file.name).write_bytes(b"x")
            files.look()

            policy = self.policy(Hangs(lambda: VOUCH if rules.now() == b"x" else None))

            self.assertEqual(self.ask(policy, BAD), VOUCH)

    def test_importing(self):
        """So is a module that takes long to be imported."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        Path(folder, "qmq_test_slow.py").write_text(f"import time\ntime.sleep({PATIENCE * 5})\n")
        sys.path.insert(0, folder)
        self.addCleanup(sys.path.remove, folder)
        self.addCleanup(sys.modules.pop, "qmq_test_slow", None)

        def lazy():
            import qmq_test_slow

            return VOUCH if qmq_test_slow else None

        self.assertEqual(self.ask(self.policy(Hangs(lazy)), BAD), VOUCH)

    def test_operator(self):
        """SIGALRM from outside still reaches whoever had it."""
        heard = []
        before = signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        policy = self.policy(Hangs(loop))
        self.ask(policy, GOOD)

        signal.raise_signal(signal.SIGALRM)
        self.assertEqual(heard, [1])
        time.sleep(PATIENCE * 2)
        self.assertEqual(heard, [1])
        signal.raise_signal(signal.SIGALRM)
        self.assertEqual(heard, [1, 1])

        self.guard.stop()

    def test_exits(self):
        """A checker that ends the process with sys.exit ends nothing."""
        self.assert_stuck(self.ask(self.policy(Hangs(sys.exit)), BAD))

        self.flushLoggedErrors(SystemExit)

    def test_stopped(self):
        """When it is stopped it has neither timer nor signal, and takes neither again."""
        before = signal.getsignal(signal.SIGALRM)
        policy = self.policy(Hangs(loop))
        self.ask(policy, GOOD)

        policy._panels.of(SESSION.environment).recipient[0].stuck(1)
        self.guard.stop()
        self.ask(policy, GOOD)

        self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[0], 0)
        self.assertEqual(signal.getsignal(signal.SIGALRM), before)

    def test_idle(self):
        """While no checker is asked there is no timer."""
        self.ask(self.policy(Hangs(loop)), GOOD)

        time.sleep(PATIENCE * 2)

        self.assertEqual(signal.getitimer(signal.ITIMER_REAL)[0], 0)
        self.assertFalse(self.guard.armed)

    def test_brings_on(self):
        """A checker whose answer brings another session on is guarded until it has answered itself."""
        waiting = Deferred()
        other = self.policy(Hangs(lambda: waiting), Hangs(lambda: VOUCH)).recipient(SESSION, TRANSACTION, BAD)

        def release():
            waiting.callback(None)
            loop()

        self.assert_stuck(self.ask(self.policy(Hangs(release)), BAD))
        self.assertEqual(self.successResultOf(other), VOUCH)
        self.flushLoggedErrors(Stuck)
