"""The suite over the store in SQLite, and what only a disk can do."""

from __future__ import annotations

import os
import shutil
import stat
from typing import Any

import apsw
from twisted.trial.unittest import SynchronousTestCase

from qmq.interfaces import SpoolTrouble
from qmq.mail import HELD, FileBody, MemoryBody, Token
from qmq.spool import bodies, schema, search
from qmq.spool.disk import SQLiteSpool
from qmq.spool.query import parse
from qmq.spool.sqlite import SQLiteTable
from qmq.spool.store import Store
from tests.spool.conformance import SpoolConformance
from tests.spool.faults import FaultyVFS
from tests.spool.house import ANN, BOB, COM, CYD, ORG, TEXT, message, without


class SQLiteSpoolTests(SpoolConformance, SynchronousTestCase):
    journal = 0  # octets, 0: all mail is made rows at once

    def setUp(self) -> None:
        super().setUp()
        self.vfs = FaultyVFS(f"faulty-{id(self)}")
        self.addCleanup(self.vfs.unregister)
        self.path = os.path.join(self.folder, "queue")
        self.store: Any = None

    def make(self, **settings: Any) -> Store:
        settings = {"reserve": 0, "inodes": 0, "journal": self.journal, **settings}
        self.store = SQLiteSpool(
            self.path, clock=self.clock, wall=self.wall, writers=self.writers, vfs=self.vfs.name, **settings
        )
        return self.store

    def rows(self) -> Any:
        """The SQLiteTable."""
        return self.store._table

    def crashed(self, store: Store, **settings: Any) -> Store:
        # What a kill leaves is what the files hold now.
        before, self.path = self.path, f"{self.path}-after"
        shutil.copytree(before, self.path)
        return self.opened(**settings)

    def database(self) -> apsw.Connection:
        return apsw.Connection(os.path.join(self.path, "spool.db"))

    def damage(self, number: int) -> None:
        connection = self.database()
        ((record,),) = connection.execute("SELECT record FROM message WHERE number = ?", (number,))
        record = record[:-8] + b"?" + record[-7:]
        connection.execute("UPDATE message SET record = ? WHERE number = ?", (record, number))
        connection.close()

    def test_device_not_mounted(self) -> None:
        """A store that was there and is not is not begun anew: its device may be mounted yet, and then it is opened."""
        mark = os.path.join(self.folder, "mark")

        def table() -> SQLiteTable:
            return SQLiteTable(self.path, reserve=0, inodes=0, mark=mark)

        first = table()
        tag = first.open().tag
        first.close()
        shutil.move(self.path, self.path + "-elsewhere")
        os.makedirs(self.path)  # the folder that it is mounted on

        with self.assertRaisesRegex(SpoolTrouble, "is its device mounted"):
            table().open()
        self.assertEqual(os.listdir(self.path), [])

        os.rmdir(self.path)
        shutil.move(self.path + "-elsewhere", self.path)
        again = table()
        self.assertEqual(again.open().tag, tag)
        again.close()

    def break_disk(self, failing: bool) -> None:
        self.vfs.sync = failing

    def fill(self, full: bool) -> None:
        self.rows()._bounds.reserve = 1 << 62 if full else 0

    def bodies(self) -> list[str]:
        return sorted(name for _, _, names in os.walk(os.path.join(self.path, "mess")) for name in names)

    def count(self, table: str) -> int:
        connection = self.database()
        ((count,),) = connection.execute(f"SELECT count(*) FROM {table}")
        connection.close()
        return int(count)

    def test_modes(self) -> None:
        """Nobody but the owner can read mail."""
        store = self.opened(inline=10)
        self.kept(store, ANN)

        modes = {
            os.path.relpath(os.path.join(folder, name), self.path): stat.S_IMODE(
                os.stat(os.path.join(folder, name)).st_mode
            )
            for folder, folders, names in os.walk(self.path)
            for name in (*folders, *names, ".")
        }

        folders = {name for name in modes if os.path.isdir(os.path.join(self.path, name))}
        self.assertEqual({modes[name] for name in folders}, {0o700})
        self.assertEqual({modes[name] for name in modes.keys() - folders}, {0o600})
        self.assertIn("spool.db-wal", modes)

    def test_synced(self) -> None:
        """Each batch is synced, and each batch once."""
        store = self.opened()
        self.kept(store, ANN)
        syncs = self.vfs.syncs

        for _ in range(40):
            store.keep(message(store.next_token(), ANN), [ORG], 0)
        self.kept(store, ANN)

        self.assertEqual(self.vfs.syncs, syncs + 1)

    def test_bodies_go(self) -> None:
        """With the last entry of a message its body goes, be it a row or a file."""
        store = self.opened(inline=100)
        short = self.kept(store, ANN, CYD)
        long = self.kept(store, ANN, CYD, body=MemoryBody(TEXT * 100))
        self.assertEqual(len(self.bodies()), 1)

        self.settled(store, *(without(entry, ANN) for entry in (short[0], long[0])))
        self.assertEqual(len(self.bodies()), 1)
        self.settled(store, *(without(entry, CYD) for entry in (short[1], long[1])))

        self.assertEqual(self.bodies(), [])
        self.successResultOf(store.stop())
        self.assertEqual((self.count("body"), self.count("message")), (0, 0))

    def test_link(self) -> None:
        """A long body that came as a file on the same device is linked, not copied."""
        store = self.opened(inline=10)
        source = self.source(TEXT)

        (entry,) = self.kept(store, ANN, body=source)

        self.assertTrue(os.path.samefile(entry.message.body.path, source.path))

    def test_file_without_row(self) -> None:
        """A body that was never acknowledged goes at start; what others put there stays."""
        store = self.opened(inline=10)
        (entry,) = self.kept(store, ANN)
        path = entry.message.body.path
        self.successResultOf(store.stop())
        folder = os.path.dirname(path)
        for name in ("1ff", "README"):
            shutil.copy(path, os.path.join(folder, name))
        number = int(os.path.basename(path), 16) + 1
        shutil.copy(path, os.path.join(folder, f"{number:x}"))

        self.opened(inline=10)

        self.assertEqual(self.bodies(), sorted([os.path.basename(path), "README", "1ff"]))

    def test_row_without_file(self) -> None:
        """A message whose body is gone stays, and says so; others go on."""
        store = self.opened(inline=10)
        (entry,) = self.kept(store, ANN)
        (cut,) = self.kept(store, ANN)
        self.successResultOf(store.stop())
        os.unlink(entry.message.body.path)
        with open(cut.message.body.path, "ab") as file:
            file.truncate(5)
        store = self.opened(inline=10)

        for claimed in self.claimed(store):
            body = store.body(claimed)
            self.clock.advance(0)
            self.failureResultOf(body, SpoolTrouble)
        self.assertEqual(store.messages, 2)

    def test_inline_changed(self) -> None:
        """A token that comes again after the border between rows and files has moved is known."""
        token = Token(b"peer", 1)
        store = self.again(self.opened(inline=10), inline=10)
        self.kept(store, ANN, token=token)
        store = self.again(store, inline=1000)

        (entry,) = self.kept(store, ANN, BOB, token=token)

        self.assertEqual(entry.message.envelope.recipients, (BOB,))
        self.settled(store, without(entry, BOB))
        (first,) = self.claimed(store)
        self.settled(store, without(first, ANN))
        self.assertEqual(self.bodies(), [])
        self.successResultOf(store.stop())
        self.assertEqual(self.count("body"), 0)

    def test_known_long(self) -> None:
        """A long message that is known already leaves no second file."""
        token = Token(b"peer", 1)
        store = self.opened(inline=10)
        self.kept(store, ANN, token=token)

        self.assertEqual(list(self.kept(store, ANN, token=token)), [])

        self.assertEqual(len(self.bodies()), 1)

    def test_folder_not_synced(self) -> None:
        """A long body whose name could not be synced is thrown away and not acknowledged; short ones are."""
        store = self.opened(inline=100)

        def failing(folder: str) -> None:
            raise OSError(5, "Input/output error")

        self.patch(bodies, "sync_folder", failing)
        long = store.keep(message(store.next_token(), ANN, body=MemoryBody(TEXT * 100)), [ORG], 0)
        short = store.keep(message(store.next_token(), ANN), [ORG], 0)

        self.assertEqual(len(self.now(short)), 1)
        self.failureResultOf(long, SpoolTrouble)
        self.assertEqual((store.messages, self.bodies()), (1, []))

    def test_failed_commit(self) -> None:
        """What failed is not there after the disk is well, nor after a restart; nor are its files."""
        store = self.opened(inline=10)
        self.kept(store, ANN)
        self.vfs.sync = True
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.clock.advance(3)
        self.vfs.sync = False
        self.clock.advance(3)

        self.assertEqual((store.messages, len(self.bodies())), (1, 1))
        self.assertEqual([one.site for one in self.claimed(self.again(store))], [ORG])
        self.flushLoggedErrors(SpoolTrouble)

    def test_failed_write(self) -> None:
        """A write that fails is trouble as a sync that fails is."""
        store = self.opened()
        self.kept(store, ANN)
        self.vfs.write = True
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.clock.advance(3)
        self.assertFalse(store.free())
        self.vfs.write = False
        self.clock.advance(3)

        self.assertEqual(len(self.kept(store, BOB)), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def test_no_space(self) -> None:
        """A disk that turns out to be full fails the messages of the batch; settles are tried again until they go."""
        store = self.opened()
        (entry,) = self.kept(store, ANN)
        self.vfs.full = True
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        store.settle(without(entry, ANN))
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.assertEqual(store.messages, 1)

        self.vfs.full = False
        self.clock.pump([1] * 4)

        self.assertEqual(store.messages, 0)
        self.assertEqual(len(self.kept(store, BOB)), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def test_no_inodes(self) -> None:
        """Inodes are counted too."""
        store = self.opened(inodes=1 << 62)

        self.failureResultOf(store.keep(message(store.next_token(), ANN), [ORG], 0), SpoolTrouble)

    def test_bounds_told(self) -> None:
        """Which bound is reached is told; what is there goes out all the same, and then mail is taken again."""
        store = self.opened(inline=100, share=200_000)
        (entry,) = self.kept(store, ANN, body=MemoryBody(b"x" * 150_000))
        self.assertEqual(store.full, "")
        bounds = self.rows()._bounds

        for name, bound, word in (("reserve", 1 << 62, "reserve"), ("inodes", 1 << 62, "inodes"), ("share", 1.0, "")):
            before = getattr(bounds, name)
            setattr(bounds, name, bound)
            self.clock.advance(1)
            self.clock.advance(bool(store.full))
            self.assertIn(word, store.full)
            self.assertEqual(bool(store.full), bool(word))
            setattr(bounds, name, before)
            self.clock.advance(1)
            self.clock.advance(bool(store.full))
        (second,) = self.kept(store, BOB, body=MemoryBody(b"x" * 60_000))
        refused = store.keep(message(store.next_token(), CYD), [COM], 0)
        self.clock.advance(0)

        self.assertIn("its share of the disk is 195K", self.failureResultOf(refused, SpoolTrouble).getErrorMessage())
        self.assertIn("share", store.full)
        self.assertFalse(store.free())
        self.settled(store, without(entry, ANN))
        self.clock.advance(1)
        store.free()
        self.clock.advance(0)
        self.assertEqual(store.full, "")
        self.assertEqual(len(self.kept(store, CYD)), 1)
        self.assertEqual(second.message.body.size, 60_000)

    def test_share_of_database(self) -> None:
        """What lies in the database counts; pages that are free again do not, nor does it matter who looks when."""
        store = self.opened(share=300_000)
        entries = [self.kept(store, ANN, body=MemoryBody(b"x" * 100_000))[0] for _ in range(3)]
        self.assertIn("share", self.again(store, share=300_000).full)
        store = self.store
        self.clock.pump([61, 61])
        self.assertIn("share", store.full)

        self.settled(store, *(without(entry, ANN) for entry in self.claimed(store)))
        self.clock.advance(1)
        store.free()
        self.clock.advance(0)

        self.assertEqual(store.full, "")
        self.assertEqual(len(entries), 3)

    def test_pieces(self) -> None:
        """However small the pieces are in which it is looked through, each entry is found, counted and taken once."""
        for name, small in (("PIECE", 3), ("SITES", 2), ("PATIENCE", 0.0), ("MANY", 2)):
            self.patch(search, name, small)
        store = self.opened()
        sites = [b"mx:a.example", b"smtp:b.example:25", b"smtp:b.example:26", b"mx:c.example", b"smtp:b.example:27"]
        for i in range(25):
            self.waiting(store, HELD if i % 7 == 0 else self.wall() + 100 + i, sites[i % 5])
        self.claimed(store, 4, now=self.wall() + 200)
        for i in range(10):
            self.now(store.keep(message(store.next_token(), ANN), [sites[i % 5]], 0))

        for words in (
            {}, {"site": "mx:a.example"}, {"destination": "b.example"}, {"destination": "a.example,c.example"},
            {"state": "in-hand"}, {"state": "held"}, {"state": "waiting", "destination": "b.example"},
            {"sender": "sender@example.net"}, {"destination": "b.example", "recipient": "ann@example.org"},
        ):  # fmt: skip
            everything = self.now(store.find({}, 0, 99))
            matches = parse(words, self.wall()).matches
            meant = [entry.number for entry in everything if matches(entry)]
            self.assertEqual(self.numbers(store, **words), meant, words)
            pages, after = [], 0
            while page := self.numbers(store, after, 2, **words):
                pages, after = [*pages, *page], page[-1]
            self.assertEqual(pages, meant, words)
            self.assertEqual(self.surveyed(store, **words)[0], len(meant), words)
        waiting = self.surveyed(store, destination="b.example", state="waiting")[0]
        self.assertEqual(self.now(store.due_now({"destination": "b.example"})), waiting)
        self.assertEqual(self.now(store.due_now({"destination": "b.example"})), 0)
        free = self.surveyed(store)[0] - self.surveyed(store, state="in-hand")[0]
        taken = [entry.number for entry in self.seized(store, limit=2)]
        self.assertEqual((len(taken), taken), (free, sorted(set(taken))))
        self.assertEqual(self.claimed(store, now=self.wall() + 999), [])

    def test_first_format(self) -> None:
        """A database of the first format is made one of this, with all that is in it."""
        os.makedirs(self.path)
        with open(os.path.join(os.path.dirname(__file__), "format1.sql"), encoding="ascii") as file:
            connection = self.database()
            list(connection.execute(file.read()))
            connection.close()

        store = self.opened()

        self.assertEqual((store.tag, store.messages), (b"abc234", 3))
        self.assertEqual(self.numbers(store, destination="example.org"), [4294967297, 4294967299])
        self.assertEqual(len(self.claimed(store, now=HELD)), 3)
        self.assertEqual(self.again(store).messages, 3)
        self.successResultOf(self.store.stop())
        connection = self.database()
        self.assertEqual(connection.pragma("user_version"), schema.VERSION)
        self.assertEqual(connection.pragma("integrity_check"), "ok")
        connection.close()

    # A device that goes and comes back.

    def gone(self, store: Store) -> str:
        """The folder has vanished, and the store has found out; where it is."""
        elsewhere = f"{self.path}-elsewhere"
        os.rename(self.path, elsewhere)
        self.clock.advance(0.06)  # so long nobody may have looked
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.assertIn("No such file", store.full)
        return elsewhere

    def test_folder_gone(self) -> None:
        """A store whose folder has vanished keeps nothing for as long as it takes, and works on when it is back."""
        for rested in (False, True):
            store = self.opened()
            (done,), (stays,) = self.kept(store, ANN), self.kept(store, CYD)
            if rested:
                self.clock.pump([61, 61])
            elsewhere = self.gone(store)
            store.settle(without(done, ANN))
            self.clock.pump([1] * 200)
            self.assertFalse(os.path.exists(self.path))

            os.rename(elsewhere, self.path)
            self.clock.pump([1] * 5)

            self.assertEqual((store.full, store.messages), ("", 1))
            self.assertEqual(len(self.kept(store, BOB)), 1)
            self.settled(store, without(stays, CYD))
            store = self.again(store)
            self.settled(store, *(without(entry, BOB) for entry in self.claimed(store)))
            self.successResultOf(store.stop())
            self.flushLoggedErrors(SpoolTrouble)

    def test_folder_empty(self) -> None:
        """Where its device was and is no more, a store begins no empty one, and touches no other store."""
        store = self.opened()
        (stays,) = self.kept(store, ANN)
        elsewhere = self.gone(store)
        os.mkdir(self.path)
        self.clock.pump([1] * 10)
        self.assertNotIn("spool.db", os.listdir(self.path))
        shutil.rmtree(self.path)

        other = self.make()
        self.successResultOf(other.start())
        self.successResultOf(other.stop())
        self.clock.pump([1] * 10)
        self.assertFalse(store.free())
        shutil.rmtree(self.path)
        os.rename(elsewhere, self.path)
        self.clock.pump([1] * 10)

        self.assertTrue(store.free())
        store.release(stays, self.wall())
        self.assertEqual(len(self.claimed(store)), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def test_folder_restored(self) -> None:
        """A store put back from a copy goes on, under its own lock; one that somebody else had meanwhile does not."""
        store = self.opened()
        self.kept(store, ANN)
        elsewhere = self.gone(store)
        shutil.copytree(elsewhere, self.path)
        self.clock.pump([1] * 5)
        self.assertEqual(len(self.kept(store, BOB)), 1)
        self.failureResultOf(self.started_in_vain(self.make()), SpoolTrouble)
        shutil.rmtree(elsewhere)

        elsewhere = self.gone(store)
        shutil.copytree(elsewhere, self.path)
        usurper = self.opened()
        self.clock.pump([1] * 5)
        self.assertIn("held by process", store.full)
        self.successResultOf(usurper.stop())
        self.clock.pump([1] * 10)
        self.assertIn("somebody else", store.full)
        self.assertEqual(self.open_files(), set())
        self.flushLoggedErrors(SpoolTrouble)

    def started_in_vain(self, store: Store) -> Any:
        started = store.start()
        self.clock.pump([0.25] * 44)
        return started

    def test_long_trouble(self) -> None:
        """After long trouble nothing is open any more, so that the device can be mended; then the store works on."""
        store = self.opened()
        (done,) = self.kept(store, ANN)
        self.break_disk(True)
        store.settle(without(done, ANN))
        self.clock.pump([1] * 20)
        self.assertIn("lock", self.open_files())

        self.clock.pump([1] * 20)
        self.assertEqual(self.open_files(), set())
        self.break_disk(False)
        self.clock.pump([1] * 5)

        self.assertEqual((store.full, store.messages), ("", 0))
        self.assertEqual(len(self.kept(store, BOB)), 1)
        self.failureResultOf(self.started_in_vain(self.make()), SpoolTrouble)
        self.flushLoggedErrors(SpoolTrouble)

    def test_read_only(self) -> None:
        """A device that can only be read is trouble until it can be written to again."""
        store = self.opened()
        (done,) = self.kept(store, ANN)
        self.vfs.read_only = True
        store.settle(without(done, ANN))
        kept = store.keep(message(store.next_token(), BOB), [ORG], 0)
        self.clock.advance(0)
        self.failureResultOf(kept, SpoolTrouble)
        self.clock.pump([1] * 60)
        self.assertFalse(store.free())
        self.assertIn("read", store.full)

        self.vfs.read_only = False
        self.clock.pump([1] * 5)

        self.assertEqual((store.full, store.messages), ("", 0))
        self.assertEqual(len(self.kept(store, BOB)), 1)
        self.flushLoggedErrors(SpoolTrouble)

    def test_damaged_kept(self) -> None:
        """What is damaged leaves the queue but is not deleted, and its body stays."""
        store = self.opened()
        number = self.kept(store, ANN, token=Token(b"peer", 1))[0].number
        self.successResultOf(store.stop())
        self.damage(number)
        store = self.opened()
        self.assertEqual(self.claimed(store), [])
        (entry,) = self.kept(store, ANN, token=Token(b"peer", 1))
        self.settled(store, without(entry, ANN))

        self.successResultOf(store.stop())

        self.assertEqual([self.count(table) for table in ("damaged", "message", "body")], [1, 0, 1])

    def test_other_format(self) -> None:
        """A database of another format is left alone."""
        self.successResultOf(self.opened().stop())
        connection = self.database()
        connection.pragma("user_version", 99)
        connection.close()

        failure = self.failureResultOf(self.make().start(), SpoolTrouble)

        self.assertIn("format 99", failure.getErrorMessage())

    def test_no_database(self) -> None:
        """A file that is no database is named, not overwritten; the lock is not kept."""
        os.makedirs(self.path)
        with open(os.path.join(self.path, "spool.db"), "wb") as file:
            file.write(b"precious" * 1000)

        for _ in range(2):
            failure = self.failureResultOf(self.make().start(), SpoolTrouble)
            self.assertIn("not a database", failure.getErrorMessage())

    def test_sqlite_version(self) -> None:
        """A SQLite that may damage the database is refused."""
        self.patch(schema, "OLDEST_SQLITE", (99, 0, 0))

        failure = self.failureResultOf(self.make().start(), SpoolTrouble)

        self.assertIn("may damage", failure.getErrorMessage())

    def test_shrink(self) -> None:
        """What a flood took is given back when the store has rested."""
        store = self.opened()
        entries = [
            self.successResultOf(kept)[0]
            for kept in [
                store.keep(message(store.next_token(), ANN, body=MemoryBody(b"x" * 100_000)), [ORG], 0)
                for _ in range(200)
            ]
            if self.clock.advance(0) is None
        ]
        self.settled(store, *(without(entry, ANN) for entry in entries))
        self.clock.pump([61, 61])

        self.assertLess(os.path.getsize(os.path.join(self.path, "spool.db")), 200_000)
        self.assertEqual(len(self.kept(store, CYD)), 1)

    def test_rest(self) -> None:
        """A store with nothing to do has no open file but its lock."""
        store = self.opened()
        self.kept(store, ANN)
        self.clock.pump([61, 61])

        self.assertEqual(self.open_files(), {"lock"})

    def test_watched(self) -> None:
        """That somebody asks every second whether it takes mail keeps no file open."""
        store = self.opened()
        self.kept(store, ANN)
        for _ in range(70):
            self.clock.advance(1)
            self.assertEqual(store.full, "")

        self.assertEqual(self.open_files(), {"lock"})

    def test_empty(self) -> None:
        """Where there is nothing to claim no file is opened to say so."""
        store = self.opened()

        self.assertEqual(self.claimed(store), [])
        self.assertIsNone(self.now(store.next_due([])))
        self.assertEqual(self.open_files(), {"lock"})

    def test_naps(self) -> None:
        """Asked time and again for mail that is not due for hours a store rests, and gives it out when it is due."""
        store = self.opened()
        due = self.wall() + 3600
        self.waiting(store, due)
        for _ in range(4):
            self.assertEqual(self.claimed(store), [])
            self.assertEqual(self.now(store.next_due([])), due)
            self.clock.advance(30)

        self.assertEqual(self.open_files(), {"lock"})
        self.assertEqual(len(self.claimed(store, now=due)), 1)

    def test_room_at_rest(self) -> None:
        """Of a store with nothing to do it is known to ten seconds that its disk is full, and to one that it is not."""
        store = self.opened()
        bounds = self.rows()._bounds
        bounds.reserve = 1 << 62
        self.clock.advance(9)
        self.clock.advance(len(store.full))
        self.assertEqual(store.full, "")

        self.clock.advance(1)
        self.clock.advance(len(store.full))
        self.assertIn("reserve", store.full)
        bounds.reserve = 0
        self.clock.advance(1)
        self.clock.advance(bool(store.full) - 1)
        self.assertEqual(store.full, "")

    def open_files(self) -> set[str]:
        descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        folder = os.path.realpath(self.path)
        return {os.path.basename(path) for path in map(os.path.realpath, descriptors) if folder in path}

    def test_busy_flood(self) -> None:
        """Behind many entries of a busy site others are found, and one pass over the flood is enough."""
        store = self.opened()
        now = self.wall()
        flood = [store.keep(message(store.next_token(), ANN), [ORG], 0) for _ in range(3000)]
        self.clock.advance(0)
        for kept in flood:
            store.release(self.successResultOf(kept)[0], now)
        self.waiting(store, now + 1, COM)

        self.assertEqual([entry.site for entry in self.claimed(store, 10, [ORG], now + 2)], [COM])
        connection = self.rows()._connection
        before = connection.status(apsw.SQLITE_DBSTATUS_CACHE_HIT)[0]
        self.assertEqual(self.claimed(store, 10, [ORG], now + 2), [])
        self.assertLess(connection.status(apsw.SQLITE_DBSTATUS_CACHE_HIT)[0] - before, 20)
        self.assertEqual(len(self.claimed(store, 5000, [], now + 2)), 3000)

    def test_many_sites_free(self) -> None:
        """When very many busy sites are free at once everything is claimed, oldest first."""
        store = self.opened()
        now = self.wall()
        sites = [b"site%d" % i for i in range(1500)]
        kept = [store.keep(message(store.next_token(), ANN), [site], 0) for site in sites]
        self.clock.advance(0)
        for i, each in enumerate(kept):
            store.release(self.successResultOf(each)[0], now + i)

        self.assertEqual(self.claimed(store, 10, sites, now + 5000), [])
        self.assertEqual(self.now(store.next_due(sites[:-1])), now + 1499)
        claimed = self.claimed(store, 5000, [], now + 5000)

        self.assertEqual([entry.site for entry in claimed], sites)

    def test_copied_elsewhere(self) -> None:
        """A long body from another device is copied."""
        if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat(self.folder).st_dev:
            self.skipTest("no second device here")
        path = f"/dev/shm/qmq-test-{os.getpid()}"
        self.addCleanup(os.unlink, path)
        with open(path, "wb") as file:
            file.write(TEXT)
        store = self.opened(inline=10)

        (entry,) = self.kept(store, ANN, body=FileBody(path, len(TEXT)))

        self.assertEqual(b"".join(entry.message.body.chunks()), TEXT)
        self.assertFalse(os.path.samefile(entry.message.body.path, path))
