"""The queue over the store that behaves as the one on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.deliver.destinations import Destinations
from qmq.mail import HELD, Reply
from qmq.queue.runner import Acted, Queue, Terms
from qmq.queue.schedule import Intervals, Quadratic
from qmq.spool.memory import Memory, MemorySpool
from qmq.spool.writer import Writers
from tests.queue.fakes import LATER, NEVER, OK, UNREACHABLE, FakeBouncer, FakeDialler, FakeLog, message

WEEK = 604800.0
TERMS = Terms(Quadratic(20), WEEK, WEEK)
# Everything is due again at once: claims meet orders all the time.
HASTY = Terms(Intervals((2,)), WEEK, WEEK)


class House:
    """A queue, its store, and hosts that the test plays; *late*: how long the store's thread takes to begin and tell."""

    def __init__(self, memory: Memory, now: float, terms: Terms = TERMS, late: Sequence[float] = ()) -> None:
        self.memory = memory
        self.clock = Clock()
        self.clock.advance(now)
        self.replies: list[Reply] = []
        self.dialler = FakeDialler()
        self.bouncer = FakeBouncer()
        self.log = FakeLog()
        times = cycle(late)

        def thread(call: Callable[..., object], *arguments: object) -> None:
            self.clock.callLater(next(times), call, *arguments)

        writers = Writers(call_from_thread=thread, in_thread=thread) if late else None
        self.spool = MemorySpool(memory, clock=self.clock, wall=self.clock.seconds, writers=writers)
        self.destinations = Destinations(self.dialler, self.clock)
        self.queue = Queue(
            "q1", self.spool, self.destinations, lambda r: r.domain, terms, self.bouncer, self.clock,
            self.clock.seconds, self.log, window=50,
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

    def test_held_in_the_store(self) -> None:
        """What is held is found as such, survives a restart, is not due by `now`, and goes when it is released."""
        self.house.send(3)
        self.house.answer(LATER)
        held = self.order("hold")
        self.stop()

        self.house = self.start()
        self.house.turn(1000, step=10)
        looked = self.house.spool.find({"state": "held"}, 0, 10)
        now, released = self.order("now"), self.order("release", recipient="@example.org")
        self.house.answer(OK)
        self.house.turn(1)

        self.assertEqual((held, now, released), (Acted(3, 0), Acted(0, 0), Acted(3, 0)))
        self.assertEqual([entry.due for entry in self.successResultOf(looked)], [HELD] * 3)
        self.assertEqual(self.memory.rows, {})

    def test_moved_in_the_store(self) -> None:
        """A move survives a restart."""
        self.house.send(3)
        self.house.answer(LATER)
        self.house.queue.pause()
        self.order("move", to="q2")
        self.stop()

        self.house = self.start()
        self.house.answer(OK)
        self.house.turn(1)

        self.assertEqual(set(self.house.dialler.dialled), {b"queue:q2"})
        self.assertEqual(self.house.queue.status()["moved"], 3)
        self.assertEqual(self.memory.rows, {})

    def order(self, word: str, to: str = "", **query: str) -> Acted:
        acted = self.house.queue.act(word, query, lambda _: None, to)
        self.house.turn(2)
        return self.successResultOf(acted)


class AmongClaimsTests(SynchronousTestCase):
    def test_nothing_slips_through(self) -> None:
        """However claims, attempts and the store's answers fall between the pieces: all that was there is held."""
        for beats in range(5, 12):
            house = self.house(beats)

            acted = house.queue.act("hold", {}, lambda _: None)
            for _ in range(400):
                self.beat(house)

            result = self.successResultOf(acted)
            self.assertEqual([row[4] for row in house.memory.rows.values()], [HELD] * 150)
            self.assertEqual(result.done + result.later, 150)

    def house(self, beats: int) -> House:
        """Mail for sites that are dead or defer, tried again and again."""
        house = House(Memory(), 1_700_000_000.0, HASTY, (0.01,))
        for i in range(3):
            house.dialler.hosts[b"dead%d" % i] = UNREACHABLE
        for i in range(150):
            house.queue.send(message(f"u@{('dead0', 'dead1', 'dead2', 'live')[i % 4]}", seq=i))
        for _ in range(400 + beats):
            self.beat(house)
        return house

    def beat(self, house: House) -> None:
        house.clock.advance(0.005)
        for connection in house.dialler.busy()[:1]:
            connection.answer(LATER)
