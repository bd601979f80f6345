from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.deliver.destinations import UNTRIED, Destinations
from qmq.deliver.manner import STALE
from qmq.deliver.site import Site
from qmq.interfaces import IConnection, IDialler, IWork
from qmq.mail import Message, Reply
from tests.queue.fakes import CUT, LATER, NEVER, OK, UNREACHABLE, FakeConnection, FakeDialler, message

BUSY = Reply(421, "4.3.2", "too many connections", "mx.example.org (192.0.2.1)")
NO_MAIL = Reply(556, "5.1.10", "takes no mail")


STEPS = ("add", "ok", "later", "never", "cut", "idle", "hang", "let", "away", "die", "live", "tick", "stop", "withdraw")


class House:
    """Destinations with a dialler whose hosts the test plays."""

    def __init__(self, **how: object) -> None:
        self.clock = Clock()
        self.dialler = FakeDialler()
        self.destinations = Destinations(self.dialler, self.clock, jitter=lambda: 0.0, **how)  # type: ignore[arg-type]
        self.alive: list[bytes] = []
        self.room: list[bytes] = []
        self.destinations.alive = self.alive.append
        self.destinations.room = self.room.append
        self.done: list[tuple[bytes, Sequence[Reply]]] = []
        self.messages: list[Message] = []  # an id() is an entry's for as long as its message lives

    def add(self, site: bytes, number: int = 1) -> None:
        for _ in range(number):
            one = message()
            self.messages.append(one)
            self.destinations.add(one, lambda _, replies: self.done.append((site, replies)), site)

    def said(self) -> Counter[tuple[bytes, Reply]]:
        """What became of the messages of each site."""
        return Counter((site, replies[0]) for site, replies in self.done)

    def work(self, *sites: bytes, rounds: int = 1000) -> None:
        """The hosts of these sites, or all, answer until nothing is left on their connections."""
        for _ in range(rounds):
            busy = [c for c in self.dialler.busy() if not sites or c.site in sites]
            if not busy:
                return
            for connection in busy:
                if connection.at_work is not None:
                    connection.answer(OK)

    def place(self, site: bytes) -> Site:
        return self.destinations._sites[site]


