"""
Threads for a checker that blocks: its own, a bounded number, each call for a bounded time.

A thread is made when none is free, and ends after 30 s without work. A call
that has had its time, or computes for too long (then everybody waits for the
interpreter), is given up: its session is answered, and Stuck is raised in its
thread, which ends a loop at once, and a sleep when it is over. Until then the
thread is lost. Nobody waits for it, not even the end of the process.

The reactor's thread decides all but this: who computes too long is struck by a
thread that does nothing else, for then the reactor's may not get its turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from qmq.mail import Seconds
from qmq.receive.guard import USUAL, Guard, Stuck
from qmq.receive.tally import Tally
from qmq.receive.thread import Call, CallFromThread, Thread, Watch

# Threads that sleep for ever are left to it, up to so many; then there are no more for this checker.
LOST = 128
IDLE: Seconds = 30
LOOK: Seconds = 0.02
# Where calls wait for a thread, one that has gone on for so long, and far longer than any good one, gives up its own.
LONG: Seconds = 2


class NoThread(Exception):
    """All threads are taken by calls that do not end."""


class Threads:
    """
    At most *most* calls of one checker at once, further ones wait their turn; each for *limit* seconds in all.

    *cpu* is how many seconds a call may compute. Whoever asks must itself stop
    waiting after *limit*: here it only costs the thread.
    """

    def __init__(
        self,
        name: str,
        clock: IReactorTime,
        call_from_thread: CallFromThread,
        guard: Guard,
        tally: Tally,
        *,
        most: int = 32,
        limit: Seconds = 30,
        cpu: Seconds = 0.5,
    ) -> None:
        self._name = name
        self._clock = clock
        self._call_from_thread = call_from_thread
        self._guard = guard
        self._tally = tally
        self._most = most
        self._limit = limit
        self._cpu = cpu
        self._idle: list[Thread] = []
        self._busy: dict[Thread, Call] = {}  # the longest first
        self._lost: set[Thread] = set()
        self._line: deque[Call] = deque()
        self._watch: Watch | None = None
        self._looking: IDelayedCall | None = None
        self._longest: Seconds = 0  # good one

    def call(self, ask: Callable[..., Any], *of: object) -> Deferred[Any]:
        """What *ask* gives; fails with what it raises, Stuck if it was given up, or NoThread."""
        # A little later than whoever waits gives up: a late answer is not for us to report.
        call = Call(ask, of, self._clock.seconds() + self._limit + LOOK)
        if not self._begin(call):
            if not self._busy:
                call.give(_no_thread(len(self._lost)))
                return call.answer
            self._line.append(call)
        self._look_later()
        return call.answer

    def _begin(self, call: Call) -> bool:
        """Whether there is a thread for it."""
        if self._idle:
            thread = self._idle.pop()
        elif len(self._busy) < self._most and len(self._lost) < LOST:
            try:
                thread = Thread(self._name, self._call_from_thread, self._done, self._over)
                if self._watch is None:
                    self._watch = Watch(
                        self._name, self._busy, self._lost, self._clock.seconds, self._cpu,
                        self._call_from_thread, self._caught,
                    )  # fmt: skip
            except RuntimeError:  # the system has none to give
                return False
        else:
            return False
        self._busy[thread] = call
        call.began = self._clock.seconds()
        self._guard.thread_begins()
        thread.begin(call)
        assert self._watch is not None  # as long as there is a thread
        self._watch.wake.set()
        self._count()
        return True

    def _done(self, thread: Thread, result: object) -> None:
        if thread not in self._busy:
            return  # given up before
        now = self._clock.seconds()
        call = self._busy.pop(thread)
        self._longest = max(self._longest, now - call.began)
        assert self._watch is not None
        self._watch.good(thread.computed())
        if thread.rest():
            thread.since = now
            self._idle.append(thread)
            self._guard.thread_ends()
        else:  # struck when it had just done it
            self._lost.add(thread)
        self._next()
        call.give(result)

    def _caught(self, thread: Thread, computed: Seconds) -> None:
        """It computed for too long, and is struck."""
        if thread in self._busy:
            self._give_up(thread, f"it has computed for {computed:.2f} s")

    def _over(self, thread: Thread) -> None:
        """A thread has ended."""
        if thread in self._busy:
            self._caught(thread, thread.computed())
        if thread in self._lost:
            self._lost.remove(thread)
            self._guard.thread_ends()
            self._next()

    def _next(self) -> None:
        while self._line and (self._line[0].given or self._begin(self._line[0])):
            self._line.popleft()
        self._count()

    def _give_up(self, thread: Thread, why: str) -> None:
        call = self._busy.pop(thread)
        self._lost.add(thread)
        assert self._watch is not None
        thread.strike(self._watch.blow)
        self._watch.wake.set()
        self._next()
        call.give(Failure(Stuck(why)))

    def _look_later(self) -> None:
        if self._looking is not None and self._looking.active():
            if self._looking.getTime() - self._clock.seconds() <= LOOK:
                return
            self._looking.cancel()
        if self._busy or self._line:
            self._looking = self._clock.callLater(LOOK, self._look)
        elif self._idle or self._lost:
            self._looking = self._clock.callLater(IDLE / 3, self._look)
        elif self._watch is not None:
            self._watch.end()
            self._watch = None

    def _look(self) -> None:
        self._looking = None
        now = self._clock.seconds()
        for thread, call in list(self._busy.items()):
            if now < call.until:
                break
            self._give_up(thread, "it has had its time")
        if self._line:
            self._make_room(now)
        while self._idle and now - self._idle[0].since >= IDLE:
            self._idle.pop(0).end()
        self._count()
        self._look_later()

    def _make_room(self, now: Seconds) -> None:
        """Calls wait: is there one that will not end? Without a thread in its stead nothing is gained by its end."""
        self._next()
        long = max(LONG, USUAL * self._longest)
        for thread, call in list(self._busy.items()):
            if not self._line or now - call.began < long:
                return
            if len(self._lost) < LOST:
                self._give_up(thread, f"others wait, and it has gone on for {now - call.began:.0f} s")
        while self._line:
            self._line.popleft().give(_no_thread(len(self._lost)))

    def _count(self) -> None:
        self._tally.threads = {"busy": len(self._busy), "idle": len(self._idle), "lost": len(self._lost)}


def _no_thread(lost: int) -> Failure:
    return Failure(NoThread(f"{lost} threads are lost to calls that do not end: no other can be called"))
