from __future__ import annotations

from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from qmq.interfaces import SpoolTrouble
from qmq.mail import HELD, Entry, MemoryBody, Reply
from qmq.queue.orders import WORDS, Acted
from tests.queue.fakes import LATER, NEVER, OK, UNREACHABLE, message
from tests.queue.house import House

RETURNED = Reply(554, "5.7.1", "returned by the operator of this gateway")
THERE = Reply(553, "5.7.1", "sorry, that domain isn't in my list of allowed rcpthosts", "q2")


class OrderTests(SynchronousTestCase):
    """What rests, what waits for a connection, and what is on one."""

    def resting(self, *recipients: str, number: int = 1, **how: object) -> House:
        """A queue in which so many messages wait for their next attempt."""
        house = House(**how)  # type: ignore[arg-type]  # as the test names them
        house.send(*recipients, number=number)
        house.work(LATER)
        return house

    def act(self, house: House, word: str, to: str = "", reason: str = "", **query: str) -> Acted:
        """The order's result, when the reactor has turned often enough."""
        self.told: list[int] = []
        acted = house.queue.act(word, query, self.told.append, to, reason)
        for _ in range(100):
            house.clock.advance(0)
        return self.successResultOf(acted)

    def dues(self, house: House) -> list[float | None]:
        return [entry.due for entry in house.spool.entries.values()]

    def logged(self, house: House, word: str) -> list[tuple[object, ...]]:
        return [line for line in house.log.lines if line[0] == word]