class DeliveryTests(SynchronousTestCase):
    def test_interfaces(self) -> None:
        """Sites keep the contract of the connections; so do the doubles of these tests."""
        house = House()
        house.add(b"a")

        verifyObject(IWork, house.place(b"a"))
        verifyObject(IDialler, house.dialler)
        verifyObject(IConnection, house.dialler.connections[0])

    def test_one(self) -> None:
        """A message is delivered over a new connection, and the host's answer comes back."""
        house = House()

        house.add(b"a")
        house.work()

        self.assertEqual(house.done, [(b"a", [OK])])
        self.assertEqual(house.destinations.count, 0)

    def test_kept_connection(self) -> None:
        """The next message goes over the connection that is still open."""
        house = House()
        house.add(b"a")
        house.work()

        house.add(b"a")
        house.work()

        self.assertEqual(house.dialler.dialled, [b"a"])
        self.assertEqual(len(house.dialler.connections[0].got), 2)

    def test_slots_grow(self) -> None:
        """A host that takes mail gets more connections, up to the bound; a new one gets two."""
        house = House(slots_max=5)

        house.add(b"a", 20)
        first = len(house.dialler.open())
        house.work(rounds=4)
        house.add(b"a", 30)

        self.assertEqual(first, 2)
        self.assertEqual(len(house.dialler.open()), 5)

    def test_slots_shrink(self) -> None:
        """A host that refuses one more connection keeps those it has, and is asked for no more for a while."""
        house = House(slots_max=4)
        house.add(b"a", 20)
        house.dialler.hosts[b"a"] = BUSY
        house.work(rounds=2)
        dialled = len(house.dialler.dialled)
        house.work()
        house.add(b"a", 10)
        house.work()

        self.assertEqual(house.said(), {(b"a", OK): 30})
        self.assertEqual(len(house.dialler.dialled), dialled)
        self.assertEqual(house.destinations.sites()[0].dead_for, 0)

    def test_cut(self) -> None:
        """A message whose connection is cut is answered with that; the others go over a new one."""
        house = House(slots=1)
        house.add(b"a", 3)

        house.dialler.connections[0].lose()
        house.work()

        self.assertEqual(house.said(), {(b"a", CUT): 1, (b"a", OK): 2})

    def test_stale(self) -> None:
        """A message whose kept connection turns out to be closed goes at once over a new one: no attempt is lost."""
        house = House()
        house.add(b"a")
        house.work()
        house.add(b"a", 3)
        stale = house.dialler.connections[0]

        one, stale.at_work, stale.state = stale.at_work, None, "gone"
        assert one is not None
        stale.work.finished(one, [STALE])
        stale.work.lost(stale, None)
        house.work()

        self.assertEqual(house.said(), {(b"a", OK): 4})
        self.assertFalse(house.place(b"a").down)

    def test_stale_while_stopping(self) -> None:
        """Such a message is given back untried if no new connection is opened any more."""
        house = House()
        house.add(b"a")
        stopped = house.destinations.stop(10)
        stale = house.dialler.connections[0]
        one, stale.at_work = stale.at_work, None
        assert one is not None

        stale.work.finished(one, [STALE])
        stale.lose(None)

        self.successResultOf(stopped)
        self.assertEqual(house.said(), {(b"a", UNTRIED): 1})

    def test_no_mail_domain(self) -> None:
        """Where the DNS says that a domain takes no mail, all that waits for it fails, and no other."""
        house = House()
        house.dialler.hosts[b"null"] = None
        house.add(b"null", 3)
        house.add(b"a")

        house.dialler.turn_away(NO_MAIL)
        house.work()

        self.assertEqual(house.said(), {(b"null", NO_MAIL): 3, (b"a", OK): 1})
        self.assertEqual(house.destinations.refusal(b"null"), None)

    def test_unexpected_failure(self) -> None:
        """A dialler that breaks costs a deferral and a line in the log."""
        house = House()
        house.dialler.dial = lambda *_: 1 / 0  # type: ignore[method-assign]

        house.add(b"a")

        self.assertTrue(house.done[0][1][0].temporary)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class DeadSiteTests(SynchronousTestCase):
    def dead(self, **how: object) -> House:
        """A house that has found `dead` unreachable, with one message."""
        house = House(**how)
        house.dialler.hosts[b"dead"] = UNREACHABLE
        house.add(b"dead")
        return house

    def test_deferred_at_once(self) -> None:
        """Mail for a dead site is deferred with its last reply, without a dial."""
        house = self.dead()

        house.add(b"dead", 10)

        self.assertEqual(house.said(), {(b"dead", UNREACHABLE): 11})
        self.assertEqual(len(house.dialler.dialled), 1)
        self.assertEqual(house.destinations.refusal(b"dead"), UNREACHABLE)
        self.assertEqual(house.destinations.sites()[0].dead_for, 30)

    def test_back_off(self) -> None:
        """It is tried by itself after 30 s, then after twice as long, up to ten minutes."""
        house = self.dead()
        tried = []
        for second in range(3000):
            house.clock.advance(1)
            if len(house.dialler.dialled) > 1 + len(tried):
                tried.append(second + 1)

        self.assertEqual(tried, [30, 90, 210, 450, 930, 1530, 2130, 2730])

    def test_another_queue(self) -> None:
        """Another queue of the gateway is tried again at once, and never later than after some seconds."""
        house = House()
        house.dialler.hosts[b"queue:other"] = UNREACHABLE
        house.add(b"queue:other")
        tried = []
        for half in range(60):
            house.clock.advance(0.5)
            if len(house.dialler.dialled) > 1 + len(tried):
                tried.append((half + 1) / 2)

        self.assertEqual(tried[:6], [0.5, 1.5, 3.5, 7.5, 12.5, 17.5])

    def test_one_probe(self) -> None:
        """While one connection tries, mail that comes waits for its outcome, and opens no other."""
        house = self.dead()
        house.dialler.hosts[b"dead"] = None
        house.clock.advance(30)

        house.add(b"dead", 5)
        dials = len(house.dialler.dialled)
        before = len(house.done)
        house.dialler.turn_away(LATER)

        self.assertEqual((dials, before), (2, 1))
        self.assertEqual(house.said(), {(b"dead", UNREACHABLE): 1, (b"dead", LATER): 5})

    def test_alive(self) -> None:
        """When a try succeeds the queue is told once, and mail goes."""
        house = self.dead()
        del house.dialler.hosts[b"dead"]

        house.clock.advance(30)
        house.add(b"dead", 5)
        house.work()

        self.assertEqual(house.alive, [b"dead"])
        self.assertEqual(house.said()[b"dead", OK], 5)

    def test_probe_by_mail(self) -> None:
        """The first message after the while is the try, if it comes before the site was tried by itself."""
        house = self.dead()
        house.destinations._probes.stop()
        del house.dialler.hosts[b"dead"]
        house.clock.advance(31)

        house.add(b"dead")
        house.work()

        self.assertEqual(house.alive, [b"dead"])
        self.assertEqual(house.said()[b"dead", OK], 1)

    def test_awaken(self) -> None:
        """An operator's word has dead sites tried at once."""
        house = self.dead()
        del house.dialler.hosts[b"dead"]

        house.destinations.awaken()
        house.clock.advance(0)

        self.assertEqual(house.alive, [b"dead"])

    def test_no_interest(self) -> None:
        """A dead site that no mail asks for is tried no more after half a day, and forgotten."""
        house = self.dead()
        house.clock.pump([60] * 60 * 13)
        dialled = len(house.dialler.dialled)

        house.clock.pump([60] * 60)

        self.assertEqual(len(house.dialler.dialled), dialled)
        self.assertEqual(house.destinations._sites, {})

    def test_dies_late(self) -> None:
        """A site that has worked for a day and dies is tried by itself like any other."""
        house = House()
        house.add(b"a")
        house.work()
        house.clock.advance(86400)
        house.dialler.open()[0].lose(None)
        house.dialler.hosts[b"a"] = UNREACHABLE
        house.add(b"a")
        del house.dialler.hosts[b"a"]

        house.clock.advance(30)

        self.assertEqual(house.alive, [b"a"])

    def test_cuts(self) -> None:
        """A host that takes connections but cuts each with mail on it is dead after the third."""
        house = House(slots=1)
        house.add(b"a", 10)

        for _ in range(3):
            house.dialler.busy()[0].lose()

        self.assertEqual(house.said(), {(b"a", CUT): 10})
        self.assertEqual(len(house.dialler.dialled), 3)

    def test_cuts_then_well(self) -> None:
        """Such a site is tried with mail alone, and is alive again when one was answered."""
        house = House(slots=1)
        house.add(b"a", 10)
        for _ in range(3):
            house.dialler.busy()[0].lose()
        house.clock.advance(100)
        dialled = len(house.dialler.dialled)

        house.add(b"a")
        alive = list(house.alive)
        house.work()

        self.assertEqual((dialled, alive), (3, []))
        self.assertEqual(house.alive, [b"a"])

    def test_idle_connection_lost(self) -> None:
        """A host that ends idle connections is no worse for it."""
        house = House()
        for _ in range(6):
            house.add(b"a")
            house.work()
            house.dialler.open()[0].lose(BUSY)

        self.assertEqual(house.said(), {(b"a", OK): 6})
        self.assertFalse(house.place(b"a").down)

    def test_many_dead(self) -> None:
        """Of a thousand dead sites few are tried at once."""
        house = House(remembered=2000)
        for i in range(1000):
            house.dialler.hosts[b"%d" % i] = UNREACHABLE
            house.add(b"%d" % i)
            house.dialler.hosts[b"%d" % i] = None

        house.clock.advance(30)

        self.assertEqual(len(house.dialler.hanging), 10)


