"""
What a batch says to the database; every function is one part of one transaction.

A row is inserted as if its token were new. Only where the index refuses it is
looked up what of the token is known, so that the usual case costs no SELECT.
"""

from __future__ import annotations

import math
import time

import apsw

from qmq.mail import Address, FileBody, MemoryBody, Seconds, Token
from qmq.spool.bodies import Bodies
from qmq.spool.record import DamagedRecord, unpack
from qmq.spool.schema import transaction
from qmq.spool.table import NONE, Batch, Counts, Gone, Keep, rows

INSERT = "INSERT OR IGNORE INTO message VALUES (?, ?, ?, ?, ?, NULL, 0, ?, ?, ?, ?, NULL)"
INSERT_BODY = "INSERT INTO body VALUES (?, ?)"
KNOWN = "SELECT 1 FROM message WHERE peer = ? AND seq = ?"
ROW = "SELECT peer, seq, body, size FROM message WHERE number = ?"
NEWEST = "SELECT peer, max(seq) FROM message GROUP BY peer"
OF_TOKEN = "SELECT part, body, record FROM message WHERE peer = ? AND seq = ? ORDER BY part"  # noqa: S105 - no secret
# Before the other two: as long as it has no due time, a fresh row is in no other index that has its site.
PLACE = "UPDATE message SET site = ?1, waited = 1 WHERE number = ?2 AND (waited IS NULL OR site IS NOT ?1)"
REWRITE = "UPDATE message SET due = ?, attempts = ?, record = ? WHERE number = ?"
RELEASE = "UPDATE message SET due = ? WHERE number = ?"
DELETE = "DELETE FROM message WHERE number = ?"
DELETE_BODY = (
    "DELETE FROM body WHERE number = ?1"
    " AND NOT EXISTS (SELECT 1 FROM message WHERE peer = ?2 AND seq = ?3 AND body = ?1)"
    " AND NOT EXISTS (SELECT 1 FROM damaged WHERE body = ?1)"
)
USED = (
    "SELECT 1 FROM message WHERE peer = ?2 AND seq = ?3 AND body = ?1 UNION ALL SELECT 1 FROM damaged WHERE body = ?1"
)
BURY = "INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?)"
FORGET = "DELETE FROM tombstone WHERE peer = ? AND seq < ?"
TOLD = "INSERT OR REPLACE INTO peer VALUES (?, ?)"
PUT_ASIDE = (
    "INSERT OR REPLACE INTO damaged"
    " SELECT number, peer, seq, part, site, due, attempts, born, size, body, record, ? FROM message WHERE number = ?"
)
FREE = "UPDATE message SET due = born, waited = 1 WHERE number = ?"


def insert(connection: apsw.Connection, keeps: list[Keep], bodies: Bodies) -> bool:
    """Keep them; whether some tokens were known. A transaction is open, and may be another one afterwards."""
    if not keeps:
        return False
    if not any(keep.known for keep in keeps):
        fresh = [row for keep in keeps for row in rows(keep)]
        before = connection.total_changes()
        connection.executemany(INSERT, fresh)
        if connection.total_changes() - before == len(fresh):
            connection.executemany(INSERT_BODY, [_inline(keep) for keep in keeps if keep.place > 0])
            return False
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
    # One by one, in the order in which they came.
    for keep in keeps:
        _insert_unknown(connection, keep, bodies)
    return True


def _insert_unknown(connection: apsw.Connection, keep: Keep, bodies: Bodies) -> None:
    """Keep what is new of it, with the body that its token has already."""
    token = keep.token
    known: set[Address] = set(keep.known)
    part, place = -1, keep.place
    for row_part, row_place, record in connection.execute(OF_TOKEN, (token.peer, token.seq)):
        part = row_part
        try:
            known.update(unpack(record, token).known)
        except DamagedRecord:
            continue  # nobody knows whom it was for; whoever claims it puts it aside
        if (row_place < 0) == (place < 0):
            place = row_place
    keep.only(frozenset(known))
    if not keep.entries:
        return
    if place == keep.place:
        if place > 0:
            connection.execute(INSERT_BODY, _inline(keep))
    else:
        keep.place = place
        if place < 0:
            keep.adopt(FileBody(bodies.path(-place), keep.body.size))
    connection.executemany(INSERT, rows(keep, part + 1))


def _inline(keep: Keep) -> tuple[int, bytes]:
    assert type(keep.body) is MemoryBody
    return keep.place, keep.body.data


