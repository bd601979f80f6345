"""
Senders are told what became of their mail: bounces and notices of delay.

An entry stays in hand while the bouncer takes its bounce over, and what failed
is written before: after a crash the same bounce is made again, under the same
token. A bouncer that is down delays bounces, and nothing else: only so many
entries wait for it at once; the others rest in the spool until later.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.python.failure import Failure

from qmq.interfaces import ISpool
from qmq.mail import Entry, Seconds
from qmq.queue.ledger import Bouncer, Ledger

# A bounce that nobody took over is offered again after this, and up to as much again.
_AGAIN: Seconds = 60


class Telling:
    """
    The entries that are with the bouncer.

    *at_once*: how many at most. *write* settles an entry and minds its due;
    *go_on* takes up one that was claimed with a bounce, for its other
    recipients; *read* gets an entry its body.
    """

    def __init__(
        self,
        spool: ISpool,
        ledger: Ledger,
        at_once: int,
        wall: Callable[[], Seconds],
        jitter: Callable[[], float],
        write: Callable[[Entry], None],
        go_on: Callable[[Entry, Seconds], None],
        read: Callable[[Entry, Callable[[], None]], None],
        warn: Callable[[str], None],
    ) -> None:
        self.bouncer: Bouncer | None = None
        self.stopping = False
        self._spool = spool
        self._ledger = ledger
        self._at_once = at_once
        self._wall = wall
        self._jitter = jitter
        self._write = write
        self._go_on = go_on
        self._read = read
        self._warn = warn
        self._entries: dict[int, Entry] = {}  # by number

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> list[Entry]:
        """Those that are with the bouncer."""
        return list(self._entries.values())

    def has(self, number: int) -> bool:
        """Whether that one is."""
        return number in self._entries

    def bounce(self, entry: Entry, started: Seconds | None, read: bool) -> None:
        """
        Offer the entry's bounce, then settle it; *read* says whether it has its body.

        With *started*, its other recipients go on at once instead, whatever
        became of the bounce: it was claimed for them.
        """
        due = entry.due
        if bouncer := self._admit(entry):
            self._offer(entry, read, bouncer.bounce, partial(self._bounced, entry=entry, due=due, started=started))

    def delay(self, entry: Entry, read: bool) -> None:
        """Offer the notice of its delay, then settle it; if it is not taken it is offered with the next attempt."""
        due = entry.due
        if bouncer := self._admit(entry):
            self._offer(entry, read, bouncer.delayed, partial(self._notified, entry=entry, due=due))

    def _admit(self, entry: Entry) -> Bouncer | None:
        """Write what is known, in hand; None if it must wait, and then it is settled."""
        if self.bouncer is None or self.stopping or len(self._entries) >= self._at_once:
            self._later(entry, entry.due)
            return None
        entry.due = None
        self._spool.settle(entry)
        self._entries[entry.number] = entry
        return self.bouncer

    def _offer(
        self, entry: Entry, read: bool, how: Callable[[Entry], Deferred[bool]], answered: Callable[[object], None]
    ) -> None:
        def offer() -> None:
            maybeDeferred(how, entry).addBoth(answered)

        if read:
            offer()
        else:
            self._read(entry, offer)

    def forget(self, entry: Entry) -> None:
        """It went another way: its body could not be read."""
        self._entries.pop(entry.number, None)

    def give_up(self) -> list[Entry]:
        """Those still with the bouncer, which is waited for no longer."""
        left = list(self._entries.values())
        self._entries.clear()
        return left

    def _bounced(self, taken: object, entry: Entry, due: Seconds | None, started: Seconds | None) -> None:
        if self._entries.pop(entry.number, None) is None:
            return  # given up
        if taken is True:
            self._ledger.bounced += len(entry.bouncing)
            entry.bouncing = ()
        elif isinstance(taken, Failure):
            self._warn(f"bounce: {taken.getErrorMessage()}")
        if started is not None and entry.message.envelope.recipients:
            self._go_on(entry, started)
        elif taken is True:
            entry.due = due
            self._write(entry)
        else:
            self._later(entry, due)

    def _notified(self, taken: object, entry: Entry, due: Seconds | None) -> None:
        if self._entries.pop(entry.number, None) is None:
            return
        entry.delayed = taken is True
        if isinstance(taken, Failure):
            self._warn(f"notice of delay: {taken.getErrorMessage()}")
        entry.due = due
        self._write(entry)

    def _later(self, entry: Entry, due: Seconds | None) -> None:
        """Another time: with the next attempt, or by itself if there is none."""
        entry.due = self._wall() + _AGAIN * (1 + self._jitter()) if due is None else due
        self._write(entry)
