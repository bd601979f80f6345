"""
The database as people look into it: piece by piece, in order of number.

A piece is short, so that mail is kept and claimed in between. Where a query
names ids, sites or what is in hand, its rows are found by index or by number,
and what a piece costs does not depend on how many others there are; else it
goes along the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import apsw

from qmq.mail import HELD, Entry, Octets, Seconds
from qmq.spool.claims import COLUMNS, ROW
from qmq.spool.query import Query, Value
from qmq.spool.record import DamagedRecord
from qmq.spool.table import Held, Row, revived

# Rows looked through in a piece, sites too.
PIECE = 5000
SITES = 20000
# With more sites than that going along the table is cheaper.
MANY = 200
# So long records are unpacked in a piece.
PATIENCE: Seconds = 0.04
LAST = (1 << 63) - 1

_NUMBERS = "SELECT number FROM message INDEXED BY message_line WHERE waited IS NOT NULL"
_OF_TOKEN = "SELECT number FROM message WHERE peer = ? AND seq = ?"  # noqa: S105 - no secret
# From site to site by one look into the index each; told are those in which a name occurs, and the last.
_SITES = """
WITH RECURSIVE each(site, n) AS (
  SELECT (SELECT min(site) FROM message INDEXED BY message_line WHERE waited IS NOT NULL AND site > ?1), 1
  UNION ALL
  SELECT (SELECT min(site) FROM message INDEXED BY message_line WHERE waited IS NOT NULL AND site > each.site), n + 1
  FROM each WHERE site IS NOT NULL AND n < ?2)
SELECT site, n FROM each WHERE site IS NOT NULL AND (n = ?2 OR {names})
"""
_NAMED = "instr(CAST(lower(CAST(site AS TEXT)) AS BLOB), ?{})"

Path = Callable[[int], str]


class DamagedRow:
    """A row whose record says nothing that we wrote."""

    __slots__ = ("number", "why")

    def __init__(self, number: int, why: str) -> None:
        self.number = number
        self.why = why


class Search:
    """
    Looks through the rows of one table. *hand* is the table's own set of the numbers in hand.

    Rows that have not waited yet are all in hand: the index does not have them, but their numbers are known.
    """

    def __init__(self, hand: set[int]) -> None:
        self._hand = hand
        self._wanted: frozenset[bytes] | None = None  # what the temporary table of that name holds

    def renew(self) -> None:
        """There is a new connection."""
        self._wanted = None

    def sites(self, connection: apsw.Connection, query: Query, after: bytes) -> tuple[list[bytes], bytes | None]:
        """The next piece of the sites above *after* that the query's destinations stand for, and where to go on."""
        names = " OR ".join(_NAMED.format(i + 3) for i in range(len(query.destinations)))
        rows = list(connection.execute(_SITES.format(names=names), (after, SITES, *query.destinations)))
        last = rows[-1][0] if rows and rows[-1][1] == SITES else None
        found = [site for site, _ in rows]
        if last is None:
            fresh = "SELECT site FROM message WHERE number = ? AND waited IS NULL"
            found += {site for number in self._hand for (site,) in connection.execute(fresh, (number,))}
        return [site for site in found if query.goes(site)], last

    def rows(
        self, connection: apsw.Connection, query: Query, after: int, columns: str = COLUMNS, also: str = ""
    ) -> tuple[Iterator[Row], int | None]:
        """Rows of the next piece that may match, as far as SQLite can say, and the number that ends it; None: all."""
        where, values = self._where(connection, query, also)
        numbers, last = self._piece(connection, query, after)
        if numbers is None:
            sql = f"SELECT {columns} FROM message NOT INDEXED WHERE number > ? AND number <= ?{where} ORDER BY number"  # noqa: S608 - constants
            return connection.execute(sql, (after, LAST if last is None else last, *values)), last
        return self._each(connection, columns, where, numbers, values), last

    @staticmethod
    def _each(
        connection: apsw.Connection, columns: str, where: str, numbers: list[int], values: list[Value]
    ) -> Iterator[Row]:
        sql = f"SELECT {columns} FROM message WHERE number = ?{where}"  # noqa: S608 - constants
        for number in numbers:
            yield from connection.execute(sql, (number, *values))

    def count(self, connection: apsw.Connection, query: Query, after: int) -> tuple[int, Octets, int | None]:
        """How many rows of the next piece match, and their octets; exact for a query that does not unpack."""
        where, values = self._where(connection, query)
        numbers, last = self._piece(connection, query, after, counted=True)
        messages, octets = 0, 0

        def add(sign: int, found: Iterator[tuple[int, Octets]]) -> None:
            nonlocal messages, octets
            for count, size in found:
                messages += sign * count
                octets += sign * int(size)

        def each(some: list[int], also: str = "") -> Iterator[tuple[int, Octets]]:
            return self._each(connection, "1, size", where + also, some, values)  # type: ignore[return-value]  # columns

        if numbers is not None:
            add(1, each(numbers))
            return messages, octets, last
        end = LAST if last is None else last
        line = query.sites is not None and len(query.sites) <= MANY
        source = "INDEXED BY message_line WHERE waited IS NOT NULL AND" if line else "NOT INDEXED WHERE"
        sql = f"SELECT count(*), total(size) FROM message {source} number > ? AND number <= ?{where}"  # noqa: S608 - constants
        add(1, connection.execute(sql, (after, end, *values)))
        hand = [number for number in self._hand if after < number <= end]
        if line:
            add(1, each(hand, " AND waited IS NULL"))
        if query.state in {"waiting", "held"}:
            add(-1, each(hand))
        return messages, octets, last

    def _where(self, connection: apsw.Connection, query: Query, also: str = "") -> tuple[str, list[Value]]:
        where, values = query.where()
        parts = [part for part in (where, also) if part]
        if query.sites is not None:
            if query.sites != self._wanted:
                self._wanted = None
                connection.execute("DELETE FROM wanted")
                connection.executemany("INSERT INTO wanted VALUES (?)", ((site,) for site in query.sites))
                self._wanted = query.sites
            parts.append("site IN (SELECT site FROM wanted)")
        return "".join(f" AND {part}" for part in parts), values

    def _piece(
        self, connection: apsw.Connection, query: Query, after: int, *, counted: bool = False
    ) -> tuple[list[int] | None, int | None]:
        """The numbers of a piece (None: whatever lies in it; *counted*: only few are listed) and its last."""
        if query.ids is not None:
            found = {number for token in query.tokens for (number,) in connection.execute(_OF_TOKEN, token)}
            return self._first(found, after)
        if query.state == "in-hand":
            return self._first(self._hand, after)
        if query.sites is None or len(query.sites) > MANY:
            sql = "SELECT number FROM message WHERE number > ? ORDER BY number LIMIT 1 OFFSET ?"
            for (number,) in connection.execute(sql, (after, PIECE - 1)):
                return None, int(number)
            return None, None
        last = None
        share = PIECE // max(1, len(query.sites))
        sql = f"{_NUMBERS} AND site = ? AND number > ? ORDER BY number LIMIT 1 OFFSET ?"
        for site in query.sites:
            for (number,) in connection.execute(sql, (site, after, share - 1)):
                last = number if last is None else min(last, number)
        if counted:
            return None, last
        end = LAST if last is None else last
        numbers = {number for number in self._hand if after < number <= end}
        for site in query.sites:
            found_there = connection.execute(
                f"{_NUMBERS} AND site = ? AND number > ? AND number <= ?", (site, after, end)
            )
            numbers.update(number for (number,) in found_there)
        return sorted(numbers), last

    @staticmethod
    def _first(numbers: set[int], after: int) -> tuple[list[int], int | None]:
        above = list(islice(sorted(number for number in numbers if number > after), PIECE + 1))
        return above[:PIECE], above[PIECE - 1] if len(above) > PIECE else None

    def piece(self, connection: apsw.Connection, query: Query, after: int, path: Path, also: str = "") -> Piece:
        """The next piece above *after*; *path* tells where a long body is."""
        rows, last = self.rows(connection, query, after, also=also)
        return Piece(rows, last, query, self._hand, path)

    def peek(self, connection: apsw.Connection, number: int) -> Held | None:
        """The entry of that number, if it is there and its record is sound."""
        for row in connection.execute(ROW, (number,)):
            held = read(row)
            if not isinstance(held, DamagedRow):
                held[0].due = None if number in self._hand else held[0].due
                return held
        return None

    def late(
        self, connection: apsw.Connection, query: Query, after: int, now: Seconds, path: Path
    ) -> tuple[list[int], int | None, list[DamagedRow]]:
        """Numbers of the next piece's entries that match, wait, and are due after *now*."""
        also = f"due > {now!r} AND due < {HELD!r}"
        if query.unpacks:
            piece = self.piece(connection, query, after, path, also)
            numbers = [held[0].number for held in piece]
            last, damaged = piece.last, piece.damaged
        else:
            rows, last = self.rows(connection, query, after, "number", also)
            numbers, damaged = [row[0] for row in rows], []
        return [number for number in numbers if number not in self._hand], last, damaged


