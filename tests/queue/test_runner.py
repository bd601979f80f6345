from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.interfaces import INextHop, ISpool, SpoolTrouble
from qmq.mail import FileBody, MemoryBody, Message, Reply
from qmq.queue.runner import Queue
from tests.queue.fakes import (
    CUT,
    LATER,
    NEVER,
    OK,
    UNREACHABLE,
    FakeBouncer,
    message,
)
from tests.queue.house import House, terms


class Draft(FileBody):
    """A body in a file."""

    def chunks(self, octets: int = 65536) -> Iterator[bytes]:
        """What is in it."""
        yield b"long text"


class IntakeTests(SynchronousTestCase):
    def test_interfaces(self) -> None:
        """The queue is a next hop like any other; the spool of these tests keeps the contract."""
        house = House()

        verifyObject(INextHop, house.queue)
        verifyObject(ISpool, house.spool)

    def test_taken(self) -> None:
        """A message is answered for each recipient, and is on its way at the same moment."""
        house = House()

        replies = self.successResultOf(house.send("a@example.org", "b@example.org")[0])

        self.assertEqual(replies, [Reply(250, "2.0.0", "ok", "q1")] * 2)
        self.assertEqual([len(c.got) for c in house.dialler.connections], [1])
        self.assertEqual(house.spool.claims[1:], [])

    def test_told_its_id(self) -> None:
        """Who brings a message without a token of its own is told the queue id that it has here."""
        house = House()
        token, told = house.spool.next_token(), message("a@example.org")
        told = Message(replace(told.envelope, token=token), told.fields, told.body)

        (reply,) = self.successResultOf(house.queue.send(told))

        self.assertEqual(reply.text, f"ok {token.id.decode()}")

    def test_answered_when_durable(self) -> None:
        """Nothing is answered and nothing delivered before it is durable."""
        house = House()
        house.spool.hold = []

        sent = house.send()[0]
        self.assertNoResult(sent)
        dialled = list(house.dialler.dialled)
        house.spool.hold[0]()

        self.assertTrue(self.successResultOf(sent)[0].ok)
        self.assertEqual(dialled, [])

    def test_same_message(self) -> None:
        """One recipient's message goes through as it is, not copied."""
        house = House()
        one = message()

        house.queue.send(one)

        self.assertIs(house.dialler.connections[0].got[0], one)

    def test_sites(self) -> None:
        """Recipients of two sites go their own ways; a domain is looked up once."""
        house = House()

        house.send("a@a.example", "b@b.example", "c@a.example")
        house.send("d@a.example")
        house.work()

        self.assertEqual(sorted(set(house.dialler.dialled)), [b"a.example", b"b.example"])
        self.assertEqual(house.asked, [b"a.example", b"b.example"])
        self.assertEqual(house.delivered(), 4)
        self.assertEqual(house.spool.entries, {})

    def test_known_token(self) -> None:
        """A message that was taken before is answered as then, and not delivered again."""
        house = House()
        house.spool.store = lambda *_: []  # type: ignore[method-assign]

        replies = self.successResultOf(house.send()[0])

        self.assertEqual(replies[0].code, 250)
        self.assertEqual(house.dialler.dialled, [])

    def test_in_doubt(self) -> None:
        """What the peer no longer doubts is passed to the spool; a plain send says nothing of it."""
        house = House()

        house.queue.send_in_doubt(message(), 17)
        house.queue.send(message())

        self.assertEqual(house.spool.lows, [17, 0])

    def test_trouble(self) -> None:
        """If it can't be kept, the client is to try again later, and the operator is told."""
        house = House()
        house.spool.broken = SpoolTrouble("disk full")

        replies = self.successResultOf(house.send()[0])

        self.assertEqual((replies[0].code, replies[0].status, replies[0].mta), (452, "4.3.1", "q1"))
        self.assertEqual(house.log.warnings(), ["q1: keep: disk full"])

    def test_refused(self) -> None:
        """A queue that refuses intake says so itself, and still delivers what it has."""
        house = House()
        house.send()
        house.queue.refuse()

        replies = self.successResultOf(house.send()[0])
        house.work()
        house.queue.accept()
        again = self.successResultOf(house.send()[0])

        self.assertEqual((replies[0].code, replies[0].status, replies[0].mta), (452, "4.3.2", "q1"))
        self.assertEqual(house.delivered(), 1)
        self.assertTrue(again[0].ok)

    def test_full(self) -> None:
        """Past its limits of messages or octets a queue is full, and says so."""
        by_number, by_size = House(limit_messages=1), House(limit_octets=10)
        by_number.send()

        replies = [self.successResultOf(house.send()[0])[0] for house in (by_number, by_size)]

        self.assertEqual([(r.code, r.status) for r in replies], [(452, "4.3.1")] * 2)

    def test_full_by_age(self) -> None:
        """Past its limit of age a queue is full, held messages count too, until the oldest is gone."""
        house = House(limit_age=3600)
        house.send()
        house.work(LATER)
        house.queue.act("hold", {}, lambda _: None)
        house.wait(3600)
        in_time = house.queue.full
        house.wait(10)
        late = house.queue.full, self.successResultOf(house.send()[0])[0].code

        house.queue.act("delete", {}, lambda _: None)

        self.assertEqual((in_time, late, house.queue.full), ("", ("limit-age", 452), ""))

    def test_full_says_why(self) -> None:
        """Whoever asks why nothing is taken hears which limit it is, or what the store says of its disk."""
        house = House(limit_messages=2, limit_octets=100)
        house.spool.full = "limit-disk"
        disk = house.queue.full
        house.send()
        kept = len(house.spool.entries)
        house.spool.full = ""
        house.spool.octets = 100
        octets = house.queue.full
        house.send(number=2)
        house.spool.octets = 0
        house.send(number=3)

        self.assertEqual((disk, kept, octets), ("limit-disk", 0, "limit-bytes"))
        self.assertEqual(house.queue.full, "limit-messages")
        self.assertEqual(house.queue.status()["full"], "limit-messages")

    def test_sites_given(self) -> None:
        """Who knows better than the configuration where a recipient's mail goes says so."""
        house = House()

        taken = house.queue.take(message("a@a.example", "b@b.example"), [b"one", b"two"], 0)

        self.assertEqual([reply.code for reply in self.successResultOf(taken)], [250, 250])
        self.assertEqual(house.dialler.dialled, [b"one", b"two"])
        self.assertEqual(house.asked, [])

    def test_draft(self) -> None:
        """A long message is delivered from the spool's own copy: the draft goes when we have answered."""
        house = House()

        house.queue.send(message(body=Draft("/nowhere/draft", 9)))

        sent = house.dialler.connections[0].got[0]
        self.assertIsInstance(sent.body, MemoryBody)
        self.assertEqual(b"".join(sent.chunks()), b"long text")