class RestingTests(OrderTests):
    def test_hold_and_release(self) -> None:
        """What is held is not tried, however long and whatever is ordered to be tried; released it goes at once."""
        house = self.resting(number=3)

        acted = self.act(house, "hold")
        now = self.act(house, "now")
        house.wait(20000, step=20)
        tried = sum(len(connection.got) for connection in house.dialler.connections)
        released = self.act(house, "release")
        house.work()

        self.assertEqual((acted, now, released), (Acted(3, 0), Acted(0, 0), Acted(3, 0)))
        self.assertEqual(tried, 3)
        self.assertEqual(house.delivered(), 3)

    def test_held_over_restart(self) -> None:
        """A restart sets free nothing that is held, and forgets nothing of it."""
        before = self.resting()
        self.act(before, "hold")

        after = House(before.spool)
        after.wait(600)

        self.assertEqual(self.dues(after), [HELD])
        self.assertEqual(after.dialler.dialled, [])

    def test_release_others(self) -> None:
        """Release leaves alone what is not held; to ask for anything else than what is held is a mistake."""
        house = self.resting()
        before = self.dues(house)

        acted = self.act(house, "release")
        wrong = house.queue.act("release", {"state": "waiting"}, lambda _: None)

        self.assertEqual(acted, Acted(0, 0))
        self.assertEqual(self.dues(house), before)
        self.failureResultOf(wrong, ValueError)

    def test_query(self) -> None:
        """Only what matches is acted on."""
        house = self.resting("a@example.org")
        house.send("b@example.org")
        house.work(LATER)

        acted = self.act(house, "hold", recipient="b@example.org")

        self.assertEqual(acted, Acted(1, 0))
        self.assertEqual([(due or 0) >= HELD for due in self.dues(house)], [False, True])

    def test_now(self) -> None:
        """All is tried at once, at hosts that count as dead too."""
        house = House()
        house.dialler.hosts[b"example.org"] = UNREACHABLE
        house.send(number=3)
        del house.dialler.hosts[b"example.org"]

        acted = self.act(house, "now")
        house.work()

        self.assertEqual((acted, self.told), (Acted(3, 0), [3]))
        self.assertEqual(house.delivered(), 3)

    def test_delete(self) -> None:
        """Deleted messages are gone, nobody is told, and the log says who threw them away."""
        house = self.resting("a@example.org", "b@example.org")

        acted = self.act(house, "delete")

        self.assertEqual(acted, Acted(1, 0))
        self.assertEqual(house.spool.entries, {})
        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual([bytes(line[3].local) for line in self.logged(house, "deleted")], [b"a", b"b"])  # type: ignore[attr-defined]
        self.assertEqual(house.queue.status()["deleted"], 2)

    def test_bounce(self) -> None:
        """Returned messages go the way of all failures; the sender reads the operator's words, or ours."""
        for reason, text in (("", RETURNED.text), ("the customer has left", "the customer has left")):
            house = self.resting("a@example.org", "b@example.org")

            acted = self.act(house, "bounce", reason=reason)

            self.assertEqual(acted, Acted(1, 0))
            ((_, generation, bouncing),) = house.bouncer.bounced
            self.assertEqual(generation, 1)
            self.assertEqual([reply for _, reply in bouncing], [Reply(554, "5.7.1", text)] * 2)
            self.assertEqual(house.bouncer.bodies, [b"Subject: hi\r\n\r\nhi\r\n"])
            self.assertEqual(len(self.logged(house, "failed")), 2)
            self.assertEqual(house.spool.entries, {})

    def test_bounce_storm(self) -> None:
        """A thousand are returned though the bouncer takes few at once: the others rest, failed, until their turn."""
        house = self.resting(number=700, bounces=5)
        house.bouncer.answer = None

        acted = self.act(house, "bounce")

        self.assertEqual(acted, Acted(700, 0))
        self.assertEqual(len(house.bouncer.waiting), 5)
        self.assertEqual({len(entry.bouncing) for entry in house.spool.entries.values()}, {1})

    def test_bounce_after_bounce(self) -> None:
        """Whose earlier bounce is not taken over yet has that first, and its other recipients after, in their own."""
        house = House()
        house.bouncer.answer = False
        house.send("bad@example.org", "slow@example.org")
        house.dialler.busy()[0].answer(NEVER, LATER)
        house.bouncer.answer = True

        acted = self.act(house, "bounce")

        self.assertEqual(acted, Acted(1, 0))
        told = [(generation, [one.local for one, _ in bouncing]) for _, generation, bouncing in house.bouncer.bounced]
        self.assertEqual(told, [(1, [b"bad"]), (1, [b"bad"]), (2, [b"slow"])])
        self.assertEqual(house.spool.entries, {})

    def test_bounce_while_bouncer_is_down(self) -> None:
        """While nobody takes the earlier bounce over there is no second, and nothing turns in circles."""
        house = House()
        house.bouncer.answer = False
        house.send("bad@example.org", "slow@example.org")
        house.dialler.busy()[0].answer(NEVER, LATER)

        self.act(house, "bounce")
        house.wait(60)

        (entry,) = house.spool.entries.values()
        self.assertEqual((entry.generation, [one.local for one, _ in entry.bouncing]), (1, [b"bad"]))
        self.assertTrue(len(house.bouncer.bounced) < 10)

    def test_pieces(self) -> None:
        """Thousands go piece by piece: who asked hears how far it is, and others' mail goes on in between."""
        house = self.resting(number=2500)
        house.spool.seizing = []

        acted = house.queue.act("hold", {}, self.hear)
        house.send("u@other.example")
        house.work(site=b"other.example")
        first = len(self.heard), house.delivered()
        while house.spool.seizing:
            house.spool.seizing.pop(0)()
            for _ in range(10):
                house.clock.advance(0)

        self.assertEqual(first, (0, 1))
        self.assertEqual(self.heard, [500, 1000, 1500, 2000, 2500])
        self.assertEqual(self.successResultOf(acted), Acted(2500, 0))
        self.assertEqual(set(self.dues(house)), {HELD})

    def setUp(self) -> None:
        """Nobody has heard anything."""
        self.heard: list[int] = []
        self.hear: Callable[[int], None] = self.heard.append

    def test_turns(self) -> None:
        """A piece of hundreds does not keep the reactor from its other business."""
        house = self.resting(number=500)

        house.queue.act("hold", {}, self.hear)
        after_one_turn = sum((due or 0) >= HELD for due in self.dues(house))
        for _ in range(10):
            house.clock.advance(0)

        self.assertEqual(after_one_turn, 100)
        self.assertEqual(set(self.dues(house)), {HELD})

    def test_cancelled(self) -> None:
        """Who asked may hang up: the piece that was seized is seen to, no further one is begun."""
        house = self.resting(number=1000)
        house.spool.seizing = []
        acted = house.queue.act("hold", {}, self.hear)

        acted.cancel()
        house.spool.seizing.pop(0)()
        for _ in range(10):
            house.clock.advance(0)

        self.failureResultOf(acted, CancelledError)
        self.assertEqual(sorted({(due or 0) >= HELD for due in self.dues(house)}), [False, True])
        self.assertEqual(house.spool.seizing, [])
        self.assertEqual(house.spool.in_hand, set())

    def test_trouble(self) -> None:
        """A store that can't be asked is told to who asked."""
        house = self.resting()
        house.spool.broken = SpoolTrouble("I/O error")

        self.failureResultOf(house.queue.act("hold", {}, self.hear), SpoolTrouble)

    def test_stopping(self) -> None:
        """A queue that stops gives the order up; the next process finds what was held held, the rest as it was."""
        house = self.resting(number=300)
        before = self.dues(house)
        acted = house.queue.act("hold", {}, self.hear)

        stopped = house.queue.stopService()
        house.clock.advance(0)

        self.failureResultOf(acted, SpoolTrouble)
        self.successResultOf(stopped)
        self.assertEqual(self.dues(house)[:100], [HELD] * 100)
        self.assertEqual(len(before), 300)

    def test_mistakes(self) -> None:
        """What can't be meant is refused in words: an unknown order or question, a move to nowhere or to itself."""
        house = self.resting()
        for word, to, query in (
            ("explode", "", {}), ("hold", "", {"colour": "red"}), ("move", "", {}), ("move", "q1", {}),
        ):  # fmt: skip
            self.failureResultOf(house.queue.act(word, query, self.hear, to), ValueError)
        self.assertEqual(set(house.queue._hand.meets), set())


