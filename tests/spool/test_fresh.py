"""The suite over a store with a journal, and what only a journal can do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from typing import Any

from twisted.logger import LogLevel, globalLogPublisher

from qmq.interfaces import SpoolTrouble
from qmq.mail import MemoryBody, Token
from qmq.spool import fresh, journal
from tests.spool import test_sqlite
from tests.spool.house import ANN, BOB, CYD, LATER, ORG, message, without


class FreshSpoolTests(test_sqlite.SQLiteSpoolTests):
    journal = 1 << 20

    def setUp(self) -> None:
        super().setUp()
        self.broken = False  # the journal alone
        self.alarms: list[str] = []
        globalLogPublisher.addObserver(self.hear)
        self.addCleanup(globalLogPublisher.removeObserver, self.hear)
        self.real = journal.write
        self.patch(journal, "write", self.write)

    def hear(self, event: Any) -> None:
        if event.get("log_level") is LogLevel.critical and "alarm" in event:
            self.alarms.append(event["alarm"])

    def write(self, fd: int, pieces: Sequence[bytes], at: int) -> int:
        if self.broken or self.vfs.sync or self.vfs.write or self.vfs.read_only:
            raise OSError(errno.EIO, "Input/output error")
        if self.vfs.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.vfs.syncs += 1
        return self.real(fd, pieces, at)

    def rows(self) -> Any:
        return self.store._table._table

    def seqs(self, store: Any) -> list[int]:
        """The numbers of the tokens of all that is there."""
        return [entry.message.envelope.token.seq for entry in self.now(store.find({}, 0, 1000))]

    def rewritten(self) -> bool:
        """Whether the database has been written to since the store was opened."""
        return os.path.exists(os.path.join(self.path, "spool.db-wal"))

    def log(self) -> bytes:
        """The journal's first file."""
        with open(os.path.join(self.path, "journal.0"), "rb") as file:
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
            with open(os.path.join(path, "journal.0"), "wb") as file:
                file.write(whole[:at] + bytes(len(whole) - at))
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
        with open(os.path.join(self.path, "journal.0"), "wb") as file:
            file.write(whole[: journal.PAGE + 50] + b"??" + whole[journal.PAGE + 52 :])

        self.assertEqual(self.seqs(self.crashed(store)), [1, 3])
        self.assertIn("DAMAGED", self.alarms[0])

    def test_begun_anew(self) -> None:
        """A journal that is as long as it may be is begun anew; what is in hand stays in hand, and all else is there."""
        store = self.opened(journal=200_000)
        entries = [
            self.kept(store, ANN, token=Token(b"peer", seq), body=MemoryBody(b"%d" % seq * 10_000))[0]
            for seq in range(60)
        ]

        self.assertLessEqual(len(self.log()), 200_000)
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
        shutil.copy(os.path.join(self.path, "journal.0"), self.path + "-backup")
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
