"""
A store in memory, with the behaviour of the one on disk: for tests, and to try things.

It keeps records, not entries, so that what a settle does not write is
forgotten here too. A Memory outlives its stores as a disk would: a second
store over the same Memory is a restart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice

from twisted.internet.interfaces import IReactorTime

from qmq.interfaces import SpoolTrouble
from qmq.mail import HELD, Body, Clock, Entry, MemoryBody, Octets, Seconds
from qmq.spool.lock import Held as HeldByOther
from qmq.spool.query import Query
from qmq.spool.record import DamagedRecord, pack, unpack
from qmq.spool.store import Store
from qmq.spool.table import NONE, Batch, Counts, Held, Keep, Opened, Outcome, Row, revived, with_body
from qmq.spool.tombstones import LIMIT
from qmq.spool.writer import Writers

FULL = "the memory is full"


def MemorySpool(
    memory: Memory | None = None, *, clock: IReactorTime, wall: Clock = time.time, writers: Writers | None = None,
    inline: Octets = 131072, tombstones: int = LIMIT, patience: Seconds = 10, idle: Seconds = 60,
) -> Store:  # fmt: skip
    """An ISpool over *memory*; without *writers* everything is done in the caller's thread."""
    return Store(
        MemoryTable(memory or Memory()), clock=clock, writers=writers or Writers(call_from_thread=_now, in_thread=_now),
        wall=wall, inline=inline, tombstones=tombstones, patience=patience, idle=idle,
    )  # fmt: skip


def _now(call: Callable[..., object], *arguments: object) -> None:
    call(*arguments)


class Memory:
    """What is "on disk". Tests set *trouble* (every commit and recovery fails so) and *full* (nothing is kept)."""

    def __init__(self, tag: bytes = b"memory") -> None:
        self.tag = tag
        self.epoch = 0
        self.holder: object = None
        self.rows: dict[int, Row] = {}
        self.bodies: dict[int, bytes] = {}
        self.damaged: dict[int, tuple[Row, str]] = {}
        self.tombstones: dict[tuple[bytes, int], bytes] = {}
        self.lows: dict[bytes, int] = {}
        self.trouble: Exception | None = None
        self.full = False
        self.commits = 0  # that would have been synced