class MoveTests(OrderTests):
    def test_moved(self) -> None:
        """What is moved goes to the other queue at once, and counts and is logged as moved, not as delivered."""
        house = self.resting("a@example.org", "b@example.org")

        acted = self.act(house, "move", to="q2")
        house.work()

        self.assertEqual(acted, Acted(1, 0))
        self.assertEqual(house.dialler.dialled[-1], b"queue:q2")
        self.assertEqual([line[3:5] for line in self.logged(house, "moved")], [
            (one, "q2") for one in message("a@example.org", "b@example.org").envelope.recipients
        ])  # fmt: skip
        self.assertEqual((house.queue.status()["moved"], house.delivered()), (2, 0))
        self.assertEqual(self.logged(house, "delivered"), [])
        self.assertEqual(house.spool.entries, {})

    def test_held(self) -> None:
        """What was held may be moved, and goes too."""
        house = self.resting()
        self.act(house, "hold")

        self.act(house, "move", to="q2")
        house.work()

        self.assertEqual(house.queue.status()["moved"], 1)

    def test_refused_there(self) -> None:
        """The other queue's refusal fails nobody: the message stays, with the words for who looks, and is retried."""
        house = self.resting()
        self.act(house, "move", to="q2")
        house.work(THERE)

        (entry,) = house.spool.entries.values()
        (reply,) = entry.last.values()
        house.wait(1000)
        house.work()

        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual((reply.code, reply.mta), (451, "q2"))
        self.assertIn("553 5.7.1 sorry, that domain", reply.text)
        self.assertEqual(house.queue.status()["moved"], 1)

    def test_never_expires(self) -> None:
        """However long the other queue is away, what is moved does not fail here: it may have been taken there."""
        house = self.resting()
        house.dialler.hosts[b"queue:q2"] = UNREACHABLE
        self.act(house, "move", to="q2")

        house.wait(8 * 86400, step=600)

        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual(len(house.spool.entries), 1)

    def test_restarted(self) -> None:
        """A queue whose process is away for some seconds has what is moved soon after, whatever hosts are patient with."""
        house = self.resting()
        house.dialler.hosts[b"queue:q2"] = UNREACHABLE
        self.act(house, "move", to="q2")
        house.wait(3, step=1)
        del house.dialler.hosts[b"queue:q2"]

        house.wait(12, step=1)
        house.work()

        self.assertEqual(len(house.spool.entries), 0)

    def test_unanswered(self) -> None:
        """A move that broke off is tried again within seconds, also if nothing else tells that the other queue is back."""
        house = self.resting()
        self.act(house, "move", to="q2")
        house.work(UNREACHABLE)

        (entry,) = house.spool.entries.values()

        assert entry.due is not None
        self.assertLess(entry.due - house.wall(), 3)

    def test_in_doubt(self) -> None:
        """What may have been taken there is not moved to a third; what was never offered there may be."""
        offered, fresh = self.resting(), self.resting()
        self.act(offered, "move", to="q2")
        offered.work(UNREACHABLE)
        fresh.queue.pause()
        self.act(fresh, "move", to="q2")

        acted = [self.act(house, "move", to="q3") for house in (offered, fresh)]

        self.assertEqual(acted, [Acted(0, 0), Acted(1, 0)])
        self.assertEqual(
            [entry.site for house in (offered, fresh) for entry in house.spool.entries.values()],
            [b"queue:q2", b"queue:q3"],
        )

    def test_twice(self) -> None:
        """The same move ordered again tries it again, and does not make us forget that it was offered there."""
        house = self.resting()
        self.act(house, "move", to="q2")
        house.work(UNREACHABLE)

        again = self.act(house, "move", to="q2")
        house.work(UNREACHABLE)
        elsewhere = self.act(house, "move", to="q3")

        self.assertEqual((again, elsewhere), (Acted(1, 0), Acted(0, 0)))

    def test_primary(self) -> None:
        """Of a queue whose mail is in doubt where it goes, the primary's, nothing is moved."""
        house = self.resting(movable=False)

        self.assertEqual(self.act(house, "move", to="q2"), Acted(0, 0))
        self.assertEqual([entry.site for entry in house.spool.entries.values()], [b"example.org"])

    def test_nothing_to_move(self) -> None:
        """Of a message of which only a bounce is left, that stays here."""
        house = House()
        house.bouncer.answer = False
        house.send()
        house.work(NEVER)

        acted = self.act(house, "move", to="q2")
        house.bouncer.answer = True
        house.wait(130)

        self.assertEqual(acted, Acted(0, 0))
        self.assertEqual(house.spool.entries, {})
        self.assertEqual(house.queue.status()["bounced"], 1)

    def test_entry(self) -> None:
        """Whoever hands a message over can ask which entry it is of."""
        house = House()
        house.send()
        sent = house.dialler.busy()[0].at_work
        assert sent is not None

        found = house.queue.entry(sent)
        house.work()

        assert found is not None
        self.assertEqual(found.number, 1)
        self.assertIsNone(house.queue.entry(sent))


