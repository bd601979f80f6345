"""The suite over a store with a journal, and what only a journal can do."""

from __future__ import annotations

import errno
import os
import shutil
from typing import Any

import apsw
from twisted.logger import LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from qmq.interfaces import SpoolTrouble
from qmq.mail import Address, MemoryBody, Token
from qmq.spool import fresh, journal, sqlite
from qmq.spool.ring import Done, Piece
from tests.spool import test_sqlite
from tests.spool.house import ANN, BOB, CYD, EPOCH, LATER, ORG, Kernel, message, without


class FreshSpoolTests(test_sqlite.SQLiteSpoolTests):
    journal = 1 << 20

    def setUp(self) -> None:
        super().setUp()
        self.broken = False  # the journal alone
        self.rows_alone = False  # the disk's troubles are the database's
        self.torn: list[tuple[str, int]] = []  # what power cuts leave while a file is written over; entries in hand
        self.tears = False
        self.alarms: list[str] = []
        globalLogPublisher.addObserver(self.hear)
        self.addCleanup(globalLogPublisher.removeObserver, self.hear)
        self.real = journal.write
        self.patch(journal, "write", self.write)

    def hear(self, event: Any) -> None:
        if event.get("log_level") is LogLevel.critical and "alarm" in event:
            self.alarms.append(event["alarm"])

    def write(self, fd: int, octets: bytes, at: int) -> int:
        vfs, rows_alone = self.vfs, self.rows_alone
        if self.broken or (not rows_alone and (vfs.sync or vfs.write or vfs.read_only)):
            raise OSError(errno.EIO, "Input/output error")
        if vfs.full and not rows_alone:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.tears and at == 0 and os.fstat(fd).st_size:
            self.tear(fd, octets)
        vfs.syncs += 1
        return self.real(fd, octets, at)

    def tear(self, fd: int, octets: bytes) -> None:
        """The disk of a power cut that had written these octets from the second page on, or the first page alone."""
        size = len(octets)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        for begin, end in ((journal.PAGE, size), (0, min(size, journal.PAGE) - 1), (512, size)):
            path = shutil.copytree(self.path, f"{self.path}-torn-{len(self.torn)}")
            self.torn.append((path, self.store.messages))
            with open(os.path.join(path, name), "r+b") as file:
                file.seek(begin)
                file.write(octets[begin:end])

    def seqs_of(self, path: str) -> list[int]:
        """Of a store there."""
        before, self.path = (self.store, self.path), path
        try:
            return self.seqs(self.opened())
        finally:
            self.successResultOf(self.store.stop())
            self.store, self.path = before

    def rows(self) -> Any:
        return self.store._table._table

    def row_count(self) -> int:
        """How many there are in the open store's table."""
        ((count,),) = self.rows().ask(lambda connection: list(connection.execute("SELECT count(*) FROM message")))
        return int(count)

    def seqs(self, store: Any) -> list[int]:
        """The numbers of the tokens of all that is there."""
        return [entry.message.envelope.token.seq for entry in self.now(store.find({}, 0, 1000))]

    def rewritten(self) -> bool:
        """Whether the database has been written to since the store was opened."""
        return os.path.exists(os.path.join(self.path, "spool.db-wal"))

    def log(self, octets: bytes | None = None) -> bytes:
        """The journal's only file; it may be written over."""
        (name,) = [name for name in os.listdir(self.path) if name.startswith("journal.")]
        with open(os.path.join(self.path, name), "r+b") as file:
            if octets is not None:
                file.write(octets)
                file.seek(0)
            return file.read()

    def test_no_rows(self) -> None:
        """Mail that is delivered at once is written to the journal alone, and a commit is synced once."""
        store = self.opened()
        self.vfs.syncs = 0
        for seq in range(20):
            (entry,) = self.kept(store, ANN, token=Token(b"peer", seq), low=seq)
            self.settled(store, without(entry, ANN))

        self.assertEqual((store.messages, self.rewritten()), (0, False))
        self.assertEqual(self.vfs.syncs, 40)
        self.assertEqual(self.seqs(self.crashed(store)), [])

    def test_rows_settled(self) -> None:
        """What goes of the rows does not make rows of what is fresh; after a crash both are as they were."""
        store = self.opened()
        self.waiting(store, EPOCH, token=Token(b"peer", 1))
        (old,) = self.claimed(store)
        self.kept(store, ANN, token=Token(b"peer", 2))
        self.assertEqual(self.row_count(), 1)
        self.settled(store, without(old, ANN))

        self.assertEqual((store.messages, self.row_count()), (1, 0))
        again = self.crashed(store)
        self.assertEqual(self.seqs(again), [2])
        for seq in (1, 2):  # that the one was delivered is known as well
            self.assertEqual(len(self.kept(again, ANN, token=Token(b"peer", seq))), 0)

    def test_rows_rewritten(self) -> None:
        """What is put off once more leaves what is fresh where it is, however often."""
        store = self.opened()
        self.waiting(store, EPOCH, token=Token(b"peer", 1))
        self.kept(store, ANN, token=Token(b"peer", 2))
        for _ in range(3):
            (old,) = self.claimed(store)
            old.due, old.attempts = EPOCH, old.attempts + 1
            self.settled(store, old)

        self.assertEqual((store.messages, self.row_count()), (2, 1))
        ((attempts,),) = self.rows().ask(lambda connection: list(connection.execute("SELECT attempts FROM message")))
        self.assertEqual(attempts, 3)

    def test_rows_settled_again(self) -> None:
        """A token that is handed over again while its row goes is known, though somebody looks at the same time."""
        store = self.opened()
        self.waiting(store, EPOCH, token=Token(b"peer", 1))
        (old,) = self.claimed(store)
        store.settle(without(old, ANN))
        again = store.keep(message(Token(b"peer", 1), ANN), [ORG], 0)
        found = self.now(store.find({}, 0, 9))

        self.assertEqual((len(self.successResultOf(again)), len(found)), (0, 0))

    def test_rows_settled_in_parts(self) -> None:
        """Of a message to many, what the table and the journal remember in turn is known after a crash at any point."""
        store, token = self.opened(), Token(b"peer", 1)
        names = [Address(b"x", b"%d.example" % i) for i in range(4)]
        entries = self.kept(store, *names, token=token)
        self.now(store.find({}, 0, 9))  # makes rows of them
        crashes = []
        for seq, (entry, name) in enumerate(zip(entries[:3], names, strict=False), 2):
            store.settle(without(entry, name))
            if seq == 3:
                self.clock.advance(0.1)
            else:
                self.kept(store, ANN, token=Token(b"peer", seq))
            crashes.append((shutil.copytree(self.path, f"{self.path}-{seq}"), names[: seq - 1]))
        for path, gone in crashes:
            self.path = path
            again = self.opened()
            found = [one for entry in self.kept(again, *gone, token=token) for one in entry.message.envelope.recipients]
            self.assertEqual(found, [])
            self.successResultOf(again.stop())

    def test_rows_not_settled(self) -> None:
        """What could not be done to rows is done later; what is fresh is not touched by that."""
        store = self.opened()
        self.waiting(store, EPOCH, token=Token(b"peer", 1))
        (old,) = self.claimed(store)
        self.kept(store, ANN, token=Token(b"peer", 2))
        self.rows_alone = self.vfs.full = True
        self.settled(store, without(old, ANN))
        self.kept(store, ANN, token=Token(b"peer", 3))
        self.assertEqual(store.messages, 3)
        self.vfs.full = False
        self.clock.pump([1, 1, 1])

        self.assertEqual((store.messages, self.row_count()), (2, 0))
        self.assertEqual(self.seqs(self.crashed(store)), [2, 3])
        self.flushLoggedErrors(SpoolTrouble)

    def test_torn(self) -> None:
        """Whatever a power cut makes of the block that was being written, what was acknowledged before is there."""
        store = self.opened()
        for seq in (1, 2):
            self.kept(store, ANN, token=Token(b"peer", seq))
        before = len(self.log())
        store.keep(message(Token(b"peer", 3), ANN), [ORG], 0)
        self.clock.advance(0)
        whole, path = self.log(), self.path
        for at in range(before, len(whole), 97):
            self.log(whole[:at] + bytes(len(whole) - at))
            self.assertEqual(self.seqs(self.crashed(store))[:2], [1, 2])
            self.successResultOf(self.store.stop())
            shutil.rmtree(self.path)
            self.path = path

    def test_damaged_block(self) -> None:
        """A block that was damaged is told to the operator; the mail of the others is there."""
        store = self.opened()
        for seq in (1, 2, 3):
            self.kept(store, ANN, token=Token(b"peer", seq))
        whole = self.log()
        self.log(whole[: journal.PAGE + 50] + b"??" + whole[journal.PAGE + 52 :])

        self.assertEqual(self.seqs(self.crashed(store)), [1, 3])
        self.assertIn("DAMAGED", self.alarms[0])

    def test_begun_anew(self) -> None:
        """A journal that is as long as it may be is begun anew; what is in hand stays in hand, and all else is there."""
        store = self.opened(journal=200_000)
        entries = [
            self.kept(store, ANN, token=Token(b"peer", seq), body=MemoryBody(b"%d" % seq * 10_000))[0]
            for seq in range(60)
        ]

        for turn in (0, 1):
            self.assertLessEqual(os.path.getsize(os.path.join(self.path, f"journal.{turn}")), 200_000)
        self.assertEqual((store.messages, store.in_hand), (60, 60))
        self.assertEqual(self.claimed(store), [])
        self.settled(store, *(without(entry, ANN) for entry in entries[::2]))
        self.assertEqual(self.seqs(self.crashed(store)), list(range(1, 60, 2)))

    def test_turns(self) -> None:
        """Its files take turns when what lay in the other one went, and no row is written for it."""
        self.patch(fresh, "SHORT", 50_000)
        store, entry = self.opened(), None
        for seq in range(60):
            (after,) = self.kept(store, ANN, token=Token(b"peer", seq), low=seq - 1, body=MemoryBody(b"x" * 20_000))
            if entry is not None:
                self.settled(store, without(entry, ANN))
            entry = after

        sizes = [os.path.getsize(os.path.join(self.path, f"journal.{turn}")) for turn in (0, 1)]
        self.assertLess(max(sizes), 150_000)
        self.assertFalse(self.rewritten())
        store = self.crashed(store)
        self.assertEqual(self.seqs(store), [59])
        self.assertEqual([list(self.kept(store, ANN, token=Token(b"peer", seq))) for seq in (58, 59)], [[], []])
        self.assertEqual(self.alarms, [])

    def test_company(self) -> None:
        """What is to be tried again waits for company, 50 ms at most, however thick mail comes; then it is a row."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        entry.due, entry.attempts, entry.last = self.wall() + 60, 1, {ANN: LATER}
        store.settle(entry)
        for _ in range(4):
            self.kept(store, BOB)
            self.clock.advance(0.01)
        self.assertFalse(self.rewritten())
        self.clock.advance(0.01)
        self.kept(store, CYD)

        self.assertTrue(self.rewritten())
        after = self.crashed(store)
        found = [each for each in self.claimed(after, now=self.wall() + 60) if each.number == entry.number]
        self.assertEqual([(each.attempts, each.last) for each in found], [(1, {ANN: LATER})])

    def test_delivered_row(self) -> None:
        """That a row was delivered is known after a crash as soon as the next mail is kept, before the row goes."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 1))
        self.now(store.find({}, 0, 9))  # a row, then
        store.settle(without(entry, ANN))
        self.kept(store, BOB, token=Token(b"peer", 2))

        self.assertEqual(self.seqs(self.crashed(store)), [2])

    def test_known_in_any_order(self) -> None:
        """Tokens that come out of order are new; that one comes again is known, be it fresh, a row, or of before a start."""
        store = self.opened()
        for seq in (5, 3, 4):
            self.assertEqual(len(self.kept(store, ANN, token=Token(b"peer", seq))), 1)
        self.assertFalse(self.rewritten())
        self.assertEqual(list(self.kept(store, ANN, token=Token(b"peer", 3))), [])
        twice = [store.keep(message(Token(b"peer", 6), ANN), [ORG], 0) for _ in range(2)]
        self.assertEqual([len(self.now(kept)) for kept in twice], [1, 0])
        store = self.crashed(store)
        self.kept(store, ANN, token=Token(b"peer", 7))
        for seq in (3, 6, 4, 5, 7):
            self.assertEqual(list(self.kept(store, ANN, token=Token(b"peer", seq))), [])

        self.assertEqual(self.seqs(store), [5, 3, 4, 6, 7])

    def test_tombstone_in_journal(self) -> None:
        """That a token in doubt was delivered is remembered over a crash."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 5))
        self.settled(store, without(entry, ANN))
        self.assertFalse(self.rewritten())

        self.assertEqual(list(self.kept(self.crashed(store), ANN, token=Token(b"peer", 5))), [])

    def test_journal_breaks(self) -> None:
        """If the journal cannot be written nothing is kept; what was fresh is made rows, and mail is taken again."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 1))
        self.broken = True
        kept = store.keep(message(Token(b"peer", 2), BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.assertFalse(store.free())
        self.broken = False
        self.clock.advance(3)

        self.assertEqual((store.messages, store.in_hand), (1, 1))
        self.assertEqual(len(self.kept(store, CYD, token=Token(b"peer", 3))), 1)
        store.settle(without(entry, ANN))
        self.assertEqual(self.seqs(store), [3])
        self.flushLoggedErrors(SpoolTrouble)

    def test_at_rest(self) -> None:
        """A store at rest has no journal, and what is in hand is a row."""
        store = self.opened()
        self.kept(store, ANN)
        self.clock.pump([61, 61])

        self.assertEqual([name for name in os.listdir(self.path) if "journal" in name], [])
        self.assertEqual((store.messages, store.in_hand), (1, 1))
        self.assertEqual(len(self.seqs(self.crashed(store))), 1)

    def test_restored(self) -> None:
        """Beside a database that was restored from before, the journal's mail is there, and no number is used twice."""
        store = self.opened()
        self.successResultOf(store.stop())
        shutil.copytree(self.path, self.path + "-backup")
        for _ in range(3):
            self.successResultOf(self.opened().stop())
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 1))
        for turn in (0, 1):
            if os.path.exists(path := os.path.join(self.path, f"journal.{turn}")):
                shutil.copy(path, self.path + "-backup")
        self.path += "-backup"

        after = self.opened()
        (later,) = self.kept(after, BOB, token=Token(b"peer", 2))
        self.assertGreater(later.number, entry.number)
        self.assertEqual(self.seqs(after), [1, 2])
        self.assertEqual(self.seqs(self.again(after)), [1, 2])

    def test_oldest_and_lowest(self) -> None:
        """The oldest entry and the store's own lowest token are known, be they rows or fresh."""
        store = self.opened()
        (first,) = self.kept(store, ANN)
        self.now(store.find({}, 0, 9))
        (second,) = self.kept(store, ANN)
        for entry, left in ((first, second), (second, None)):
            self.assertEqual(store.oldest, entry.number)
            self.assertEqual(store.lowest, entry.message.envelope.token.seq)
            self.settled(store, without(entry, ANN))
            self.clock.advance(1)
            self.now(store.survey({}, 0))
            if left is not None:
                self.assertEqual(store.oldest, left.number)

    def test_torn_turn(self) -> None:
        """Whatever a power cut makes of a file that is written over, nothing that went comes back; nobody is alarmed."""
        self.patch(fresh, "SHORT", 50_000)
        self.tears = True
        store = self.opened()
        for seq in range(40):
            (entry,) = self.kept(store, ANN, token=Token(b"peer", seq), low=seq, body=MemoryBody(b"x" * 20_000))
            self.settled(store, without(entry, ANN))

        self.assertGreater(len(self.torn), 3)
        for path, in_hand in self.torn:
            self.assertLessEqual(len(self.seqs_of(path)), 1 if in_hand else 0, path)
        self.assertEqual(self.alarms, [])

    def test_tombstones_in_turn(self) -> None:
        """What is remembered of a token in doubt outlives the files' turns, though the disk is full as one begins."""
        self.patch(fresh, "SHORT", 26_000)
        store, body = self.opened(), MemoryBody(b"x" * 20_000)
        self.settled(store, without(self.kept(store, ANN, token=Token(b"peer", 0))[0], ANN))
        self.tears = True
        turn = 0
        for seq in range(1, 40):
            if not turn & 1:
                # Refused when it is about to be written, be it the first of its generation.
                self.fill(True)
                kept = self.now_or_later(store.keep(message(Token(b"peer", seq), ANN), [ORG], 0))
                self.failureResultOf(kept, SpoolTrouble)
                self.fill(False)
                self.clock.advance(1)
                store.free()
                self.clock.advance(1)
            (entry,) = self.kept(store, ANN, token=Token(b"else", seq), low=seq, body=body)
            self.settled(store, without(entry, ANN))
            turn = store._table._journal.generation

        self.tears = False
        self.assertGreater(len(self.torn), 3)
        for path, _ in self.torn:
            self.path = path
            again = self.opened()
            self.assertEqual(list(self.kept(again, ANN, token=Token(b"peer", 0))), [])
            self.successResultOf(again.stop())

    def now_or_later(self, deferred: Any) -> Any:
        for _ in range(3):
            self.clock.advance(0)
        return deferred

    def test_gone_in_turn(self) -> None:
        """That a row was delivered, which could not be told to the database, outlives the files' turns."""
        self.patch(fresh, "SHORT", 50_000)
        store = self.opened()
        (row,) = self.kept(store, ANN, token=Token(b"peer", 1))
        self.now(store.find({}, 0, 9))
        self.rows_alone = self.vfs.full = True
        store.settle(without(row, ANN))
        for seq in range(40):
            (entry,) = self.kept(store, ANN, token=Token(b"else", seq), low=seq + 1, body=MemoryBody(b"x" * 20_000))
            store.settle(without(entry, ANN))
        self.kept(store, ANN, token=Token(b"peer", 2))
        self.assertGreater(store._table._journal.generation & 7, 2)
        self.vfs.full = False

        self.assertEqual(self.seqs(self.crashed(store)), [2])
        self.flushLoggedErrors(SpoolTrouble)

    def test_forgotten_in_turn(self) -> None:
        """What a peer is in doubt of no more is soon not taken along any more when the files take turns."""
        self.patch(fresh, "SHORT", 20_000)
        store = self.opened()
        for seq in range(10):
            self.settled(store, without(self.kept(store, ANN, token=Token(b"peer", seq))[0], ANN))
        self.clock.advance(2)
        self.kept(store, ANN, token=Token(b"peer", 10), low=5)
        self.clock.advance(0.06)
        self.kept(store, ANN, token=Token(b"peer", 99), low=10)

        self.assertEqual(store._table._buried(), [])

    def test_dropped_in_order(self) -> None:
        """Should the process die while its journal's files are removed, nothing that went comes back."""
        self.patch(fresh, "SHORT", 50_000)
        real = os.unlink
        for turns in (1, 2):
            store, images = self.opened(), []
            begun, entry, seq = store._table._journal.generation, None, 0
            while store._table._journal.generation < begun + turns:
                seq += 1
                (after,) = self.kept(store, ANN, token=Token(b"peer", seq), low=seq + 1, body=MemoryBody(b"x" * 20_000))
                if entry is not None:
                    self.settled(store, without(entry, ANN))
                entry = after
            self.settled(store, without(entry, ANN))

            def unlink(path: str, images: list[str] = images) -> None:
                images.append(f"{self.path}-dies-{len(images)}")
                shutil.copytree(self.path, images[-1])
                real(path)

            restless = self.patch(os, "unlink", unlink)
            self.clock.pump([61, 61])
            restless.restore()
            self.assertEqual([self.seqs_of(path) for path in images], [[], []])
            self.path += f"-{turns}"

    def test_rows_break_at_a_look(self) -> None:
        """If the disk breaks while fresh mail is made rows for somebody who looks, what is kept afterwards is there."""
        self.patch(sqlite, "void", lambda _: None)  # nor can it be undone
        for look in (lambda store: store.find({}, 0, 9), None):
            store = self.opened()
            self.kept(store, ANN, token=Token(b"peer", 0))
            self.now(store.find({}, 0, 9))  # the log has a beginning
            self.kept(store, ANN, token=Token(b"peer", 1))
            self.rows_alone = self.vfs.sync = True
            if look is None:
                self.clock.pump([61, 61])  # it rests
            else:
                self.failureResultOf(self.now_or_later(look(store)), SpoolTrouble)
            self.assertFalse(store.free())
            self.vfs.sync = self.rows_alone = False
            kept = [store.keep(message(Token(b"peer", 2), ANN), [ORG], 0)]
            self.now_or_later(kept[0])
            kept[0].addErrback(lambda _: None)
            there = [0, 1, 2] if self.successResultOf(kept[0]) else [0, 1]
            self.assertEqual(self.seqs_of(shutil.copytree(self.path, self.path + "-copy")), there)
            self.clock.pump([1] * 5)
            self.assertEqual((store.full, store.messages), ("", len(there)))
            self.assertEqual(len(self.kept(store, BOB, token=Token(b"peer", 3))), 1)
            self.assertEqual(self.seqs(self.crashed(store)), [*there, 3])
            self.path += "-next"
            self.flushLoggedErrors(SpoolTrouble, apsw.IOError)

    def test_turned_up(self) -> None:
        """What turns up after long trouble though it could not be kept is known when it is handed over again."""
        self.patch(sqlite, "void", lambda _: None)
        store = self.opened(inline=1000)
        self.kept(store, ANN, token=Token(b"peer", 0))
        self.now(store.find({}, 0, 9))  # the log has a beginning
        self.rows_alone = self.vfs.sync = True
        both = [
            store.keep(message(Token(b"peer", 1), ANN, body=MemoryBody(b"x" * 2000)), [ORG], 0),
            store.keep(message(Token(b"peer", 2), ANN), [ORG], 0),
        ]
        self.clock.advance(0)
        for kept in both:
            self.failureResultOf(kept, SpoolTrouble)
        self.clock.pump([1] * 40)
        self.vfs.sync = False
        self.clock.pump([1] * 5)

        self.assertEqual((store.full, store.messages), ("", 3))
        self.assertEqual(list(self.kept(store, ANN, token=Token(b"peer", 2))), [])
        self.flushLoggedErrors(SpoolTrouble)

    def test_let_go(self) -> None:
        """A store that was let go of after long trouble, and taken by another process, is left alone at the stop."""
        store = self.opened()
        self.kept(store, ANN, token=Token(b"peer", 1))
        self.broken = self.vfs.sync = True
        store.keep(message(Token(b"peer", 2), ANN), [ORG], 0).addErrback(lambda _: None)
        self.clock.pump([1] * 40)
        self.broken = self.vfs.sync = False
        other = self.opened()
        self.kept(other, ANN, token=Token(b"peer", 3))
        self.clock.pump([61, 61])  # it rests
        self.kept(other, ANN, token=Token(b"peer", 4))
        self.successResultOf(store.stop())

        self.assertEqual(self.seqs(self.crashed(other)), [1, 3, 4])
        self.flushLoggedErrors(SpoolTrouble)

    def test_full_of_nothing(self) -> None:
        """A journal that is full is begun anew though nothing of what lies in it is left."""
        self.patch(fresh, "SHORT", 150_000)
        store = self.opened(journal=200_000)
        (first,) = self.kept(store, ANN, token=Token(b"peer", 1), body=MemoryBody(b"x" * 100_000), low=2)
        (second,) = self.kept(store, ANN, token=Token(b"peer", 2), body=MemoryBody(b"x" * 60_000), low=3)
        store._table._journal.since = 0  # something of the file before was left
        self.settled(store, without(first, ANN), without(second, ANN))
        store._table._journal.since = 0  # until now
        self.kept(store, ANN, token=Token(b"peer", 3), body=MemoryBody(b"x" * 40_000), low=4)

        self.assertEqual(store._table._journal.at, 0)

    def test_share(self) -> None:
        """A journal that has taken a store's share of the disk gives it back when nothing of what lay in it is left."""
        self.patch(fresh, "SHORT", 100_000)
        store, seq = self.opened(journal=200_000, share=190_000), 0
        while not store.full:
            seq += 1
            store.keep(message(Token(b"peer", seq), ANN, body=MemoryBody(b"x" * 10_000)), [ORG], seq + 1).addCallbacks(
                lambda entries: [store.settle(without(entry, ANN)) for entry in entries], lambda _: None
            )
            self.clock.advance(0)
            self.clock.advance(0.1)
        self.assertEqual(store.messages, 0)
        for _ in range(5):
            store.free()
            self.clock.pump([0, 0, 1.1])

        self.assertEqual(store.full, "")
        self.assertEqual(len(self.kept(store, BOB, token=Token(b"peer", 99))), 1)

    def test_hand_when_full(self) -> None:
        """What could not be made a row for want of room, and went then, leaves nothing in memory."""
        store = self.opened()
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 1))
        self.rows_alone = self.vfs.full = True
        self.failureResultOf(self.now_or_later(store.find({}, 0, 9)), SpoolTrouble)
        self.settled(store, without(entry, ANN))

        self.assertEqual(store.messages, 0)
        self.assertEqual(self.rows().hand, set())
        self.flushLoggedErrors(SpoolTrouble)

    def test_damaged_alone(self) -> None:
        """A damaged block is told though of all others nothing is left."""
        store = self.opened()
        self.kept(store, ANN, token=Token(b"peer", 1))
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 2), low=3)
        self.settled(store, without(entry, ANN))
        whole = self.log()
        self.log(whole[:50] + b"??" + whole[52:])

        self.assertEqual(self.seqs(self.crashed(store)), [])
        self.assertIn("DAMAGED", self.alarms[0])


