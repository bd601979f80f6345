"""
What a store's two halves say to each other.

The front (Store) lives in the reactor's thread and gathers a Batch; a Table
writes it in a writer thread, as one transaction, and tells the Outcome. A
Table is asked one thing at a time and knows no Deferred.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from qmq.interfaces import SpoolTrouble
from qmq.mail import Address, Body, Entry, Envelope, FileBody, Message, Octets, Seconds, Token
from qmq.spool.query import Query
from qmq.spool.record import pack, unpack
from qmq.spool.ring import Piece

NONE = 1 << 62  # lowest, oldest: of an empty store

# Of an entry that goes: token, body's number, octets, all recipients that the row was ever about.
Gone = tuple[Token, int, Octets, Sequence[Address]]
# An entry in hand; all recipients that its row was ever about; the number of its body; octets.
Held = tuple[Entry, Sequence[Address], int, Octets]


class Broken(SpoolTrouble):
    """An I/O error: nothing may be kept before recover() has succeeded."""


class Keep:
    """
    One message to be kept, an entry for each site, with *deferred* for whoever waits.

    *place* is the number of its body, negative for a file's. *known* are
    recipients that a tombstone remembers. The Table takes out of *entries* what is not new,
    and sets *trouble* if this message alone could not be kept.
    """

    __slots__ = ("body", "deferred", "entries", "known", "place", "token", "trouble")

    def __init__(self, token: Token, body: Body, entries: list[Entry], place: int, known: frozenset[Address]) -> None:
        self.token = token
        self.body = body
        self.entries = entries
        self.place = place
        self.known = known
        self.deferred: Any = None
        self.trouble: SpoolTrouble | None = None

    def adopt(self, body: Body) -> None:
        """The store's own body takes the place of the one handed over, whose file may go now."""
        self.body = body
        for entry in self.entries:
            entry.message = Message(entry.message.envelope, entry.message.fields, body)

    def only(self, known: frozenset[Address]) -> None:
        """Leave to the entries what is not in *known*; entries about nobody are dropped."""
        for entry in self.entries:
            message = entry.message
            left = tuple(one for one in message.envelope.recipients if one not in known)
            if len(left) < len(message.envelope.recipients):
                entry.message = Message(narrowed(message.envelope, left), message.fields, message.body)
        self.entries = [entry for entry in self.entries if entry.message.envelope.recipients]


class Batch:
    """
    What is written with one commit, keyed by the entry's number.

    Keeps come before settles: a token handed over again while its last entry is being settled
    meets that entry's row. Then *released* before *gone*: the later word holds.
    """

    __slots__ = (
        "epoch", "forgotten", "gone", "journal", "keeps", "moved", "reads", "released", "rewritten", "tombstones",
        "whole",
    )  # fmt: skip

    def __init__(self) -> None:
        self.keeps: list[Keep] = []
        self.gone: dict[int, Gone] = {}
        self.rewritten: dict[int, tuple[Seconds | None, int, bytes, bytes]] = {}  # due, attempts, site, record
        self.released: dict[int, tuple[Seconds, bytes]] = {}  # due, site
        self.tombstones: list[tuple[bytes, int, bytes]] = []  # peer, seq, recipients
        self.forgotten: list[tuple[bytes, int, int]] = []  # peer, tombstones below this go, its low
        self.epoch = 0  # reserve it; 0: nothing to reserve
        self.reads: list[tuple[Callable[[Any], Any], Any]] = []  # asked of the table after the commit; the Deferred
        self.whole = False  # settles may not stay behind any longer
        # Of a journal before this table (qmq.spool.fresh): acknowledged there, and so written whatever the bounds
        # say; the generation that counts from now on, 0: as before.
        self.moved: list[Keep] = []
        self.journal = 0

    @property
    def settles(self) -> bool:
        """Whether there is anything to write but keeps."""
        return bool(
            self.gone or self.rewritten or self.released or self.tombstones or self.forgotten
            or self.epoch or self.journal
        )  # fmt: skip


class Counts:
    """How much is stored."""

    __slots__ = ("birth", "lowest", "messages", "octets", "oldest")

    def __init__(
        self, messages: int = 0, octets: Octets = 0, lowest: int = NONE, oldest: int = NONE, birth: Seconds = math.inf
    ) -> None:
        self.messages = messages
        self.octets = octets
        self.lowest = lowest
        self.oldest = oldest
        self.birth = birth  # of the oldest


class Outcome:
    """
    What happened to a batch.

    *counts* and *alarms* (for the operator, who reads takes them away) are the table's own, and so
    include what its reads found out; they are to be looked at before the table's next job.
    *full* is why nothing more is kept; empty: there is room. *behind*: settles
    wait in the table for company, and are to be asked for with a *whole* batch.
    """

    __slots__ = ("alarms", "answers", "behind", "counts", "full", "refused")

    def __init__(self, counts: Counts, alarms: list[str], full: str) -> None:
        self.counts = counts
        self.alarms = alarms
        self.full = full
        self.refused: SpoolTrouble | None = None  # why none of the keeps was done, though the settles were
        self.answers: list[Any] = []  # to the reads, in order: a result or an exception
        self.behind = False