class Piece:
    """
    The entries of one piece, as one walks along it; what is in hand has no due time.

    After the walk *last* is the number to go on after (None: that was all), and *damaged* the
    rows that could not be read.
    """

    def __init__(self, rows: Iterator[Row], last: int | None, query: Query, hand: set[int], path: Path) -> None:
        self._rows, self._query, self._hand, self._path = rows, query, hand, path
        self.last = last
        self.damaged: list[DamagedRow] = []

    def __iter__(self) -> Iterator[Held]:
        """Until all have been seen, or it has taken long enough."""
        until = time.perf_counter() + PATIENCE
        for row in self._rows:
            held = read(row, self._path(-row[8]) if row[8] < 0 else "")
            if isinstance(held, DamagedRow):
                self.damaged.append(held)
            else:
                entry = held[0]
                if entry.number in self._hand:
                    entry.due = None
                if self._query.matches(entry):
                    yield held
            if time.perf_counter() > until:
                self.last = row[0]
                return

    def entries(self, limit: int) -> tuple[list[Entry], int | None]:
        """The first of them that match, and the number to go on after."""
        found: list[Entry] = []
        for held in self:
            found.append(held[0])
            if len(found) >= limit:
                return found, held[0].number
        return found, self.last

    def seize(self, limit: int) -> tuple[list[Held], int | None]:
        """The same, of those in nobody's hand: they are in hand now."""
        taken: list[Held] = []
        try:
            for held in self:
                if held[0].due is not None:
                    self._hand.add(held[0].number)
                    taken.append(held)
                    if len(taken) >= limit:
                        return taken, held[0].number
        except BaseException:
            self._hand.difference_update(held[0].number for held in taken)
            raise
        return taken, self.last

    def count(self) -> tuple[int, Octets]:
        """How many match, and their octets."""
        sizes = [held[3] for held in self]
        return len(sizes), sum(sizes)


def read(row: Row, path: str = "") -> Held | DamagedRow:
    """As revived, with the damage as a value."""
    try:
        return revived(row, path)
    except DamagedRecord as error:
        return DamagedRow(row[0], str(error))
