"""
The default store: SQLite in WAL mode, each commit synced, long bodies as files.

One transaction a batch. After an I/O error nothing that was not synced before
is believed, see recover; a full disk takes no mail, but lets it go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import apsw
from twisted.internet.interfaces import IReactorTime

from qmq.interfaces import SpoolTrouble
from qmq.mail import Body, Clock, Entry, FileBody, MemoryBody, Octets, Seconds
from qmq.spool.bodies import Bodies, sync_folder
from qmq.spool.claims import Line
from qmq.spool.lock import Lock
from qmq.spool.query import Query
from qmq.spool.schema import connect, shrink, transaction, translated, void
from qmq.spool.search import DamagedRow, end_of_piece, matching, read
from qmq.spool.statements import DELETE, PUT_ASIDE, insert, limits, recount, settle
from qmq.spool.store import Store
from qmq.spool.table import Batch, Broken, Counts, Held, Keep, Opened, Outcome
from qmq.spool.tombstones import LIMIT
from qmq.spool.writer import Writers

RESERVE = 64 << 20
INODES = 1000


def SQLiteSpool(
    folder: str, *, clock: IReactorTime, writers: Writers, wall: Clock = time.time, inline: Octets = 131072,
    reserve: Octets = RESERVE, inodes: int = INODES, cache: int = 512, tombstones: int = LIMIT, patience: Seconds = 10,
    idle: Seconds = 60, vfs: str | None = None,
) -> Store:  # fmt: skip
    """The ISpool in *folder*; see SQLiteTable and Store for what the arguments mean."""
    table = SQLiteTable(folder, reserve=reserve, inodes=inodes, cache=cache, vfs=vfs)
    return Store(
        table, clock=clock, writers=writers, wall=wall, inline=inline, tombstones=tombstones, patience=patience,
        idle=idle,
    )  # fmt: skip


class SQLiteTable:
    """
    The rows of one queue in *folder*, which is made if there is none (0700).

    Nothing is kept while less than *reserve* octets or *inodes* inodes are free on
    the device; settles go on. *cache* (KiB) is SQLite's page cache. *vfs* names a SQLite VFS.
    """

    def __init__(
        self, folder: str, *, reserve: Octets = RESERVE, inodes: int = INODES, cache: int = 512, vfs: str | None = None
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

    # To open and to close.

    def open(self) -> Opened:
        """As Table.open. The connection is made anew when it is first needed."""
        if not os.path.isdir(self._folder):
            os.makedirs(self._folder, 0o700)
            sync_folder(os.path.dirname(os.path.abspath(self._folder)))
        self._lock.take()
        try:
            with translated(self._folder):
                opened = self._opened(self._connected())
            self._disconnect()
            return opened
        except BaseException:
            self.close()
            raise

    def _opened(self, connection: apsw.Connection) -> Opened:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        self._tag, epoch = meta["tag"], meta["epoch"] + 1
        self._hand.clear()
        with transaction(connection):
            connection.execute("UPDATE message SET due = born WHERE due IS NULL")
            connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
        recount(connection, self._counts, self._tag)
        self._sweep(connection)
        opened = Opened(self._tag, epoch, self._counts, self._alarms, self._room())
        opened.lows = list(connection.execute("SELECT peer, low FROM peer"))
        opened.tombstones = list(connection.execute("SELECT peer, seq, recipients FROM tombstone"))
        return opened

    def _sweep(self, connection: apsw.Connection) -> None:
        """Files without a row go; rows without a file are an alarm."""
        files = "SELECT body FROM message WHERE body < 0 UNION SELECT body FROM damaged WHERE body < 0"
        removed, missing = self._bodies.sweep(-place for (place,) in connection.execute(files))
        if removed:
            self._alarms.append(f"{self._folder}: {removed} bodies that were never acknowledged are removed")
        self._alarms += (f"{self._bodies.path(number)}: the body of a message is MISSING" for number in missing[:20])
        if len(missing) > 20:
            self._alarms.append(f"{self._folder}: {len(missing)} bodies are MISSING")

    def _connected(self) -> apsw.Connection:
        if self._connection is None:
            path = os.path.join(self._folder, "spool.db")
            self._connection = connect(path, cache=self._cache, vfs=self._vfs)
            self._line.rewind()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(True)  # by force: what is committed is safe, whatever close says

    def rest(self) -> None:
        """As Table.rest: give back unused pages, write the log into the database, close it."""
        if self._connection is not None:
            try:
                with translated(self._folder):
                    shrink(self._connection)
            finally:
                self._disconnect()

    def close(self) -> None:
        """As Table.close."""
        try:
            with translated(self._folder):
                self._disconnect()
        finally:
            self._lock.drop()

    def recover(self) -> Outcome:
        """
        As Table.recover: the log is written into the database, synced and cut to nothing.

        As long as the disk refuses, by the old connection, which knows what of the log was synced; to a
        new one a commit that failed may look whole. Rows that turn up so, in nobody's hand, are due at once.
        """
        with translated(self._folder):
            self._truncate(self._connected())
            connection = self._connected()
            fresh = [number for (number,) in connection.execute("SELECT number FROM message WHERE due IS NULL")]
            nobodys = [(number,) for number in fresh if number not in self._hand]
            with transaction(connection):
                connection.executemany("UPDATE message SET due = born WHERE number = ?", nobodys)
            recount(connection, self._counts, self._tag)
            self._sweep(connection)
        return Outcome(self._counts, self._alarms, self._room())

    def _truncate(self, connection: apsw.Connection) -> None:
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.IOError:
            raise
        except apsw.Error:
            self._disconnect()
            self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._disconnect()

    # To write.

    def commit(self, batch: Batch) -> Outcome:
        """As Table.commit. When the disk is full the settles are tried once more, alone."""
        outcome = Outcome(self._counts, self._alarms, self._room())
        keeps = batch.keeps
        if not outcome.free:
            keeps, outcome.refused = [], SpoolTrouble(f"{self._folder}: the disk's reserve is reached")
        if not keeps and not batch.settles:
            return outcome
        try:
            self._commit(batch, keeps)
        except apsw.FullError as error:
            outcome.free, outcome.refused = False, SpoolTrouble(f"{self._folder}: {error}")
            if batch.settles:
                self._commit_when_full(batch)
        return outcome

    def _commit_when_full(self, batch: Batch) -> None:
        try:
            with translated(self._folder):
                # The log has room when what lies in it has gone into the database.
                self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
                self._commit(batch, [])
        except apsw.FullError as error:
            raise SpoolTrouble(f"{self._folder}: {error}") from error

    def _commit(self, batch: Batch, keeps: list[Keep]) -> None:
        made = self._write_bodies(keeps)
        keeps = [keep for keep in keeps if keep.trouble is None]
        try:
            with translated(self._folder):
                connection = self._connected()
                with transaction(connection):
                    some_known = insert(connection, keeps, self._bodies)
                    exact, useless = settle(connection, batch)
                    lowest, oldest = limits(connection, self._counts, self._tag, keeps, batch)
        except Broken:
            # Should the rows turn up all the same, so will their files; if not, recover removes these.
            if self._connection is not None:
                void(self._connection)
            raise
        except BaseException:
            self._remove(made)
            raise
        self._remember(batch, keeps)
        self._counts.lowest, self._counts.oldest = lowest, oldest
        if some_known:
            used = {-keep.place for keep in keeps if keep.entries}
            useless += [number for number in made if number not in used]
        self._remove(useless)
        if not exact:
            with translated(self._folder):
                recount(connection, self._counts, self._tag)

    def _write_bodies(self, keeps: list[Keep]) -> list[int]:
        """Long bodies into synced files, short ones into memory; the numbers of the files."""
        long = []
        for keep in keeps:
            body = keep.body
            try:
                if keep.place < 0:
                    keep.adopt(self._bodies.save(-keep.place, body))
                    long.append(keep)
                elif body.path is not None:
                    data = b"".join(body.chunks())
                    if len(data) != body.size:
                        keep.trouble = SpoolTrouble(f"{body.path}: {len(data)} octets, {body.size} were announced")
                    keep.adopt(MemoryBody(data))
            except OSError as error:
                keep.trouble = SpoolTrouble(str(error))
        try:
            self._bodies.sync()
        except OSError as error:
            # Files whose names may be gone after a power cut are thrown away.
            for keep in long:
                keep.trouble = SpoolTrouble(str(error))
            self._remove([-keep.place for keep in long])
            return []
        return [-keep.place for keep in long]

    def _remove(self, numbers: list[int]) -> None:
        for number in numbers:
            try:
                self._bodies.remove(number)
            except OSError as error:
                self._alarms.append(f"{self._folder}: a body that is done with stays: {error}")

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
        for number, (released, site) in batch.released.items():
            hand.discard(number)
            self._line.came(released, site)
        for number, (_, _, size) in batch.gone.items():
            hand.discard(number)
            counts.messages -= 1
            counts.octets -= size

    # To read.

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As Table.claim."""
        taken: list[Held] = []
        damaged: list[DamagedRow] = []
        try:
            with translated(self._folder):
                for row in self._line.due(self._connected(), now, busy) if limit > 0 else ():
                    self._hand.add(row[0])
                    held = read(row, self._bodies.path(-row[8]) if row[8] < 0 else "")
                    if isinstance(held, DamagedRow):
                        damaged.append(held)
                    else:
                        taken.append(held)
                    if len(taken) >= limit:
                        break
        except BaseException:
            self._hand.difference_update(held[0].number for held in taken)
            self._line.rewind()
            raise
        self._put_aside(damaged)
        return taken

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As Table.next_due."""
        with translated(self._folder):
            return self._line.next(self._connected(), busy)

    def body(self, place: int, size: Octets) -> Body:
        """As Table.body."""
        if place < 0:
            path = self._bodies.path(-place)
            try:
                found = os.stat(path).st_size
            except OSError as error:
                raise SpoolTrouble(f"{path}: {error.strerror}") from error
            if found != size:
                raise SpoolTrouble(f"{path}: {found} octets, there were {size}")
            return FileBody(path, size)
        with translated(self._folder):
            for (data,) in self._connected().execute("SELECT data FROM body WHERE number = ?", (place,)):
                if len(data) == size:
                    return MemoryBody(data)
        raise SpoolTrouble(f"{self._folder}: body {place} is missing or cut")

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """As Table.scan."""
        found: list[Entry] = []
        with translated(self._folder):
            last = end_of_piece(self._connected(), after)
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
        with translated(self._folder):
            connection = self._connected()
            last = end_of_piece(connection, after)
            found = [held[0] for held in self._matching(query, after, last) if held[0].number not in self._hand]
            late = [(now, entry.number) for entry in found if entry.due is not None and entry.due > now]
            if late:
                with transaction(connection):
                    connection.executemany("UPDATE message SET due = ? WHERE number = ?", late)
                self._line.rewind()
        return len(late), last

    def _matching(self, query: Query, after: int, last: int | None) -> Iterator[Held]:
        damaged = []
        for held in matching(self._connected(), query, after, last):
            if isinstance(held, DamagedRow):
                damaged.append(held)
            else:
                yield held
        self._put_aside(damaged)

    def _put_aside(self, damaged: list[DamagedRow]) -> None:
        """Rows whose record is damaged leave the queue, but not the database."""
        for row in damaged:
            self._hand.add(row.number)  # whatever happens, it is not tried again
            self._alarms.append(f"{self._folder}: message {row.number} is DAMAGED and put aside: {row.why}")
            try:
                with translated(self._folder):
                    connection = self._connected()
                    with transaction(connection):
                        connection.execute(PUT_ASIDE, (row.why, row.number))
                        connection.execute(DELETE, (row.number,))
                    recount(connection, self._counts, self._tag)
            except (SpoolTrouble, apsw.FullError) as error:
                self._alarms.append(f"{self._folder}: message {row.number} stays where it is: {error}")

    # The border to SQLite and the disk.

    def _room(self) -> bool:
        try:
            status = os.statvfs(self._folder)
        except OSError as error:
            raise Broken(str(error)) from error
        # Some file systems count no inodes.
        inodes = status.f_files == 0 or status.f_favail >= self._inodes
        return inodes and status.f_bavail * status.f_frsize >= self._reserve
