"""The database as people look into it: piece by piece, in order of number."""

from __future__ import annotations

from collections.abc import Iterator

import apsw

from qmq.spool.claims import COLUMNS
from qmq.spool.query import Query
from qmq.spool.record import DamagedRecord
from qmq.spool.table import Held, Row, revived

# Rows looked through at a time, with mail kept and claimed in between.
PIECE = 20000
LAST = (1 << 63) - 1


def end_of_piece(connection: apsw.Connection, after: int, piece: int = PIECE) -> int | None:
    """The number that ends the piece after *after*; None: it goes to the end of the table."""
    sql = "SELECT number FROM message WHERE number > ? ORDER BY number LIMIT 1 OFFSET ?"
    for (number,) in connection.execute(sql, (after, piece - 1)):
        return int(number)
    return None


def matching(connection: apsw.Connection, query: Query, after: int, last: int | None) -> Iterator[Held | DamagedRow]:
    """What matches, and what cannot be read; SQLite looks for the needles before anything is unpacked."""
    sql = f"SELECT {COLUMNS} FROM message WHERE number > ? AND number <= ?"  # noqa: S608 - a constant
    values: list[int | bytes] = [after, LAST if last is None else last]
    if query.site is not None:
        sql += " AND site = ?"
        values.append(query.site)
    for needle in query.needles:
        sql += " AND instr(record, ?)"
        values.append(needle)
    for row in connection.execute(sql + " ORDER BY number", values):
        held = read(row)
        if isinstance(held, DamagedRow) or query.matches(held[0]):
            yield held


class DamagedRow:
    """A row whose record says nothing that we wrote."""

    __slots__ = ("number", "why")

    def __init__(self, number: int, why: str) -> None:
        self.number = number
        self.why = why


def read(row: Row, path: str = "") -> Held | DamagedRow:
    """As revived, with the damage as a value."""
    try:
        return revived(row, path)
    except DamagedRecord as error:
        return DamagedRow(row[0], str(error))