class InHandTests(OrderTests):
    def test_waiting_for_a_connection(self) -> None:
        """What waits for a connection is stopped at once; what is on one later, if it is not delivered."""
        house = House()
        house.send(number=10)

        acted = self.act(house, "hold")
        before = sum((due or 0) >= HELD for due in self.dues(house))
        house.dialler.busy()[0].answer(OK)
        house.work(LATER)

        self.assertEqual(acted, Acted(8, 2))
        self.assertEqual(before, 8)
        self.assertEqual(house.delivered(), 1)
        self.assertEqual(self.dues(house), [HELD] * 9)

    def test_delete_on_its_way(self) -> None:
        """Ordered to be deleted on its way: what was delivered is, what was not is gone, and nobody is told."""
        house = House()
        house.send("a@example.org", "b@example.org", "c@example.org")

        acted = self.act(house, "delete")
        house.dialler.busy()[0].answer(OK, LATER, NEVER)

        self.assertEqual(acted, Acted(0, 1))
        self.assertEqual(house.delivered(), 1)
        self.assertEqual(house.bouncer.bounced, [])
        self.assertEqual(house.spool.entries, {})
        self.assertEqual(house.queue.status()["deleted"], 2)

    def test_bounce_on_its_way(self) -> None:
        """Ordered to be returned on its way: one bounce tells of all that was not delivered."""
        house = House()
        house.send("a@example.org", "b@example.org", "c@example.org")

        self.act(house, "bounce")
        house.dialler.busy()[0].answer(OK, LATER, NEVER)

        ((_, _, bouncing),) = house.bouncer.bounced
        self.assertEqual([reply for _, reply in bouncing], [RETURNED, NEVER])
        self.assertEqual(house.spool.entries, {})

    def test_move_on_its_way(self) -> None:
        """Ordered to be moved on its way: what was deferred goes to the other queue, what failed is bounced."""
        house = House()
        house.send("a@example.org", "b@example.org", "c@example.org")

        self.act(house, "move", to="q2")
        house.dialler.busy()[0].answer(OK, LATER, NEVER)
        house.wait(10)
        house.work()

        self.assertEqual((house.delivered(), house.queue.status()["moved"]), (1, 1))
        self.assertEqual([[one.local for one, _ in bouncing] for _, _, bouncing in house.bouncer.bounced], [[b"c"]])
        self.assertEqual(house.spool.entries, {})

    def test_moved_on_its_way_there(self) -> None:
        """On its way to another queue, ordered to a third: it stays on its way, for it may have been taken."""
        house = self.resting()
        self.act(house, "move", to="q2")

        acted = self.act(house, "move", to="q3")
        house.work(UNREACHABLE)

        self.assertEqual(acted, Acted(0, 1))
        self.assertEqual([entry.site for entry in house.spool.entries.values()], [b"queue:q2"])

    def test_release_of_what_is_to_be_held(self) -> None:
        """Who changes his mind: what would have been held when it is back is not."""
        house = House()
        house.send()
        self.act(house, "hold")

        acted = self.act(house, "release")
        house.work(LATER)

        self.assertEqual(acted, Acted(1, 0))
        self.assertTrue((self.dues(house)[0] or HELD) < HELD)

    def test_latest_word(self) -> None:
        """Of two orders the latest holds."""
        house = House()
        house.send()
        self.act(house, "hold")

        self.act(house, "delete")
        house.work(LATER)

        self.assertEqual(house.spool.entries, {})

    def test_cut_at_the_end(self) -> None:
        """What was to be held and is cut by the end of the process is held."""
        house = House()
        house.send()
        self.act(house, "hold")
        stopped = house.queue.stopService()

        house.wait(13, step=1)

        self.successResultOf(stopped)
        self.assertEqual(self.dues(house), [HELD])

    def test_body_being_read(self) -> None:
        """What is being read from the disk is stopped before it goes."""
        house = self.resting()
        house.spool.reading = []
        self.act(house, "now")

        acted = self.act(house, "hold")
        house.spool.reading[0][0].callback(MemoryBody(b""))

        self.assertEqual(acted, Acted(0, 1))
        self.assertEqual(self.dues(house), [HELD])
        self.assertEqual(house.dialler.busy(), [])

    def test_unreadable(self) -> None:
        """What can't be read can be deleted."""
        house = self.resting()
        house.spool.reading = []
        self.act(house, "now")

        self.act(house, "delete")
        house.spool.reading[0][0].errback(SpoolTrouble("gone"))

        self.assertEqual(house.spool.entries, {})

    def test_with_the_bouncer(self) -> None:
        """What is with the bouncer is acted on when that has answered, if anything is left."""
        for word, left in (("hold", [HELD]), ("delete", [])):
            house = House()
            house.bouncer.answer = None
            house.send("bad@example.org", "slow@example.org")
            house.dialler.busy()[0].answer(NEVER, LATER)

            acted = self.act(house, word)
            house.bouncer.waiting[0].callback(True)

            self.assertEqual(acted, Acted(0, 1))
            self.assertEqual(self.dues(house), left)

    def test_claimed_meanwhile(self) -> None:
        """What falls due while the order is under way does not slip through, and counts once."""
        house = self.resting(number=20)
        house.spool.seizing = []
        acted = house.queue.act("hold", {}, lambda _: None)
        seized = set(house.spool.in_hand)
        for number in list(seized)[:10]:  # as if they had been in hand when the order came to them
            entry = house.spool.entries[number]
            house.spool.in_hand.discard(number)
            entry.due = house.wall()
        self.assertEqual(len(seized), 20)

        house.queue._hand.claims.soon()
        house.clock.advance(0)
        met = sum((due or 0) >= HELD for due in self.dues(house))

        self.assertEqual(met, 10)
        self.assertNoResult(acted)

    def test_given_up(self) -> None:
        """Whoever counts what waits hears of all that goes undelivered: failed, expired, deleted, returned."""
        gone: list[Entry] = []
        for what in ("failed", "delete", "bounce", "delivered"):
            house = self.resting()
            house.queue.given_up = gone.append
            if what in WORDS:
                self.act(house, what)
            else:
                self.act(house, "now")
                house.work(NEVER if what == "failed" else OK)
            self.assertEqual(house.spool.entries, {})

        self.assertEqual(len(gone), 3)


