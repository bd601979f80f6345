"""
Fresh mail lies in a journal, what stays longer in the table behind it.

Nearly all mail is delivered at once: it is written to the journal, synced and acknowledged,
and when it went a few octets say so; no row is made for it. Whatever has to be found again (what is
to be tried again, what an operator looks for, what is left at the end) is moved: one transaction of the table
takes all that is fresh along, and says from which generation on the journal counts.
So what was acknowledged is in one of the two at any time.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from qmq.interfaces import SpoolTrouble
from qmq.mail import Body, Entry, Octets, Seconds, Token
from qmq.spool.journal import Block, Fresh, Journal, Tombstone
from qmq.spool.messages import Messages
from qmq.spool.query import Query
from qmq.spool.ring import Piece
from qmq.spool.sqlite import SQLiteTable
from qmq.spool.statements import freed, known, still_there
from qmq.spool.table import Batch, Broken, Counts, Gone, Held, Keep, Opened, Outcome, rows
from qmq.spool.tombstones import Stones

T = TypeVar("T")

# A generation of that length is followed by the next as soon as nothing is left of the one before it.
SHORT: Octets = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOTHING = Batch()  # a commit of it says how full it is


class FreshTable:
    """
    A Table of a *journal* and the rows of a *table*.

    What is fresh is in hand, and in memory too. What has to be done to rows waits
    (Outcome.behind) until a batch must be written whole.
    """

    def __init__(self, table: SQLiteTable, journal: Journal) -> None:
        self._table, self._journal = table, journal
        self._tag = b""
        self._counts, self._rows = Counts(), Counts()  # of all; of the table's, and its own
        self._fresh = Messages(b"")
        self._newest: dict[bytes, int] = {}  # the highest number of each peer's tokens that may have rows
        # In the journal alone, until the table has them too or they are forgotten; what was forgotten meanwhile.
        self._tombstones: defaultdict[bytes, Stones] = defaultdict(Stones)
        self._forgotten: dict[bytes, tuple[int, int]] = {}
        self._behind = Batch()  # settles that wait
        self._trouble = ""  # why nothing is written until the table has recovered
        self._full = ""  # as the last outcome said

    # To open and to close.

    def open(self) -> Opened:
        """As Table.open; what the journal holds is moved, and due at once."""
        opened = self._table.open()
        try:
            self._begin(opened)
        except BaseException:
            self._table.close()
            raise
        return opened

    def _begin(self, opened: Opened) -> None:
        journal, first = self._journal, Batch()
        self._tag, self._rows = opened.tag, opened.counts
        self._forget_all()
        self._newest, self._trouble = opened.newest, ""
        journal.secret = opened.secret
        try:
            blocks, wrong = journal.read(opened.journal)
        except OSError as error:
            raise Broken(str(error)) from error
        gone = [number for block in blocks for number in self._replay(block)]
        first.gone = self._table.ask(lambda connection: still_there(connection, gone)) if gone else {}
        opened.alarms += wrong
        for peer, seq, whose in opened.tombstones:
            # They only grow: one that tells of more recipients is the later one.
            if len(whose) > len(self._tombstones[peer].recipients.get(seq, whose)):
                self._tombstones[peer].put(seq, whose)
        opened.tombstones = [*opened.tombstones, *self._buried()]
        if (epoch := (journal.generation >> 32) + 1) > opened.epoch:
            # The table was restored from a copy of earlier; its numbers must not be given out twice.
            opened.epoch = first.epoch = epoch
        journal.begin(opened.epoch << 32)
        numbers = list(self._fresh.by_number)
        outcome = self.move(first, always=bool(blocks))
        if numbers:
            hand = self._table.hand
            hand.difference_update(numbers)
            self._table.ask(lambda connection: freed(connection, hand))
        journal.drop()
        opened.counts, opened.full = outcome.counts, outcome.full

    def _replay(self, block: Block) -> list[int]:
        """The entries that went though they were not fresh."""
        for one in block.messages:
            self._fresh.add(one)
        for peer, seq, whose in block.tombstones:
            self._tombstones[peer].put(seq, whose)
        return [number for number in block.gone if not self._fresh.remove(number)]

    def recover(self) -> Outcome:
        """As Table.recover: all that is fresh is moved, and the journal begun anew."""
        self._journal.close()  # no file stays open meanwhile
        self._trouble = "it has not recovered"
        self._table.recover()
        self._trouble = ""
        outcome = self.move(Batch(), always=True)
        self._journal.drop()
        return outcome

    def rest(self) -> None:
        """As Table.rest: all that is fresh is moved, and the journal goes."""
        self._move_all()
        self._journal.drop()
        self._table.rest()

    def close(self) -> None:
        """
        As Table.close; likewise. What cannot be moved is found in the journal at the next start.

        After trouble nothing is touched: somebody else may have it.
        """
        try:
            if not self._trouble:
                self._move_all()
                self._journal.drop()
        finally:
            self._journal.close()
            self._table.close()

    def bound(self, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        """As Table.bound."""
        self._table.bound(reserve, inodes, share)

    # To write.

    def prepare(self, batch: Batch) -> Append | None:
        """As Table.prepare."""
        return self._append(batch, ask=False)

    def commit(self, batch: Batch) -> Outcome:
        """As Table.commit; what has to be done to rows may stay behind."""
        # A token that is handed over again meets its row: then the row may not go before.
        if batch.whole and not self._strange(batch.keeps, ask=True):
            self._settle_rows(batch)
        append = self._append(batch, ask=True)
        if append is None:
            return self.move(batch)
        append.write()
        return append.outcome()

    def _append(self, batch: Batch, *, ask: bool) -> Append | None:
        """The batch for the journal; None: not all of it is for that, as far as is known without asking the table."""
        fresh, journal, behind = self._fresh, self._journal, self._behind
        gone = {number: entry for number, entry in batch.gone.items() if number not in fresh.by_number}
        to_rows = bool(gone or batch.rewritten or batch.released or behind.settles)
        if self._trouble or self._full or batch.epoch or (batch.whole and to_rows):
            return None
        if self._strange(batch.keeps, ask=ask):
            return None
        if journal.at > SHORT and journal.since == journal.generation:
            journal.begin(journal.generation + 1)
        generation = journal.generation
        messages = [
            Fresh(keep.token.peer, keep.token.seq, keep.place, keep.body.data or b"", rows(keep), generation)
            for keep in batch.keeps
        ]
        block = Block(messages, batch.gone, batch.tombstones, fresh.since(generation))
        if not journal.at:
            # What the files before say beside their messages counts on.
            block.gone = [*behind.gone, *block.gone]
            block.tombstones = [*self._buried(), *block.tombstones]
        append = Append(self, self._table, journal, batch, gone, block)
        return append if append.fits else None

    def _strange(self, keeps: list[Keep], *, ask: bool) -> bool:
        """Whether one of them is not for the journal: its body is a file, or its token may be known."""
        newest, here = self._newest, set()
        for keep in keeps:
            if keep.place < 0 or keep.known or keep.body.path is not None:
                return True
            peer, seq = key = (keep.token.peer, keep.token.seq)
            if key in self._fresh.tokens or key in here:
                return True
            if seq <= newest.get(peer, -1) and self._rows.messages and not (ask and self._unknown(key)):
                return True
            here.add(key)
        return False

    def _unknown(self, token: tuple[bytes, int]) -> bool:
        return not self._table.ask(lambda connection: known(connection, *token))

    def appended(self, batch: Batch, messages: Sequence[Fresh], gone: dict[int, Gone]) -> bool:
        """It is in the journal; *gone* are rows. Whether something stays behind."""
        fresh = self._fresh
        for one in messages:
            fresh.add(one)
        for number in batch.gone:
            fresh.remove(number)
        behind = self._behind
        behind.gone.update(gone)
        behind.rewritten.update(batch.rewritten)
        behind.released.update(batch.released)
        self._bury(batch)
        return behind.settles

    def _bury(self, batch: Batch) -> None:
        """Tombstones, until the table has them too or nobody is in doubt any more."""
        tombstones = self._tombstones
        for peer, below, low in batch.forgotten:
            self._forgotten[peer] = (below, low)
            tombstones[peer].drop(below)
        for peer, seq, recipients in batch.tombstones:
            tombstones[peer].put(seq, recipients)

    def _buried(self) -> list[Tombstone]:
        return [
            (peer, seq, whose) for peer, stones in self._tombstones.items() for seq, whose in stones.recipients.items()
        ]

    def move(self, batch: Batch, *, always: bool = False) -> Outcome:
        """
        One transaction: *batch*, what waited, and all that is fresh.

        If it fails nothing has changed here, and in the table only what its recover finds.
        *always*: also if there is nothing to move.
        """
        if self._trouble:
            raise Broken(self._trouble)
        table, journal = self._table, self._journal
        whole = self._with_behind(batch)
        # What goes with this batch is moved too: a token that is handed over again meanwhile meets its row.
        whole.keeps, whole.moved = batch.keeps, self._fresh.keeps()
        forgotten = {**self._forgotten, **{peer: (below, low) for peer, below, low in batch.forgotten}}
        whole.forgotten = [(peer, below, low) for peer, (below, low) in forgotten.items()]
        whole.tombstones = [*self._buried(), *batch.tombstones]
        whole.epoch = batch.epoch
        if always or whole.moved or whole.tombstones or journal.at > SHORT:
            whole.journal = journal.generation + 1
        # In hand they are, and known, should this turn up though it fails.
        numbers = [entry.number for keep in whole.moved for entry in keep.entries]
        table.hand.update(numbers)
        for keep in (*batch.keeps, *whole.moved):
            self._seen(keep.token)
        try:
            outcome = self._commit(whole)
        except Broken:
            raise
        except BaseException:
            table.hand.difference_update(numbers)
            raise
        if whole.journal:
            journal.begin(whole.journal)
        self._forget_all()
        if outcome.full:
            # The room that its files take may be all that is missing.
            journal.drop()
            table.beside = journal.size
        return self.counted(outcome)

    def _with_behind(self, batch: Batch) -> Batch:
        """What waited and what *batch* has to do, be it to rows or to what is fresh; the later word holds."""
        behind, whole = self._behind, Batch()
        whole.gone = {**behind.gone, **batch.gone}
        whole.rewritten = {**behind.rewritten, **batch.rewritten}
        whole.released = {**behind.released, **batch.released}
        return whole

    def _commit(self, batch: Batch) -> Outcome:
        """Of the table. After trouble the journal may not count any more."""
        try:
            return self._table.commit(batch)
        except Broken as error:
            self._trouble = str(error)
            raise

    def _settle_rows(self, batch: Batch) -> None:
        """
        One transaction of what waited, and what *batch* has to do to rows: it has no more of that then.

        If what is fresh comes to rest it is all move's, and nothing is done here.
        """
        fresh, whole = self._fresh.by_number, self._with_behind(batch)
        whole.gone = {number: gone for number, gone in whole.gone.items() if number not in fresh}
        rests = not fresh.keys().isdisjoint(whole.rewritten) or not fresh.keys().isdisjoint(whole.released)
        if self._trouble or rests or not whole.settles:
            return
        whole.tombstones = batch.tombstones  # the journal has them later than these rows are gone
        self._commit(whole)
        self._behind = Batch()
        batch.gone = {number: gone for number, gone in batch.gone.items() if number in fresh}
        batch.rewritten, batch.released = {}, {}

    def _move_all(self) -> None:
        """So that it can be found."""
        buried = any(stones.recipients for stones in self._tombstones.values())
        if self._fresh.by_number or self._behind.settles or buried or self._forgotten:
            self.move(Batch())

    def _seen(self, token: Token) -> None:
        if token.seq > self._newest.get(token.peer, -1):
            self._newest[token.peer] = token.seq

    def _forget_all(self) -> None:
        """The table has it all."""
        self._fresh = Messages(self._tag)
        self._forgotten, self._behind = {}, Batch()
        self._tombstones.clear()

    def counted(self, outcome: Outcome) -> Outcome:
        """With the counts of both."""
        self._count()
        outcome.counts, self._full = self._counts, outcome.full
        return outcome

    def _count(self) -> None:
        self._fresh.count(self._rows, self._counts)

    # To read. What is fresh is in hand: it is not to be claimed.

    def claim(self, now: Seconds, limit: int, busy: frozenset[bytes]) -> list[Held]:
        """As Table.claim."""
        return self._asked(lambda: self._table.claim(now, limit, busy))

    def next_due(self, busy: frozenset[bytes]) -> Seconds | None:
        """As Table.next_due."""
        return self._table.next_due(busy)

    def body(self, place: int, size: Octets) -> Body:
        """As Table.body."""
        return self._table.body(place, size)

    def hasten(self, query: Query, now: Seconds, after: int) -> tuple[int, int | None]:
        """As Table.hasten."""
        return self._asked(lambda: self._table.hasten(query, now, after))

    def seize(self, query: Query, after: int, limit: int) -> tuple[list[Held], int | None]:
        """As Table.seize."""
        return self._asked(lambda: self._table.seize(query, after, limit))

    # Whoever looks at what is in hand too looks at rows.

    def peek(self, number: int) -> Entry | None:
        """As Table.peek."""
        self._move_all()
        return self._asked(lambda: self._table.peek(number))

    def sites(self, query: Query, after: bytes) -> tuple[list[bytes], bytes | None]:
        """As Table.sites."""
        self._move_all()
        return self._table.sites(query, after)

    def scan(self, query: Query, after: int, limit: int) -> tuple[list[Entry], int | None]:
        """As Table.scan."""
        self._move_all()
        return self._asked(lambda: self._table.scan(query, after, limit))

    def survey(self, query: Query, after: int) -> tuple[int, Octets, int | None]:
        """As Table.survey."""
        self._move_all()
        return self._asked(lambda: self._table.survey(query, after))

    def _asked(self, ask: Callable[[], T]) -> T:
        """What the table says; it may have put damaged rows aside."""
        try:
            return ask()
        finally:
            self._count()


class Append:
    """
    A batch for the journal: made in the reactor's thread, written in a writer's.

    The less Python runs in a writer, the less the two threads take the interpreter from each other.
    """

    def __init__(
        self, fresh: FreshTable, table: SQLiteTable, journal: Journal, batch: Batch, gone: dict[int, Gone], block: Block
    ) -> None:
        self._fresh, self._table, self._journal, self._batch, self._gone = fresh, table, journal, batch, gone
        self._block = block
        self._octets = journal.made(block)
        self._outcome: Outcome | None = None
        self._moved = False
        self._failed: OSError | None = None  # to write its piece; some of it may be in the file

    @property
    def fits(self) -> bool:
        """Whether the journal has room for it."""
        return bool(self._octets)

    def write(self) -> None:
        """As Step.write. With a full disk nothing is kept, and what went is told to the table."""
        batch, block, journal = self._batch, self._block, self._journal
        if self._failed is not None:
            journal.void()
            if self._failed.errno == errno.EIO:
                raise Broken(str(self._failed))
        self._table.beside = journal.size
        self._outcome = outcome = self._table.commit(_NOTHING)
        if outcome.full and batch.keeps:
            outcome.refused, block.messages = SpoolTrouble(outcome.full), ()
            self._octets = journal.made(block)
        if not (block.messages or batch.gone or batch.tombstones):
            return
        try:
            journal.write(self._octets)
        except OSError as error:
            if error.errno not in _FULL:
                raise Broken(str(error)) from error
            self._outcome, self._moved = self._fresh.move(batch), True

    def piece(self) -> Piece | None:
        """As Step.piece."""
        batch = self._batch
        return self._journal.piece(self._octets) if batch.keeps or batch.gone or batch.tombstones else None

    def written(self, octets: int) -> bool:
        """As Step.written."""
        if octets != len(self._octets):
            self._failed = OSError(-min(octets, 0), os.strerror(-min(octets, 0)))
            return False
        self._journal.written(self._octets)
        self._outcome = Outcome(Counts(), [], "")
        return True

    def outcome(self) -> Outcome:
        """As Step.outcome."""
        outcome = self._outcome
        assert outcome is not None
        if not self._moved:
            outcome.behind = self._fresh.appended(self._batch, self._block.messages, self._gone)
            self._fresh.counted(outcome)
        return outcome