class Opened:
    """What a table found at start; counts, alarms and full as in Outcome."""

    __slots__ = ("alarms", "counts", "epoch", "full", "journal", "lows", "newest", "secret", "tag", "tombstones")

    def __init__(self, tag: bytes, epoch: int, counts: Counts, alarms: list[str], full: str = "") -> None:
        self.tag = tag
        self.epoch = epoch  # of this start; higher than any before
        self.counts = counts
        self.alarms = alarms
        self.full = full
        self.lows: Sequence[tuple[bytes, int]] = ()
        self.tombstones: Sequence[tuple[bytes, int, bytes]] = ()
        self.newest: dict[bytes, int] = {}  # the highest number of each peer's tokens
        self.journal = self.secret = 0  # the generation from which on a journal counts; what its checksums begin with


class Step(Protocol):
    """A batch that a Table has prepared."""

    def write(self) -> None:
        """In a writer's thread: wait for the disk; raises as Table.commit."""

    def piece(self) -> Piece | None:
        """What write would have written, if all it had to do but look at the room was to write one piece."""

    def written(self, octets: int) -> bool:
        """Of the piece so many octets were written, and are durable; False: that is not all, and it is write's."""

    def outcome(self) -> Outcome:
        """Back in the reactor's thread, when all is written: what Table.commit would have said."""


class Table(Protocol):
    """Rows on disk or in memory. Every method may block; none is called while another runs."""

    def open(self) -> Opened:
        """Take the lock (Held if another has it), free what was in hand, begin a new epoch."""

    def prepare(self, batch: Batch) -> Step | None:
        """
        In the reactor's thread, while no other method runs: all that has not to wait for the disk.

        None: all of it is commit's, which decides anew. A batch that is prepared is asked nothing.
        """

    def commit(self, batch: Batch) -> Outcome:
        """Write the batch, all or nothing; raises Broken or SpoolTrouble, and then nothing was written."""

    def recover(self) -> Outcome:
        """After Broken: begin with what is safely on disk; raises while that cannot be done."""

    def rest(self) -> None:
        """Give back what can be had again: nothing was asked for a long time."""

    def close(self) -> None:
        """Done; let go of the lock."""

    def bound(self, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        """New bounds on the disk; may be called while another method runs."""

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As ISpool.claim."""

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As ISpool.next_due."""

    def body(self, place: int, size: Octets) -> Body:
        """As ISpool.body; raises SpoolTrouble if it is not there."""

    def peek(self, number: int) -> Entry | None:
        """As ISpool.peek; raises SpoolTrouble if its body is not there."""

    def sites(self, query: Query, after: bytes) -> tuple[list[bytes], bytes | None]:
        """Sites above *after* that the query's destinations stand for, and the site to go on after; None: all."""

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """A piece of ISpool.find, and the number to go on after; None: that was all."""

    def survey(self, query: Query, after: int) -> tuple[int, Octets, int | None]:
        """A piece of ISpool.survey."""

    def seize(self, query: Query, after: int, limit: int) -> tuple[list[Held], int | None]:
        """A piece of ISpool.seize."""

    def hasten(self, query: Query, now: Seconds, after: int) -> tuple[int, int | None]:
        """A piece of ISpool.due_now, likewise."""


# number, peer, seq, site, due, attempts, born, size, body, record
Row = tuple[int, bytes, int, bytes, Seconds | None, int, Seconds, Octets, int, bytes]


def narrowed(envelope: Envelope, recipients: tuple[Address, ...]) -> Envelope:
    """The same envelope for some of its recipients."""
    return Envelope(
        envelope.token, envelope.sender, recipients, envelope.origin, envelope.body_type, envelope.smtputf8
    )  # fmt: skip


def revived(row: Row, path: str = "") -> Held:
    """
    The entry of a row; raises DamagedRecord.

    Its body is a file at *path*; the empty path is a body that was not read
    yet, and whoever reads it gets an error instead of an empty message.
    """
    number, peer, seq, site, due, attempts, born, size, place, packed = row
    record = unpack(packed, Token(peer, seq), born)
    body = FileBody(path, size - len(record.fields))
    entry = Entry(number, Message(record.envelope, record.fields, body), site, born)
    entry.due, entry.attempts, entry.generation = due, attempts, record.generation
    entry.last, entry.bouncing, entry.delayed = record.last, record.bouncing, record.delayed
    return entry, record.known, place, size


def with_body(held: Held, body: Body) -> Entry:
    """The entry, its message whole."""
    entry = held[0]
    entry.message = Message(entry.message.envelope, entry.message.fields, body)
    return entry


def rows(keep: Keep, part: int = 0) -> list[tuple[int, bytes, int, int, bytes, Seconds, Octets, int, bytes]]:
    """The rows to insert: number, peer, seq, part, site, born, size, body, record."""
    peer, seq, place = keep.token.peer, keep.token.seq, keep.place
    return [
        (entry.number, peer, seq, i, entry.site, entry.born, entry.message.size, place, pack(entry))
        for i, entry in enumerate(keep.entries, part)
    ]
