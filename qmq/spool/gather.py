"""
Group commit: what happens while one batch is being written is the next batch.

Lives in the reactor's thread. The first operation lets the loop turn once, and
waits until a writer thread is free; then that gets all that has gathered: one
hop, one transaction, one sync. A batch of a few, soon after one of many, waits
a moment for more. Settles ride with it, or go alone after *linger* seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.interfaces import SpoolTrouble
from qmq.mail import Seconds
from qmq.spool.table import Batch, Broken, Keep, Outcome, Step, Table
from qmq.spool.writer import Writers

Ask = Callable[[Table], Any]

# A batch of less than half the last one's keeps waits so long after that has begun: what comes meanwhile saves a sync.
_COMPANY: Seconds = 0.002
_UNSEEN: Seconds = 0.05  # so long is mail kept without a look at the room that is left


class Owner(Protocol):
    """Whose batches these are."""

    def complete(self, batch: Batch) -> None:
        """It is about to be written: add what has to go with it."""

    def written(self, outcome: Outcome) -> None:
        """The table's word after a batch or a recovery."""

    def kept(self, keep: Keep) -> None:
        """It is durable now; nobody was told yet."""

    def unclaimed(self, keep: Keep) -> None:
        """It is durable, and whoever wanted it has gone away meanwhile."""

    def unwritten(self, batch: Batch) -> None:
        """Nothing of it was written, and its settles are in the next one again."""


