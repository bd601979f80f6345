"""
Rows of SQLite in WAL mode, each commit synced; long bodies as files.

One transaction a batch. After an I/O error nothing that was not synced before
is believed, see recover; a full disk takes no mail, but lets it go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import apsw

from qmq.interfaces import SpoolTrouble
from qmq.mail import Body, Entry, FileBody, MemoryBody, Octets, Seconds
from qmq.spool.bodies import Bodies, sync_folder
from qmq.spool.claims import Line
from qmq.spool.lock import Lock
from qmq.spool.mark import Mark
from qmq.spool.pages import Pages
from qmq.spool.query import Query
from qmq.spool.room import Room
from qmq.spool.schema import connect, shrink, transaction, translated, void
from qmq.spool.search import DamagedRow, Piece, Search, read
from qmq.spool.statements import free, hasten, insert, limits, newest, put_aside, recount, same_store, settle
from qmq.spool.table import Batch, Broken, Counts, Held, Keep, Opened, Outcome, with_body

T = TypeVar("T")

RESERVE = 64 << 20
INODES = 1000
# After so many vain attempts to recover the files are closed.
LET_GO = 10


class SQLiteTable:
    """
    The rows of one queue in *folder*, which is made if there is none (0700).

    Nothing is kept past the bounds *reserve*, *inodes* and *share* (see Room); settles
    go on. *cache* (KiB) is the least of SQLite's page cache. *vfs* names a SQLite VFS. *mark* is a file elsewhere that
    remembers that there is a store: one that is gone at a start is not begun anew then.
    *hand*: numbers of rows that are not to be claimed. *beside*: octets that lie beside the rows, for *share*.
    """

    def __init__(
        self, folder: str, *, reserve: Octets = RESERVE, inodes: int = INODES, share: Octets | float | None = None,
        cache: int = 512, vfs: str | None = None, mark: str = "",
    ) -> None:  # fmt: skip
        self._mark = Mark(mark, folder)
        self._folder, self._path = folder, os.path.join(folder, "spool.db")
        self._cache, self._vfs = cache, vfs
        self._bounds = Room(folder, reserve=reserve, inodes=inodes, share=share)
        self._pages = Pages(cache)
        self._lock = Lock(os.path.join(folder, "lock"))
        self._bodies = Bodies(folder)
        self.hand: set[int] = set()
        self.beside: Octets = 0
        self._line = Line(self.hand)
        self._search = Search(self.hand)
        self._counts = Counts()
        self._alarms: list[str] = []
        self._tag, self._epoch = b"", 0
        self._failures = 0  # to recover, one after the other
        self._connection: apsw.Connection | None = None

    # To open and to close.

    def open(self) -> Opened:
        """As Table.open. The connection is made anew when it is first needed."""
        self._mark.look(self._path)
        if not os.path.isdir(self._folder):
            os.makedirs(self._folder, 0o700)
            sync_folder(os.path.dirname(os.path.abspath(self._folder)))
        self._lock.take()
        try:
            with translated(self._folder):
                opened = self._opened(self._connected(make=True))
            self._disconnect()
            self._mark.set()
            return opened
        except BaseException:
            self.close()
            raise

    def _opened(self, connection: apsw.Connection) -> Opened:
        meta = dict(connection.execute("SELECT name, value FROM meta"))
        self._tag, self._epoch = meta["tag"], meta["epoch"] + 1
        self.hand.clear()
        with transaction(connection):
            free(connection, self.hand)
            connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (self._epoch,))
        recount(connection, self._counts, self._tag)
        self._sweep(connection)
        self._pages.weigh()
        opened = Opened(self._tag, self._epoch, self._counts, self._alarms, self._full())
        opened.journal, opened.secret = meta["journal"], meta["secret"]
        opened.newest = newest(connection) if self._counts.messages else {}
        opened.lows = list(connection.execute("SELECT peer, low FROM peer"))
        opened.tombstones = list(connection.execute("SELECT peer, seq, recipients FROM tombstone"))
        return opened

    def _sweep(self, connection: apsw.Connection) -> None:
        """Files without a row go; rows without a file are an alarm."""
        files = "SELECT body FROM message WHERE body < 0 UNION SELECT body FROM damaged WHERE body < 0"
        self._alarms += self._bodies.sweep(-place for (place,) in connection.execute(files))

    def _connected(self, *, make: bool = False) -> apsw.Connection:
        if self._connection is None:
            self._connection = connect(self._path, make=make, cache=self._cache, vfs=self._vfs)
            self._pages.of(self._connection)
            self._line.rewind()
            self._search.renew()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._pages.of(None)
        if connection is not None:
            connection.close(True)  # by force: what is committed is safe, whatever close says

    def rest(self) -> None:
        """As Table.rest: give back unused pages, write the log into the database, close it."""
        if self._connection is not None:
            try:
                with translated(self._folder):
                    shrink(self._connection)
                    self._pages.weigh()
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
        What is there now may be another folder of that name: it must be this store, in nobody else's hand.
        After long trouble no file stays open, or nobody could unmount the device to mend it.
        """
        try:
            outcome = self._recovered()
        except BaseException:
            self._failures += 1
            if self._failures >= LET_GO:
                with suppress(SpoolTrouble, apsw.Error):  # closed it is, whatever it says
                    self.close()
            raise
        self._failures = 0
        return outcome

    def _recovered(self) -> Outcome:
        with translated(self._folder):
            os.stat(self._path)  # no lock is left where the store is not
            self._lock.take()
            self._truncate(self._connected())
            connection = self._connected()
            with transaction(connection):
                if ours := same_store(connection, self._tag, self._epoch):
                    free(connection, self.hand)
            if not ours:
                self.close()
                raise SpoolTrouble(f"{self._folder}: another store is there, or somebody else had it meanwhile")
            recount(connection, self._counts, self._tag)
            self._sweep(connection)
            self._pages.weigh()
        return Outcome(self._counts, self._alarms, self._full())

    def _truncate(self, connection: apsw.Connection) -> None:
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.IOError:
            raise
        except apsw.Error:
            self._disconnect()
            self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._disconnect()

    def bound(self, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        """As Table.bound."""
        self._bounds.reserve, self._bounds.inodes, self._bounds.share = reserve, inodes, share

    # To write.

    def prepare(self, batch: Batch) -> None:
        """As Table.prepare: there is nothing to prepare."""

    def commit(self, batch: Batch) -> Outcome:
        """As Table.commit. When the disk is full the settles are tried once more, alone."""
        outcome = Outcome(self._counts, self._alarms, self._full())
        keeps = batch.moved + batch.keeps
        if outcome.full:
            keeps, outcome.refused = batch.moved, SpoolTrouble(outcome.full)
        if not keeps and not batch.settles:
            return outcome
        try:
            self._commit(batch, keeps)
        except apsw.FullError as error:
            outcome.full = f"{self._folder}: {error}"
            outcome.refused = SpoolTrouble(outcome.full)
            if batch.settles or batch.moved:
                self._commit_when_full(batch)
        return outcome

    def _commit_when_full(self, batch: Batch) -> None:
        try:
            with translated(self._folder):
                # The log has room when what lies in it has gone into the database.
                self._connected().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
                self._commit(batch, batch.moved)
        except apsw.FullError as error:
            raise SpoolTrouble(f"{self._folder}: {error}") from error

    def _commit(self, batch: Batch, keeps: list[Keep]) -> None:
        made = self._bodies.save_all(keeps)
        keeps = [keep for keep in keeps if keep.trouble is None]
        try:
            with translated(self._folder):
                connection = self._connected()
                self._pages.fit(sum(keep.body.size for keep in keeps if keep.place > 0), len(batch.rewritten))
                with transaction(connection):
                    some_known = insert(connection, keeps, self._bodies)
                    exact, useless = settle(connection, batch)
                    lowest, oldest, birth = limits(connection, self._counts, self._tag, keeps, batch)
        except Broken:
            # Should the rows turn up all the same, so will their files; if not, recover removes these.
            if self._connection is not None:
                void(self._connection)
            raise
        except BaseException:
            self._remove(made)
            raise
        self._remember(batch, keeps)
        self._counts.lowest, self._counts.oldest, self._counts.birth = lowest, oldest, birth
        self._epoch = max(self._epoch, batch.epoch)
        if some_known:
            used = {-keep.place for keep in keeps if keep.entries}
            useless += [number for number in made if number not in used]
        self._remove(useless)
        if not exact:
            try:
                with translated(self._folder):
                    recount(connection, self._counts, self._tag)
            except SpoolTrouble as error:  # after the commit: who is told that it failed must not believe that
                raise Broken(str(error)) from error

    def _remove(self, numbers: list[int]) -> None:
        self._alarms += (f"{self._folder}: {wrong}" for wrong in self._bodies.remove_all(numbers))

    def _remember(self, batch: Batch, keeps: list[Keep]) -> None:
        """After the commit: what is in hand, and how much there is."""
        counts, hand = self._counts, self.hand
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
        for number, (_, _, size, _) in batch.gone.items():
            hand.discard(number)
            counts.messages -= 1
            counts.octets -= size

    # To read.

    def ask(self, ask: Callable[[apsw.Connection], T]) -> T:
        """What the database says to that."""
        with translated(self._folder):
            return ask(self._connected())

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As Table.claim."""
        taken: list[Held] = []
        damaged: list[DamagedRow] = []
        try:
            with translated(self._folder):
                for row in self._line.due(self._connected(), now, busy) if limit > 0 else ():
                    self.hand.add(row[0])
                    held = read(row, self._bodies.path(-row[8]) if row[8] < 0 else "")
                    if isinstance(held, DamagedRow):
                        damaged.append(held)
                    else:
                        taken.append(held)
                    if len(taken) >= limit:
                        break
        except BaseException:
            self.hand.difference_update(held[0].number for held in taken)
            self._line.rewind()
            raise
        self._put_aside(damaged)
        return taken

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As Table.next_due."""
        return self.ask(lambda connection: self._line.next(connection, busy))

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

    def peek(self, number: int) -> Entry | None:
        """As Table.peek; what is damaged is put aside by whoever claims it."""
        with translated(self._folder):
            held = self._search.peek(self._connected(), number)
            return None if held is None else with_body(held, self.body(held[2], held[0].message.body.size))

    def sites(self, query: Query, after: bytes) -> tuple[list[bytes], bytes | None]:
        """As Table.sites."""
        return self.ask(lambda connection: self._search.sites(connection, query, after))

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """As Table.scan."""
        with self._looking(query, after) as piece:
            return piece.entries(limit)

    def survey(self, query: Query, after: int) -> tuple[int, Octets, int | None]:
        """As Table.survey."""
        if not query.unpacks:
            return self.ask(lambda connection: self._search.count(connection, query, after))
        with self._looking(query, after) as piece:
            return (*piece.count(), piece.last)

    def seize(self, query: Query, after: int, limit: int) -> tuple[list[Held], int | None]:
        """As Table.seize; the Line passes them over as it does all that is in hand."""
        with self._looking(query, after) as piece:
            return piece.seize(limit)

    def hasten(self, query: Query, now: Seconds, after: int) -> tuple[int, int | None]:
        """As Table.hasten; what is in hand, and what is held, is left alone."""
        with translated(self._folder):
            connection = self._connected()
            numbers, last, damaged = self._search.late(connection, query, after, now, self._bodies.path)
            done = hasten(connection, numbers, now) if numbers else 0
            if done:
                self._line.rewind()
        self._put_aside(damaged)
        return done, last if done == len(numbers) else numbers[done - 1]

    @contextmanager
    def _looking(self, query: Query, after: int) -> Iterator[Piece]:
        with translated(self._folder):
            piece = self._search.piece(self._connected(), query, after, self._bodies.path)
            yield piece
        self._put_aside(piece.damaged)

    def _put_aside(self, damaged: list[DamagedRow]) -> None:
        """Rows whose record is damaged leave the queue, but not the database."""
        for row in damaged:
            self.hand.add(row.number)  # whatever happens, it is not tried again
            self._alarms.append(f"{self._folder}: message {row.number} is DAMAGED and put aside: {row.why}")
            try:
                with translated(self._folder):
                    connection = self._connected()
                    with transaction(connection):
                        put_aside(connection, row.number, row.why)
                    recount(connection, self._counts, self._tag)
            except (SpoolTrouble, apsw.FullError) as error:
                self._alarms.append(f"{self._folder}: message {row.number} stays where it is: {error}")

    # The border to SQLite and the disk.

    def _full(self) -> str:
        try:
            if self._bounds.share is not None:  # nobody else asks
                with translated(self._folder):
                    self._pages.weigh()
            return self._bounds.full(self._pages.used + self._bodies.octets + self.beside)
        except OSError as error:
            raise Broken(str(error)) from error
