from twisted.internet.defer import CancelledError
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.programs import Programs, ProgramTrouble


class FakeProcess:
    """A process that ends when it is told to."""

    def __init__(self, reactor, executable, args, env, path, protocol, uid, gid, descriptors):
        if executable == "/absent":
            raise FileNotFoundError(2, "No such file or directory")
        self.argv = args
        self.environ = env
        self.protocol = protocol
        self.descriptors = descriptors
        self.written = {}
        self.pipes = {}
        self.killed = False
        protocol.makeConnection(self)

    def writeToChild(self, descriptor, data):
        self.written[descriptor] = data

    def closeChildFD(self, descriptor):
        self.written[descriptor] += b"|"

    def kill(self):
        self.killed = True

    def end(self, code=0, signal=None):
        reason = Failure(ProcessTerminated(code, signal) if code or signal else ProcessDone(0))
        self.protocol.processExited(reason)
        self.protocol.processEnded(reason)


class ProgramsTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.spawned = []

    def runner(self, **limits):
        return Programs(self.clock, spawn=lambda *arguments: self.spawned.append(FakeProcess(*arguments)), **limits)

    def run_in(self, runner, program="/bin/check", seconds=20):
        return runner.run([program, "a b"], {3: b"bob@one.test"}, {"PATH": "/bin"}, seconds)

    def trouble(self, running):
        return str(self.failureResultOf(running, ProgramTrouble).value)

    def test_runs(self):
        """A program is given its arguments, its environment and its feed, and answers with its exit code."""
        running = self.run_in(self.runner())
        process = self.spawned[0]

        self.assertNoResult(running)
        process.protocol.childDataReceived(2, b"oops\n")
        process.end(7)

        self.assertEqual(self.successResultOf(running), 7)
        self.assertEqual(running.result, None)
        self.assertEqual(process.argv, ["/bin/check", "a b"])
        self.assertEqual(process.environ, {"PATH": "/bin"})
        self.assertEqual(process.written, {3: b"bob@one.test|"})
        self.assertEqual([process.descriptors[2], process.descriptors[3]], ["r", "w"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_at_once(self):
        """No more run at once than may; the others have their turn in the order of asking."""
        runner = self.runner(at_once=2)
        running = [self.run_in(runner, f"/bin/{n}") for n in range(4)]
        self.assertEqual(len(self.spawned), 2)

        self.spawned[1].end(0)
        self.spawned[2].end(5)

        self.assertEqual([process.argv[0] for process in self.spawned], ["/bin/0", "/bin/1", "/bin/2", "/bin/3"])
        self.assertEqual(self.successResultOf(running[2]), 5)

    def test_too_many_wait(self):
        """Beyond those that may wait a program is not begun at all."""
        runner = self.runner(at_once=1, waiting=1)
        running = [self.run_in(runner) for _ in range(3)]

        self.assertIn("too many", self.trouble(running[2]))
        self.assertNoResult(running[1])

    def test_late(self):
        """When its time is over a program is killed; its place is free when it is gone."""
        runner = self.runner(at_once=1)
        running, other = self.run_in(runner), self.run_in(runner, seconds=60)

        self.clock.advance(21)

        self.assertIn("20 s", self.trouble(running))
        self.assertTrue(self.spawned[0].killed)
        self.assertEqual(len(self.spawned), 1)
        self.spawned[0].end(signal=9)
        self.assertEqual(len(self.spawned), 2)
        self.spawned[1].end(0)
        self.assertEqual(self.successResultOf(other), 0)

    def test_late_while_waiting(self):
        """The wait for its turn counts too."""
        runner = self.runner(at_once=1)
        self.run_in(runner, seconds=60)
        running = self.run_in(runner, seconds=5)

        self.clock.advance(6)
        self.spawned[0].end()

        self.trouble(running)
        self.assertEqual(len(self.spawned), 1)

    def test_cancelled(self):
        """Who does not wait any more has the program killed, or taken out of those that wait."""
        runner = self.runner(at_once=1)
        running, waiting = self.run_in(runner), self.run_in(runner)

        waiting.cancel()
        running.cancel()
        self.spawned[0].end(signal=9)

        self.failureResultOf(running, CancelledError)
        self.failureResultOf(waiting, CancelledError)
        self.assertTrue(self.spawned[0].killed)
        self.assertEqual((len(self.spawned), runner.running), (1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_started(self):
        """What cannot be executed says why, and takes nobody's place."""
        runner = self.runner(at_once=1)

        self.assertIn("/absent: No such file", self.trouble(self.run_in(runner, "/absent")))
        self.run_in(runner)

        self.assertEqual(len(self.spawned), 1)

    def test_signal(self):
        """A program that was ended by a signal gave no exit code."""
        running = self.run_in(self.runner())

        self.spawned[0].end(signal=11)

        self.assertIn("signal 11", self.trouble(running))