class MemoryTable:
    """A Table over a Memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._hand: set[int] = set()
        self._alarms: list[str] = []
        self._counts = Counts()

    def open(self) -> Opened:
        """As Table.open."""
        memory = self._memory
        if memory.holder not in {None, self}:
            raise HeldByOther("memory is held by process 0")
        memory.holder = self
        memory.epoch += 1
        self._hand.clear()
        for row in list(memory.rows.values()):
            if row[4] is None:
                self._replace(row, due=row[6])
        self._count()
        opened = Opened(memory.tag, memory.epoch, self._counts, self._alarms, FULL if memory.full else "")
        opened.lows = list(memory.lows.items())
        opened.tombstones = [(peer, seq, recipients) for (peer, seq), recipients in memory.tombstones.items()]
        return opened

    def close(self) -> None:
        """As Table.close."""
        if self._memory.holder is self:
            self._memory.holder = None

    def rest(self) -> None:
        """As Table.rest."""

    def recover(self) -> Outcome:
        """As Table.recover."""
        if self._memory.trouble is not None:
            raise self._memory.trouble
        return self._outcome()

    def prepare(self, batch: Batch) -> None:
        """As Table.prepare: there is nothing to prepare."""

    def commit(self, batch: Batch) -> Outcome:
        """As Table.commit."""
        memory = self._memory
        if memory.trouble is not None and (batch.keeps or batch.settles):
            raise memory.trouble
        outcome = self._outcome()
        if memory.full:
            outcome.refused = SpoolTrouble(FULL)
        else:
            for keep in batch.keeps:
                self._keep(keep)
        memory.commits += bool(batch.settles or (batch.keeps and not memory.full))
        self._settle(batch)
        self._count()
        return outcome

    def _keep(self, keep: Keep) -> None:
        if keep.body.path is not None:
            try:
                data = b"".join(keep.body.chunks())
            except OSError as error:
                keep.trouble = SpoolTrouble(str(error))
                return
            if len(data) != keep.body.size:
                keep.trouble = SpoolTrouble(f"{len(data)} octets where {keep.body.size} were announced")
                return
            keep.adopt(MemoryBody(data))
        token = keep.token
        known = set(keep.known)
        for row in self._memory.rows.values():
            if (row[1], row[2]) == (token.peer, token.seq):
                try:
                    known.update(unpack(row[9], token).known)
                except DamagedRecord:
                    continue
                keep.place = row[8]
        keep.only(frozenset(known))
        for entry in keep.entries:
            number, size = entry.number, entry.message.size
            self._memory.rows[number] = (
                number, token.peer, token.seq, entry.site, None, 0, entry.born, size, keep.place, pack(entry),
            )  # fmt: skip
            self._memory.bodies.setdefault(keep.place, keep.body.data or b"")
            self._hand.add(number)

    def _settle(self, batch: Batch) -> None:
        memory = self._memory
        for number, (due, attempts, site, record) in batch.rewritten.items():
            if number in memory.rows:
                row = memory.rows[number]
                memory.rows[number] = (*row[:3], site, due, attempts, *row[6:9], record)
            if due is not None:
                self._hand.discard(number)
        for number, (released, site) in batch.released.items():
            if number in memory.rows:
                row = memory.rows[number]
                memory.rows[number] = (*row[:3], site, released, *row[5:])
            self._hand.discard(number)
        for number, (_, place, _, _) in batch.gone.items():
            memory.rows.pop(number, None)
            self._hand.discard(number)
            left = [*memory.rows.values(), *(row for row, _ in memory.damaged.values())]
            if not any(row[8] == place for row in left):
                memory.bodies.pop(place, None)
        for peer, below, low in batch.forgotten:
            memory.lows[peer] = low
            for key in [key for key in memory.tombstones if key[0] == peer and key[1] < below]:
                del memory.tombstones[key]
        for peer, seq, recipients in batch.tombstones:
            memory.tombstones[peer, seq] = recipients
        memory.epoch = max(memory.epoch, batch.epoch)

    def _replace(self, row: Row, *, due: Seconds) -> None:
        self._memory.rows[row[0]] = (*row[:4], due, *row[5:])

    def bound(self, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        """As Table.bound: memory has none."""

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As Table.claim."""
        taken: list[Held] = []
        for row in self._free_rows(busy):
            if len(taken) >= limit or row[4] is None or row[4] > now:
                break
            self._hand.add(row[0])
            taken += self._revived(row)
        return taken

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As Table.next_due."""
        return next((row[4] for row in self._free_rows(busy)), None)

    def _free_rows(self, busy: frozenset[bytes]) -> list[Row]:
        rows = [
            row for row in self._memory.rows.values()
            if row[4] is not None and row[4] < HELD and row[0] not in self._hand and row[3] not in busy
        ]  # fmt: skip
        return sorted(rows, key=lambda row: (row[4] or 0, row[3], row[0]))

    def _revived(self, row: Row) -> list[Held]:
        try:
            return [revived(row)]
        except DamagedRecord as error:
            self._memory.damaged[row[0]] = (self._memory.rows.pop(row[0]), str(error))
            self._alarms.append(f"message {row[0]} is DAMAGED and put aside: {error}")
            self._count()
            return []

    def body(self, place: int, size: Octets) -> Body:
        """As Table.body."""
        data = self._memory.bodies.get(place)
        if data is None or len(data) != size:
            raise SpoolTrouble(f"body {place} is missing or cut")
        return MemoryBody(data)

    def peek(self, number: int) -> Entry | None:
        """As Table.peek."""
        row = self._memory.rows.get(number)
        for held in () if row is None else self._revived(row):
            held[0].due = None if number in self._hand else held[0].due
            return with_body(held, self.body(held[2], held[0].message.body.size))
        return None

    def sites(self, query: Query, after: bytes) -> tuple[list[bytes], bytes | None]:
        """As Table.sites."""
        return [site for site in {row[3] for row in self._memory.rows.values()} if query.goes(site)], None

    def _matching(self, query: Query, after: int) -> Iterator[Held]:
        for row in sorted(self._memory.rows.values()):
            for held in self._revived(row) if row[0] > after else ():
                if row[0] in self._hand:
                    held[0].due = None
                if query.matches(held[0]):
                    yield held

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """As Table.scan."""
        return [held[0] for held in islice(self._matching(query, after), limit)], None

    def survey(self, query: Query, after: int) -> tuple[int, Octets, int | None]:
        """As Table.survey."""
        sizes = [held[3] for held in self._matching(query, after)]
        return len(sizes), sum(sizes), None

    def seize(self, query: Query, after: int, limit: int) -> tuple[list[Held], int | None]:
        """As Table.seize."""
        nobodys = (held for held in self._matching(query, after) if held[0].due is not None)
        taken = list(islice(nobodys, limit))
        self._hand.update(held[0].number for held in taken)
        return taken, taken[-1][0].number if taken and len(taken) >= limit else None

    def hasten(self, query: Query, now: Seconds, after: int) -> tuple[int, int | None]:
        """As Table.hasten."""
        hastened = 0
        for entry, *_ in self._matching(query, after):
            if entry.due is not None and now < entry.due < HELD:
                self._replace(self._memory.rows[entry.number], due=now)
                hastened += 1
        return hastened, None

    def _outcome(self) -> Outcome:
        return Outcome(self._counts, self._alarms, FULL if self._memory.full else "")

    def _count(self) -> None:
        rows, counts = self._memory.rows.values(), self._counts
        counts.messages, counts.octets = len(rows), sum(row[7] for row in rows)
        counts.oldest, counts.birth = min(((row[0], row[6]) for row in rows), default=(NONE, math.inf))
        counts.lowest = min((row[2] for row in rows if row[1] == self._memory.tag), default=NONE)
