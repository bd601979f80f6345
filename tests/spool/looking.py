"""What every spool does for whoever looks in, or takes in hand what he names: a part of the conformance suite."""

from __future__ import annotations

from typing import Any

from qmq.interfaces import SpoolTrouble
from qmq.mail import HELD, NULL_SENDER, Address, Envelope, MemoryBody, Message, Origin
from qmq.spool.store import Store
from tests.spool.house import ANN, BOB, COM, CYD, LATER, NEVER, ORG, TEXT, House, without


class LookingConformance(House):
    def numbers(self, store: Store, after: int = 0, limit: int = 99, **words: str) -> list[int]:
        query = {word.replace("_", "-"): text for word, text in words.items()}
        return [entry.number for entry in self.now(store.find(query, after, limit))]

    def surveyed(self, store: Store, **words: str) -> tuple[int, int]:
        """The whole count."""
        count, octets, on = 0, 0, 0
        while on is not None:
            some, size, on = self.now(store.survey(words, on))
            count, octets = count + some, octets + size
        return count, octets

    def seized(self, store: Store, after: int = 0, limit: int = 99, **words: str) -> Any:
        """All that can be taken, piece by piece."""
        found: list[Any] = []
        on: int | None = after
        while on is not None:
            some, on = self.now(store.seize(words, on, limit))
            found += some
        return found

    # To find.

    def test_find_words(self) -> None:
        """People find entries by all that they know of them."""
        store = self.opened()
        self.kept(store, ANN, body=MemoryBody(TEXT * 9))
        self.clock.advance(100)
        young = self.kept(store, BOB)[0]
        failed = self.kept(store, CYD)[0]
        failed.bouncing, failed.attempts = ((CYD, NEVER),), 2
        tried = self.kept(store, ANN)[0]
        tried.due, tried.attempts, tried.last = self.wall() + 5, 3, {ANN: LATER}
        token = store.next_token()
        whole = Message(Envelope(token, NULL_SENDER, (CYD,)), b"", MemoryBody(TEXT))
        bounce = self.now(store.keep(whole, [b"mx:a.example smtp:relay.example:26"], 0))[0]
        self.settled(store, without(failed, CYD), tried)
        large, *_ = self.numbers(store)

        for words, found in (
            ({"id": f"{young.message.envelope.token.id.decode()} {token.id.decode()} x-1"}, [young, bounce]),
            ({"sender": "<>"}, [bounce]),
            ({"domain": "example.com"}, [failed, bounce]),
            ({"domain": ".com"}, [failed, bounce]),
            ({"destination": "relay.example, example.com"}, [failed, bounce]),
            ({"destination": "a.example", "sender": "@example.net"}, []),
            ({"younger": "100"}, [young, failed, tried, bounce]),
            ({"attempts": "2"}, [failed, tried]),
            ({"attempts": "1", "attempts_below": "3"}, [failed]),
            ({"error": "451 4.4.1 NO answer from"}, [tried]),
            ({"error": "no such user"}, [failed]),
            ({"error": "5"}, [failed, tried]),
            ({"state": "bouncing"}, [failed]),
            ({"state": "waiting"}, [tried]),
            ({"smaller": "100", "larger": "10", "state": "in-hand"}, [young, failed, bounce]),
        ):
            expected = [entry.number for entry in found]
            self.assertEqual(self.numbers(store, **words), expected, words)
            query = {word.replace("_", "-"): text for word, text in words.items()}
            octets = sum(entry.message.size for entry in found)
            self.assertEqual(self.surveyed(store, **query), (len(found), octets), words)
        self.assertEqual(self.numbers(store, older="100"), [large])
        self.assertEqual(self.numbers(store, larger=str(len(TEXT) * 5)), [large])

    def test_find_destination(self) -> None:
        """All mail for a destination is found in order of number, whatever has become of it since it came."""
        store = self.opened()
        entries = [
            self.now(store.keep(self.message(store, ANN), [site], 0))[0]
            for site in [b"smtp:mail.x.example:25", b"mx:y.example", b"smtp:mail.x.example:26"] * 4
        ]
        store.release(entries[0], self.wall() + 5)
        store.release(entries[1], self.wall() + 5)
        store.settle(entries[2])
        entries[3].due = self.wall() + 9
        store.settle(entries[3])
        store.release(entries[5], self.wall() - 5)
        self.claimed(store)
        entries[4].site = b"lmtp:mail.x.example:24"
        store.release(entries[4], HELD)
        found = [entry.number for i, entry in enumerate(entries) if i % 3 != 1 or i == 4]

        self.assertEqual(self.numbers(store, destination="mail.x.example"), found)
        self.assertEqual(self.numbers(store, destination="mail.x.example", limit=3), found[:3])
        self.assertEqual(self.numbers(store, destination="mail.x.example", after=found[2]), found[3:])
        self.assertEqual(self.surveyed(store, destination="mail.x.example")[0], len(found))
        self.assertEqual(self.numbers(store, destination="mail.x.example", state="held"), [entries[4].number])
        self.assertEqual(self.surveyed(store, destination="mail.x.example", state="waiting")[0], 2)
        self.assertEqual(self.numbers(store, site="smtp:mail.x.example:25"), [e.number for e in entries[::3]])
        self.assertEqual(self.numbers(store, destination="mail.x.example", site="mx:y.example"), [])
        again = self.crashed(store)
        self.assertEqual(self.numbers(again, destination="mail.x.example"), found)

    def test_find_destination_anew(self) -> None:
        """Whoever begins anew finds mail for sites that there were not before."""
        store = self.opened()
        self.assertEqual(self.numbers(store, destination="example.org"), [])

        (entry,) = self.kept(store, ANN)

        self.assertEqual(self.numbers(store, destination="example.org"), [entry.number])

    def test_survey_nonsense(self) -> None:
        """A word that cannot be asked for is an error of whatever is asked."""
        store = self.opened()

        for asked in (store.survey({"older": "1h"}, 0), store.seize({"state": "red"}, 0, 9)):
            self.failureResultOf(asked, ValueError)

    def test_peek(self) -> None:
        """Whoever shows an entry has all of it, in hand or not, and it stays where it is."""
        store = self.opened(inline=100)
        short, long = self.kept(store, ANN)[0], self.kept(store, CYD, body=MemoryBody(TEXT * 100))[0]
        store.release(long, self.wall() + 5)

        for entry, text, due in ((short, TEXT, None), (long, TEXT * 100, self.wall() + 5)):
            seen = self.now(store.peek(entry.number))
            self.assertEqual(b"".join(seen.message.chunks()), entry.message.fields + text)
            self.assertEqual((seen.number, seen.due), (entry.number, due))
            store.settle(without(seen, ANN, CYD))
        self.assertIsNone(self.now(store.peek(12345)))
        self.clock.advance(1)
        self.assertEqual(store.messages, 2)
        self.settled(store, without(short, ANN))
        self.assertIsNone(self.now(store.peek(short.number)))

    # Births.

    def test_birth(self) -> None:
        """It is known at any time when the oldest entry was born."""
        store = self.opened()
        self.assertEqual(store.birth, float("inf"))
        one = self.kept(store, ANN)[0]
        self.clock.advance(7)
        two = self.kept(store, ANN)[0]
        self.assertEqual(store.birth, one.born)

        self.settled(store, without(one, ANN))
        self.assertEqual(store.birth, two.born)
        store = self.again(store)
        self.assertEqual(store.birth, two.born)
        self.settled(store, *(without(entry, ANN) for entry in self.claimed(store)))
        self.assertEqual(store.birth, float("inf"))

    def test_born_elsewhere(self) -> None:
        """A message from another of our queues is as old as it was there, unless that lies in the future."""
        store = self.opened()
        wall = self.wall()

        for came, born in ((0.0, wall), (wall - 5000.125, wall - 5000.125), (wall + 5, wall), (-3.0, wall)):
            (entry,) = self.kept(store, ANN, origin=Origin(b"QMTP", born=came))
            self.assertEqual(entry.born, born)
        store = self.again(store)
        entries = self.claimed(store)
        self.assertEqual(sorted(entry.born for entry in entries), [wall - 5000.125, wall, wall, wall])
        self.assertEqual(entries[0].message.envelope.origin.born, wall - 5000.125)
        self.assertEqual({entry.message.envelope.origin.born for entry in entries[1:]}, {0.0, wall})

    # Holds.

    def test_held(self) -> None:
        """What is held is never due, whatever happens, until it is given another time."""
        store = self.opened()
        due = self.wall() + 5
        held, other = self.waiting(store, HELD), self.waiting(store, due)
        self.assertEqual(self.now(store.next_due([])), due)
        self.assertEqual([entry.number for entry in self.claimed(store, now=HELD * 2)], [other.number])
        self.assertIsNone(self.now(store.next_due([])))
        self.assertEqual(self.now(store.due_now({})), 0)
        self.assertEqual(self.now(store.due_now({"state": "held"})), 0)
        self.assertEqual(self.now(store.due_now({"site": "example.org"})), 0)

        store = self.again(store)
        self.assertEqual([entry.number for entry in self.claimed(store, now=HELD)], [other.number])
        store = self.crashed(store)
        self.assertEqual([entry.number for entry in self.claimed(store, now=HELD)], [other.number])
        (entry,) = self.seized(store, state="held")
        store.release(entry, self.wall())
        self.assertEqual([entry.number for entry in self.claimed(store)], [held.number])

    def test_held_in_hand(self) -> None:
        """A hold survives the end of a process that had it in hand and had not settled it."""
        store = self.opened()
        held = self.waiting(store, HELD)
        self.assertEqual([entry.number for entry in self.seized(store)], [held.number])
        self.assertEqual(self.numbers(store, state="held"), [])

        store = self.crashed(store)

        self.assertEqual(self.claimed(store, now=HELD), [])
        self.assertEqual(self.numbers(store, state="held"), [held.number])

    # To take in hand by name.

    def test_seize(self) -> None:
        """What matches is taken by number, due or not, held or not, piece by piece; what is in hand is passed over."""
        store = self.opened()
        now = self.wall()
        waiting = [self.waiting(store, due) for due in (now + 50, HELD, now - 5, now + 20, now + 30)]
        self.kept(store, ANN)
        self.waiting(store, now, COM)
        self.assertEqual(len(self.claimed(store, 1)), 1)
        numbers = [entry.number for entry in waiting]
        del numbers[2]

        first, on = self.now(store.seize({"site": "example.org"}, 0, 2))
        self.assertEqual([(entry.number, entry.due) for entry in first], [(number, None) for number in numbers[:2]])
        self.assertEqual(self.numbers(store, state="held"), [])
        rest = self.seized(store, on, site="example.org")
        self.assertEqual([entry.number for entry in rest], numbers[2:])
        self.assertEqual(self.seized(store, site="example.org"), [])
        self.assertEqual([entry.site for entry in self.claimed(store, now=now + 99)], [COM])
        self.assertEqual(self.now(store.body(rest[0])).data, TEXT)
        self.assertEqual(store.in_hand, 7)

    def test_seize_settled(self) -> None:
        """What was taken and is given back, before or behind what was claimed since, is claimed once when it is due."""
        store = self.opened()
        now = self.wall()
        entries = [self.waiting(store, now + i, (ORG, COM)[i % 2]) for i in range(8)]
        taken = {entry.number: entry for entry in self.seized(store)}
        self.assertEqual(self.claimed(store, now=now + 99), [])
        early, late, moved, done, busy, kept = (taken[entry.number] for entry in entries[:6])

        store.release(early, now - 50)
        store.release(late, now + 200)
        moved.site, moved.due = b"queue:other", now + 1
        store.settle(moved)
        store.settle(without(done, *done.message.envelope.recipients))
        store.release(busy, now)
        kept.last = {ANN: LATER}
        store.settle(kept)
        first = self.claimed(store, busy=[ORG, b"queue:other"], now=now + 99)
        self.assertEqual(first, [])
        second = self.claimed(store, now=now + 99)
        self.assertEqual([entry.number for entry in second], [early.number, busy.number, moved.number])
        self.assertEqual(second[2].site, b"queue:other")
        self.assertEqual(self.now(store.next_due([])), now + 200)
        self.assertEqual([entry.number for entry in self.claimed(store, now=now + 200)], [late.number])
        self.assertEqual(len(self.claimed(self.crashed(store), now=now + 999)), 7)

    def test_seize_while_broken(self) -> None:
        """While the disk fails nothing is taken, and afterwards all of it."""
        store = self.opened()
        self.waiting(store, self.wall())
        self.break_disk(True)
        kept = store.keep(self.message(store, BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.failureResultOf(store.seize({}, 0, 9), SpoolTrouble)
        self.assertTrue(store.full)

        self.break_disk(False)
        self.clock.pump([1] * 10)

        self.assertEqual(store.full, "")
        self.assertEqual(len(self.seized(store)), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def message(self, store: Store, *recipients: Address) -> Message:
        sender = Address(b"sender", b"example.net")
        return Message(Envelope(store.next_token(), sender, recipients), b"", MemoryBody(TEXT))