class RingSpoolTests(FreshSpoolTests):
    """The same, what the journal gets being written by the kernel, as far as it can be."""

    def ring(self) -> Kernel:
        self.kernel = Kernel(self.wrote)
        return self.kernel

    def wrote(self) -> None:
        self.jobs += 1

    def fill(self, full: bool) -> None:
        super().fill(full)
        self.clock.advance(0.06)  # so long nobody may have looked

    def test_without_a_thread(self) -> None:
        """No thread is asked for what is kept, and what went, but for a look at the room now and then."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        jobs, written = self.jobs, self.kernel.written
        for _ in range(20):
            store.settle(without(entry, ANN))
            self.clock.advance(0.002)
            (entry,) = self.kept(store, ANN)

        self.assertEqual((self.jobs, self.kernel.written), (jobs + 20, written + 20))
        self.assertEqual(len(self.claimed(self.crashed(store))), 1)

    def test_not_written(self) -> None:
        """What the kernel did not write, or not all of it, a thread writes."""
        store = self.opened()
        self.kept(store, ANN, token=Token(b"peer", 1))
        for seq, trouble in enumerate(("lost", "short"), 2):
            jobs, self.kernel.troubles = self.jobs, iter([trouble])
            self.kept(store, BOB, token=Token(b"peer", seq))
            self.assertEqual(self.jobs, jobs + 2)
        self.kept(store, BOB, token=Token(b"peer", 4))

        self.assertEqual(store.messages, 4)
        self.assertEqual(self.seqs(self.crashed(store)), [1, 2, 3, 4])

    def test_not_synced(self) -> None:
        """A disk that failed is told, and nothing is kept until it has recovered; nor is what was refused there then."""
        store = self.opened()
        self.kept(store, ANN, token=Token(b"peer", 1))
        self.kernel.troubles = iter(["unsynced"])
        kept = store.keep(message(Token(b"peer", 2), BOB), [ORG], 0)
        self.clock.advance(0)

        self.failureResultOf(kept, SpoolTrouble)
        self.assertIn("Input/output error", store.full)
        path, self.path = self.path, shutil.copytree(self.path, f"{self.path}-then")
        self.assertEqual(self.seqs_of(self.path), [1])
        self.path = path
        self.clock.pump([1] * 5)
        self.assertEqual(len(self.kept(store, BOB, token=Token(b"peer", 2))), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def test_refused_after_all(self) -> None:
        """What came to the file, and is refused then for want of room, is not found there."""
        store = self.opened()
        self.kept(store, ANN, token=Token(b"peer", 1))
        super().fill(True)
        self.kernel.troubles = iter(["lost"])
        write = self.kernel.write

        def came(piece: Piece, done: Done) -> bool:
            journal.write(*piece)
            return write(piece, done)

        self.patch(self.kernel, "write", came)
        kept = store.keep(message(Token(b"peer", 2), BOB), [ORG], 0)
        self.clock.advance(0)

        self.failureResultOf(kept, SpoolTrouble)
        self.assertEqual(self.seqs(self.crashed(store)), [1])

    def test_asked_and_not_looked(self) -> None:
        """Who asks each second whether there is room does not keep anybody from looking."""
        store = self.opened()
        self.kept(store, ANN)
        super().fill(True)
        kept = 0
        for _ in range(9):
            self.clock.advance(1)
            if store.full:
                break
            store.keep(message(store.next_token(), BOB), [ORG], 0).addBoth(lambda _: None)
            kept += 1
            self.clock.advance(0)

        self.assertLess(kept, 3)

    def test_look(self) -> None:
        """That the disk has filled up is seen soon, though nobody looks each time, however busy the store is."""
        store = self.opened()
        self.kept(store, ANN)
        super().fill(True)
        kept: list[Any] = []
        for _ in range(20):
            store.keep(message(store.next_token(), CYD), [ORG], 0).addBoth(kept.append)
            self.clock.advance(0.01)

        refused = [isinstance(each, Failure) for each in kept]
        self.assertEqual(refused, sorted(refused))
        self.assertLess(refused.count(False), 7)
        self.assertIn("reserve", store.full)
