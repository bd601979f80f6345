"""
Which rows of the database are to be tried next.

A claim is not written, and what is in hand stays in the index of due times.
So that neither those rows nor a busy site's million are passed over again
and again, a Line remembers how far it has looked along the index: every row
before *position* is in hand, or belongs to one of the *skipped* sites, which
were busy then or got a row in front of the position since. Those are looked
up one by one when they are free again. What is held lies behind every due
time and is never reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain

import apsw

from qmq.mail import HELD, Seconds
from qmq.spool.table import Row

COLUMNS = "number, peer, seq, site, due, attempts, born, size, body, record"
# Behind every row of the same due time: no site is called so.
LAST_SITE = b"\xff" * 8

# The rest of a due time's rows of one site, then what comes after: SQLite cannot seek behind three columns at once.
_BY_DUE = "FROM message INDEXED BY message_due WHERE"
_BY_SITE = "SELECT due, number FROM message INDEXED BY message_site WHERE"
_TIES = "due = ? AND site = ? AND number > ?"
ALONG = (
    f"SELECT {COLUMNS} {_BY_DUE} {_TIES} AND site NOT IN busy ORDER BY number",
    f"SELECT {COLUMNS} {_BY_DUE} (due, site) > (?, ?) AND due <= ? AND site NOT IN busy ORDER BY due, site, number",
)
AHEAD = (
    f"SELECT due, site, number {_BY_DUE} {_TIES} ORDER BY number",
    f"SELECT due, site, number {_BY_DUE} (due, site) > (?, ?) AND due < {HELD!r} ORDER BY due, site, number",
)
OF_SITE = (
    f"{_BY_SITE} site = ? AND due = ? AND number > ? ORDER BY number",
    f"{_BY_SITE} site = ? AND due > ? AND due <= ? ORDER BY due, number",
)
ROW = f"SELECT {COLUMNS} FROM message WHERE number = ?"  # noqa: S608 - constants
# So many rows are looked through for one that is not busy.
FAR = 5000
# The last due time that comes.
LAST = math.nextafter(HELD, 0)
START = (-math.inf, b"", 0)
BEFORE_ALL = (-math.inf, 0)


class Line:
    """
    The due rows that are not in hand. *hand* is the table's own set of numbers.

    *many*: with more skipped sites than that free again, going along the index once more is cheaper.
    """

    def __init__(self, hand: set[int], many: int = 1000) -> None:
        self._hand = hand
        self._many = many
        self._busy: frozenset[bytes] | None = None
        self._position: tuple[Seconds, bytes, int] = START
        self._skipped: set[bytes] = set()

    def rewind(self) -> None:
        """Any row may have become due; also for a new connection."""
        self._position, self._busy = START, None
        self._skipped.clear()

    def came(self, due: Seconds, site: bytes) -> None:
        """A row of that site is not in hand any more."""
        if due <= self._position[0]:
            self._skipped.add(site)

    def due(self, connection: apsw.Connection, now: Seconds, busy: frozenset[bytes]) -> Iterator[Row]:
        """Rows due, oldest first; whoever takes one puts its number in hand before asking for the next."""
        now = min(now, LAST)
        self._look_past(connection, busy)
        free = self._skipped - busy
        if len(free) > self._many:
            self.rewind()
            self._look_past(connection, busy)
            free = set()
        yield from self._of_skipped(connection, now, free)
        due, site, number = self._position
        if now < due:
            return
        # What is busy is passed over from here on.
        self._skipped |= busy
        rows = chain(connection.execute(ALONG[0], (due, site, number)), connection.execute(ALONG[1], (due, site, now)))
        for row in rows:
            self._position = (row[4], row[3], row[0])
            if row[0] not in self._hand:
                yield row
        self._position = (now, LAST_SITE, 0)

    def next(self, connection: apsw.Connection, busy: frozenset[bytes]) -> Seconds | None:
        """The due time of the first row that is free; behind thousands of busy ones it may be too early."""
        found = [first[0] for site in self._skipped - busy if (first := self._first(connection, site, LAST))]
        due, site, number = self._position
        ahead = chain(connection.execute(AHEAD[0], (due, site, number)), connection.execute(AHEAD[1], (due, site)))
        for seen, row in enumerate(ahead):
            if seen == FAR or (row[1] not in busy and row[2] not in self._hand):
                found.append(row[0])
                break
        return min(found, default=None)

    def _of_skipped(self, connection: apsw.Connection, now: Seconds, free: set[bytes]) -> Iterator[Row]:
        """Rows before the position, of sites that were skipped; a site that has none is skipped no more."""
        until = min(now, self._position[0])
        firsts: list[tuple[Seconds, int, bytes]] = []

        def look(site: bytes, after: tuple[Seconds, int]) -> None:
            first = self._first(connection, site, until, after)
            if first is not None:
                heappush(firsts, (*first, site))
            elif now >= self._position[0]:
                self._skipped.discard(site)

        for site in free:
            look(site, BEFORE_ALL)
        while firsts:
            due, number, site = heappop(firsts)
            yield next(connection.execute(ROW, (number,)))
            look(site, (due, number))

    def _first(
        self, connection: apsw.Connection, site: bytes, until: Seconds, after: tuple[Seconds, int] = BEFORE_ALL
    ) -> tuple[Seconds, int] | None:
        due, number = after
        ties = connection.execute(OF_SITE[0], (site, due, number))
        for row in chain(ties, connection.execute(OF_SITE[1], (site, due, until))):
            if row[1] not in self._hand:
                return row[0], row[1]
        return None

    def _look_past(self, connection: apsw.Connection, busy: frozenset[bytes]) -> None:
        if busy != self._busy:
            connection.execute("DELETE FROM busy")
            connection.executemany("INSERT INTO busy VALUES (?)", ((site,) for site in busy))
            self._busy = busy