class RetryTests(SynchronousTestCase):
    def test_deferred(self) -> None:
        """A deferred message is tried again when the schedule says, with its body, and not before."""
        house = House()
        house.send()
        house.work(LATER)

        house.wait(395)
        early = len(house.dialler.busy())
        house.wait(10)
        house.work()

        self.assertEqual((early, house.delivered()), (0, 1))
        last = [m for c in house.dialler.connections for m in c.got][-1]
        self.assertEqual(b"".join(last.chunks()), b"Subject: hi\r\n\r\nhi\r\n")
        self.assertEqual(house.spool.entries, {})

    def test_restart(self) -> None:
        """After a restart what was in hand or is due is delivered."""
        before = House()
        before.send(number=5)
        after = House(before.spool)

        after.work()

        self.assertEqual(after.delivered(), 5)

    def test_deep_queue(self) -> None:
        """Of ten thousand that are due a window is in hand, never more, and all are delivered."""
        first = House()
        for i in range(10000):
            first.spool.store(message(f"u@site{i % 100}.example", seq=i), [b"site%d.example" % (i % 100)])
        house = House(first.spool)
        most = 0

        for _ in range(3000):
            most = max(most, int(house.queue.status()["in_hand"]))
            house.clock.advance(0)
            for connection in house.dialler.busy()[:50]:
                if connection.at_work is not None:
                    connection.answer(OK)

        self.assertEqual(house.delivered(), 10000)
        self.assertTrue(100 < most <= 1000, most)
        self.assertEqual(house.spool.entries, {})

    def test_burst_to_many_hosts(self) -> None:
        """What comes at once for more hosts than there is room for is delivered as room is made: nobody waits longer."""
        house = House()
        for i in range(3000):
            house.send(f"u@site{i}.example")

        house.work()

        self.assertEqual((house.delivered(), house.clock.seconds()), (3000, 0))
        self.assertEqual(house.spool.entries, {})

    def test_dead_site_backlog(self) -> None:
        """Mail for a dead site goes by the schedule without a dial or a body read, however much there is."""
        first = House()
        for i in range(2000):
            first.spool.store(message(seq=i), [b"dead"])
        first.spool.bodies.clear()
        first.spool.bodies[1] = MemoryBody(b"")
        house = House(first.spool, dead=b"dead")

        for _ in range(40):
            house.clock.advance(0.1)

        self.assertEqual(house.queue.status()["deferred"], 2000)
        self.assertEqual(house.log.warnings(), [])
        self.assertEqual(len(house.dialler.dialled), 1)
        self.assertEqual(house.destinations.count, 0)

    def test_alive_again(self) -> None:
        """When a dead site is back its mail goes at once, whatever the schedule says, through windows."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send(number=300)
        del house.dialler.hosts[b"example.org"]

        house.wait(30)
        in_hand = house.queue.status()["in_hand"]
        house.work()

        self.assertEqual(house.delivered(), 300)
        self.assertTrue(in_hand <= 100)

    def test_dead_beside_good(self) -> None:
        """A site that hangs, with a thousand messages, holds up no other's, old or new."""
        house = House()
        house.dialler.hosts[b"hangs"] = None
        house.send("x@hangs", number=1000)

        house.send("u@good", number=300)
        house.work(site=b"good")

        self.assertEqual(house.delivered(), 300)
        house.dialler.turn_away()
        self.assertTrue(house.queue.status()["deferred"] >= 20)

    def test_refill_without_intake(self) -> None:
        """Free slots are filled while mail keeps coming in, and without any coming in."""
        house = House()
        house.spool.hold = []
        house.send(number=50)
        for keep in house.spool.hold[:30]:
            keep()
        house.work(rounds=5)
        while_coming = house.delivered()
        house.work()

        self.assertTrue(while_coming >= 10)
        self.assertEqual(house.delivered(), 30)

    def test_overflow(self) -> None:
        """More than a site's ready queue holds goes to the spool, and comes back as soon as there is room."""
        house = House()

        house.send(number=2000)
        rested = len(house.spool.released)
        house.work()

        self.assertTrue(rested > 1000)
        self.assertEqual(house.delivered(), 2000)
        self.assertEqual(house.spool.entries, {})

    def test_expired(self) -> None:
        """There is one attempt after the lifetime, and if it fails for now the sender is told."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send()

        house.wait(608400 + 60, step=20)

        (_, generation, ((_, reply),)), = house.bouncer.bounced  # fmt: skip
        self.assertEqual((generation, reply.status), (1, "5.4.7"))
        self.assertEqual(house.bouncer.bodies, [b"Subject: hi\r\n\r\nhi\r\n"])
        self.assertEqual(house.spool.entries, {})

    def test_bounce_lifetime(self) -> None:
        """A bounce has a lifetime of its own."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.queue.send(message(sender=""))

        house.wait(90000 + 60, step=20)

        self.assertEqual(len(house.bouncer.bounced), 1)

    def test_unreadable(self) -> None:
        """An entry whose body can't be read is told to the operator and rests; others go on."""
        house = House()
        house.send(number=2)
        house.work(LATER)
        del house.spool.bodies[1]

        house.wait(405)
        house.work()

        self.assertEqual(house.delivered(), 1)
        self.assertEqual(house.spool.due(), [25])
        self.assertIn("body of entry 1", house.log.warnings()[0])

    def test_spool_trouble(self) -> None:
        """A spool that can't be asked is asked again after 10 s."""
        house = House()
        house.send()
        house.work(LATER)
        house.wait(390)
        house.spool.broken = SpoolTrouble("I/O error")
        house.wait(15)
        house.spool.broken = None

        house.wait(10)
        house.work()

        self.assertEqual(house.delivered(), 1)
        self.assertIn("q1: claim: I/O error", house.log.warnings())

    def test_slow_bodies(self) -> None:
        """Bodies that take time to read count as in hand, and go when they are there."""
        house = House()
        house.send(number=10)
        house.work(LATER)
        house.spool.reading = []

        house.wait(405)
        in_hand = house.queue.status()["in_hand"]
        for read, body in house.spool.reading:
            read.callback(body)
        house.work()

        self.assertEqual((in_hand, house.delivered()), (10, 10))


