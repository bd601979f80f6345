"""
What is due comes in hand: a window at a time, when its time has come and there is room.

One timer a queue, on the injected clock, never longer than a nap; the times in
the spool are wall clock, so a jump of that clock is noticed within a nap and
healed. Nothing grows with the depth of the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.deliver.destinations import Destinations
from qmq.interfaces import ISpool
from qmq.mail import Entry, Seconds

# qmail waits as long after trouble with the disk.
_TROUBLE: Seconds = 10
# A wall clock that moves so much against the monotonic one has been set.
_JUMP: Seconds = 5
# A whole window that was not even tried is mail for dead hosts: a hundred thousand of it would keep a core busy
# with saying so, while others in this process have mail to deliver.
_DEAD: Seconds = 0.1
# Entries claimed at once.
_BATCH = 100

log = Logger()


class Claims:
    """
    Claims entries and hands them to *take_up* with the time of the claim.

    *room* says how many more may come in hand; *warn* hears what went wrong;
    *ended* is called when something that was under way is over. No claim is
    made unless `run` was called, nor after `halt`.
    """

    def __init__(
        self,
        spool: ISpool,
        destinations: Destinations,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        nap: Seconds,
        room: Callable[[], int],
        take_up: Callable[[Entry, Seconds], bool],
        warn: Callable[[str], None],
        ended: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._destinations = destinations
        self._clock = clock
        self._wall = wall
        self._nap = nap
        self._room = room
        self._take_up = take_up
        self._warn = warn
        self._ended = ended
        self._runs = False
        self.more = False  # the spool has more that is due: claim as soon as there is room
        self.claiming = False
        self._soon = False  # a claim is on its way through the reactor
        self._ahead = wall() - clock.seconds()  # the wall clock, of the monotonic one
        self._timer: IDelayedCall | None = None
        self._wake: Seconds = 0  # wall time for which the timer is set

    def run(self) -> None:
        """Begin, or go on, with what is due now."""
        if not self._runs:
            self._runs = True
            self.claim()

    def halt(self) -> None:
        """No more; a claim under way still hands over what it brings."""
        self._runs = False
        self._cancel()

    def soon(self) -> None:
        """Claim after the reactor's other business, and in no recursion."""
        self._soon_after(0)

    def _soon_after(self, pause: Seconds) -> None:
        if self._runs and not self._soon:
            self._soon = True
            self._clock.callLater(pause, self._now)

    def wake(self, due: Seconds) -> None:
        """Something falls due then: sleep no longer."""
        if due < self._wake - 1:
            self._sleep(due)

    def claim(self) -> None:
        """Take the next window in hand, if there is room."""
        if self.claiming or not self._runs:
            return
        self._mind_the_clock()
        limit = min(_BATCH, self._room())
        if limit <= 0:
            self.more = True
            self._sleep(None)
            return
        self.claiming = True
        self.more = False
        now = self._wall()
        claimed = maybeDeferred(self._spool.claim, now, limit, self._destinations.busy())
        claimed.addCallback(self._claimed, now, limit)
        claimed.addErrback(self._failed, "claim")

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """Make what matches due; fires with how many entries, the first of which are claimed soon."""

        def made(number: int) -> int:
            if number:
                self.soon()
            return number

        due: Deferred[int] = maybeDeferred(self._spool.due_now, query)
        return due.addCallback(made)

    def alive(self, site: bytes) -> None:
        """A dead site is back: its mail need not wait, and comes as windows allow."""
        self.due_now({"site": site.decode("utf-8", "surrogateescape")}).addErrback(self._failed, "due_now")

    def _now(self) -> None:
        self._soon = False
        self.claim()

    def _claimed(self, entries: Sequence[Entry], now: Seconds, limit: int) -> None:
        self.claiming = False
        tried = False
        for entry in entries:
            try:
                tried = self._take_up(entry, now) or tried
            except Exception:  # noqa: BLE001 - a fault of ours, told; the others must not stay behind for it
                log.failure("could not take up entry {number}", number=entry.number)
        if not self._runs:
            self._ended()
            return
        if len(entries) < limit and not self.more:
            found = maybeDeferred(self._spool.next_due, self._destinations.busy())
            found.addCallback(self._sleep)
            found.addErrback(self._failed, "next_due")
            return
        self.more = True
        self._sleep(None)
        if self._room() >= limit:
            self._soon_after(0 if tried else _DEAD)  # they came and went; else whoever makes room asks for more

    def _failed(self, failure: Failure, what: str) -> None:
        self.claiming = False
        self._warn(f"{what}: {failure.getErrorMessage()}")
        self._sleep(self._wall() + _TROUBLE)
        self._ended()

    def _sleep(self, due: Seconds | None) -> None:
        """Claim at *due*, not before a second has passed and not after a nap."""
        self._cancel()
        if self._runs:
            now = self._wall()
            delay = self._nap if due is None else min(max(1, due - now), self._nap)
            self._wake = now + delay
            self._timer = self._clock.callLater(delay, self.claim)

    def _cancel(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _mind_the_clock(self) -> None:
        """
        After the wall clock was set, try all there is afresh.

        Backwards: nothing would be due for as long as the jump. Forwards: what
        has expired by it must not be given up on the word of a dead site from
        before; that is tried with its next mail.
        """
        ahead = self._wall() - self._clock.seconds()
        jump, self._ahead = ahead - self._ahead, ahead
        if abs(jump) <= _JUMP:
            return
        self._warn(f"the clock was set by {jump:+.0f} s; all is tried afresh")
        self._destinations.awaken()
        if jump < 0:
            self.due_now({}).addErrback(self._failed, "due_now")
