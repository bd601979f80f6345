"""The queue over the store that behaves as the one on disk."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.deliver.destinations import Destinations
from qmq.mail import Reply
from qmq.queue.runner import Queue, Terms
from qmq.queue.schedule import Quadratic
from qmq.spool.memory import Memory, MemorySpool
from tests.queue.fakes import LATER, NEVER, OK, UNREACHABLE, FakeBouncer, FakeDialler, FakeLog, message

WEEK = 604800.0


class House:
    """A queue, its store, and hosts that the test plays."""

    def __init__(self, memory: Memory, now: float) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.replies: list[Reply] = []
        self.dialler = FakeDialler()
        self.bouncer = FakeBouncer()
        self.log = FakeLog()
        self.spool = MemorySpool(memory, clock=self.clock, wall=self.clock.seconds)
        self.destinations = Destinations(self.dialler, self.clock)
        self.queue = Queue(
            "q1", self.spool, self.destinations, lambda r: r.domain, Terms(Quadratic(20), WEEK, WEEK), self.bouncer,
            self.clock, self.clock.seconds, self.log,
        )  # fmt: skip
        self.queue.startService()
        self.turn()

    def turn(self, seconds: float = 0, step: float = 0.1) -> None:
        """Let the reactor turn."""
        for _ in range(max(5, int(seconds / step))):
            self.clock.advance(step)

    def answer(self, *replies: Reply) -> None:
        """Hosts answer until nothing is on any connection."""
        self.turn()
        while self.dialler.busy():
            for connection in self.dialler.busy():
                connection.answer(*replies)
            self.turn()

    def send(self, number: int, *recipients: str) -> None:
        """So many new messages."""
        for _ in range(number):
            sent = self.queue.send(message(*recipients, seq=self.spool.next_token().seq))
            sent.addCallback(self.replies.extend)
        self.turn()


class StoreTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A store that outlives its processes."""
        self.memory = Memory()
        self.now = 1_700_000_000.0
        self.house = self.start()

    def start(self) -> House:
        """The next process."""
        self.now += 100000
        return House(self.memory, self.now)

    def stop(self) -> None:
        """TERM."""
        stopped = self.house.queue.stopService()
        self.house.turn(20, step=1)
        self.successResultOf(stopped)

    def test_delivered(self) -> None:
        """What was delivered is gone from the store."""
        self.house.send(50)
        self.house.answer(OK)
        self.house.turn(1)

        self.assertEqual([r.code for r in self.house.replies], [250] * 50)
        self.assertEqual(self.house.queue.status()["delivered"], 50)
        self.assertEqual(self.memory.rows, {})

    def test_deferred(self) -> None:
        """What was deferred comes back with its recipients, its body and its count of attempts."""
        self.house.send(3, "a@example.org", "b@example.org")
        self.house.answer(OK, LATER)

        self.house.turn(450, step=1)
        busy = [c.at_work for c in self.house.dialler.busy()]
        self.house.answer(OK)
        self.house.turn(1)

        self.assertTrue(busy)
        self.assertEqual({m.envelope.recipients[0].local for m in busy if m}, {b"b"})
        self.assertEqual({b"".join(m.chunks()) for m in busy if m}, {b"Subject: hi\r\n\r\nhi\r\n"})
        self.assertEqual(self.memory.rows, {})

    def test_bounced(self) -> None:
        """A bounce that was not taken over before TERM is made again after, the same."""
        self.house.bouncer.answer = False
        self.house.send(1)
        self.house.answer(NEVER)
        before = self.house.bouncer.bounced[0]
        self.stop()

        self.house = self.start()
        self.house.turn(130, step=1)

        self.assertEqual(self.house.bouncer.bounced, [before])
        self.assertEqual(self.house.bouncer.bodies, [b"Subject: hi\r\n\r\nhi\r\n"])
        self.house.turn(1)
        self.assertEqual(self.memory.rows, {})

    def test_killed(self) -> None:
        """After a kill everything that was acknowledged and not delivered is delivered."""
        self.house.send(40)
        self.memory.holder = None

        self.house = self.start()
        self.house.answer(OK)
        self.house.turn(1)

        self.assertEqual(self.house.queue.status()["delivered"], 40)
        self.assertEqual(self.memory.rows, {})

    def test_back_alive(self) -> None:
        """A dead site's mail goes when it is back, the overflow of its ready queue with it."""
        self.house.dialler.hosts[b"example.org"] = UNREACHABLE
        self.house.send(300)
        del self.house.dialler.hosts[b"example.org"]

        self.house.turn(40, step=1)
        self.house.answer(OK)
        self.house.turn(1)

        self.assertEqual(self.house.queue.status()["delivered"], 300)
        self.assertEqual(self.memory.rows, {})

    def test_term(self) -> None:
        """What one process gives back the next delivers, each once."""
        self.house.send(60)
        self.stop()
        first = self.house.queue.status()["delivered"]

        self.house = self.start()
        self.house.answer(OK)

        self.assertEqual(first + self.house.queue.status()["delivered"], 60)
