"""
The front of every durable store: its tokens, what is in hand, what is known already.

Lives in the reactor's thread. Whoever holds the table's lock holds the lease
of every entry: an entry in hand is one this process gave out since it
started, and its number is in memory. What becomes of it is written; that it
was claimed is not, and a crash gives it back.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.interfaces import ISpool, SpoolTrouble
from qmq.mail import Address, Body, Clock, Entry, Message, Octets, Seconds, Token
from qmq.spool.gather import Gathering
from qmq.spool.lock import Held as HeldByOther
from qmq.spool.looking import Looking
from qmq.spool.record import pack, unpack_addresses
from qmq.spool.table import NONE, Batch, Held, Keep, Opened, Outcome, Table, narrowed
from qmq.spool.tombstones import LIMIT, Tombstones
from qmq.spool.writer import Writers

NOBODY: frozenset[Address] = frozenset()
# Of a start's 2**32 numbers so many are used before the next 2**32 are reserved.
HALF = 1 << 31
# Who watches a thousand stores need not wake each of them every second.
_RESTING: Seconds = 10
# How often the table hears what peers told: until then it keeps, and a journal writes again, what nobody needs.
_FORGET: Seconds = 0.05
# What a table can hold.
HIGHEST = (1 << 63) - 1


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
        self.messages = self.octets = 0
        self.lowest = self.oldest = NONE
        self.birth: Seconds = math.inf
        self._table, self._clock, self._writers, self._wall = table, clock, writers, wall
        self._inline, self._patience = inline, patience
        self._gathering = Gathering(
            table, self, clock=clock, writers=writers, linger=linger, retry=retry, idle=idle
        )  # fmt: skip
        self._looking = Looking(self._gathering.ask, wall)
        self._log = Logger(namespace="qmq.spool")
        self._tombstones = Tombstones(tombstones)
        self._told_at: Seconds = 0  # when peers' lows were written last
        self._epoch = self._reserved = self._number = self._seq = 0
        # In hand: recipients ever, body's number, octets.
        self._hand: dict[int, tuple[Sequence[Address], int, Octets]] = {}
        # Of what is not in hand nothing is due before *_told*, as the table said, and nothing that came since before
        # *_came*: a thousand stores need not be opened twice a minute to say so again.
        self._told = -math.inf
        self._came = math.inf
        self._open_state = ""  # "", opening, open

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
        """Whether mail is kept now: its bounds are not reached (known to a second), and no I/O error stands."""
        return not self._gathering.full()

    @property
    def full(self) -> str:
        """Why no mail is kept now, for the operator; empty: it is kept. Of one that rests known to ten seconds."""
        return self._gathering.full(_RESTING)

    def bound(self, reserve: Octets, inodes: int, share: Octets | float | None) -> None:
        """From now on it may take so much of its disk; see qmq.spool.room."""
        self._table.bound(reserve, inodes, share)

    # To start and to stop.

    def start(self) -> Deferred[None]:
        """As ISpool.start."""
        started: Deferred[None] = Deferred()
        self._open_state = "opening"
        self._open(self._clock.seconds() + self._patience, started)
        return started

    def _open(self, until: Seconds, started: Deferred[None]) -> None:
        def opened(result: Opened | Failure) -> None:
            if not isinstance(result, Failure) and self._open_state:
                self._begin(result)
                started.callback(None)
            elif not isinstance(result, Failure):
                self._writers.run(self._table.close, lambda _: started.errback(SpoolTrouble("the spool is closed")))
            elif result.check(HeldByOther) and self._clock.seconds() < until and self._open_state:
                self._clock.callLater(0.25, self._open, until, started)
            else:
                self._open_state = ""
                trouble = result.value if isinstance(result.value, SpoolTrouble) else SpoolTrouble(str(result.value))
                self._gathering.refusal = trouble  # and that is why it is full
                started.errback(trouble)

        self._writers.run(self._table.open, opened)

    def _begin(self, opened: Opened) -> None:
        self._open_state = "open"
        self.tag = opened.tag
        self._epoch = self._reserved = opened.epoch
        self._number = self._seq = opened.epoch << 32
        self._hand.clear()
        self._tombstones.load(opened.lows, opened.tombstones)
        self._gathering.begin(opened.full)
        self.written(Outcome(opened.counts, opened.alarms, opened.full))

    def stop(self) -> Deferred[None]:
        """As ISpool.stop. Entries in hand are due at once after the next start."""
        state, self._open_state = self._open_state, ""
        if state != "open":
            return succeed(None)
        self._told_at = float("-inf")
        return self._gathering.stop()

    # To keep and to settle.

    def next_token(self) -> Token:
        """As ISpool.next_token."""
        self._seq += 1
        return Token(self.tag, self._seq)

    def keep(self, message: Message, sites: Sequence[bytes], low: int) -> Deferred[Sequence[Entry]]:
        """As ISpool.keep. A recipient named twice is one recipient."""
        token = message.envelope.token
        gathering = self._gathering
        if not 0 <= token.seq <= HIGHEST:
            return fail(SpoolTrouble(f"{token.seq} is no number of a token"))
        self._tombstones.told(token.peer, min(low, HIGHEST))
        if gathering.closed and (full := gathering.full()):
            return fail(gathering.refusal or SpoolTrouble(full))
        tombstone = self._tombstones.known(token.peer, token.seq)
        entries = self._entries(message, sites)
        if not entries:
            return succeed(())
        body, number = message.body, entries[0].number
        known = NOBODY if tombstone is None else frozenset(unpack_addresses(tombstone))
        keep = Keep(token, body, entries, number if body.size <= self._inline else -number, known)
        if known:
            keep.only(known)
            if not keep.entries:
                return succeed(())
        deferred: Deferred[Sequence[Entry]] = Deferred()
        keep.deferred = deferred
        gathering.keep(keep)
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
        now, came = self._wall(), envelope.origin.born
        # What came from another of our queues is as old as it was there; a clock that is ahead of ours is not believed.
        born, entries = came if 0 < came <= now else now, []
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
        todo = entry.message.envelope.recipients
        if not todo and not entry.bouncing:
            self.done(entry)
            return
        left = {*todo, *(one for one, _ in entry.bouncing)}
        record = pack(entry, [one for one in held[0] if one not in left])
        self._gathering.batch.rewritten[number] = (entry.due, entry.attempts, entry.site, record)
        if entry.due is not None:
            del self._hand[number]
            self._came = min(self._came, entry.due)
        self._gathering.settle()

    def done(self, entry: Entry) -> None:
        """As ISpool.done."""
        held = self._hand.get(entry.number) if entry.fence == self._epoch else None
        if held is not None:
            del self._hand[entry.number]
            recipients, place, size = held
            self._gathering.batch.gone[entry.number] = (entry.message.envelope.token, place, size, recipients)
            self._gathering.settle()

    def release(self, entry: Entry, due: Seconds) -> None:
        """As ISpool.release; an operator may have given it another site, which is written too."""
        if entry.fence == self._epoch and self._hand.pop(entry.number, None) is not None:
            entry.due = due
            self._came = min(self._came, due)
            self._gathering.batch.released[entry.number] = (due, entry.site)
            self._gathering.settle()

    # To find work, and to look in.

    def claim(self, now: Seconds, limit: int, busy: Sequence[bytes]) -> Deferred[Sequence[Entry]]:
        """As ISpool.claim; an entry's body has its size, and is to be had from body()."""
        if self._nothing_until() > now:
            return succeed([])
        sites = frozenset(busy)
        return self._gathering.ask(lambda table: table.claim(now, limit, sites)).addCallback(self._claimed)

    def _claimed(self, claimed: list[Held]) -> list[Entry]:
        self._told = -math.inf
        for entry, recipients, place, size in claimed:
            entry.fence, entry.due = self._epoch, None
            self._hand[entry.number] = (recipients, place, size)
        return [held[0] for held in claimed]

    def next_due(self, busy: Sequence[bytes]) -> Deferred[Seconds | None]:
        """As ISpool.next_due; behind thousands of entries of busy sites it may be too early, never too late."""
        known = self._nothing_until()
        if known == math.inf:
            return succeed(None)
        if known > self._wall() and self._came == math.inf and not busy:
            return succeed(known)
        sites = frozenset(busy)
        self._told, self._came = -math.inf, math.inf
        found = self._gathering.ask(lambda table: table.next_due(sites))
        return found if sites else found.addCallback(self._found)

    def _found(self, due: Seconds | None) -> Seconds | None:
        self._told = math.inf if due is None else due
        return due

    def _nothing_until(self) -> Seconds:
        """Before that, as is known without the table, there is nothing to claim."""
        if self._gathering.refusal is not None:
            return -math.inf
        return math.inf if self.messages <= len(self._hand) else min(self._told, self._came)

    def body(self, entry: Entry) -> Body | Deferred[Body]:
        """As ISpool.body; fails with SpoolTrouble if the body is not there any more."""
        held, body = self._hand.get(entry.number), entry.message.body
        if held is None:
            return fail(SpoolTrouble(f"entry {entry.number} is not in hand"))
        if body.path is None:
            return body
        size, place = body.size, held[1]
        return self._gathering.look(lambda table: table.body(place, size))

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """As ISpool.due_now; goes piece by piece, so that mail is kept and claimed in between."""
        return Deferred.fromCoroutine(self._looking.due_now(query)).addBoth(self._hastened)

    def _hastened(self, done: int | Failure) -> int | Failure:
        self._told = -math.inf
        return done

    def find(self, query: Mapping[str, str], after: int, limit: int) -> Deferred[Sequence[Entry]]:
        """As ISpool.find; a word that cannot be asked for fails with ValueError. *due* is None of what is in hand."""
        return Deferred.fromCoroutine(self._looking.find(query, after, limit))

    def survey(self, query: Mapping[str, str], after: int) -> Deferred[tuple[int, Octets, int | None]]:
        """As ISpool.survey; fails as find does."""
        return Deferred.fromCoroutine(self._looking.survey(query, after))

    def seize(self, query: Mapping[str, str], after: int, limit: int) -> Deferred[tuple[Sequence[Entry], int | None]]:
        """As ISpool.seize; fails as find does. Of a long way with nothing on it only a piece is gone."""
        taken = Deferred.fromCoroutine(self._looking.seize(query, after, limit))
        return taken.addCallback(lambda piece: (self._claimed(piece[0]), piece[1]))

    def peek(self, number: int) -> Deferred[Entry | None]:
        """As ISpool.peek; fails with SpoolTrouble if the body is not there any more."""
        return self._gathering.ask(lambda table: table.peek(number))

    # What the gathering says (Owner).

    def complete(self, batch: Batch) -> None:
        """Tombstones still in doubt; now and then what peers told; the numbers to come."""
        # Until now their rows were there to know them again; of most tokens the peer is in no doubt any more.
        for token, _, _, recipients in batch.gone.values():
            packed = self._tombstones.bury(token.peer, token.seq, recipients)
            if packed is not None:
                batch.tombstones.append((token.peer, token.seq, packed))
        now = self._clock.seconds()
        if now - self._told_at >= _FORGET:
            self._told_at = now
            batch.forgotten = self._tombstones.forgotten()
        if max(self._number, self._seq) >= (self._reserved << 32) + HALF:
            self._reserved += 1
            batch.epoch = self._reserved

    def written(self, outcome: Outcome) -> None:
        """Count; tell the operator what was found."""
        counts = outcome.counts
        self.messages, self.octets = counts.messages, counts.octets
        self.lowest, self.oldest, self.birth = counts.lowest, counts.oldest, counts.birth
        for alarm in outcome.alarms:
            self._log.critical("{alarm}", alarm=alarm)
        outcome.alarms.clear()

    def kept(self, keep: Keep) -> None:
        """In hand."""
        for entry in keep.entries:
            message = entry.message
            self._hand[entry.number] = (message.envelope.recipients, keep.place, message.size)

    def unclaimed(self, keep: Keep) -> None:
        """It is ours all the same, and is delivered when its turn comes."""
        for entry in keep.entries:
            self.release(entry, entry.born)

    def unwritten(self, batch: Batch) -> None:
        """Once more, then, what belongs to the settles; who knows which rows are there."""
        self._told = -math.inf
        self._tombstones.repeat(batch.forgotten)
        if batch.epoch:
            self._reserved = batch.epoch - 1