class FairnessTests(SynchronousTestCase):
    def test_hanging_site(self) -> None:
        """A host that takes connections and says nothing keeps few, fills its bound, and no other feels it."""
        house = House()
        house.add(b"tarpit", 500)

        for _ in range(100):
            house.add(b"good", 10)
            house.work(b"good")

        self.assertEqual(house.said()[b"good", OK], 1000)
        self.assertEqual(len(house.dialler.open(b"tarpit")), 2)
        self.assertEqual(house.destinations.busy(), [b"tarpit"])
        self.assertEqual(house.said()[b"tarpit", UNTRIED], 500 - 60)

    def test_burst(self) -> None:
        """A burst for a host that has not answered yet waits for it if it is alone; beside others it has its bound."""
        house = House()
        house.add(b"tarpit", 40)
        self.assertEqual(house.said()[b"tarpit", UNTRIED], 0)

        house.add(b"another", 40)
        self.assertEqual(house.said()[b"another", UNTRIED], 40 - 22)

    def test_many_hanging_sites(self) -> None:
        """A host that works gets its mail while 300 others hold their connections and say nothing."""
        house = House()
        house.add(b"good")
        house.work()
        for i in range(300):
            house.add(b"tarpit%d" % i, 30)

        house.add(b"good", 100)
        house.work(b"good")

        self.assertEqual(house.said()[b"good", OK], 101)
        self.assertTrue(house.destinations.connections <= 120)

    def test_new_site_beside_hanging_ones(self) -> None:
        """So does one never seen before, while fewer hang than there are connections for them."""
        house = House()
        for i in range(41):
            house.add(b"tarpit%d" % i, 20)

        house.add(b"good", 20)
        house.work(b"good")

        self.assertEqual(house.said()[b"good", OK], 20)

    def test_beside_slow_ones(self) -> None:
        """Hosts that work, but slowly, may hold all the mail there is room for; one that is quick has room beside them."""
        house = House()
        slow = [b"slow%d" % i for i in range(5)]
        for site in (*slow, b"good"):
            house.add(site)
        house.work()
        for site in slow:
            house.add(site, 500)
        self.assertGreaterEqual(house.destinations.count, 2000)
        for _ in range(100):
            house.add(b"good", 10)
            house.work(b"good")

        self.assertEqual(house.said()[b"good", OK], 1001)

    def test_hanging_after_it_worked(self) -> None:
        """A host that has worked and hangs now may keep little mail in hand, once it is noticed."""
        house = House()
        house.add(b"a", 20)
        house.work()
        house.add(b"a", 100)

        house.clock.advance(11)
        house.add(b"a", 100)

        self.assertEqual(house.said()[b"a", UNTRIED], 100)
        self.assertEqual(house.destinations.busy(), [b"a"])

    def test_turns(self) -> None:
        """With more sites than connections each gets its turn; none waits for another's mail to end."""
        house = House(concurrency=4, slots_max=2)
        sites = [b"%d" % i for i in range(12)]
        for site in sites:
            house.add(site, 20)

        for _ in range(500):
            for site in sites:
                if len(house.place(site).ready) < 10:
                    house.add(site, 10)
            house.work(rounds=1)

        delivered = [house.said()[site, OK] for site in sites]
        self.assertTrue(min(delivered) * 2 >= max(delivered), delivered)
        self.assertTrue(len(house.dialler.open()) <= 4)
        self.assertTrue(sum(delivered) > 15 * len(house.dialler.dialled), "a connection serves a turn")

    def test_idle_given_up(self) -> None:
        """Idle connections are closed for a site that has none."""
        house = House(concurrency=2)
        for site in (b"a", b"b"):
            house.add(site)
            house.work()

        house.add(b"c")
        house.work()

        self.assertEqual(house.said()[b"c", OK], 1)
        self.assertEqual([c.site for c in house.dialler.open()], [b"b", b"c"])

    def test_half(self) -> None:
        """No site has more than half of the connections."""
        house = House(concurrency=10)
        house.add(b"a", 20)
        house.work(rounds=3)
        for _ in range(10):
            house.add(b"a", 40)
            house.work(rounds=1)

        self.assertEqual(len(house.dialler.open()), 5)

    def test_fewer_by_reload(self) -> None:
        """Fewer connections by a reload: what is outstanding ends, then they are closed."""
        house = House(concurrency=20)
        house.add(b"a", 20)
        house.work(rounds=3)
        house.add(b"a", 100)
        self.assertEqual(len(house.dialler.open()), 10)

        house.destinations.reconfigure(concurrency=4)
        house.work()

        self.assertEqual(house.said(), {(b"a", OK): 120})
        self.assertTrue(len(house.dialler.open()) <= 4)

    def test_no_concurrency(self) -> None:
        """Concurrency 0 opens nothing; more by a reload delivers what waits."""
        house = House(concurrency=0)
        house.add(b"a", 2)
        dialled = list(house.dialler.dialled)

        house.destinations.reconfigure(concurrency=1)
        house.work()

        self.assertEqual(dialled, [])
        self.assertEqual(house.said(), {(b"a", OK): 2})

    def test_room(self) -> None:
        """When a full site's ready queue is half empty, the queue hears of it."""
        house = House()
        house.add(b"a", 90)
        full = house.destinations.full(b"a")

        house.work()

        self.assertTrue(full)
        self.assertEqual(house.room, [b"a"])
        self.assertEqual(house.destinations.busy(), [])

    def test_failing_at_once(self) -> None:
        """A thousand sites whose dials fail at once need no deep stack."""
        house = House(concurrency=1, window=5000, remembered=5000)
        house.dialler.hosts[b"slow"] = None
        house.add(b"slow")
        for i in range(1500):
            house.dialler.hosts[b"%d" % i] = UNREACHABLE
            house.add(b"%d" % i)

        house.dialler.turn_away()

        self.assertEqual(sum(house.said().values()), 1501)