class AnyOrderTests(SynchronousTestCase):
    @settings(max_examples=80, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(("send", "ok", "later", "never", "tick", "act", "act", "pause", "resume", "bouncer")),
                      st.integers(0, 5), st.sampled_from(WORDS)), max_size=40,
        )
    )  # fmt: skip
    def test_anything(self, steps: list[tuple[str, int, str]]) -> None:
        """Whatever is ordered whenever: nothing stays in hand, and every recipient has one fate."""
        house = House(window=20, bounces=3)
        sent = 0
        results: list[Deferred[Acted]] = []
        for what, n, word in steps:
            busy = house.dialler.busy()
            match what:
                case "send":
                    house.send(*[f"u{i}@{n}.example" for i in range(2)], number=3)
                    sent += 6
                case "ok" | "later" | "never" if busy:
                    busy[n % len(busy)].answer(*[{"ok": OK, "later": LATER, "never": NEVER}[what], OK])
                case "tick":
                    house.wait(n * 100)
                case "act":
                    query = {"site": f"{n}.example"} if n < 3 and word != "release" else {}
                    results.append(house.queue.act(word, query, lambda _: None, "q2" if word == "move" else ""))
                case "pause":
                    house.queue.pause()
                case "resume":
                    house.queue.resume()
                case "bouncer":
                    house.bouncer.answer = n % 2 == 0
        self.finish(house, results)
        status = house.queue.status()
        fates = [status[word] for word in ("delivered", "moved", "bounced", "deleted")]
        self.assertEqual((status["in_hand"], status["queued"]), (0, 0))
        self.assertEqual(house.queue._hand.intents, {})
        self.assertEqual(sum(fates), sent, fates)

    def finish(self, house: House, results: list[Deferred[Acted]]) -> None:
        """The hosts and the bouncer are well, nothing is held or paused, and time passes."""
        house.bouncer.answer = True
        house.queue.resume()
        for _ in range(30):
            house.work()
            house.queue.act("release", {}, lambda _: None)
            house.queue.act("now", {}, lambda _: None)
            house.wait(130)
        for result in results:
            self.successResultOf(result)
