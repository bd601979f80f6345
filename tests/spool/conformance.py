"""What every spool does: one suite, run over each provider."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from zope.interface.verify import verifyObject

from qmq.interfaces import ISpool, SpoolTrouble
from qmq.mail import Address, Entry, Envelope, FileBody, MemoryBody, Origin, Token
from qmq.spool.store import Store
from qmq.spool.table import NONE
from tests.spool.house import ANN, BOB, COM, CYD, LATER, NEVER, ORG, SENDER, TEXT, message, without
from tests.spool.looking import LookingConformance


class SpoolConformance(LookingConformance):
    """Mixed into a SynchronousTestCase by each provider, with the five methods of House that it has to provide."""

    # To keep.

    def test_provides(self) -> None:
        """It provides what ISpool asks for."""
        verifyObject(ISpool, self.make())

    def test_keep(self) -> None:
        """A message kept is an entry in hand, as it was handed over."""
        store = self.opened()
        token = store.next_token()

        (entry,) = self.kept(store, ANN, BOB, token=token)

        self.assertEqual(entry.message.envelope, Envelope(token, SENDER, (ANN, BOB)))
        self.assertEqual(b"".join(entry.message.chunks()), b"Received: here\r\n" + TEXT)
        self.assertEqual((entry.site, entry.born, entry.due, entry.attempts), (ORG, self.wall(), None, 0))
        self.assertEqual(self.claimed(store), [])

    def test_keep_waits(self) -> None:
        """Nobody is told that a message is kept before it is written."""
        store = self.opened()

        kept = store.keep(message(store.next_token(), ANN), [ORG], 0)

        self.assertNoResult(kept)
        self.assertEqual(store.messages, 0)
        self.now(kept)

    def test_keep_together(self) -> None:
        """What comes in one turn of the loop is written with one commit."""
        store = self.opened()
        jobs = self.jobs

        kept = [store.keep(message(store.next_token(), ANN), [ORG], 0) for _ in range(40)]
        self.clock.advance(0)

        self.assertEqual(self.jobs, jobs + 1)
        numbers = [self.successResultOf(each)[0].number for each in kept]
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_keep_sites(self) -> None:
        """A message for two sites is an entry for each, with one body."""
        store = self.opened()

        entries = self.kept(store, ANN, CYD, BOB)

        self.assertEqual([entry.site for entry in entries], [ORG, COM])
        self.assertEqual([entry.message.envelope.recipients for entry in entries], [(ANN, BOB), (CYD,)])
        for entry in entries:
            store.release(entry, self.wall())
        claimed = self.claimed(store)
        self.settled(store, without(claimed[0], ANN, BOB, CYD))
        self.assertEqual(self.now(store.body(claimed[1])).data, TEXT)

    def test_keep_twice_named(self) -> None:
        """A recipient named twice is one recipient."""
        store = self.opened()

        (entry,) = self.kept(store, ANN, BOB, ANN)

        self.assertEqual(entry.message.envelope.recipients, (ANN, BOB))

    def test_keep_nobody(self) -> None:
        """A message for nobody is nothing."""
        store = self.opened()

        self.assertEqual(list(self.kept(store)), [])
        self.assertEqual(store.messages, 0)

    def test_keep_strange_addresses(self) -> None:
        """Newlines, NULs and any other octets in addresses come back as they were."""
        store = self.opened()
        strange = [Address(bytes([i]) * 3 + b"\n\0,", bytes([255 - i])) for i in range(256)]

        entries = self.kept(store, *strange)
        for entry in entries:
            store.release(entry, self.wall())

        found = [one for entry in self.claimed(store, 300) for one in entry.message.envelope.recipients]
        self.assertEqual(sorted(found, key=bytes), sorted(strange, key=bytes))

    def test_keep_everything(self) -> None:
        """All that belongs to a message comes back after a restart."""
        store = self.opened()
        origin = Origin(b"ESMTPSA", b"192.0.2.7", 4711, b"h\xe4lo", b"ann", made_here=True)
        (entry,) = self.kept(store, ANN, BOB, CYD, origin=origin, body_type=b"8BITMIME", smtputf8=True)[:1]
        entry.due, entry.attempts, entry.generation, entry.delayed = self.wall() + 5, 3, 2, True
        entry.last = {ANN: LATER}
        entry.bouncing = ((BOB, NEVER),)
        self.settled(store, without(entry, BOB))

        store = self.again(store)
        found = next(one for one in self.claimed(store, now=self.wall() + 5) if one.site == ORG)

        self.assertEqual(found.message.envelope, entry.message.envelope)
        self.assertEqual(found.message.fields, entry.message.fields)
        self.assertEqual(found.message.size, entry.message.size)
        for name in ("number", "site", "born", "attempts", "generation", "delayed", "last", "bouncing"):
            self.assertEqual(getattr(found, name), getattr(entry, name), name)

    def test_keep_number(self) -> None:
        """A number that cannot be stored is refused, and harms nobody else."""
        store = self.opened()

        bad = store.keep(message(Token(b"peer", 1 << 63), ANN), [ORG], 0)
        good = store.keep(message(Token(b"peer", 1), ANN), [ORG], 1 << 70)

        self.failureResultOf(bad, SpoolTrouble)
        self.assertEqual(len(self.now(good)), 1)

    def test_keep_cancelled(self) -> None:
        """Who goes away before the writing begins leaves nothing behind."""
        store = self.opened()

        kept = store.keep(message(store.next_token(), ANN), [ORG], 0)
        kept.cancel()
        self.clock.advance(1)

        self.failureResultOf(kept, CancelledError)
        self.assertEqual(store.messages, 0)

    # Bodies.

    def source(self, text: bytes) -> FileBody:
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(text)
        return FileBody(path, len(text))

    def test_long_body(self) -> None:
        """A long body stays though the file it came in goes, until the message goes."""
        store = self.opened(inline=100)
        source = self.source(TEXT * 100)
        (entry,) = self.kept(store, ANN, body=source)
        os.unlink(source.path)

        self.assertEqual(b"".join(entry.message.body.chunks()), TEXT * 100)
        store.release(entry, self.wall())
        store = self.again(store, inline=100)
        (entry,) = self.claimed(store)
        body = self.now(store.body(entry))

        self.assertEqual(b"".join(body.chunks()), TEXT * 100)
        self.assertEqual(body.size, entry.message.body.size)

    def test_long_body_in_memory(self) -> None:
        """A long body that came in memory is stored all the same."""
        store = self.opened(inline=100)
        self.kept(store, ANN, body=MemoryBody(TEXT * 100))

        store = self.again(store, inline=100)
        (entry,) = self.claimed(store)

        self.assertEqual(b"".join(self.now(store.body(entry)).chunks()), TEXT * 100)

    def test_short_file(self) -> None:
        """A short body that came as a file is stored all the same."""
        store = self.opened()
        source = self.source(TEXT)
        (entry,) = self.kept(store, ANN, body=source)
        os.unlink(source.path)

        self.assertEqual(entry.message.body.data, TEXT)
        store = self.again(store)
        (entry,) = self.claimed(store)
        self.assertEqual(self.now(store.body(entry)).data, TEXT)

    def test_body_cut(self) -> None:
        """A file shorter than it should be fails its own message, no other of the batch."""
        for inline in (10, 131072):
            store = self.opened(inline=inline)
            source = self.source(TEXT)

            bad = store.keep(message(store.next_token(), ANN, body=FileBody(source.path, 99)), [ORG], 0)
            gone = store.keep(message(store.next_token(), ANN, body=FileBody("/nonexistent", 99)), [ORG], 0)
            good = store.keep(message(store.next_token(), ANN), [ORG], 0)

            self.assertEqual(len(self.now(good)), 1)
            self.failureResultOf(bad, SpoolTrouble)
            self.failureResultOf(gone, SpoolTrouble)
            self.successResultOf(store.stop())

    def test_body_not_read(self) -> None:
        """The body of an entry that was claimed is an error, not empty, until it is asked for."""
        store = self.opened()
        self.waiting(store, self.wall())

        (entry,) = self.claimed(store)

        self.assertRaises(OSError, list, entry.message.body.chunks())
        self.assertEqual(entry.message.body.size, len(TEXT))

    def test_body_not_in_hand(self) -> None:
        """The body of an entry that is not in hand is not given out."""
        store = self.opened()
        entry = self.waiting(store, self.wall() + 9)

        self.failureResultOf(store.body(entry), SpoolTrouble)

    # Tokens handed over again.

    def test_again_in_batch(self) -> None:
        """A token handed over twice in one turn is kept once, and both are told so."""
        store = self.opened()
        token = Token(b"peer", 7)

        first = store.keep(message(token, ANN), [ORG], 0)
        second = store.keep(message(token, ANN, CYD), [ORG, COM], 0)

        self.assertEqual([entry.site for entry in self.now(first)], [ORG])
        self.assertEqual([entry.site for entry in self.now(second)], [COM])
        self.assertEqual(store.messages, 2)

    def test_again_later(self) -> None:
        """A token handed over again is known, whatever has happened meanwhile."""
        token = Token(b"peer", 7)
        store = self.opened()
        self.kept(store, ANN, token=token)
        self.assertEqual(list(self.kept(store, ANN, token=token)), [])

        store = self.again(store)
        self.assertEqual(list(self.kept(store, ANN, token=token)), [])

        self.settled(store, *(without(entry, ANN) for entry in self.claimed(store)))
        self.assertEqual((store.messages, store.tombstones), (0, 1))
        self.assertEqual(list(self.kept(store, ANN, token=token)), [])

        store = self.again(store)
        self.assertEqual(list(self.kept(store, ANN, token=token)), [])
        self.assertEqual((store.messages, store.tombstones), (0, 1))

    def test_again_others(self) -> None:
        """Unknown recipients of a known token are new mail; known ones are not, in whatever state they are."""
        token = Token(b"peer", 7)
        dan, eve = Address(b"dan", ORG), Address(b"eve", ORG)
        store = self.opened()
        first, second = self.kept(store, ANN, BOB, dan, CYD, token=token)
        first.bouncing = ((BOB, NEVER),)
        self.settled(store, without(first, ANN, BOB), without(second, CYD))  # ANN done, BOB bouncing, dan to do

        (new,) = self.kept(store, ANN, BOB, CYD, dan, eve, token=token)

        self.assertEqual(new.message.envelope.recipients, (eve,))
        store.release(new, self.wall())
        self.settled(store, without(first, dan))
        (claimed,) = self.claimed(store)
        self.assertEqual(self.now(store.body(claimed)).data, TEXT)
        store = self.again(store)
        self.assertEqual(list(self.kept(store, ANN, BOB, CYD, dan, eve, token=token)), [])

    def test_again_long(self) -> None:
        """Entries of one token share one long body, and it goes with the last of them."""
        token = Token(b"peer", 7)
        store = self.opened(inline=10)
        (first,) = self.kept(store, ANN, token=token)
        (second,) = self.kept(store, ANN, CYD, token=token)

        self.settled(store, without(first, ANN))
        self.assertEqual(b"".join(second.message.body.chunks()), TEXT)
        self.assertEqual(self.now(maybeDeferred(store.body, second)).size, len(TEXT))
        self.settled(store, without(second, CYD))
        self.assertEqual((store.messages, store.octets), (0, 0))

    def test_done(self) -> None:
        """An entry that is done goes, whatever it says; done once more, or after its lease, it changes nothing."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        (other,) = self.kept(store, BOB)
        store.done(entry)
        store.done(entry)
        self.clock.advance(0.1)

        self.assertEqual((store.messages, store.in_hand), (1, 1))
        store = self.again(store)
        store.done(other)
        self.clock.advance(0.1)
        self.assertEqual(store.messages, 1)

    def test_again_while_settled(self) -> None:
        """A token handed over again in the turn in which it is settled is known, in either order."""
        store = self.opened()
        for seq, keep_first in ((1, True), (2, False)):
            token = Token(b"peer", seq)
            (entry,) = self.kept(store, ANN, token=token, low=seq)
            if not keep_first:
                store.settle(without(entry, ANN))
            kept = store.keep(message(token, ANN), [ORG], seq)
            if keep_first:
                store.settle(without(entry, ANN))

            self.assertEqual(list(self.now(kept)), [], keep_first)
            self.clock.advance(1)
            self.assertEqual(store.messages, 0)

    def test_never_in_doubt(self) -> None:
        """A token of which its peer has no doubt by the time that it is settled in the store leaves no tombstone."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 5), low=5)

        store.settle(without(entry, ANN))
        self.kept(store, ANN, token=Token(b"peer", 6), low=6)

        self.assertEqual((store.messages, store.tombstones), (1, 0))
        store = self.again(store)
        self.assertEqual((store.messages, store.tombstones), (1, 0))

    def test_no_longer_in_doubt(self) -> None:
        """Tombstones go when their peer says that it has no doubt, and then new ones below are not made."""
        store = self.opened()
        for seq in (5, 6, 7):
            self.settled(store, *(without(entry, ANN) for entry in self.kept(store, ANN, token=Token(b"peer", seq))))
        (late,) = self.kept(store, ANN, token=Token(b"peer", 4))
        self.settled(store, *(without(entry, ANN) for entry in self.kept(store, ANN, token=Token(b"other", 5))))
        self.assertEqual(store.tombstones, 4)

        self.clock.advance(2)
        self.kept(store, ANN, token=Token(b"peer", 8), low=7)
        self.assertEqual(store.tombstones, 2)
        self.settled(store, without(late, ANN))
        self.assertEqual(store.tombstones, 2)

        store = self.again(store)
        self.assertEqual(store.tombstones, 2)
        self.assertEqual(len(self.kept(store, ANN, token=Token(b"peer", 6))), 1)
        self.assertEqual(len(self.kept(store, ANN, token=Token(b"peer", 7))), 0)

    def test_many_tombstones(self) -> None:
        """Tombstones are bounded; those of the peer with the most go first, oldest first, and are counted."""
        store = self.opened(tombstones=10)
        self.settled(store, *(without(entry, ANN) for entry in self.kept(store, ANN, token=Token(b"quiet", 1))))
        for seq in range(20):
            self.settled(store, *(without(entry, ANN) for entry in self.kept(store, ANN, token=Token(b"loud", seq))))

        self.assertEqual((store.tombstones, store.evicted), (10, 11))
        self.clock.advance(2)
        store = self.again(store, tombstones=10)
        self.assertEqual((store.tombstones, store.evicted), (10, 0))
        self.assertEqual(list(self.kept(store, ANN, token=Token(b"quiet", 1))), [])
        self.assertEqual(list(self.kept(store, ANN, token=Token(b"loud", 19))), [])

    # To settle.

    def came(self, store: Store, some: int) -> list[Any]:
        """So many messages, which nobody has waited for yet."""
        return [store.keep(message(store.next_token(), ANN), [ORG], 0) for _ in range(some)]

    def test_company(self) -> None:
        """A few soon after many wait a moment, and what comes meanwhile is written with them."""
        store = self.opened()
        self.came(store, 8)
        self.clock.advance(0)
        jobs, kept = self.jobs, self.came(store, 2)
        self.clock.advance(0.001)
        self.assertNoResult(kept[0])
        kept += self.came(store, 2)
        self.clock.advance(0.001)

        self.assertEqual([len(self.successResultOf(one)) for one in kept], [1, 1, 1, 1])
        self.assertEqual(self.jobs, jobs + 1)
        kept = self.came(store, 2)
        self.clock.advance(0)
        self.assertEqual(len(self.successResultOf(kept[0])), 1, "half as many do not wait")

    def test_company_of_none(self) -> None:
        """Nobody waits long after many, or for whom somebody looks, or when the store stops."""
        store = self.opened()
        self.came(store, 8)
        self.clock.pump([0, 0.1])
        (kept,) = self.came(store, 1)
        self.clock.advance(0)
        self.assertEqual(len(self.successResultOf(kept)), 1)

        self.came(store, 8)
        self.clock.advance(0)
        (kept,) = self.came(store, 1)
        found = store.find({}, 0, 99)
        self.clock.advance(0)
        self.assertEqual(len(self.successResultOf(found)), 18)

        self.came(store, 8)
        self.clock.advance(0)
        (kept,) = self.came(store, 1)
        self.clock.advance(0)
        self.assertNoResult(kept)
        self.successResultOf(store.stop())
        self.assertEqual(len(self.successResultOf(kept)), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_settle_together(self) -> None:
        """Settles ride with the next messages, and do not wait for ever if none comes."""
        store = self.opened()
        first, second = [self.kept(store, ANN)[0] for _ in range(2)]
        jobs = self.jobs

        store.settle(without(first, ANN))
        self.kept(store, ANN)
        self.assertEqual((self.jobs, store.messages), (jobs + 1, 2))

        store.settle(without(second, ANN))
        self.clock.advance(0.04)
        self.assertEqual(store.messages, 2)
        self.clock.advance(0.02)
        self.assertEqual((self.jobs, store.messages), (jobs + 2, 1))

    def test_settle_in_hand(self) -> None:
        """What is written without a due time stays in hand, and is due after a crash without what was done."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, BOB)

        self.settled(store, without(entry, ANN))
        self.assertEqual(self.claimed(store), [])
        store = self.crashed(store)
        (entry,) = self.claimed(store)

        self.assertEqual(entry.message.envelope.recipients, (BOB,))

    def test_settle_again(self) -> None:
        """Of several settles in one turn the last holds."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, BOB)

        store.settle(without(entry, ANN))
        store.settle(without(entry, BOB))
        self.clock.advance(1)

        self.assertEqual(store.messages, 0)

    def test_settle_then_release(self) -> None:
        """What was done before an entry is given back is remembered."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, BOB)

        store.settle(without(entry, ANN))
        store.release(entry, self.wall())
        (entry,) = self.claimed(store)

        self.assertEqual(entry.message.envelope.recipients, (BOB,))

    def test_settle_lost(self) -> None:
        """Who has not got an entry in hand cannot settle it."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        store.release(entry, self.wall() + 5)
        store.settle(without(entry, ANN))
        (found,) = self.now(store.find({}, 0, 9))
        store.settle(without(found, ANN))
        self.clock.advance(1)
        self.assertEqual(store.messages, 1)

        store = self.again(store)
        self.claimed(store, now=self.wall() + 5)
        store.settle(entry)
        store.settle(found)
        store.release(entry, self.wall())
        self.clock.advance(1)

        self.assertEqual(store.messages, 1)
        self.assertEqual(self.claimed(store, now=self.wall() + 9), [])

    def test_bouncing_stays(self) -> None:
        """An entry with nobody to deliver to stays until its bounces are taken over."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        entry.bouncing = ((ANN, NEVER),)
        self.settled(store, without(entry, ANN))
        self.assertEqual(store.messages, 1)

        entry.bouncing = ()
        self.settled(store, entry)

        self.assertEqual(store.messages, 0)

    def test_site(self) -> None:
        """An entry may be given another site."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        entry.site, entry.due = COM, self.wall()
        self.settled(store, entry)

        self.assertEqual(self.claimed(store, busy=[COM]), [])
        self.assertEqual(len(self.claimed(store, busy=[ORG])), 1)

    # To claim.

    def test_claim_order(self) -> None:
        """The oldest due comes first, as many as are asked for, and none that is not due."""
        store = self.opened()
        now = self.wall()
        numbers = [
            self.waiting(store, now + due, site).number for due, site in ((3, ORG), (1, COM), (2, ORG), (9, COM))
        ]

        first = self.claimed(store, 2, now=now + 5)
        rest = self.claimed(store, now=now + 5)

        self.assertEqual([entry.number for entry in first], [numbers[1], numbers[2]])
        self.assertEqual([entry.number for entry in rest], [numbers[0]])
        self.assertEqual([entry.due for entry in rest], [None])
        self.assertEqual(self.claimed(store, 0, now=now + 50), [])

    def test_claim_busy(self) -> None:
        """Nothing of a busy site is claimed; when it is free again, its turn comes by age."""
        store = self.opened()
        now = self.wall()
        org = [self.waiting(store, now + i, ORG).number for i in range(6)]
        com = [self.waiting(store, now + i + 0.5, COM).number for i in range(6)]

        self.assertEqual([entry.number for entry in self.claimed(store, 3, [ORG], now + 9)], com[:3])
        self.assertEqual([entry.number for entry in self.claimed(store, 3, [ORG], now + 9)], com[3:])
        self.assertEqual(self.claimed(store, 3, [ORG], now + 9), [])
        com.append(self.waiting(store, now + 1.5, COM).number)
        self.assertEqual([one.number for one in self.claimed(store, 4, [], now + 9)], [org[0], org[1], com[6], org[2]])
        self.assertEqual(self.claimed(store, 4, [ORG], now + 9), [])
        self.assertEqual([entry.number for entry in self.claimed(store, 9, [COM], now + 9)], org[3:])

    def test_claim_released(self) -> None:
        """What is given back is claimed again when it is due, even far back in time."""
        store = self.opened()
        now = self.wall()
        for due in (now, now + 1):
            self.waiting(store, due)
        one, two = self.claimed(store, now=now + 1)

        store.release(two, now - 1000)
        store.release(one, now + 50)

        self.assertEqual([entry.number for entry in self.claimed(store, now=now + 1)], [two.number])
        self.assertEqual([entry.number for entry in self.claimed(store, now=now + 50)], [one.number])

    def test_claim_same_due(self) -> None:
        """Many entries with the same due time are claimed once each, however they are cut."""
        store = self.opened()
        numbers = {self.waiting(store, self.wall(), site).number for site in (ORG, COM) for _ in range(10)}

        found = [entry.number for _ in range(10) for entry in self.claimed(store, 3, now=self.wall() + 20)]

        self.assertEqual(len(found), 20)
        self.assertEqual(set(found), numbers)

    def test_claim_clock_back(self) -> None:
        """After the clock has jumped back nothing is claimed twice, and what is due then is claimed."""
        store = self.opened()
        now = self.wall()
        self.waiting(store, now + 100)
        self.claimed(store, now=now + 1000)
        early = self.waiting(store, now + 5)
        self.waiting(store, now + 500)

        self.assertEqual([entry.number for entry in self.claimed(store, now=now + 10)], [early.number])
        self.assertEqual(len(self.claimed(store, now=now + 1000)), 1)

    def test_claim_after_crash(self) -> None:
        """After a kill everything that was in hand is due, and nothing twice."""
        store = self.opened()
        fresh = self.kept(store, ANN)[0].number
        claimed = self.waiting(store, self.wall()).number
        self.claimed(store)
        later = self.waiting(store, self.wall() + 100).number

        store = self.crashed(store)

        self.assertEqual({entry.number for entry in self.claimed(store)}, {fresh, claimed})
        self.assertEqual([entry.number for entry in self.claimed(store, now=self.wall() + 100)], [later])

    def test_next_due(self) -> None:
        """The next due time is that of what is neither in hand nor of a busy site."""
        store = self.opened()
        now = self.wall()
        self.assertIsNone(self.now(store.next_due([])))
        self.waiting(store, now + 1, ORG)
        self.waiting(store, now + 2, COM)
        self.waiting(store, now + 7, ORG)

        self.assertEqual(self.now(store.next_due([])), now + 1)
        self.assertEqual(self.now(store.next_due([ORG])), now + 2)
        self.assertIsNone(self.now(store.next_due([ORG, COM])))
        self.claimed(store, busy=[ORG], now=now + 2)
        self.assertEqual(self.now(store.next_due([])), now + 1)
        (entry,) = self.claimed(store, now=now + 2)
        self.assertEqual(self.now(store.next_due([])), now + 7)
        store.release(entry, now - 5)
        self.assertEqual(self.now(store.next_due([])), now - 5)

    # To look in.

    def test_find(self) -> None:
        """People find entries by site, sender, recipient and id, in order of number, page by page."""
        store = self.opened()
        entries = [*self.kept(store, ANN, CYD), *self.kept(store, BOB), *self.kept(store, CYD)]
        numbers = [entry.number for entry in entries]
        entries[0].bouncing = ((ANN, NEVER),)
        self.settled(store, without(entries[0], ANN))
        store.release(entries[2], self.wall() + 5)

        def found(after: int = 0, limit: int = 9, **query: str) -> list[int]:
            return [entry.number for entry in self.now(store.find(query, after, limit))]

        self.assertEqual(found(), numbers)
        self.assertEqual(found(limit=2), numbers[:2])
        self.assertEqual(found(after=numbers[1]), numbers[2:])
        self.assertEqual(found(site="example.org"), [numbers[0], numbers[2]])
        self.assertEqual(found(recipient="ann@EXAMPLE.ORG"), [numbers[0]])
        self.assertEqual(found(recipient="@example.com"), [numbers[1], numbers[3]])
        self.assertEqual(found(recipient="nn@example.org"), [])
        self.assertEqual(found(sender="sender@example.net", site="example.com"), [numbers[1], numbers[3]])
        self.assertEqual(found(sender="other@example.net"), [])
        self.assertEqual(found(id=entries[2].message.envelope.token.id.decode()), [numbers[2]])
        dues = [entry.due for entry in self.now(store.find({}, 0, 9))]
        self.assertEqual(dues, [None, None, self.wall() + 5, None])

    def test_find_nonsense(self) -> None:
        """A word that cannot be asked for is an error with a text."""
        store = self.opened()

        failure = self.failureResultOf(store.find({"colour": "red"}, 0, 9), ValueError)
        self.failureResultOf(store.due_now({"colour": "red"}), ValueError)

        self.assertIn("colour", failure.getErrorMessage())

    def test_due_now(self) -> None:
        """What is asked for is due at once; what is in hand is left alone."""
        store = self.opened()
        now = self.wall()
        hers = self.waiting(store, now + 100, ORG)
        self.waiting(store, now + 100, COM)
        self.waiting(store, now + 200, COM)
        self.kept(store, ANN)

        self.assertEqual(self.now(store.due_now({"site": "example.org"})), 1)
        self.assertEqual([entry.number for entry in self.claimed(store)], [hers.number])
        self.assertEqual(self.now(store.due_now({})), 2)
        self.assertEqual(len(self.claimed(store)), 2)
        self.assertEqual(self.now(store.due_now({})), 0)

    def test_counts(self) -> None:
        """Messages and octets, the lowest token of ours and the oldest entry are known at any time."""
        store = self.opened()
        self.assertEqual((store.messages, store.octets, store.lowest, store.oldest), (0, 0, NONE, NONE))
        first = store.next_token()
        second = store.next_token()
        one = self.kept(store, ANN, token=second)[0]
        two, three = self.kept(store, ANN, CYD, token=first)
        self.kept(store, ANN, token=Token(b"peer", 1))
        size = one.message.size

        self.assertEqual((store.messages, store.octets), (4, 4 * size))
        self.assertEqual((store.lowest, store.oldest), (first.seq, one.number))
        self.settled(store, without(one, ANN), without(two, ANN))
        self.assertEqual((store.messages, store.octets), (2, 2 * size))
        self.assertEqual((store.lowest, store.oldest), (first.seq, three.number))
        again = self.crashed(store)
        self.assertEqual((again.messages, again.octets), (2, 2 * size))
        self.assertEqual((again.lowest, again.oldest), (first.seq, three.number))
        self.settled(store, without(three, CYD))
        self.assertEqual(store.lowest, NONE)

    # To start and to stop.

    def test_tokens(self) -> None:
        """Tokens and numbers of a store rise for ever, whatever happens to it, and its name stays."""
        store = self.opened()
        tag, tokens, numbers = store.tag, [], []
        for _ in range(3):
            tokens += [store.next_token().seq for _ in range(3)]
            numbers.append(self.kept(store, ANN)[0].number)
            store = self.again(store)
        tokens.append(store.next_token().seq)
        store = self.crashed(store)
        tokens.append(store.next_token().seq)

        self.assertEqual(store.tag, tag)
        self.assertEqual(tokens, sorted(set(tokens)))
        self.assertEqual(numbers, sorted(set(numbers)))

    def test_tokens_many(self) -> None:
        """A start that uses up more numbers than are its own takes them from no later start."""
        store = self.opened()
        for _ in range(3):
            store._seq += (1 << 31) - 1
            self.kept(store, ANN)
        used = store.next_token().seq

        store = self.crashed(store)

        self.assertGreater(store.next_token().seq, used)

    def test_stop(self) -> None:
        """What waits is written before the store closes, and then nothing is kept."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        store.settle(without(entry, ANN))
        kept = store.keep(message(store.next_token(), CYD), [COM], 0)

        self.successResultOf(store.stop())

        self.assertEqual(len(self.successResultOf(kept)), 1)
        self.failureResultOf(store.keep(message(Token(b"peer", 1), ANN), [ORG], 0), SpoolTrouble)
        self.failureResultOf(store.claim(0, 1, []), SpoolTrouble)
        self.assertFalse(store.free())
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual([one.site for one in self.claimed(self.opened())], [COM])

    def test_stop_when_told(self) -> None:
        """Whoever is told that a message is kept may hand over the next one, settle, and stop the store at once."""
        store = self.opened()
        more: list[Any] = []

        def told(entries: Sequence[Entry]) -> Deferred[None]:
            store.settle(without(entries[0], ANN))
            more.append(store.keep(message(store.next_token(), CYD), [COM], 0))
            return store.stop()

        kept = store.keep(message(store.next_token(), ANN), [ORG], 0).addCallback(told)
        self.now(kept)

        self.assertEqual(len(self.successResultOf(more[0])), 1)
        self.assertEqual([one.site for one in self.claimed(self.opened())], [COM])

    def test_not_started(self) -> None:
        """A store that was not started keeps nothing, and can be stopped."""
        store = self.make()

        self.failureResultOf(store.keep(message(Token(b"peer", 1), ANN), [ORG], 0), SpoolTrouble)
        self.successResultOf(store.stop())

    def test_second_opener(self) -> None:
        """A second opener waits for the first to go, and gives up after ten seconds."""
        first, second = self.opened(), self.make()
        started = second.start()
        self.clock.pump([0.25] * 39)
        self.assertNoResult(started)
        self.clock.pump([0.25] * 2)
        self.assertIn("held by process", self.failureResultOf(started, SpoolTrouble).getErrorMessage())

        started = second.start()
        self.clock.advance(1)
        self.successResultOf(first.stop())
        self.clock.advance(1)
        self.successResultOf(started)
        self.assertEqual(len(self.kept(second, ANN)), 1)

    def test_stop_while_waiting(self) -> None:
        """Who waits for the lock can be stopped."""
        self.opened()
        second = self.make()
        started = second.start()

        self.successResultOf(second.stop())
        self.clock.advance(1)

        self.failureResultOf(started, SpoolTrouble)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle(self) -> None:
        """A store that had nothing to do for long works on as before."""
        store = self.opened()
        self.waiting(store, self.wall())
        self.claimed(store)
        self.waiting(store, self.wall())
        self.clock.advance(59)
        self.kept(store, ANN)
        self.clock.advance(1)
        self.clock.advance(100)

        self.assertEqual(len(self.claimed(store)), 1)
        self.assertEqual(len(self.kept(store, ANN)), 1)

    # When things go wrong.

    def test_full(self) -> None:
        """A full disk takes no mail, but lets it go, and takes mail again as soon as there is room."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        self.fill(True)
        kept = store.keep(message(store.next_token(), ANN), [ORG], 0)
        store.settle(without(entry, ANN))

        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.assertEqual(store.messages, 0)
        self.assertFalse(store.free())
        self.failureResultOf(store.keep(message(store.next_token(), ANN), [ORG], 0), SpoolTrouble)

        self.fill(False)
        self.clock.advance(1)
        store.free()
        self.clock.advance(0)
        self.assertTrue(store.free())
        self.assertEqual(len(self.kept(store, ANN)), 1)

    def test_io_error(self) -> None:
        """After an I/O error nothing is kept until the disk is well; settles wait, and nothing kept is lost."""
        store = self.opened()
        (done,) = self.kept(store, ANN)
        (stays,) = self.kept(store, CYD)
        self.break_disk(True)
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        store.settle(without(done, ANN))

        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.assertEqual(store.messages, 2)
        self.failureResultOf(store.keep(message(store.next_token(), BOB), [ORG], 0), SpoolTrouble)
        self.failureResultOf(store.claim(self.wall(), 1, []), SpoolTrouble)
        self.clock.pump([1] * 10)
        self.assertFalse(store.free())

        self.break_disk(False)
        self.clock.pump([1] * 10)
        self.assertEqual(store.messages, 1)
        self.assertEqual(len(self.kept(store, BOB)), 1)
        store.release(stays, self.wall())
        self.assertEqual([entry.number for entry in self.claimed(store)], [stays.number])
        self.assertEqual(len(self.now(store.find({}, 0, 9))), 2)
        self.flushLoggedErrors(SpoolTrouble)

    def test_io_error_tombstone(self) -> None:
        """What was delivered while the disk failed is known again after a restart."""
        token = Token(b"peer", 1)
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=token)
        self.break_disk(True)
        store.settle(without(entry, ANN))
        self.clock.pump([1] * 5)
        self.break_disk(False)
        self.clock.pump([1] * 10)

        store = self.again(store)

        self.assertEqual((store.messages, store.tombstones), (0, 1))
        self.assertEqual(list(self.kept(store, ANN, token=token)), [])
        self.flushLoggedErrors(SpoolTrouble)

    def test_io_error_at_stop(self) -> None:
        """A store stops though what waits cannot be written; who waits is told."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        store.settle(without(entry, ANN))
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        self.break_disk(True)

        self.successResultOf(store.stop())
        self.failureResultOf(kept, SpoolTrouble)

        self.break_disk(False)
        self.flushLoggedErrors(SpoolTrouble)
        self.assertIn(ANN, [one.message.envelope.recipients[0] for one in self.claimed(self.opened())])

    def test_damaged(self) -> None:
        """A damaged record is put aside and counted out; everything else goes on."""
        store = self.opened()
        bad, good = [self.kept(store, ANN, token=Token(b"peer", seq))[0].number for seq in (1, 2)]
        self.successResultOf(store.stop())
        self.damage(bad)
        store = self.opened()

        self.assertEqual(store.messages, 2)
        self.assertEqual([entry.number for entry in self.claimed(store)], [good])
        self.clock.advance(0.1)
        self.assertEqual(store.messages, 1)
        self.assertEqual([entry.number for entry in self.now(store.find({}, 0, 9))], [good])
        self.assertEqual(len(self.kept(store, ANN, token=Token(b"peer", 1))), 1)

    def test_damaged_found(self) -> None:
        """A damaged record met by who looks in, or by its token come again, stops neither."""
        store = self.opened()
        bad = self.kept(store, ANN, token=Token(b"peer", 1))[0].number
        self.successResultOf(store.stop())
        self.damage(bad)
        store = self.opened()

        self.assertEqual(len(self.kept(store, ANN, token=Token(b"peer", 1))), 1)
        self.assertEqual(len(self.now(store.find({}, 0, 9))), 1)
        self.clock.advance(0.1)
        self.assertEqual(store.messages, 1)