class WithdrawTests(SynchronousTestCase):
    def test_some(self) -> None:
        """Messages that wait for a connection can be taken back; those on one, and all others, go on."""
        house = House()
        house.add(b"a", 6)
        house.add(b"b", 3)

        house.destinations.withdraw(b"a", house.messages[:4])
        at_once = house.said()
        house.work()

        self.assertEqual(at_once, {(b"a", UNTRIED): 2})
        self.assertEqual(house.said(), {(b"a", UNTRIED): 2, (b"a", OK): 4, (b"b", OK): 3})
        self.assertEqual(house.destinations.count, 0)

    def test_room(self) -> None:
        """A ready queue that was full has room again, and says so."""
        house = House(ready=10)
        house.dialler.hosts[b"a"] = None
        house.add(b"a", 31)
        full = house.destinations.full(b"a")

        house.destinations.withdraw(b"a", house.messages[:20])

        self.assertEqual((full, house.destinations.full(b"a")), (True, False))
        self.assertEqual(house.room, [b"a"])

    def test_unknown(self) -> None:
        """A site that nobody knows has nothing to take back."""
        house = House()

        house.destinations.withdraw(b"nowhere", [message()])

        self.assertEqual(house.done, [])


class MemoryTests(SynchronousTestCase):
    def test_sites_forgotten(self) -> None:
        """Ten thousand sites, dead or alive, do not stay in memory."""
        house = House(remembered=100)
        for i in range(10000):
            site = b"%d" % i
            if i % 2:
                house.dialler.hosts[site] = UNREACHABLE
            house.add(site)
            house.work()
            for connection in house.dialler.open(site):
                connection.lose(None)
            house.dialler.connections.clear()

        self.assertTrue(len(house.destinations._sites) <= 510)
        self.assertEqual(house.destinations.count, 0)
        self.assertEqual(house.destinations.connections, 0)


