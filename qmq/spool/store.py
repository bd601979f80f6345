"""
The front of every durable store: tokens, who has what in hand, and the gathering of batches.

Lives in the reactor's thread. The first operation lets the loop turn once and
then hands all that has gathered to a writer thread as one batch, one
transaction, one sync; what comes meanwhile is the next batch. Settles ride
with it, or go alone after *linger* seconds.

Whoever holds the table's lock holds the lease of every entry: an entry in
hand is one this process gave out since it started, and its number is known here. What becomes of
it is written, that it was claimed is not; a crash gives it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.interfaces import ISpool, SpoolTrouble
from qmq.mail import Address, Body, Clock, Entry, FileBody, Message, Octets, Seconds, Token
from qmq.spool.lock import Held as HeldByOther
from qmq.spool.query import parse
from qmq.spool.record import pack, unpack_addresses
from qmq.spool.table import NONE, Batch, Broken, Counts, Held, Keep, Opened, Outcome, Table, narrowed
from qmq.spool.tombstones import LIMIT, Tombstones
from qmq.spool.writer import Writers

NOBODY: frozenset[Address] = frozenset()
Ask = Callable[[Table], Any]
# Numbers of one start; half of them gone, the next 2**32 are reserved.
HALF = 1 << 31


@implementer(ISpool)
class Store:
    """
    An ISpool over a Table.

    *inline*: bodies up to so many octets are rows, longer ones files.
    *patience*: how long start waits for the lock. *linger*: how long settles
    wait for company. *retry*: between attempts to recover. *idle*: after so
    long without work the table rests. *tombstones*: how many at most.
    """

    def __init__(
        self, table: Table, *, clock: IReactorTime, writers: Writers, wall: Clock = time.time, inline: Octets = 131072,
        tombstones: int = LIMIT, patience: Seconds = 10, linger: Seconds = 0.05, retry: Seconds = 3, idle: Seconds = 60,
    ) -> None:  # fmt: skip
        self.tag = b""
        self._table, self._clock, self._writers, self._wall, self._inline = table, clock, writers, wall, inline
        self._patience, self._linger, self._retry, self._idle = patience, linger, retry, idle
        self._log = Logger(namespace="qmq.spool")
        self._count(Counts())
        self._tombstones = Tombstones(tombstones)
        self._buried: dict[tuple[bytes, int], None] = {}  # tombstones not written yet
        self._told_at: Seconds = 0  # when the peers' lows were written last
        self._epoch = self._reserved = self._number = self._seq = 0
        # In hand: recipients ever, body's number, octets.
        self._hand: dict[int, tuple[Sequence[Address], int, Octets]] = {}
        self._batch = Batch()
        self._looks: list[tuple[Ask, Any]] = []  # reads that need not wait for the writes before them
        self._settle_at: Seconds | None = None  # the settles gathered go alone from then on
        self._working: Batch | None = None  # in a writer thread now
        self._timer: IDelayedCall | None = None
        self._soon = False
        self._refusal: SpoolTrouble | None = SpoolTrouble("not started")
        self._broken = self._recovering = False
        self._free, self._looked = True, 0.0
        self._used: Seconds = 0
        self._idler: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None

    @property
    def tombstones(self) -> int:
        """Tokens remembered after delivery."""
        return self._tombstones.count

    @property
    def evicted(self) -> int:
        """Tombstones that went because there were too many: each may become a second delivery."""
        return self._tombstones.evicted

    @property
    def in_hand(self) -> int:
        """Entries given out and not settled."""
        return len(self._hand)

    def free(self) -> bool:
        """Whether mail is kept now: the disk's reserve is untouched (known to a second), and no I/O error stands."""
        now = self._clock.seconds()
        if now - self._looked >= 1 and self._refusal is None:
            self._looked = now
            self._looks.append((lambda _: None, None))
            self._schedule(soon=True)
        return self._free and self._refusal is None

    # To start and to stop.

    def start(self) -> Deferred[None]:
        """As ISpool.start; the store is ready for keep when it fires."""
        started: Deferred[None] = Deferred()
        self._stopped = None
        self._open(self._clock.seconds() + self._patience, started)
        return started

    def _open(self, until: Seconds, started: Deferred[None]) -> None:
        def opened(result: Opened | Failure) -> None:
            if not isinstance(result, Failure):
                self._begin(result)
                started.callback(None)
            elif self._stopped is not None:
                started.errback(SpoolTrouble("stopped"))
            elif result.check(HeldByOther) and self._clock.seconds() < until:
                self._clock.callLater(0.25, self._open, until, started)
            else:
                started.errback(result if result.check(SpoolTrouble) else SpoolTrouble(str(result.value)))

        self._writers.run(self._table.open, opened)

    def _begin(self, opened: Opened) -> None:
        self.tag = opened.tag
        self._epoch = self._reserved = opened.epoch
        self._number = self._seq = opened.epoch << 32
        self._tombstones.load(opened.lows, opened.tombstones)
        self._count(opened.counts)
        self._alarm(opened.alarms)
        self._hand.clear()
        self._free, self._refusal = opened.free, None
        self._looked = self._clock.seconds()

    def stop(self) -> Deferred[None]:
        """As ISpool.stop. Entries in hand are due at once after the next start."""
        if self._epoch == 0 or self._stopped is not None:
            self._stopped = self._stopped or succeed(None)
            return succeed(None)
        self._stopped = Deferred()
        stopped, self._refusal = self._stopped, SpoolTrouble("the spool is closed")
        self._cancel()
        if self._working is None and not self._recovering:
            self._last()
        return stopped

    def _last(self) -> None:
        """Write what waits, then close."""
        batch = self._batch
        if not self._broken and (batch.keeps or batch.reads or batch.settles or self._buried or self._looks):
            self._settle_at = 0
            self._told_at = float("-inf")
            self._flush()
            return
        self._forsake(SpoolTrouble("the spool is closed"))

        def closed(_: Any) -> None:
            self._epoch = 0
            self._cancel()
            assert self._stopped is not None
            self._stopped.callback(None)

        self._writers.run(self._table.close, closed)

    def _forsake(self, trouble: SpoolTrouble) -> None:
        """Whoever waits for something not begun learns that it will not be."""
        batch, looks = self._batch, self._looks
        self._looks = []
        waiting = [keep.deferred for keep in batch.keeps] + [deferred for _, deferred in (*batch.reads, *looks)]
        batch.keeps, batch.reads = [], []
        for deferred in waiting:
            if deferred is not None and not deferred.called:
                deferred.errback(trouble)

    # To keep and to settle.

    def next_token(self) -> Token:
        """As ISpool.next_token."""
        self._seq += 1
        return Token(self.tag, self._seq)

    def keep(self, message: Message, sites: Sequence[bytes], low: int) -> Deferred[Sequence[Entry]]:
        """As ISpool.keep. A recipient named twice is one recipient."""
        token = message.envelope.token
        self._tombstones.told(token.peer, low)
        if not self.free():
            return fail(self._refusal or SpoolTrouble("the disk's reserve is reached"))
        entries = self._entries(message, sites)
        tombstone = self._tombstones.known(token.peer, token.seq)
        if tombstone is None:
            known = NOBODY
        else:
            known = frozenset(unpack_addresses(tombstone))
        if not entries:
            return succeed(())
        body, number = message.body, entries[0].number
        keep = Keep(token, body, entries, number if body.size <= self._inline else -number, known)
        if known:
            keep.only(known)
            if not keep.entries:
                return succeed(())
        keep.deferred = Deferred()
        self._batch.keeps.append(keep)
        self._schedule(soon=True)
        deferred: Deferred[Sequence[Entry]] = keep.deferred
        return deferred

    def _entries(self, message: Message, sites: Sequence[bytes]) -> list[Entry]:
        envelope = message.envelope
        recipients = envelope.recipients
        if len(recipients) == 1:
            groups = [(sites[0], message)]
        else:
            by_site: dict[bytes, dict[Address, None]] = {}
            for one, site in zip(recipients, sites, strict=True):
                by_site.setdefault(site, {})[one] = None
            groups = [
                (site, Message(narrowed(envelope, tuple(some)), message.fields, message.body))
                for site, some in by_site.items()
            ]
        born, entries = self._wall(), []
        for site, part in groups:
            self._number += 1
            entry = Entry(self._number, part, site, born)
            entry.fence = self._epoch
            entries.append(entry)
        return entries

    def settle(self, entry: Entry) -> None:
        """As ISpool.settle; an entry that is not in hand is left alone."""
        number = entry.number
        held = self._hand.get(number)
        if held is None or entry.fence != self._epoch:
            return
        recipients, place, size = held
        envelope = entry.message.envelope
        if not envelope.recipients and not entry.bouncing:
            token = envelope.token
            del self._hand[number]
            self._batch.rewritten.pop(number, None)
            self._batch.gone[number] = (token, place, size)
            if self._tombstones.bury(token.peer, token.seq, recipients):
                self._buried[token.peer, token.seq] = None
        else:
            left = {*envelope.recipients, *(one for one, _ in entry.bouncing)}
            record = pack(entry, [one for one in recipients if one not in left])
            self._batch.rewritten[number] = (entry.due, entry.attempts, entry.site, record)
            if entry.due is not None:
                del self._hand[number]
        self._settle_later()

    def release(self, entry: Entry, due: Seconds) -> None:
        """As ISpool.release."""
        if entry.fence == self._epoch and self._hand.pop(entry.number, None) is not None:
            entry.due = due
            self._batch.released[entry.number] = (due, entry.site)
            self._settle_later()

    def _settle_later(self) -> None:
        if self._settle_at is None:
            self._settle_at = self._clock.seconds() + self._linger
            self._schedule(soon=False)

    # To find work, and to look in.

    def claim(self, now: Seconds, limit: int, busy: Sequence[bytes]) -> Deferred[Sequence[Entry]]:
        """As ISpool.claim; an entry's body has its size, and is to be had from body()."""
        sites = frozenset(busy)
        return self._ask(lambda table: table.claim(now, limit, sites)).addCallback(self._claimed)

    def _claimed(self, claimed: list[Held]) -> list[Entry]:
        for entry, recipients, place, size in claimed:
            entry.fence = self._epoch
            entry.due = None
            self._hand[entry.number] = (recipients, place, size)
        return [held[0] for held in claimed]

    def next_due(self, busy: Sequence[bytes]) -> Deferred[Seconds | None]:
        """As ISpool.next_due; behind thousands of entries of busy sites it may be too early, never too late."""
        sites = frozenset(busy)
        return self._ask(lambda table: table.next_due(sites))

    def body(self, entry: Entry) -> Body | Deferred[Body]:
        """As ISpool.body; fails with SpoolTrouble if the body is not there any more."""
        held = self._hand.get(entry.number)
        if held is None:
            return fail(SpoolTrouble(f"entry {entry.number} is not in hand"))
        body = entry.message.body
        if body.path is None:
            return body
        size, place = body.size, held[1]
        read: Deferred[Body] = Deferred()
        self._looks.append((lambda table: table.body(place, size), read))
        return self._waiting(read)

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """As ISpool.due_now; goes piece by piece, so that mail is kept and claimed in between."""
        now = self._wall()
        total = 0

        def counted(piece: tuple[int, int | None]) -> int | Deferred[int]:
            nonlocal total
            total += piece[0]
            after = piece[1]
            return total if after is None else hasten(after)

        def hasten(after: int) -> Deferred[int]:
            return self._ask(lambda table: table.hasten(wanted, now, after)).addCallback(counted)

        try:
            wanted = parse(query)
        except ValueError:
            return fail(Failure())
        return hasten(0)

    def find(self, query: Mapping[str, str], after: int, limit: int) -> Deferred[Sequence[Entry]]:
        """As ISpool.find; a word that cannot be asked for fails with ValueError. *due* is None of what is in hand."""
        found: list[Entry] = []

        def looked(piece: tuple[list[Entry], int | None]) -> Sequence[Entry] | Deferred[Sequence[Entry]]:
            found.extend(piece[0])
            return found if piece[1] is None or len(found) >= limit else look(piece[1])

        def look(after: int) -> Deferred[Sequence[Entry]]:
            return self._ask(lambda table: table.scan(wanted, after, limit - len(found))).addCallback(looked)

        try:
            wanted = parse(query)
        except ValueError:
            return fail(Failure())
        return look(after)

    def _ask(self, ask: Ask) -> Deferred[Any]:
        """Ask the table, after all that was settled until now has been written."""
        answer: Deferred[Any] = Deferred()
        self._batch.reads.append((ask, answer))
        return self._waiting(answer)

    def _waiting(self, answer: Deferred[Any]) -> Deferred[Any]:
        if self._refusal is not None:
            self._forsake(self._refusal)
        else:
            self._schedule(soon=True)
        return answer

    # Batches.

    def _schedule(self, *, soon: bool) -> None:
        if self._working is not None or self._refusal is not None or self._soon:
            return  # whoever ends that looks at what waits
        if soon:
            self._cancel_timer()
            self._soon = True
            self._timer = self._clock.callLater(0, self._flush)
        elif self._timer is None and self._settle_at is not None:
            self._timer = self._clock.callLater(max(0, self._settle_at - self._clock.seconds()), self._flush)

    def _flush(self) -> None:
        self._timer, self._soon = None, False
        now = self._clock.seconds()
        batch = self._batch
        if batch.keeps or batch.reads or (self._settle_at is not None and now >= self._settle_at):
            self._batch, self._settle_at = Batch(), None
            self._complete(batch, now)
        else:
            batch = Batch()
        batch.reads += self._looks
        self._looks = []
        self._working = batch
        self._writers.run(lambda: self._work(batch), self._written)

    def _complete(self, batch: Batch, now: Seconds) -> None:
        """Tombstones still in doubt; now and then what peers told; the numbers of the next start."""
        for peer, seq in self._buried:
            recipients = self._tombstones.known(peer, seq)
            if recipients is not None:
                batch.tombstones.append((peer, seq, recipients))
        self._buried.clear()
        if now - self._told_at >= 1:
            self._told_at = now
            batch.forgotten = self._tombstones.forgotten()
        if max(self._number, self._seq) >= (self._reserved << 32) + HALF:
            self._reserved += 1
            batch.epoch = self._reserved

    def _work(self, batch: Batch) -> Outcome:
        """In a writer thread."""
        outcome = self._table.commit(batch)
        for ask, _ in batch.reads:
            try:
                outcome.answers.append(ask(self._table))
            except Exception as error:  # noqa: BLE001 - it is the asker's
                outcome.answers.append(error)
        return outcome

    def _written(self, result: Outcome | Failure) -> None:
        batch, self._working = self._working, None
        assert batch is not None
        if isinstance(result, Failure):
            self._failed(batch, result)
        else:
            self._done(batch, result)
        self._go_on()

    def _go_on(self) -> None:
        if self._stopped is not None:
            self._last()
        elif self._refusal is None:
            self._used = self._clock.seconds()
            if self._idler is None:
                self._idler = self._clock.callLater(self._idle, self._rest)
            self._schedule(soon=bool(self._batch.keeps or self._batch.reads or self._looks))

    def _done(self, batch: Batch, outcome: Outcome) -> None:
        self._count(outcome)
        self._free = outcome.free
        self._alarm(outcome.alarms)
        for keep in batch.keeps:
            trouble = outcome.refused or keep.trouble
            if trouble is not None:
                self._fire(keep.deferred, trouble)
                continue
            for entry in keep.entries:
                message = entry.message
                self._hand[entry.number] = (message.envelope.recipients, keep.place, message.size)
            if keep.deferred.called:  # cancelled too late: it is ours, and goes its way
                for entry in keep.entries:
                    self.release(entry, entry.born)
            else:
                keep.deferred.callback(keep.entries)
        for (_, deferred), answer in zip(batch.reads, outcome.answers, strict=True):
            self._fire(deferred, answer)

    def _failed(self, batch: Batch, failure: Failure) -> None:
        trouble = failure.value if failure.check(SpoolTrouble) else SpoolTrouble(repr(failure.value))
        assert isinstance(trouble, SpoolTrouble)
        self._log.failure("batch not written: {trouble}", failure, trouble=trouble)
        self._put_back(batch)
        if isinstance(trouble, Broken):
            self._broken, self._refusal = True, self._refusal or trouble
            self._clock.callLater(self._retry, self._recover)
        elif self._stopped is not None:
            self._broken = True  # no second attempt while stopping
        for deferred in [keep.deferred for keep in batch.keeps] + [deferred for _, deferred in batch.reads]:
            self._fire(deferred, trouble)
        if isinstance(trouble, Broken):
            self._forsake(trouble)

    def _fire(self, deferred: Any, answer: Any) -> None:
        if deferred is None or deferred.called:
            return
        if isinstance(answer, Exception):
            trouble = answer if isinstance(answer, SpoolTrouble) else SpoolTrouble(repr(answer))
            deferred.errback(trouble)
        else:
            deferred.callback(answer)

    def _put_back(self, batch: Batch) -> None:
        """Settles that were not written wait for the next batch; what was said since then holds."""
        now = self._batch
        now.gone = {**batch.gone, **now.gone}
        now.rewritten = {**batch.rewritten, **now.rewritten}
        now.released = {**batch.released, **now.released}
        now.epoch = max(now.epoch, batch.epoch)
        self._buried.update(((peer, seq), None) for peer, seq, _ in batch.tombstones)
        self._tombstones.repeat(batch.forgotten)
        if now.settles:
            self._settle_at = self._clock.seconds() + self._retry

    def _recover(self) -> None:
        if self._stopped is not None or not self._broken:
            return

        def recovered(result: Outcome | Failure) -> None:
            self._recovering = False
            if isinstance(result, Failure):
                self._log.error("not recovered: {reason}", reason=result.getErrorMessage())
                if self._stopped is None:
                    self._clock.callLater(self._retry, self._recover)
            else:
                self._log.info("recovered: {messages} messages", messages=result.messages)
                self._broken, self._free = False, result.free
                self._refusal = self._refusal if self._stopped else None
                self._count(result)
                self._alarm(result.alarms)
            self._go_on()

        self._recovering = True
        self._writers.run(self._table.recover, recovered)

    def _rest(self) -> None:
        self._idler = None
        left = self._used + self._idle - self._clock.seconds()
        if self._working is not None or self._refusal is not None:
            return  # _go_on begins anew
        if left > 0:
            self._idler = self._clock.callLater(left, self._rest)
        else:
            self._working = Batch()
            self._writers.run(self._table.rest, self._rested)

    def _rested(self, result: None | Failure) -> None:
        self._working = None
        if isinstance(result, Failure):
            self._log.failure("could not rest", result)
        if self._stopped is not None:
            self._last()
        else:
            self._schedule(soon=bool(self._batch.keeps or self._batch.reads or self._looks))

    def _cancel(self) -> None:
        self._cancel_timer()
        if self._idler is not None:
            self._idler.cancel()
            self._idler = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._soon = None, False

    def _count(self, counts: Counts | Outcome) -> None:
        self.messages, self.octets = counts.messages, counts.octets
        self.lowest, self.oldest = counts.lowest, counts.oldest

    def _alarm(self, alarms: Sequence[str]) -> None:
        for alarm in alarms:
            self._log.critical("{alarm}", alarm=alarm)


__all__ = ["NONE", "FileBody", "Store"]