class ClockTests(SynchronousTestCase):
    def test_set_back(self) -> None:
        """The wall clock set back an hour holds up no mail for more than a minute."""
        house = House()
        house.send(number=3)
        house.work(LATER)
        house.wait(200)

        house.jump = -3600
        house.wait(60)
        house.work()

        self.assertEqual(house.delivered(), 3)

    def test_set_ahead(self) -> None:
        """Ten days ahead no message is given up without a fresh attempt: its host is back, and it is delivered."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send(number=3)
        house.wait(500)
        dead = house.destinations.refusal(b"example.org")
        del house.dialler.hosts[b"example.org"]

        house.jump = 10 * 86400
        house.wait(30)
        house.work()

        self.assertEqual(dead, UNREACHABLE)
        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual(house.delivered(), 3)

    def test_set_ahead_during_attempt(self) -> None:
        """An attempt under way when the clock jumps is not the last."""
        house = House()
        house.send()

        house.jump = 10 * 86400
        house.work(LATER)

        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual(len(house.spool.entries), 1)

    def test_nothing_due(self) -> None:
        """An idle queue looks at its spool twice a minute, no more."""
        house = House()

        house.wait(300, step=1)

        self.assertTrue(len(house.spool.claims) <= 11)


class BounceTests(SynchronousTestCase):
    def test_failed(self) -> None:
        """A failed recipient's bounce is taken over, then the entry goes."""
        house = House()
        house.send()

        house.work(NEVER)

        self.assertEqual([(n, g) for n, g, _ in house.bouncer.bounced], [(1, 1)])
        self.assertEqual(house.spool.entries, {})
        self.assertEqual(house.queue.status()["bounced"], 1)

    def test_written_first(self) -> None:
        """What failed is written before the bouncer has answered, and the entry stays in hand."""
        house = House()
        house.bouncer.answer = None
        house.send()

        house.work(NEVER)

        self.assertEqual(house.spool.settled, [1])
        self.assertEqual(house.spool.in_hand, {1})
        house.bouncer.waiting[0].callback(True)
        self.assertEqual(house.spool.entries, {})

    def test_not_taken_over(self) -> None:
        """A bouncer that is down or breaks delays bounces: they are offered again, the same, until taken."""
        house = House()
        house.bouncer.answer = False
        house.send()
        house.work(NEVER)
        house.bouncer.answer = RuntimeError("broken")
        house.wait(65)
        house.bouncer.answer = True

        house.wait(65)

        self.assertEqual([(n, g) for n, g, _ in house.bouncer.bounced], [(1, 1)] * 3)
        self.assertEqual(house.spool.entries, {})
        self.assertIn("q1: bounce: broken", house.log.warnings())
        self.assertEqual([len(c.got) for c in house.dialler.connections], [1])

    def test_after_restart(self) -> None:
        """A bounce that was under way at a crash is made again, the same."""
        before = House()
        before.bouncer.answer = None
        before.send()
        before.work(NEVER)

        after = House(before.spool)
        after.clock.advance(1)

        self.assertEqual(after.bouncer.bounced, before.bouncer.bounced)
        self.assertEqual(after.spool.entries, {})
        self.assertEqual(after.dialler.dialled, [])

    def test_other_recipients(self) -> None:
        """While a bounce waits for a bouncer that is down, the other recipients are tried as ever."""
        house = House()
        house.bouncer.answer = False
        house.send("bad@example.org", "good@example.org")
        house.dialler.busy()[0].answer(NEVER, LATER)

        house.wait(405)
        house.work()
        house.bouncer.answer = True
        house.wait(130)

        self.assertEqual(house.delivered(), 1)
        self.assertEqual({(n, g) for n, g, _ in house.bouncer.bounced}, {(1, 1)})
        self.assertEqual(house.spool.entries, {})

    def test_second_bounce(self) -> None:
        """A recipient that fails later has a bounce of its own."""
        house = House()
        house.send("bad@example.org", "worse@example.org")
        house.dialler.busy()[0].answer(NEVER, LATER)

        house.wait(405)
        house.work(NEVER)

        self.assertEqual([(n, g) for n, g, _ in house.bouncer.bounced], [(1, 1), (1, 2)])
        self.assertEqual(house.spool.entries, {})

    def test_storm(self) -> None:
        """A storm of bounces beside a hanging bouncer rests in the spool, and holds up no delivery."""
        house = House(bounces=5)
        house.bouncer.answer = None
        house.send(number=20)
        house.work(NEVER)

        house.send("u@good.example", number=20)
        house.work()

        self.assertEqual(len(house.bouncer.waiting), 5)
        self.assertEqual(house.delivered(), 20)
        self.assertEqual(len(house.spool.due()), 15)

    def test_notice(self) -> None:
        """The sender is told once of a delay."""
        house = House(notice=4 * 3600)
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send()

        house.wait(4 * 3600 - 30)
        early = list(house.bouncer.notices)
        house.wait(86400, step=20)

        self.assertEqual(early, [])
        self.assertEqual(house.bouncer.notices, [1])
        self.assertEqual(len(house.spool.due()), 1)


