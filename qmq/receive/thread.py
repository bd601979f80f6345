"""
One thread of a checker that blocks, the call that it works on, and who watches what it computes.

Stuck is raised in it at most while it works, under its lock; once struck it
takes no more calls. So wherever Stuck comes out, late or not, it ends this
thread and hits no other call.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from qmq.mail import Seconds
from qmq.receive.guard import USUAL, Cornered, Stuck
from qmq.receive.tally import Credit

CallFromThread = Callable[..., object]
WATCH: Seconds = 0.01
# What a call may compute once its checker has no credit.
LEAST: Seconds = 0.01
SHARE = 0.01
# That it takes to end in order, at most.
_UNWINDING: Seconds = 0.005
_raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Call:
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


class Thread:
    """
    Tells by *call_from_thread*: done(thread, result) after each call, over(thread) at its end.

    *computed* and the strikes may be called in any thread, all else in the
    reactor's.
    """

    def __init__(
        self,
        name: str,
        call_from_thread: CallFromThread,
        done: Callable[[Thread, object], None],
        over: Callable[[Thread], None],
    ) -> None:
        self.since: Seconds = 0  # idle
        self.struck = False
        self._call_from_thread = call_from_thread
        self._done = done
        self._over = over
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._lock = threading.Lock()  # of what follows, but for the thread itself, which never waits for it
        self._working = False
        self._ended = False
        self._cpu_clock: int | None = None
        self._cpu: Seconds = 0  # when the call began
        self._blown: Seconds = 0  # when it was struck last
        self._thread = threading.Thread(target=self._run, name=f"qmq-check-{name}", daemon=True)
        self._thread.start()

    def begin(self, call: Call) -> None:
        """Work on this."""
        with self._lock:
            self._working = True
            self._cpu = self._cpu_now()
        self._calls.put(call)

    def rest(self) -> bool:
        """It has done its call. Whether it can do another: if not it ends."""
        with self._lock:
            self._working = False
        if self.struck:
            self.end()
        return not self.struck

    def end(self) -> None:
        """When it has nothing to do."""
        self._calls.put(None)

    def computed(self) -> Seconds:
        """Since its call began."""
        return self._cpu_now() - self._cpu

    def strike(self, blow: type[Stuck], after: Seconds = 0) -> bool:
        """Raise this in it if it works and has computed for longer than *after*; whether it was."""
        with self._lock:
            if not self._working or self.struck or self.computed() < after:
                return False
            self.struck = True
            self._raise(blow)
        self.end()
        return True

    def strike_again(self) -> bool:
        """If it has caught Stuck, which is not meant for it, and computes on; whether it does."""
        with self._lock:
            computing = self._cpu_now() > self._blown + _UNWINDING
            if computing:
                self._raise(Cornered)
        return computing

    def _raise(self, what: type[Stuck]) -> None:
        assert self._thread.ident is not None
        ident, blow = ctypes.c_ulong(self._thread.ident), ctypes.py_object(what)
        # Between these two lines no other thread gets its turn: one that has ended, and whoever got its number
        # after it, is not hit.
        if not self._ended:
            _raise_in(ident, blow)
        self._blown = self._cpu_now()

    def _cpu_now(self) -> Seconds:
        if self._cpu_clock is None or self._ended:
            return self._cpu
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError:  # it has just ended
            return self._cpu

    def _run(self) -> None:
        # Stuck may come late: while the result is reported, in the queue, here. Then it ends the thread as well.
        with contextlib.suppress(Stuck):
            with contextlib.suppress(Stuck):
                self._cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
                while (call := self._calls.get()) is not None:
                    result = _answer(call)
                    self._call_from_thread(self._done, self, result)
            self._ended = True
        self._ended = True
        settle()
        self._call_from_thread(self._over, self)


def settle() -> None:
    """
    Make the interpreter forget that an exception waits for some thread; in any thread but the main one.

    CPython (to 3.12) has one flag for that for all threads, and takes it down only
    when such an exception comes out, not when one is taken back (None). As long as
    it is up every thread looks for signals at each step, and in 3.11 a call that
    is traced, as the guard does it, never begins: it looks, and starts anew. So
    one comes out here. A thread that has one waiting puts the flag up again
    when it gets its turn. (In the main thread a signal's handler might get it.)
    """
    with contextlib.suppress(Stuck):
        _raise_in(ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Stuck))


def _answer(call: Call) -> object:
    try:
        return call.ask(*call.of)
    except Stuck:
        raise
    except BaseException:  # noqa: BLE001 - a stranger's code; that it exits costs its own session alone
        return Failure()


class Watch:
    """
    A thread that strikes those of *busy* that compute for too long, and those of *lost* that go on after that.

    All calls of a checker share its credit: *cpu* seconds at once, and a hundredth
    of the time. It sleeps while there are none, until somebody sets *wake*: when
    one has begun, or was struck.
    """

    def __init__(
        self,
        name: str,
        busy: Mapping[Thread, Call],
        lost: Collection[Thread],
        now: Callable[[], Seconds],
        cpu: Seconds,
        call_from_thread: CallFromThread,
        caught: Callable[[Thread, Seconds], None],
    ) -> None:
        self.wake = threading.Event()
        self.blow: type[Stuck] = Stuck  # worse once one of them has caught it and gone on
        self._busy = busy
        self._lost = lost
        self._now = now
        self._credit = Credit(cpu, SHARE)
        self._call_from_thread = call_from_thread
        self._caught = caught
        self._ends = False
        self._computed: Seconds = 0  # by all good calls
        self._good = 0
        threading.Thread(target=self._run, name=f"qmq-watch-{name}", daemon=True).start()

    def good(self, computed: Seconds) -> None:
        """A call has ended in order."""
        self._computed += computed
        self._good += 1

    def end(self) -> None:
        """There is nothing more to watch."""
        self._ends = True
        self.wake.set()

    def _run(self) -> None:
        while not self._ends:
            time.sleep(WATCH)
            self.wake.clear()
            settle()  # one that was struck may sleep for long
            self._look(list(self._busy))  # a copy, made in one step whatever the reactor's thread is at
            if sum(thread.strike_again() for thread in list(self._lost)):
                self.blow = Cornered
            elif not self._busy and not self._ends:
                # One that is lost may wake up and go on.
                self.wake.wait(1 if self._lost else None)

    def _look(self, busy: Sequence[Thread]) -> None:
        now, credit = self._now(), self._credit
        computed = {thread: thread.computed() for thread in busy}
        usual = self._computed / self._good if self._good else 0
        if (together := sum(computed.values())) > credit.left(now):
            credit.spend(now, together)
        may = min(credit.most, max(LEAST, USUAL * usual, credit.left(now)))
        for thread, seconds in computed.items():
            if seconds > may and thread.strike(self.blow, may):
                credit.spend(now, seconds)
                self._call_from_thread(self._caught, thread, seconds)
