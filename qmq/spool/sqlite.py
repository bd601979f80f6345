"""
The default store: SQLite in WAL mode, each commit synced, long bodies as files.

One transaction a batch. Inserting a token that is known already fails by the
index, and only then is looked up what of it is known. After an I/O error
nothing that was not synced before is believed: see recover.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import apsw

from qmq.interfaces import SpoolTrouble
from qmq.mail import Body, Entry, FileBody, MemoryBody, Octets, Seconds, Token
from qmq.spool.bodies import Bodies, sync_folder
from qmq.spool.claims import COLUMNS, Line
from qmq.spool.lock import Lock
from qmq.spool.query import Query
from qmq.spool.record import DamagedRecord, unpack
from qmq.spool.schema import connect
from qmq.spool.table import NONE, Batch, Broken, Counts, Held, Keep, Opened, Outcome, Row, revived, rows

INSERT = "INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?, NULL, 0, ?, ?, ?, ?)"
DELETE_BODY = (
    "DELETE FROM body WHERE number = ?1"
    " AND NOT EXISTS (SELECT 1 FROM message WHERE peer = ?2 AND seq = ?3 AND body = ?1)"
    " AND NOT EXISTS (SELECT 1 FROM damaged WHERE body = ?1)"
)
USED = (
    "SELECT 1 FROM message WHERE peer = ?2 AND seq = ?3 AND body = ?1 UNION ALL SELECT 1 FROM damaged WHERE body = ?1"
)
# What the disk does, not what we asked for.
IO_ERRORS = (
    apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.ProtocolError, apsw.ReadOnlyError,
)  # fmt: skip
# Rows looked through at a time for people, with mail kept and claimed in between.
PIECE = 20000


class SQLiteTable:
    """
    The rows of one queue in *folder*, which is made if there is none (0700).

    Nothing is kept while less than *reserve* octets or *inodes* inodes are free on
    the device; settles go on. *cache* (KiB) is SQLite's page cache. *vfs* names a SQLite VFS.
    """

    def __init__(
        self, folder: str, *, reserve: Octets = 64 << 20, inodes: int = 1000, cache: int = 512, vfs: str | None = None
    ) -> None:
        self._folder = folder
        self._reserve, self._inodes, self._cache, self._vfs = reserve, inodes, cache, vfs
        self._lock = Lock(os.path.join(folder, "lock"))
        self._bodies = Bodies(folder)
        self._hand: set[int] = set()
        self._line = Line(self._hand)
        self._counts = Counts()
        self._alarms: list[str] = []
        self._tag = b""
        self._connection: apsw.Connection | None = None

    def path(self, place: int) -> str:
        """As Table.path."""
        return self._bodies.path(-place)

    # To open and to close.

    def open(self) -> Opened:
        """As Table.open. The connection is made anew when it is first needed."""
        if not os.path.isdir(self._folder):
            os.makedirs(self._folder, 0o700)
            sync_folder(os.path.dirname(os.path.abspath(self._folder)))
        self._lock.take()
        try:
            with self._translated():
                opened = self._opened(self._connected())
            self.rest()
            return opened
        except BaseException:
            self.close()
            raise

    def _opened(self, connection: apsw.Connection) -> Opened:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        self._tag, epoch = meta["tag"], meta["epoch"] + 1
        self._hand.clear()
        with self._transaction(connection):
            connection.execute("UPDATE message SET due = born WHERE due IS NULL")
            connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
        self._recount(connection)
        self._sweep(connection)
        opened = Opened(self._tag, epoch, self._counts, self._alarms, self._room())
        opened.lows = list(connection.execute("SELECT peer, low FROM peer"))
        opened.tombstones = list(connection.execute("SELECT peer, seq, recipients FROM tombstone"))
        return opened

    def _sweep(self, connection: apsw.Connection) -> None:
        wanted = {
            -place
            for (place,) in connection.execute(
                "SELECT body FROM message WHERE body < 0 UNION SELECT body FROM damaged WHERE body < 0"
            )
        }
        removed, missing = self._bodies.sweep(wanted)
        if removed:
            self._alarms.append(f"{self._folder}: {removed} bodies without a message removed; they were never acknowledged")
        self._alarms += (f"{self.path(-number)}: the body of a message is MISSING" for number in missing[:20])
        if len(missing) > 20:
            self._alarms.append(f"{self._folder}: {len(missing)} bodies are MISSING")

    def _recount(self, connection: apsw.Connection) -> None:
        count, octets, oldest = next(connection.execute("SELECT count(*), total(size), min(number) FROM message"))
        self._counts.messages, self._counts.octets = count, int(octets)
        self._counts.oldest = NONE if oldest is None else oldest
        self._counts.lowest = self._lowest(connection)

    def _lowest(self, connection: apsw.Connection) -> int:
        (lowest,) = next(connection.execute("SELECT min(seq) FROM message WHERE peer = ?", (self._tag,)))
        return NONE if lowest is None else lowest

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            path = os.path.join(self._folder, "spool.db")
            self._connection = connect(path, cache=self._cache, vfs=self._vfs)
            self._line.rewind()
        return self._connection

    def rest(self) -> None:
        """As Table.rest: give pages back to the disk, write the log into the database, close it."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                with self._translated():
                    connection.execute("PRAGMA incremental_vacuum(10000)")
            finally:
                connection.close(True)  # noqa: FBT003 - force: what is committed is safe, whatever this says

    def close(self) -> None:
        """As Table.close."""
        try:
            self.rest()
        finally:
            self._lock.drop()

    def recover(self) -> Outcome:
        """
        As Table.recover: the log is written into the database, synced and cut to nothing.

        By the old connection as long as the disk refuses: it knows which frames of the log were synced; to a new one
        those of the failed commit may look whole. Rows it finds that nobody has in hand are then due at once.
        """
        with self._translated():
            connection = self._connected()
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            except apsw.IOError:
                raise
            except apsw.Error:
                connection.close(True)  # noqa: FBT003 - force
                self._connection = None
                self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            else:
                connection.close(True)  # noqa: FBT003 - force
                self._connection = None
            connection = self._connected()
            fresh = [number for (number,) in connection.execute("SELECT number FROM message WHERE due IS NULL")]
            with self._transaction(connection):
                lost = ((number,) for number in fresh if number not in self._hand)
                connection.executemany("UPDATE message SET due = born WHERE number = ?", lost)
            self._recount(connection)
        return Outcome(self._counts, self._alarms, self._room())

    # To write.

    def commit(self, batch: Batch) -> Outcome:
        """As Table.commit. When the disk is full the settles are tried once more, alone."""
        free = self._room()
        outcome = Outcome(self._counts, self._alarms, free)
        keeps = batch.keeps
        if not free:
            keeps, outcome.refused = [], SpoolTrouble(f"{self._folder}: the disk's reserve is reached")
        if not keeps and not batch.settles:
            return outcome
        try:
            self._commit(batch, keeps)
        except apsw.FullError as error:
            outcome.refused = SpoolTrouble(f"{self._folder}: {error}")
            outcome.free = False
            if not batch.settles:
                return outcome
            with self._translated():
                # What lies in the log makes room there for the settles.
                self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
                self._commit(batch, [])
        return outcome

    def _commit(self, batch: Batch, keeps: list[Keep]) -> None:
        made = self._write_bodies(keeps)
        keeps = [keep for keep in keeps if keep.trouble is None]
        try:
            with self._translated():
                connection = self._connected()
                with self._transaction(connection):
                    keeps_again = self._insert(connection, keeps)
                    exact, useless = self._settle(connection, batch)
                    lowest, oldest = self._limits(connection, keeps, batch)
        except BaseException:
            for number in made:
                self._bodies.remove(number)
            raise
        self._remember(batch, keeps)
        self._counts.lowest, self._counts.oldest = lowest, oldest
        if keeps_again:  # some were known: their files are not needed
            used = {-keep.place for keep in keeps if keep.entries}
            useless += [number for number in made if number not in used]
        for number in useless:
            self._bodies.remove(number)
        if not exact:
            with self._translated():
                self._recount(connection)

    def _write_bodies(self, keeps: list[Keep]) -> list[int]:
        """Long bodies into synced files, short ones into memory; the numbers of the files."""
        made = []
        for keep in keeps:
            body = keep.body
            try:
                if keep.place < 0:
                    keep.adopt(self._bodies.save(-keep.place, body))
                    made.append(-keep.place)
                elif body.path is not None:
                    data = b"".join(body.chunks())
                    if len(data) != body.size:
                        raise OSError(f"{body.path}: {len(data)} octets where {body.size} were announced")
                    keep.adopt(MemoryBody(data))
            except OSError as error:
                keep.trouble = SpoolTrouble(str(error))
        if made:
            try:
                self._bodies.sync()
            except OSError as error:
                for keep in keeps:
                    if keep.place < 0 and keep.trouble is None:
                        keep.trouble = SpoolTrouble(str(error))
                        self._bodies.remove(-keep.place)
                made = []
        return made

    def _insert(self, connection: apsw.Connection, keeps: list[Keep]) -> bool:
        """Whether some tokens were known and had to be looked up."""
        if not keeps:
            return False
        plain = [keep for keep in keeps if not keep.known]
        fresh = [row for keep in plain for row in rows(keep)]
        before = connection.total_changes()
        connection.executemany(INSERT, fresh)
        if connection.total_changes() - before == len(fresh) and len(plain) == len(keeps):
            bodies = [(keep.place, keep.body.data) for keep in keeps if keep.place > 0]
            connection.executemany("INSERT INTO body VALUES (?, ?)", bodies)
            return False
        # All again, one by one, in the order in which they came.
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        for keep in keeps:
            self._insert_known(connection, keep)
        return True

    def _insert_known(self, connection: apsw.Connection, keep: Keep) -> None:
        token = keep.token
        known, part, place = set(keep.known), 0, keep.place
        found = list(connection.execute(
            "SELECT part, body, record FROM message WHERE peer = ? AND seq = ? ORDER BY part", (token.peer, token.seq)
        ))  # fmt: skip
        for part, other, record in found:  # noqa: B007 - the last one is meant
            try:
                known.update(unpack(record, token).known)
            except DamagedRecord:
                continue  # nobody knows whom it was for; whoever claims it puts it aside
            if (other < 0) == (place < 0):
                place = other
        keep.only(frozenset(known))
        if not keep.entries:
            return
        if place != keep.place:
            keep.place = place
            if place < 0:
                keep.adopt(FileBody(self.path(place), keep.body.size))
        elif place > 0:
            connection.execute("INSERT INTO body VALUES (?, ?)", (place, keep.body.data))
        connection.executemany(INSERT, rows(keep, part + 1 if found else 0))

    @staticmethod
    def _settle(connection: apsw.Connection, batch: Batch) -> tuple[bool, list[int]]:
        """Whether all rows to delete were there; files that nothing speaks of any more."""
        many = connection.executemany
        if batch.rewritten:
            many(
                "UPDATE message SET due = ?, attempts = ?, site = ?, record = ? WHERE number = ?",
                [(*values, number) for number, values in batch.rewritten.items()],
            )
        if batch.released:
            many(
                "UPDATE message SET due = ? WHERE number = ?",
                [(due, number) for number, (due, _) in batch.released.items()],
            )
        before, useless = connection.total_changes(), []
        if batch.gone:
            many("DELETE FROM message WHERE number = ?", [(number,) for number in batch.gone])
        exact = connection.total_changes() - before == len(batch.gone)
        places = [(place, token.peer, token.seq) for token, place, _ in batch.gone.values()]
        many(DELETE_BODY, [place for place in places if place[0] > 0])
        for place in dict.fromkeys(place for place in places if place[0] < 0):
            if not list(connection.execute(USED, place)):
                useless.append(-place[0])
        if batch.forgotten:
            many("DELETE FROM tombstone WHERE peer = ? AND seq < ?", [(peer, below) for peer, below, _ in batch.forgotten])
            many("INSERT OR REPLACE INTO peer VALUES (?, ?)", [(peer, low) for peer, _, low in batch.forgotten])
        if batch.tombstones:
            many("INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?)", batch.tombstones)
        if batch.epoch:
            connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (batch.epoch,))
        return exact, useless

    def _limits(self, connection: apsw.Connection, keeps: list[Keep], batch: Batch) -> tuple[int, int]:
        """The lowest token of ours and the oldest entry; asked only if the lowest or oldest went."""
        lowest, oldest = self._counts.lowest, self._counts.oldest
        for keep in keeps:
            if keep.entries:
                oldest = min(oldest, keep.entries[0].number)
                if keep.token.peer == self._tag:
                    lowest = min(lowest, keep.token.seq)
        if oldest in batch.gone:
            (found,) = next(connection.execute("SELECT min(number) FROM message"))
            oldest = NONE if found is None else found
        if lowest < NONE and any(token.seq == lowest and token.peer == self._tag for token, _, _ in batch.gone.values()):
            lowest = self._lowest(connection)
        return lowest, oldest

    def _remember(self, batch: Batch, keeps: list[Keep]) -> None:
        """After the commit: what is in hand, and how much there is."""
        counts, hand = self._counts, self._hand
        for keep in keeps:
            for entry in keep.entries:
                hand.add(entry.number)
                counts.messages += 1
                counts.octets += entry.message.size
        for number, (due, _, site, _) in batch.rewritten.items():
            if due is not None:
                hand.discard(number)
                self._line.came(due, site)
        for number, (due, site) in batch.released.items():
            hand.discard(number)
            self._line.came(due, site)
        for number, (_, _, size) in batch.gone.items():
            hand.discard(number)
            counts.messages -= 1
            counts.octets -= size

    # To read.

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As Table.claim."""
        taken: list[Held] = []
        damaged: list[tuple[int, str]] = []
        try:
            with self._translated():
                if limit > 0:
                    for row in self._line.due(self._connected(), now, busy):
                        self._hand.add(row[0])
                        self._revive(row, taken, damaged)
                        if len(taken) >= limit:
                            break
        except BaseException:
            self._hand.difference_update(held[0].number for held in taken)
            self._line.rewind()
            raise
        self._put_aside(damaged)
        return taken

    def _revive(self, row: Row, taken: list[Held], damaged: list[tuple[int, str]]) -> None:
        try:
            taken.append(revived(row, self.path(row[8]) if row[8] < 0 else ""))
        except DamagedRecord as error:
            damaged.append((row[0], str(error)))

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As Table.next_due."""
        with self._translated():
            return self._line.next(self._connected(), busy)

    def body(self, place: int, size: Octets) -> Body:
        """As Table.body."""
        if place < 0:
            path = self.path(place)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise SpoolTrouble(f"{path}: {error.strerror}") from error
            if found != size:
                raise SpoolTrouble(f"{path}: {found} octets where there were {size}")
            return FileBody(path, size)
        with self._translated():
            for (data,) in self._connected().execute("SELECT data FROM body WHERE number = ?", (place,)):
                if len(data) == size:
                    return MemoryBody(data)
        raise SpoolTrouble(f"{self._folder}: body {place} is missing or cut")

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """As Table.scan."""
        found: list[Entry] = []
        with self._translated():
            last = self._piece(after)
            for held in self._matching(query, after, last):
                entry = held[0]
                if entry.number in self._hand:
                    entry.due = None
                found.append(entry)
                if len(found) >= limit:
                    return found, entry.number
        return found, last

    def hasten(self, query: Query, now: Seconds, after: int) -> tuple[int, int | None]:
        """As Table.hasten; what is in hand is left alone."""
        with self._translated():
            last = self._piece(after)
            numbers = [
                (now, held[0].number)
                for held in self._matching(query, after, last)
                if held[0].number not in self._hand and held[0].due is not None and held[0].due > now
            ]
            connection = self._connected()
            with self._transaction(connection):
                connection.executemany("UPDATE message SET due = ? WHERE number = ?", numbers)
            if numbers:
                self._line.rewind()
        return len(numbers), last

    def _piece(self, after: int) -> int | None:
        """The number that ends a piece of the table; None: the rest is not longer than one."""
        sql = "SELECT number FROM message WHERE number > ? ORDER BY number LIMIT 1 OFFSET ?"
        for (number,) in self._connected().execute(sql, (after, PIECE)):
            return int(number)
        return None

    def _matching(self, query: Query, after: int, last: int | None) -> Iterator[Held]:
        sql, values = f"SELECT {COLUMNS} FROM message WHERE number > ? AND number <= ?", [after, last or NONE * 2 - 1]
        if query.site is not None:
            sql, values = sql + " AND site = ?", [*values, query.site]
        for needle in query.needles:
            sql, values = sql + " AND instr(record, ?)", [*values, needle]
        damaged: list[tuple[int, str]] = []
        for row in self._connected().execute(sql + " ORDER BY number", values):
            some: list[Held] = []
            self._revive(row, some, damaged)
            if some and query.matches(some[0][0]):
                yield some[0]
        self._put_aside(damaged)

    def _put_aside(self, damaged: Iterable[tuple[int, str]]) -> None:
        """Rows whose record is damaged leave the queue, but not the database."""
        for number, why in damaged:
            self._hand.add(number)  # whatever happens, it is not tried again
            self._alarms.append(f"{self._folder}: message {number} is DAMAGED and put aside: {why}")
            try:
                with self._translated():
                    connection = self._connected()
                    with self._transaction(connection):
                        connection.execute(
                            "INSERT OR REPLACE INTO damaged SELECT *, ? FROM message WHERE number = ?", (why, number)
                        )
                        connection.execute("DELETE FROM message WHERE number = ?", (number,))
                    self._recount(connection)
            except (SpoolTrouble, apsw.FullError) as error:
                self._alarms.append(f"{self._folder}: message {number} stays where it is: {error}")

    # The border to SQLite.

    def _room(self) -> bool:
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            raise Broken(str(error)) from error
        # Some file systems count no inodes.
        return status.f_bavail * status.f_frsize >= self._reserve and (
            status.f_files == 0 or status.f_favail >= self._inodes
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except IO_ERRORS as error:
            raise Broken(f"{self._folder}: {error}") from error
        except apsw.FullError:
            raise
        except apsw.Error as error:
            raise SpoolTrouble(f"{self._folder}: {error}") from error

    @staticmethod
    @contextmanager
    def _transaction(connection: apsw.Connection) -> Iterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                try:
                    connection.execute("ROLLBACK")
                except apsw.Error:
                    pass  # the first error tells what is wrong; an open transaction ends with its connection
            raise


__all__ = ["SQLiteTable", "Token"]
