"""
Threads for a checker that blocks: its own, a bounded number, each call for a bounded time.

A thread is made when none is free, and ends after 30 s without work. A call
that has had its time, or computes for too long (then everybody waits for the
interpreter), is given up: its session is answered, and Stuck is raised in its
thread, which ends a loop at once, and a sleep when it is over. Until then the
thread is lost. Nobody waits for it, not even the end of the process.

The reactor's thread decides everything; a thread only works and reports.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from qmq.mail import Seconds
from qmq.receive.guard import USUAL, Cornered, Guard, Stuck
from qmq.receive.tally import Credit, Tally

# Threads that sleep for ever are left to it, up to so many; then there are no more for this checker.
LOST = 128
IDLE: Seconds = 30
LOOK: Seconds = 0.02
# What a call that computes may take once its checker has no credit.
LEAST_CPU: Seconds = 0.02
SHARE_CPU = 0.01
# Where calls wait for a thread, one that has gone on for so long, and far longer than any good one, gives up its own.
LONG: Seconds = 2

CallFromThread = Callable[..., object]


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
        cpu: Seconds = 1,
    ) -> None:
        self._name = name
        self._clock = clock
        self._call_from_thread = call_from_thread
        self._guard = guard
        self._tally = tally
        self._most = most
        self._limit = limit
        self._credit = Credit(cpu, SHARE_CPU)
        self._idle: list[_Thread] = []
        self._busy: dict[_Thread, _Call] = {}  # the longest first
        self._lost: set[_Thread] = set()
        self._line: deque[_Call] = deque()
        self._computing = False  # one that is lost
        self._blow: type[Stuck] = Stuck  # that they are given up with; worse once one has gone on
        self._looking: IDelayedCall | None = None
        self._computed: Seconds = 0  # by all good calls
        self._good = 0
        self._longest: Seconds = 0  # good one

    def call(self, ask: Callable[..., Any], *of: object) -> Deferred[Any]:
        """What *ask* gives; fails with what it raises, Stuck if it was given up, or NoThread."""
        # A little later than whoever waits gives up: a late answer is not for us to report.
        call = _Call(ask, of, self._clock.seconds() + self._limit + LOOK)
        if not self._begin(call):
            if not self._busy:
                call.give(_no_thread(len(self._lost)))
                return call.answer
            self._line.append(call)
        self._look_later()
        return call.answer

    def _begin(self, call: _Call) -> bool:
        """Whether there is a thread for it."""
        if self._idle:
            thread = self._idle.pop()
        elif len(self._busy) < self._most and len(self._lost) < LOST:
            try:
                thread = _Thread(self._name, self._call_from_thread, self._done, self._over)
            except RuntimeError:  # the system has none to give
                return False
        else:
            return False
        self._busy[thread] = call
        call.began = self._clock.seconds()
        self._guard.thread_begins()
        thread.begin(call)
        self._count()
        return True

    def _done(self, thread: _Thread, result: object) -> None:
        call = self._busy.pop(thread, None)
        if call is None:
            return  # given up before
        self._guard.thread_ends()
        took = self._clock.seconds() - call.began
        self._longest = max(self._longest, took)
        self._computed += thread.computed()
        self._good += 1
        thread.since = self._clock.seconds()
        self._idle.append(thread)
        self._next()
        call.give(result)

    def _over(self, thread: _Thread) -> None:
        """A thread has ended."""
        if thread in self._lost:
            self._lost.remove(thread)
            self._guard.thread_ends()
            self._next()

    def _next(self) -> None:
        while self._line and (self._line[0].given or self._begin(self._line[0])):
            self._line.popleft()
        self._count()

    def _give_up(self, thread: _Thread, failure: Failure) -> None:
        call = self._busy.pop(thread)
        self._lost.add(thread)
        self._computing = True  # for all we know
        thread.strike(self._blow)
        self._next()
        call.give(failure)

    def _look_later(self) -> None:
        if self._looking is not None and self._looking.active():
            if self._looking.getTime() - self._clock.seconds() <= LOOK:
                return
            self._looking.cancel()
        if self._busy or self._line or self._computing:
            self._looking = self._clock.callLater(LOOK, self._look)
        elif self._idle or self._lost:
            self._looking = self._clock.callLater(IDLE / 3, self._look)

    def _look(self) -> None:
        self._looking = None
        self._computing = sum(thread.strike_again() for thread in self._lost) > 0  # all are to be struck
        if self._computing:
            self._blow = Cornered
        now = self._clock.seconds()
        may = min(self._credit.most, max(LEAST_CPU, USUAL * self._usual(), self._credit.left(now)))
        for thread, call in list(self._busy.items()):
            if (computed := thread.computed()) > may:
                self._credit.spend(now, computed)
                self._give_up(thread, Failure(Stuck(f"it has computed for {computed:.2f} s")))
            elif now >= call.until:
                self._give_up(thread, Failure(Stuck("it has had its time")))
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
                self._give_up(thread, Failure(Stuck(f"others wait, and it has gone on for {now - call.began:.0f} s")))
        while self._line:
            self._line.popleft().give(_no_thread(len(self._lost)))

    def _usual(self) -> Seconds:
        return self._computed / self._good if self._good else 0

    def _count(self) -> None:
        self._tally.threads = {"busy": len(self._busy), "idle": len(self._idle), "lost": len(self._lost)}


def _no_thread(lost: int) -> Failure:
    return Failure(NoThread(f"{lost} threads are lost to calls that do not end: no other can be called"))


class _Call:
    """A call, and who waits for its answer."""

    __slots__ = ("answer", "ask", "began", "given", "of", "until")

    def __init__(self, ask: Callable[..., Any], of: tuple[object, ...], until: Seconds) -> None:
        self.ask = ask
        self.of = of
        self.until = until
        self.began: Seconds = 0
        self.given = False
        self.answer: Deferred[Any] = Deferred(self._nobody)

    def _nobody(self, _: object) -> None:
        """Whoever waited has gone; the call itself goes on for as long as it may."""
        self.given = True

    def give(self, result: object) -> None:
        """Once."""
        if not self.given:
            self.given = True
            self.answer.callback(result)


class _Thread:
    """One thread; all but _run and _work is called in the reactor's."""

    def __init__(
        self,
        name: str,
        call_from_thread: CallFromThread,
        done: Callable[[_Thread, object], None],
        over: Callable[[_Thread], None],
    ) -> None:
        self.since: Seconds = 0  # idle
        self._call_from_thread = call_from_thread
        self._done = done
        self._over = over
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._ended = False
        self._cpu_clock: int | None = None
        self._cpu: Seconds = 0  # when the call began
        self._struck: Seconds = 0
        self._thread = threading.Thread(target=self._run, name=f"qmq-check-{name}", daemon=True)
        self._thread.start()

    def begin(self, call: _Call) -> None:
        """Work on this."""
        self._cpu = self._cpu_now()
        self._calls.put(call)

    def end(self) -> None:
        """When it has nothing to do."""
        self._calls.put(None)

    def computed(self) -> Seconds:
        """Since its call began."""
        return self._cpu_now() - self._cpu

    def strike(self, blow: type[Stuck]) -> None:
        """Raise this in it, wherever it is: it takes no more calls."""
        self._calls.put(None)
        self._raise(blow)

    def strike_again(self) -> bool:
        """If it has caught Stuck, which is not meant for it, and computes on; whether it does."""
        computing = self._cpu_now() > self._struck
        if computing:
            self._raise(Cornered)
        return computing

    def _raise(self, what: type[Stuck]) -> None:
        # Nothing can come between these two, for neither lets another thread run: one that has ended is not hit.
        if not self._ended:
            ident = self._thread.ident
            assert ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(what))
        self._struck = self._cpu_now()

    def _cpu_now(self) -> Seconds:
        if self._cpu_clock is None or self._ended:
            return self._cpu
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError:  # it has just ended
            return self._cpu

    def _run(self) -> None:
        # Stuck may come late: while the result is reported, in the queue, here. Wherever it comes it ends the thread,
        # and no call but the one it was meant for is ever begun after it.
        with contextlib.suppress(Stuck):
            with contextlib.suppress(Stuck):
                self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
                while (call := self._calls.get()) is not None:
                    result = _answer(call)
                    self._call_from_thread(self._done, self, result)
            self._ended = True
        self._ended = True
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)
        self._call_from_thread(self._over, self)


def _answer(call: _Call) -> object:
    try:
        return call.ask(*call.of)
    except Stuck:
        raise
    except BaseException:  # noqa: BLE001 - a stranger's code; that it exits costs its own session alone
        return Failure()