class StopTests(SynchronousTestCase):
    def test_idle(self) -> None:
        """Without anything outstanding the end is at once, and connections are closed in order."""
        house = House()
        house.add(b"a")
        house.work()

        stopped = house.destinations.stop(10)

        self.successResultOf(stopped)
        self.assertEqual(house.dialler.open(), [])

    def test_outstanding(self) -> None:
        """What is on its way ends; what has not begun is given back untried; dials are given up."""
        house = House()
        house.add(b"a", 5)
        house.dialler.hosts[b"slow"] = None
        house.add(b"slow", 2)

        stopped = house.destinations.stop(10)
        self.assertNoResult(stopped)
        house.work()

        self.successResultOf(stopped)
        self.assertEqual(house.said(), {(b"a", OK): 2, (b"a", UNTRIED): 3, (b"slow", UNTRIED): 2})
        self.assertEqual(house.dialler.cancelled, [b"slow", b"slow"])
        self.assertEqual(house.clock.getDelayedCalls(), [])

    def test_cut(self) -> None:
        """After the time for it, connections are cut."""
        house = House()
        house.add(b"a", 2)
        stopped = house.destinations.stop(10)

        house.clock.advance(10)

        self.successResultOf(stopped)
        self.assertEqual(house.said(), {(b"a", CUT): 2})

    def test_silent_connection(self) -> None:
        """A connection that does not even report its end is not waited for."""
        house = House()
        house.add(b"a")
        house.dialler.connections[0].abort = lambda: None  # type: ignore[method-assign]
        stopped = house.destinations.stop(10)

        house.clock.pump([10, 1])

        self.successResultOf(stopped)

    def test_afterwards(self) -> None:
        """Nothing begins any more."""
        house = House()
        self.successResultOf(house.destinations.stop(10))

        house.add(b"a")

        self.assertEqual(house.said(), {(b"a", UNTRIED): 1})
        self.assertEqual(house.dialler.dialled, [])