class OrderTests(SynchronousTestCase):
    def test_pause(self) -> None:
        """A paused queue takes mail and delivers none but what is on its way; resumed, it delivers all."""
        house = House()
        house.send(number=10)
        house.queue.pause()
        self.assertTrue(self.successResultOf(house.send()[0])[0].ok)
        house.work()
        house.wait(600)
        paused = house.delivered()

        house.queue.resume()
        house.work()

        self.assertEqual(paused, 2)
        self.assertEqual(house.delivered(), 11)

    def test_concurrency_zero(self) -> None:
        """Concurrency 0 holds all mail; a reload sets it free."""
        house = House(concurrency=0)
        house.send(number=3)
        house.wait(100)
        held = list(house.dialler.dialled)

        self.reload(house, concurrency=5)
        house.work()

        self.assertEqual(held, [])
        self.assertEqual(house.delivered(), 3)

    def test_reload(self) -> None:
        """A reload asks anew where domains go, and counts by the new limits."""
        house = House()
        house.send()

        self.reload(house, limit_messages=1)
        refused = self.successResultOf(house.send()[0])
        house.work()
        house.send()

        self.assertEqual(refused[0].code, 452)
        self.assertEqual(house.asked, [b"example.org"] * 2)

    def reload(self, house: House, concurrency: int = 120, limit_messages: int = 1000) -> None:
        house.destinations.reconfigure(concurrency, 20)
        house.queue.reconfigure(house.site_of, terms(limit_messages=limit_messages), house.bouncer)

    def test_new_bouncer(self) -> None:
        """A reload may bring another bouncer: the next bounce goes to that."""
        house, other = House(), FakeBouncer()
        house.queue.reconfigure(house.site_of, terms(), other)
        house.send()

        house.work(NEVER)

        self.assertEqual((len(house.bouncer.bounced), len(other.bounced)), (0, 1))

    def test_due_now(self) -> None:
        """An operator has everything tried at once, dead sites too."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send(number=3)
        del house.dialler.hosts[b"example.org"]

        number = self.successResultOf(house.queue.due_now({}))
        house.work()

        self.assertEqual(number, 3)
        self.assertEqual(house.delivered(), 3)

    def test_status(self) -> None:
        """Whoever looks in sees plain numbers."""
        house = House()
        house.send(number=4)
        house.wait(20)
        house.work(rounds=1)

        status = house.queue.status()

        self.assertEqual((status["queued"], status["delivered"], status["in_hand"]), (2, 2, 2))
        self.assertEqual((status["p50"], status["p99"]), (20, 20))
        self.assertEqual((status["oldest"], status["full"]), (20, ""))
        self.assertTrue(all(isinstance(number, int | float) for word, number in status.items() if word != "full"))


class ServiceTests(SynchronousTestCase):
    def test_not_started(self) -> None:
        """Before the spool is open mail is refused for now."""
        house = House()
        house.spool.start = Deferred  # type: ignore[method-assign,assignment]
        queue = Queue(
            "q2", house.spool, house.destinations, house.site_of, terms(), None, house.clock, house.wall, house.log,
        )  # fmt: skip
        queue.startService()

        self.assertEqual(self.successResultOf(queue.send(message()))[0].code, 452)
        self.assertNoResult(queue.started())

    def test_locked(self) -> None:
        """A spool that can't be opened is told to whoever started the queue, and to the operator."""
        house = House()
        broken: Deferred[None] = Deferred()
        house.spool.start = lambda: broken  # type: ignore[method-assign]
        queue = Queue(
            "q2", house.spool, house.destinations, house.site_of, terms(), None, house.clock, house.wall, house.log,
        )  # fmt: skip
        queue.startService()
        started = queue.started()

        broken.errback(SpoolTrouble("held by pid 7"))

        self.failureResultOf(started, SpoolTrouble)
        self.assertEqual(house.log.warnings(), ["q2: start: held by pid 7"])

    def test_waited_for_anew(self) -> None:
        """Who waits again at once, when a spool could not be opened, hears of the next attempt, not of this one again."""
        house = House()
        house.spool.start = lambda: fail(SpoolTrouble("read-only"))  # type: ignore[method-assign]
        queue = Queue(
            "q2", house.spool, house.destinations, house.site_of, terms(), None, house.clock, house.wall, house.log,
        )  # fmt: skip
        heard: list[object] = []

        def wait() -> None:
            queue.started().addErrback(again)

        def again(failure: Failure) -> None:
            heard.append(failure.type)
            assert len(heard) < 10
            wait()

        wait()
        queue.startService()

        self.assertEqual(heard, [SpoolTrouble])
        house.clock.advance(10)
        self.assertEqual(heard, [SpoolTrouble] * 2)

    def test_stop(self) -> None:
        """On TERM what is on its way ends, the rest is given back due at once, and nothing is lost or doubled."""
        house = House()
        house.send(number=10)

        stopped = house.queue.stopService()
        self.assertNoResult(stopped)
        house.work()

        self.successResultOf(stopped)
        self.assertEqual(house.delivered(), 2)
        self.assertEqual(house.spool.due(), [0] * 8)
        self.assertFalse(house.spool.running)
        self.assertEqual(house.clock.getDelayedCalls(), [])

    def test_stop_cut(self) -> None:
        """What does not end in time is cut and given back, not counted as an attempt."""
        house = House()
        house.send(number=2)
        stopped = house.queue.stopService()

        house.wait(13, step=1)

        self.successResultOf(stopped)
        self.assertEqual([e.attempts for e in house.spool.entries.values()], [0, 0])
        self.assertEqual(len(house.spool.due()), 2)

    def test_answered_too_late(self) -> None:
        """An answer that comes when nothing is waited for any more changes nothing."""
        house = House()
        house.send()
        connection = house.dialler.busy()[0]
        connection.abort = lambda: None  # type: ignore[method-assign]
        stopped = house.queue.stopService()
        house.wait(13, step=1)

        connection.answer(OK)

        self.successResultOf(stopped)
        self.assertEqual((house.delivered(), len(house.spool.due())), (0, 1))

    def test_stop_with_keeps(self) -> None:
        """A message whose sync is under way is answered, and waits for the next start."""
        house = House()
        house.spool.hold = []
        sent = house.send()[0]
        stopped = house.queue.stopService()
        refused = self.successResultOf(house.send()[0])
        self.assertNoResult(stopped)

        house.spool.hold[0]()

        self.successResultOf(stopped)
        self.assertTrue(self.successResultOf(sent)[0].ok)
        self.assertEqual(refused[0].code, 452)
        self.assertEqual(len(house.spool.due()), 1)

    def test_stop_with_bounce(self) -> None:
        """A bounce that nobody answers is not waited for beyond the time; it is made again at the next start."""
        house = House()
        house.bouncer.answer = None
        house.send()
        house.work(NEVER)
        stopped = house.queue.stopService()

        house.wait(13, step=1)
        house.bouncer.waiting[0].callback(True)

        self.successResultOf(stopped)
        self.assertEqual([len(e.bouncing) for e in house.spool.entries.values()], [1])

    def test_stop_with_bodies(self) -> None:
        """A body that is being read is waited for, and its entry given back."""
        house = House()
        house.send()
        house.work(LATER)
        house.spool.reading = []
        house.wait(405)
        stopped = house.queue.stopService()
        self.assertNoResult(stopped)

        house.spool.reading[0][0].callback(MemoryBody(b""))

        self.successResultOf(stopped)
        self.assertEqual([due <= 0 for due in house.spool.due()], [True])

    def test_next_start(self) -> None:
        """The next process delivers what the last gave back, each once."""
        first = House()
        first.send(number=10)
        stopped = first.queue.stopService()
        first.work()
        self.successResultOf(stopped)

        second = House(first.spool)
        second.work()

        self.assertEqual(first.delivered() + second.delivered(), 10)
        self.assertEqual(second.spool.entries, {})

    def test_fault(self) -> None:
        """A fault in a connection costs a line in the log; what was kept is answered so."""
        house = House()
        house.dialler.connect = lambda *_: 1  # type: ignore[method-assign,assignment,return-value]

        replies = self.successResultOf(house.send()[0])

        self.assertTrue(replies[0].ok)
        self.flushLoggedErrors(AttributeError)

    def test_cut_is_no_refusal(self) -> None:
        """A connection cut in ordinary times is an attempt like any other."""
        house = House()
        house.send()

        house.dialler.busy()[0].lose(CUT)

        self.assertEqual([e.attempts for e in house.spool.entries.values()], [1])
