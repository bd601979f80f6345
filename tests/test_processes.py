import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from qmq.processes import Crew, Workers, WorkerTrouble
from qmq.sockets import Listener, Sockets
from tests.cords import Reactor

STOP = 30.0


class WorkersTests(SynchronousTestCase):
    """The main process, a clock, and children that do what the test says."""

    def setUp(self):
        self.reactor = Reactor()
        self.sockets = Sockets()
        self.told, self.away, self.ready = [], [], []
        self.workers = Workers(
            self.reactor, self.sockets, ["python", "worker"],
            told=lambda name, said: self.told.append((name, said["states"])), away=self.away.append,
            all_ready=lambda: self.ready.append(1), stop_seconds=STOP, wall=lambda: 1000.0 + self.reactor.seconds(),
        )  # fmt: skip
        self.addCleanup(lambda: [child.end.socket.close() for child in self.reactor.children])

    def start(self, *names, **more):
        for name in names or ("one",):
            self.workers.add(Crew(name, (name + "-a", name + "-b"), **more))
        self.workers.startService()
        return self.reactor.children

    def after(self, seconds, *beating):
        """Time passes, second by second; these beat."""
        for _ in range(seconds):
            self.reactor.advance(1)
            for child in beating:
                child.beats()
            self.reactor.turn()

    def test_command_line(self):
        """A worker is the command with its roles, and the crew's variables around it; nothing that systemd has for us."""
        self.patch(os, "environ", {**os.environ, "NOTIFY_SOCKET": "/run/x", "LISTEN_FDS": "1"})

        (child,) = self.start(environ={"X": "y"})

        self.assertEqual(child.args, ["python", "worker", "--only", "one-a,one-b"])
        self.assertEqual((child.env["QMQ_CHILD"], child.env["X"]), ("one", "y"))
        self.assertNotIn("NOTIFY_SOCKET", child.env)
        self.assertNotIn("LISTEN_FDS", child.env)

    def test_sockets_are_inherited(self):
        """A worker gets its listening sockets, from descriptor 4 on."""
        self.sockets.open([Listener("a", "127.0.0.1", 0), Listener("b", "127.0.0.1", 0)])
        self.addCleanup(self.sockets.let_go)

        (child,) = self.start(words=("b", "a"))

        self.assertEqual(child.env["QMQ_SOCKETS"], "b=4 a=5")
        self.assertEqual(
            (child.descriptors[4], child.descriptors[5]), (self.sockets.descriptor("b"), self.sockets.descriptor("a"))
        )

    def test_ready_once_all_are(self):
        """All are ready when each has been heard; that is said once."""
        one, two = self.start("one", "two")
        one.beats(states={"one-a": {"refuses": False}})
        self.reactor.turn()
        self.assertEqual(self.ready, [])

        two.beats()
        two.beats()
        self.reactor.turn()

        self.assertEqual(self.ready, [1])
        self.assertEqual(self.told, [("one", {"one-a": {"refuses": False}}), ("two", {}), ("two", {})])

    def test_silent_is_away_then_killed(self):
        """A worker that is silent for 3 s is away, after 10 s it is killed, once; then it is started again."""
        (child,) = self.start()
        self.after(1, child)

        self.after(3)
        self.assertEqual((self.away, child.signals), ([], []))
        self.after(1)
        self.assertEqual((self.away, child.signals), (["one"], []))
        self.after(6)
        self.assertEqual(child.signals, [])
        self.after(3)
        self.assertEqual(child.signals, ["SIGKILL"])
        child.ends(number=9)
        self.after(1)
        self.assertEqual(self.away, ["one"])
        self.assertEqual(len(self.reactor.children), 2)

    def test_heard_again(self):
        """A worker that is heard again is back, and may be away again."""
        (child,) = self.start()
        self.after(1, child)
        self.after(5)
        self.after(1, child)
        self.assertEqual((len(self.told), self.away), (2, ["one"]))

        self.after(5)

        self.assertEqual(self.away, ["one", "one"])

    def test_slow_start(self):
        """Until its first beat a worker has 60 s."""
        (child,) = self.start()

        self.after(60)
        self.assertEqual((child.signals, self.away), ([], []))
        self.after(1)
        self.assertEqual(child.signals, ["SIGKILL"])

    def test_we_were_stopped(self):
        """Time in which the main process itself did not run is nobody's silence."""
        (child,) = self.start()
        self.after(1, child)

        self.reactor.advance(500)
        self.assertEqual((child.signals, self.away), ([], []))

        self.after(12)
        self.assertEqual((child.signals, self.away), (["SIGKILL"], ["one"]))

    def test_back_off(self):
        """The pause before a new start grows while it keeps failing, to 30 s, and is short again after a minute's life."""
        self.start()
        pauses = []
        for _ in range(8):
            self.reactor.children[-1].ends(code=1)
            before, count = self.reactor.seconds(), len(self.reactor.children)
            while len(self.reactor.children) == count:
                self.reactor.advance(0.1)
            pauses.append(round(self.reactor.seconds() - before, 1))
        self.after(70, self.reactor.children[-1])
        self.reactor.children[-1].ends(code=1)
        self.reactor.advance(0.11)

        self.assertEqual([round(pause) if pause > 1.2 else pause for pause in pauses], [0.5, 1.0, 2, 5, 10, 30, 30, 30])
        self.assertEqual(len(self.reactor.children), 10)
        self.assertEqual(self.away, ["one"] * 9)

    def test_no_process_to_be_had(self):
        """A worker that can't be started (no processes, no descriptors) is tried again."""
        self.reactor.refuses = OSError(11, "Resource temporarily unavailable")
        self.start()
        self.assertEqual(self.reactor.children, [])

        self.reactor.refuses = None
        self.after(1)

        self.assertEqual(len(self.reactor.children), 1)

    def test_memory(self):
        """A worker past its memory is killed and started again; one without a bound is not."""
        self.start("one")
        self.workers.add(Crew("two", ("t",), memory=1000))
        one, two = self.reactor.children
        for child in (one, two):
            child.beats(memory=1000)
        self.after(1)
        self.assertEqual(two.signals, [])

        for child in (one, two):
            child.beats(memory=1001)
        self.reactor.turn()
        self.after(2)

        self.assertEqual((one.signals, two.signals), ([], ["SIGKILL"]))
        two.ends(number=9)
        self.after(1, one)
        self.assertEqual(len(self.reactor.children), 3)

    def test_order_and_answer(self):
        """An order is answered by its number, with what the worker gave."""
        (child,) = self.start()
        first = self.workers.order("one", {"do": "a"})
        second = self.workers.order("one", {"do": "b", "x": 1})
        self.reactor.turn()
        (a, b), _ = child.end.read()
        self.assertEqual((a, b), ({"do": "a", "n": 1}, {"do": "b", "x": 1, "n": 2}))

        child.end.says({"n": 2, "answer": ["b"]})
        child.end.says({"n": 1, "error": "no a today"})
        self.reactor.turn()

        self.assertEqual(self.successResultOf(second), ["b"])
        self.assertEqual(str(self.failureResultOf(first, WorkerTrouble).value), "one: no a today")

    def test_sockets_with_an_order(self):
        """Sockets are sent along with an order that names them; what arrives is the same socket."""
        self.sockets.open([Listener("a", "127.0.0.1", 0)])
        self.addCleanup(self.sockets.let_go)
        (child,) = self.start()

        answer = self.workers.order("one", {"do": "reload"}, ["a"])
        self.reactor.turn()

        (order,), (number,) = child.end.read()
        self.assertEqual(order, {"do": "reload", "words": ["a"], "n": 1, "fds": 1})
        with (
            socket.socket(fileno=number) as received,
            socket.socket(fileno=os.dup(self.sockets.descriptor("a"))) as ours,
        ):
            self.assertEqual(received.getsockname(), ours.getsockname())
        self.assertNoResult(answer)

    def test_order_to_one_that_dies(self):
        """An order to a worker that dies first fails, and so does one to a worker that does not run."""
        (child,) = self.start()
        answer = self.workers.order("one", {"do": "a"})

        child.ends(code=1)

        self.assertEqual(str(self.failureResultOf(answer, WorkerTrouble).value), "one ended before it answered")
        answer = self.workers.order("one", {"do": "a"})
        self.assertEqual(str(self.failureResultOf(answer, WorkerTrouble).value), "one does not run")

    def test_order_without_answer(self):
        """An order has a time limit; an answer after it is no surprise."""
        (child,) = self.start()
        answer = self.workers.order("one", {"do": "a"}, seconds=5)

        self.after(5, child)

        self.assertEqual(str(self.failureResultOf(answer, WorkerTrouble).value), "one did not answer within 5 s")
        child.end.says({"n": 1, "answer": 1})
        self.after(1, child)
        self.assertEqual(child.signals, [])

    def test_order_all(self):
        """All are ordered; the answers come by name, troubles among them."""
        one, two = self.start("one", "two")
        answers = self.workers.order_all({"do": "a"})
        one.end.says({"n": 1, "answer": 7})
        self.reactor.turn()
        two.ends(code=1)

        said = self.successResultOf(answers)

        self.assertEqual(said["one"], 7)
        self.assertIsInstance(said["two"], WorkerTrouble)

    def test_facts(self):
        """Facts reach all workers that run."""
        one, two = self.start("one", "two")
        self.workers.tell_all({"known": 1})
        self.workers.tell("two", {"more": 2})
        self.workers.tell("three", {"more": 2})
        self.reactor.turn()
        self.reactor.turn()

        self.assertEqual(one.end.read()[0], [{"facts": {"known": 1}}])
        self.assertEqual(two.end.read()[0], [{"facts": {"known": 1}}, {"facts": {"more": 2}}])

    def test_remove(self):
        """A worker that is removed gets TERM, and KILL after what it may take; it is not started again."""
        (child,) = self.start()
        self.after(1, child)
        gone = self.workers.remove("one")
        self.assertEqual(child.signals, ["SIGTERM"])

        self.after(34)
        self.assertEqual(child.signals, ["SIGTERM"])
        self.after(1)
        self.assertEqual(child.signals, ["SIGTERM", "SIGKILL"])
        self.assertNoResult(gone)
        child.ends(number=9)

        self.successResultOf(gone)
        self.after(60)
        self.assertEqual(len(self.reactor.children), 1)
        self.assertEqual(self.workers.standings(), [])

    def test_remove_in_a_pause(self):
        """One that waits to be started again is just forgotten."""
        (child,) = self.start()
        child.ends(code=1)

        self.successResultOf(self.workers.remove("one"))

        self.after(60)
        self.assertEqual(len(self.reactor.children), 1)

    def test_replace(self):
        """One of the same name takes the place of one that leaves, when that has left, without a pause."""
        (child,) = self.start()
        self.workers.remove("one")
        self.workers.add(Crew("one", ("new",)))
        self.assertEqual(len(self.reactor.children), 1)

        child.ends()

        self.assertEqual([c.args[-1] for c in self.reactor.children], ["one-a,one-b", "new"])
        with self.assertRaises(ValueError):
            self.workers.add(Crew("one", ("new",)))

    def test_expected_end(self):
        """A worker that was told to leave may end by itself, and is not started again."""
        (child,) = self.start()
        self.workers.expect("one")

        child.ends()
        self.after(60)

        self.assertEqual((len(self.reactor.children), self.away), (1, ["one"]))

    def test_change(self):
        """What a worker is from now on holds when it is started again."""
        (child,) = self.start()
        self.workers.change(Crew("one", ("new",)))

        child.ends(code=1)
        self.after(1)

        self.assertEqual([c.args[-1] for c in self.reactor.children], ["one-a,one-b", "new"])
        with self.assertRaises(KeyError):
            self.workers.change(Crew("two", ("new",)))

    def test_stop(self):
        """At the end all are asked to stop, those in a pause are not started again, and those that hang are killed."""
        one, two, three = self.start("one", "two", "three")
        three.ends(code=1)
        stopped = self.workers.stopService()
        one.ends()

        self.after(35)

        self.assertEqual((one.signals, two.signals), (["SIGTERM"], ["SIGTERM", "SIGKILL"]))
        self.assertNoResult(stopped)
        two.ends(number=9)
        self.successResultOf(stopped)
        self.assertEqual((len(self.reactor.children), self.reactor.getDelayedCalls()), (3, []))

    def test_leaving_may_take_its_time(self):
        """One that somebody else has told to stop is not taken for hung while it may still finish."""
        (child,) = self.start()
        child.beats(leaving=True)
        self.reactor.turn()

        self.after(34)
        self.assertEqual(child.signals, [])
        self.after(2)
        self.assertEqual(child.signals, ["SIGKILL"])

    def test_standings(self):
        """An operator sees each worker's process, age, restarts, memory and silence."""
        one, two = self.start("one", "two")
        self.after(2, one)
        self.after(2)
        two.ends(code=1)

        first, second = self.workers.standings()

        self.assertEqual((first.name, first.roles, first.since, first.restarts), ("one", ("one-a", "one-b"), 1000.0, 0))
        self.assertEqual((first.memory, first.silent), (1, 2.0))
        self.assertEqual((second.name, second.pid, second.since, second.silent), ("two", 0, 0, None))
        self.after(1)
        self.assertEqual(self.workers.standings()[1].restarts, 1)

    def test_cord_cut(self):
        """A worker that lives and has lost its cord fails its orders at once, and is killed for its silence."""
        (child,) = self.start()
        self.after(1, child)
        answer = self.workers.order("one", {"do": "a"})
        child.end.socket.shutdown(socket.SHUT_RDWR)
        self.after(11)

        self.failureResultOf(answer, WorkerTrouble)
        self.assertEqual(child.signals, ["SIGKILL"])

    def test_told_that_raises(self):
        """If nobody understands what a worker tells, that is logged, and the worker is none the worse."""
        self.workers._told = lambda *_: 1 / 0
        (child,) = self.start()
        self.after(5, child)

        self.assertEqual(child.signals, [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 5)