class AnythingTests(SynchronousTestCase):
    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from(STEPS),
                           st.integers(0, 5)), max_size=150),
        st.integers(1, 6), st.integers(1, 30),
    )  # fmt: skip
    def test_anything(self, steps: list[tuple[str, int]], concurrency: int, window: int) -> None:
        """Whatever hosts do: each message is answered once, the bounds hold, and the counts come out even."""
        house = House(concurrency=concurrency, window=window, ready=5, remembered=3)
        added, stopped = 0, False
        for what, n in steps:
            site = b"%d" % n
            connections = house.dialler.open(site)
            busy = house.dialler.busy(site)
            match what:
                case "add":
                    house.add(site, 4)
                    added += 4
                case "ok" | "later" | "never" if busy:
                    busy[0].answer({"ok": OK, "later": LATER, "never": NEVER}[what])
                case "cut" if busy:
                    busy[-1].lose()
                case "idle" if connections:
                    self.idle(connections)
                case "hang":
                    house.dialler.hosts[site] = None
                case "let":
                    house.dialler.let_in()
                case "away":
                    house.dialler.turn_away()
                case "die":
                    house.dialler.hosts[site] = UNREACHABLE
                case "live":
                    house.dialler.hosts.pop(site, None)
                case "tick":
                    house.clock.advance(n * 10)
                case "withdraw":
                    house.destinations.withdraw(site, house.messages[:: n + 1])
                case "stop" if n == 0 and not stopped:
                    stopped = True
                    house.destinations.stop(10)
            self.assertTrue(len(house.dialler.open()) + len(house.dialler.hanging) <= concurrency)
            self.assertTrue(house.destinations.count <= 2 * window + 1)
            self.assertEqual(
                house.destinations.connections, len(house.dialler.open()) + self.dialling(house), (what, site)
            )
        house.dialler.hosts.clear()
        house.dialler.let_in()
        for _ in range(50):
            house.work()
            house.clock.advance(1)
        self.assertEqual(len(house.done), added)
        self.assertEqual(house.destinations.count, 0)
        self.assertEqual(house.destinations.busy(), [])

    def idle(self, connections: list[FakeConnection]) -> None:
        for connection in connections:
            if connection.at_work is None:
                connection.lose(None)

    def dialling(self, house: House) -> int:
        return len(house.destinations._dials)