class Gathering:
    """
    The batches of one table, one at a time in the writers.

    *refusal* is why nothing is kept now: not started, an I/O error, stopped;
    None: mail is kept. *retry* passes between two attempts to recover.
    After *idle* seconds without work the table rests.
    """

    def __init__(
        self, table: Table, owner: Owner, *, clock: IReactorTime, writers: Writers,
        linger: Seconds, retry: Seconds, idle: Seconds,
    ) -> None:  # fmt: skip
        self._table, self._owner, self._clock, self._writers = table, owner, clock, writers
        self._linger, self._retry, self._idle = linger, retry, idle
        self._log = Logger(namespace="qmq.spool")
        self.batch = Batch()
        self.refusal: SpoolTrouble | None = SpoolTrouble("the spool is not open")
        self._looks: list[tuple[Ask, Any]] = []  # reads that need not wait for the settles before them
        self._settle_at: Seconds | None = None  # the settles gathered go alone from then on
        self._working = False  # a job is in the writers
        self._began, self._last = 0.0, 0  # when the last batch with keeps began, and how many it had
        self._timer: IDelayedCall | None = None  # the next flush
        self._soon = False  # and that is in this turn of the loop, or when a writer is free
        self._retrying: IDelayedCall | None = None
        self._broken = False
        self._full = ""  # as the last look at the room said
        self._asked_at = self._looked_at = 0.0  # when a look was asked for, or made
        self._used: Seconds | None = None  # when there was something to do last; None: the table rests
        self._idler: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None

    # What the owner says.

    def begin(self, full: str) -> None:
        """The table is open, and full as Outcome says."""
        self.batch, self._settle_at = Batch(), None
        self.refusal, self._stopped, self._broken, self._working = None, None, False, False
        self._full, self._asked_at = full, self._clock.seconds()
        self._looked_at = self._asked_at

    @property
    def closed(self) -> bool:
        """Whether no mail was kept when last looked; each batch looks."""
        return self.refusal is not None or bool(self._full)

    def full(self, resting: Seconds = 1) -> str:
        """
        Why no mail is kept now, for the operator: the refusal, or which bound is reached; empty: it is kept.

        A bound is known to a second, or to *resting* as long as there is room and nothing to do.
        """
        if self.refusal is not None:
            return str(self.refusal) or "trouble"
        now = self._clock.seconds()
        if now - self._asked_at >= (resting if self._used is None and not self._full else 1):
            self._asked_at = now
            self._schedule(soon=True)  # every batch says it, an empty one too
        return self._full

    def keep(self, keep: Keep) -> None:
        """With the next batch."""
        self.batch.keeps.append(keep)
        self._schedule(soon=True)

    def settle(self) -> None:
        """Something to settle is in the batch now."""
        if self._settle_at is None:
            self._settle_at = self._clock.seconds() + self._linger
            self._schedule(soon=False)

    def ask(self, ask: Ask) -> Deferred[Any]:
        """Ask the table after all that was settled until now has been written."""
        return self._asked(self.batch.reads, ask)

    def look(self, ask: Ask) -> Deferred[Any]:
        """Ask the table; settles may wait on."""
        return self._asked(self._looks, ask)

    def _asked(self, asks: list[tuple[Ask, Any]], ask: Ask) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()
        if self.refusal is not None:
            answer.errback(self.refusal)
        else:
            asks.append((ask, answer))
            self._schedule(soon=True)
        return answer

    # To write.

    def _schedule(self, *, soon: bool) -> None:
        if self._working or self.refusal is not None or self._soon:
            return  # whoever ends that looks at what waits
        if soon:
            self._cancel()
            self._soon = True
            self._timer = self._clock.callLater(0, self._ready)
        elif self._timer is None and self._settle_at is not None:
            self._timer = self._clock.callLater(max(0, self._settle_at - self._clock.seconds()), self._ready)

    def _ready(self) -> None:
        self._timer, self._soon = None, True
        few = 0 < 2 * len(self.batch.keeps) < self._last and not (self.batch.reads or self._looks)
        if few and (left := self._began + _COMPANY - self._clock.seconds()) > 0:
            self._timer = self._clock.callLater(left, self._await_turn)
        else:
            self._await_turn()

    def _await_turn(self) -> None:
        self._timer = None
        self._writers.turn(self._turn)

    def _turn(self) -> None:
        if self._soon:  # not stopped meanwhile
            self._flush()

    def _flush(self) -> None:
        self._timer, self._soon = None, False
        batch, since, now = self.batch, self._settle_at, self._clock.seconds()
        due = since is not None and now >= since
        if batch.keeps or batch.reads or due or self._stopped is not None:
            self.batch, self._settle_at = Batch(), None
            batch.whole = due or bool(batch.reads) or self._stopped is not None
            # Who has gone away before the writing began is spared it.
            batch.keeps = [keep for keep in batch.keeps if not keep.deferred.called]
            self._owner.complete(batch)
        else:
            batch = Batch()
        batch.reads += self._looks
        self._looks = []
        if batch.keeps or batch.reads or batch.settles:
            self._used = now
        if batch.keeps:
            self._began, self._last = now, len(batch.keeps)

        step = self._prepared(batch)

        def work() -> Outcome | Step:
            if step is not None:
                step.write()
                return step
            outcome = self._table.commit(batch)
            for ask, _ in batch.reads:
                try:
                    outcome.answers.append(ask(self._table))
                except Exception as error:  # noqa: BLE001 - it is the asker's
                    outcome.answers.append(error)
            return outcome

        def worked(result: Outcome | Step | Failure, looked: bool = True) -> None:
            # Whoever is told now may ask for more, or stop us; that is looked at when all have been told.
            if isinstance(result, Failure):
                self._failed(batch, result)
            else:
                if looked:
                    self._asked_at = self._looked_at = self._clock.seconds()
                outcome = result if isinstance(result, Outcome) else result.outcome()
                self._done(batch, outcome)
                if outcome.behind:
                    # As if they were in the next batch, and had been since then.
                    self._settle_at = now + self._linger if since is None else since
            self._working = False
            self._go_on()

        def written(octets: int) -> None:
            if step is not None and step.written(octets):
                worked(step, looked=False)
            else:
                self._writers.run(work, worked)

        self._working = True
        # Who writes without a thread does not look how much room is left.
        piece = step.piece() if step is not None and now - self._looked_at < _UNSEEN else None
        if piece is None or not self._writers.write(piece, written):
            self._writers.run(work, worked)

    def _prepared(self, batch: Batch) -> Step | None:
        if batch.reads:
            return None
        try:
            return self._table.prepare(batch)
        except Exception:  # noqa: BLE001 - whatever it is, it is commit's to fail with
            return None

    def _done(self, batch: Batch, outcome: Outcome) -> None:
        self._full = outcome.full
        self._owner.written(outcome)
        # Whoever looks may have rows made, of what lay in a journal.
        broken = next((answer for answer in outcome.answers if isinstance(answer, Broken)), None)
        if broken is not None:
            self._break(broken)
        for keep in batch.keeps:
            trouble = outcome.refused or keep.trouble
            if trouble is not None:
                _fire(keep.deferred, trouble)
                continue
            self._owner.kept(keep)
            if keep.deferred.called:
                self._owner.unclaimed(keep)
            else:
                keep.deferred.callback(keep.entries)
        for (_, deferred), answer in zip(batch.reads, outcome.answers, strict=True):
            _fire(deferred, answer)
        if broken is not None:
            self._forsake(broken)

    def _failed(self, batch: Batch, failure: Failure) -> None:
        trouble = failure.value if isinstance(failure.value, SpoolTrouble) else SpoolTrouble(repr(failure.value))
        self._log.failure("batch not written: {trouble}", failure, trouble=trouble)
        self.batch.gone = {**batch.gone, **self.batch.gone}
        self.batch.rewritten = {**batch.rewritten, **self.batch.rewritten}
        self.batch.released = {**batch.released, **self.batch.released}
        self._owner.unwritten(batch)
        self._settle_at = self._clock.seconds() + self._retry
        if self._stopped is not None or isinstance(trouble, Broken):
            self._break(trouble)
        _fail(batch.keeps, batch.reads, trouble)
        if self.refusal is not None:
            self._forsake(trouble)

    def _break(self, trouble: SpoolTrouble) -> None:
        self._broken = True
        if self._stopped is None:  # else there is no second attempt
            self.refusal = trouble
            self._retrying = self._clock.callLater(self._retry, self._recover)

    def _forsake(self, trouble: SpoolTrouble) -> None:
        """Whoever waits for something not begun learns that it will not be."""
        keeps, reads = self.batch.keeps, self.batch.reads + self._looks
        self.batch.keeps, self.batch.reads, self._looks = [], [], []
        _fail(keeps, reads, trouble)

    def _go_on(self) -> None:
        """The writers are free again."""
        if self._stopped is not None:
            self._finish()
        elif self.refusal is None:
            if self._idler is None and self._used is not None:
                self._idler = self._clock.callLater(self._idle, self._rest)
            self._schedule(soon=bool(self.batch.keeps or self.batch.reads or self._looks))

    # When something is wrong, or nothing is to do.

    def _recover(self) -> None:
        def recovered(result: Outcome | Failure) -> None:
            self._working = False
            if self._stopped is None and isinstance(result, Failure):
                # Told once, not at each attempt for days.
                if str(self.refusal) != (reason := result.getErrorMessage()):
                    self._log.error("not recovered: {reason}", reason=reason)
                    self.refusal = SpoolTrouble(reason)
                self._retrying = self._clock.callLater(self._retry, self._recover)
            elif not isinstance(result, Failure):
                self._log.info("recovered: {messages} messages", messages=result.counts.messages)
                self._broken, self._full = False, result.full
                self.refusal = self.refusal if self._stopped else None
                self._owner.written(result)
            self._go_on()

        self._retrying, self._working = None, True
        self._writers.run(self._table.recover, recovered)

    def _rest(self) -> None:
        self._idler = None
        if self._working or self._soon or self.refusal is not None or self._used is None:
            return  # _go_on begins anew
        left = self._used + self._idle - self._clock.seconds()
        if left > 0:
            self._idler = self._clock.callLater(left, self._rest)
            return

        def rested(result: Failure | None) -> None:
            self._working = False
            if isinstance(result, Failure):
                self._log.failure("could not rest", result)
                if isinstance(result.value, Broken):
                    self._break(result.value)
                    self._forsake(result.value)
            if self._stopped is not None:
                self._finish()
            else:
                self._schedule(soon=bool(self.batch.keeps or self.batch.reads or self._looks))

        self._working, self._used = True, None
        self._writers.run(self._table.rest, rested)

    # To stop.

    def stop(self) -> Deferred[None]:
        """Write what waits, close the table."""
        if self._stopped is not None:
            return succeed(None)
        stopped: Deferred[None] = Deferred()
        self._stopped = stopped
        self.refusal = SpoolTrouble("the spool is closed")
        self._cancel()
        for timer in (self._idler, self._retrying):
            if timer is not None:
                timer.cancel()
        self._idler = self._retrying = None
        if not self._working:
            self._finish()
        return stopped

    def _finish(self) -> None:
        if self._broken:
            self._forsake(SpoolTrouble("the spool is closed"))
        elif self.batch.keeps or self.batch.reads or self._looks or self._settle_at is not None:
            self._flush()
            return

        def closed(result: Failure | None) -> None:
            if isinstance(result, Failure):
                self._log.failure("could not be closed in order", result)
            if self._stopped is not None:
                self._stopped.callback(None)

        self._working = True
        self._writers.run(self._table.close, closed)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._soon = None, False


def _fail(keeps: Sequence[Keep], reads: Sequence[tuple[Ask, Any]], trouble: SpoolTrouble) -> None:
    for keep in keeps:
        _fire(keep.deferred, trouble)
    for _, deferred in reads:
        _fire(deferred, trouble)


def _fire(deferred: Any, answer: Any) -> None:
    if deferred is None or deferred.called:
        return  # nobody asked, or nobody waits any more
    if isinstance(answer, Exception):
        deferred.errback(answer if isinstance(answer, SpoolTrouble) else SpoolTrouble(repr(answer)))
    else:
        deferred.callback(answer)