def settle(connection: apsw.Connection, batch: Batch) -> tuple[bool, list[int]]:
    """Whether all rows to delete were there; files that no row speaks of any more."""
    many = connection.executemany
    if batch.rewritten:
        many(PLACE, [(site, number) for number, (_, _, site, _) in batch.rewritten.items()])
        many(
            REWRITE,
            [(due, attempts, record, number) for number, (due, attempts, _, record) in batch.rewritten.items()],
        )
    if batch.released:
        many(PLACE, [(site, number) for number, (_, site) in batch.released.items()])
        many(RELEASE, [(due, number) for number, (due, _) in batch.released.items()])
    exact, useless = True, []
    if batch.gone:
        before = connection.total_changes()
        many(DELETE, [(number,) for number in batch.gone])
        exact = connection.total_changes() - before == len(batch.gone)
        places = [(place, token.peer, token.seq) for token, place, _, _ in batch.gone.values()]
        many(DELETE_BODY, [place for place in places if place[0] > 0])
        files = dict.fromkeys(place for place in places if place[0] < 0)
        useless = [-place[0] for place in files if not list(connection.execute(USED, place))]
    if batch.forgotten:
        many(FORGET, [(peer, below) for peer, below, _ in batch.forgotten])
        many(TOLD, [(peer, low) for peer, _, low in batch.forgotten])
    if batch.tombstones:
        many(BURY, batch.tombstones)
    if batch.epoch:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (batch.epoch,))
    if batch.journal:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'journal'", (batch.journal,))
    return exact, useless


def known(connection: apsw.Connection, peer: bytes, seq: int) -> bool:
    """Whether a row has that token."""
    return bool(list(connection.execute(KNOWN, (peer, seq))))


def newest(connection: apsw.Connection) -> dict[bytes, int]:
    """The highest number of each peer's tokens."""
    return dict(connection.execute(NEWEST))


def still_there(connection: apsw.Connection, numbers: list[int]) -> dict[int, Gone]:
    """What a Batch says of these when they go, as far as there are such rows."""
    found: dict[int, Gone] = {}
    for number in numbers:
        for peer, seq, place, size in connection.execute(ROW, (number,)):
            found[number] = (Token(peer, seq), place, size, ())
    return found


def free(connection: apsw.Connection, hand: set[int]) -> None:
    """What has no due time and is in nobody's *hand*, as after the end of a process, is due at once."""
    fresh = [number for (number,) in connection.execute("SELECT number FROM message WHERE due IS NULL")]
    connection.executemany(FREE, ((number,) for number in fresh if number not in hand))


def freed(connection: apsw.Connection, hand: set[int]) -> None:
    """As free, in a transaction of its own."""
    with transaction(connection):
        free(connection, hand)


def same_store(connection: apsw.Connection, tag: bytes, epoch: int) -> bool:
    """Whether this is the store of that name that nobody has opened since *epoch*."""
    meta = dict(connection.execute("SELECT name, value FROM meta"))
    if meta["tag"] != tag or meta["epoch"] > epoch:
        return False
    # One that was restored from an earlier copy would give our numbers out again.
    connection.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
    return True


def put_aside(connection: apsw.Connection, number: int, why: str) -> None:
    """A row whose record is damaged leaves the queue, but not the database."""
    connection.execute(PUT_ASIDE, (why, number))
    connection.execute(DELETE, (number,))


def hasten(connection: apsw.Connection, numbers: list[int], due: Seconds, patience: Seconds = 0.04) -> int:
    """Make these due then, one after the other until it has taken long enough; how many were done, at least one."""
    until = time.perf_counter() + patience
    with transaction(connection):
        for done, number in enumerate(numbers, 1):
            connection.execute(RELEASE, (due, number))
            if time.perf_counter() > until:
                return done
    return len(numbers)


def limits(
    connection: apsw.Connection, counts: Counts, tag: bytes, keeps: list[Keep], batch: Batch
) -> tuple[int, int, Seconds]:
    """
    The lowest token of ours, the oldest entry and its birth.

    Asked of the database only where the lowest or oldest went.
    """
    low, old, birth = counts.lowest, counts.oldest, counts.birth
    for keep in keeps:
        if keep.entries:
            entry = keep.entries[0]
            if entry.number < old:
                old, birth = entry.number, entry.born
            if keep.token.peer == tag:
                low = min(low, keep.token.seq)
    if old in batch.gone:
        old, birth = oldest(connection)
    if any(token.seq == low and token.peer == tag for token, _, _, _ in batch.gone.values()):
        low = lowest(connection, tag)
    return low, old, birth


def oldest(connection: apsw.Connection) -> tuple[int, Seconds]:
    """The lowest number, and when that entry was born."""
    for number, born in connection.execute("SELECT number, born FROM message ORDER BY number LIMIT 1"):
        return number, born
    return NONE, math.inf


def lowest(connection: apsw.Connection, tag: bytes) -> int:
    """The lowest number of a token of ours."""
    (found,) = next(connection.execute("SELECT min(seq) FROM message WHERE peer = ?", (tag,)))
    return NONE if found is None else found


def recount(connection: apsw.Connection, counts: Counts, tag: bytes) -> None:
    """Count anew: reads every row, but no record and no body."""
    count, octets = next(connection.execute("SELECT count(*), total(size) FROM message"))
    counts.messages, counts.octets = count, int(octets)
    counts.oldest, counts.birth = oldest(connection)
    counts.lowest = lowest(connection, tag)
