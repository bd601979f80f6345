"""
Gets the reactor's thread back from a checker that does not come back.

A plain call cannot be waited for with a time limit: while it loops or sleeps
nothing else runs. So a timer of the kernel (setitimer) runs while checkers are
asked. It is set once in a while, not once a call: when it rings during the same
call twice, that call has had *patience* and Stuck is raised into it.

That costs all others some 50 to 100 ms, once. Whoever did it has used up its
credit, and is then timed call by call: it may take a few times its usual time,
at least 2 ms, and gets more only as the credit comes back, a thousandth of the
time. Then only what the call itself took counts (CPU, or sleep), not that the
machine was busy with something else.

What cannot be interrupted is a single call of C code that looks at no signals
(``sum(range(10**10))``); regular expressions and sleeps do look. Rules that
are being read (qmq.rules.watched) and modules that are being imported have
longer, since half of either is worth nothing.

The timer is ITIMER_REAL, whose signal is also the operator's (SIGALRM:
everything is due now). A SIGALRM that our timer cannot have sent is passed on.

The timer rings until it is heard: a signal that comes just before a sleep begins
does not end it. Where other threads compute that is nothing rare, for who is
about to sleep first waits until one of them has taken the interpreter.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from resource import RUSAGE_THREAD, getrusage
from types import FrameType
from typing import Any, Protocol

from qmq.mail import Seconds
from qmq.receive.tally import Credit

PATIENCE: Seconds = 0.05
# The least that a call may take, whatever its checker has done: ten healthy checkers' calls, and noise.
LEAST: Seconds = 0.002
# Over its usual time: what one long message is over the mean.
USUAL = 4
SHARE = 0.001
READING: Seconds = 10
# When a ring that was not heard is repeated. Rings are never that late: one that came when the timer has been set anew
# would be taken for the operator's.
AGAIN: Seconds = 0.5
# How often threads change places while a checker's thread runs (5 ms else): the reactor's thread gives up its place
# at each system call, and with a thread that computes it would get it back after so long.
BRISK: Seconds = 0.0001

_SPARED = frozenset({"qmq.rules.watched", "importlib._bootstrap"})
# Whoever makes checkers, anew at a reload: that may take long.
_MAKING = frozenset({"qmq.receive.catalogue", "qmq.conf.checks"})
# Who asks, and below whom no frame is the checker's.
_ASKING = frozenset({"qmq.receive.policy", "qmq.receive.panel", "qmq.receive.check", "qmq.receive.thread"})


class Stuck(BaseException):
    """
    Raised into a checker that does not come back.

    No Exception, for ``except Exception`` in the checker must not keep it. *took*
    is for how long at least it kept everybody else from going on.
    """

    def __init__(self, text: str = "it does not come back", took: Seconds = 0) -> None:
        super().__init__(text)
        self.took = took


class Cornered(Stuck):
    """Raised into a thread of a checker that has caught Stuck and gone on."""

    def __init__(self) -> None:
        super().__init__()
        # Made where it is raised, in the checker's thread.
        corner(list(_frames(sys._getframe(1))), 0)  # noqa: SLF001 - the documented way to one's own frames


class Watched(Protocol):
    """What the guard knows of a check."""

    credit: Credit
    module: str  # of the checker's code

    def usual(self) -> Seconds:
        """How long a call of it takes on average; 0 if that is not known."""


class Guard:
    """
    One for each process; without *on* nothing is guarded.

    Who asks a checker sets *running* to it, makes *serial* one higher, and arms
    it if it is not *armed*. Stuck is raised only while *running* is set; so it
    must be set and unset within the ``try`` that catches it.

    While an answer is *awaited* the reactor may run code of that checker without
    anybody having asked it: a callback. Such code is known by its module.
    """

    __slots__ = (
        "_awaited", "_began", "_cornered", "_cpu", "_due", "_earlier", "_limit", "_mark", "_on", "_raised",
        "_strikes", "_switches", "_threads", "_traced", "_usual_interval", "armed", "patience", "running", "serial",
    )  # fmt: skip

    def __init__(self, patience: Seconds = PATIENCE, *, on: bool = True) -> None:
        self.patience = patience
        self.serial = 0
        self.running: Watched | None = None
        self._on = on
        self.armed = not on  # nobody arms it then
        self._awaited: dict[Watched, int] = {}
        self._earlier: Any = None  # whose handler it was
        self._mark: tuple[object, object] | None = None  # by what the suspect's call is known
        self._limit = patience
        self._due: Seconds = 0  # when the timer rings
        self._began: Seconds = 0
        self._cpu: Seconds = 0
        self._switches = 0
        self._strikes = 0
        self._raised = False
        self._cornered = False
        self._traced: Any = None  # by whom (a debugger) before that
        self._threads = 0
        self._usual_interval: Seconds = 0

    def arm(self) -> None:
        """Run the timer; in any thread but the main one, where no signal would come, do nothing."""
        if not self._on or threading.current_thread() is not threading.main_thread():
            return
        # Whoever took the signal meanwhile (the operator's SIGALRM) gets it after us.
        if (handler := signal.getsignal(signal.SIGALRM)) != self._rung:
            self._earlier = handler
            signal.signal(signal.SIGALRM, self._rung)
        self.armed = True
        self._ring_in(self.patience)

    def watch(self, check: Watched) -> None:
        """The call of *check* that begins now is timed by itself."""
        if self._on and threading.current_thread() is threading.main_thread():
            self.armed = True
            self._suspect((check, self.serial), self._may(check), strikes=0)

    def await_(self, check: Watched) -> None:
        """An answer of *check* is awaited from now on."""
        self._awaited[check] = self._awaited.get(check, 0) + 1
        if not self.armed:
            self.arm()

    def awaited(self, check: Watched) -> None:
        """It is not awaited any more."""
        if self._awaited[check] == 1:
            del self._awaited[check]
        else:
            self._awaited[check] -= 1

    def _may(self, check: Watched) -> Seconds:
        """How long a call of it may take."""
        return min(self.patience, max(LEAST, USUAL * check.usual(), check.credit.left(time.monotonic())))

    def caught(self) -> None:
        """Stuck has come out of the checker."""
        if self._cornered:
            sys.settrace(self._traced)
            self._cornered = False

    def stop(self) -> None:
        """Guard nothing from now on, and give the signal back: one that came while Python ends would kill us."""
        self._on = False
        self.armed = True
        if self._earlier is not None and signal.getsignal(signal.SIGALRM) == self._rung:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._earlier)
            self._earlier = None

    def thread_begins(self) -> None:
        """A checker's thread has something to do."""
        self._threads += 1
        if self._threads == 1:
            self._usual_interval = sys.getswitchinterval()
            sys.setswitchinterval(min(BRISK, self._usual_interval))

    def thread_ends(self) -> None:
        """It has done it, or is gone."""
        self._threads -= 1
        if self._threads == 0:
            sys.setswitchinterval(self._usual_interval)

    def _ring_in(self, limit: Seconds) -> None:
        """Or never, at 0."""
        self._due = time.monotonic() + limit
        signal.setitimer(signal.ITIMER_REAL, limit, AGAIN)

    def _rung(self, number: int, frame: FrameType | None) -> None:
        if not self.armed or time.monotonic() < self._due:
            if callable(self._earlier):
                self._earlier(number, frame)
            return
        self.caught()
        if self.running is not None:
            mark: tuple[object, object] | None = (self.running, self.serial)
            limit = self.patience
        else:
            mark, limit = self._outside(frame)
        if mark is None:
            self._mark = None
            self.armed = bool(self._awaited)
            self._ring_in(limit if self.armed else 0)
        elif mark != self._mark:
            self._suspect(mark, limit, strikes=1)  # it may have begun this very moment
        else:
            self._judge(frame)

    def _outside(self, frame: FrameType | None) -> tuple[tuple[object, object] | None, Seconds]:
        """Is it code of a checker that is awaited? By what that call is known; and when to look again."""
        limit = min((self._may(check) for check in self._awaited), default=self.patience)
        modules = {check.module for check in self._awaited}
        found = None
        for each in _frames(frame) if modules else ():
            if each.f_globals.get("__name__") in modules:
                # A generator has the same frame at each step; who goes on with it has not.
                found = each, each.f_back
            elif each.f_globals.get("__name__") in _MAKING:
                return None, limit
        return found, limit

    def _suspect(self, mark: tuple[object, object], limit: Seconds, strikes: int) -> None:
        """See in so long whether it is still at it; at two *strikes* it is not, unless it computes."""
        self._mark = mark
        self._limit = limit
        self._strikes = strikes
        self._raised = False
        self._began = time.monotonic()
        self._cpu = time.thread_time()
        self._switches = getrusage(RUSAGE_THREAD).ru_nvcsw
        self._ring_in(limit)

    def _judge(self, frame: FrameType | None) -> None:
        """Interrupt the suspect, or give it more time."""
        limit = self._limit
        used = time.thread_time() - self._cpu
        if used < limit / 2:
            switches = getrusage(RUSAGE_THREAD).ru_nvcsw
            if switches == self._switches:
                # It neither computed nor slept: others had the processor.
                self._ring_in(limit)
                return
            # It slept, or waited for the interpreter: once is no proof.
            self._switches = switches
            self._strikes += 1
            if self._strikes < 2:
                self._ring_in(limit)
                return
        frames = list(_frames(frame))
        took = time.monotonic() - self._began
        if took < READING and any(f.f_globals.get("__name__") in _SPARED for f in frames):
            self._ring_in(self.patience)
            return
        # In case that it catches what it is not meant to catch; but not before this has come out of here, however slow.
        self._ring_in(max(LEAST, took / 8))
        if self._raised:
            if not self._cornered:
                self._traced = sys.gettrace()
                self._cornered = True
            corner(frames, took)
        self._raised = True
        raise Stuck(took=took)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Those of the checker, innermost first."""
    while frame is not None and frame.f_globals.get("__name__") not in _ASKING:
        yield frame
        frame = frame.f_back


def corner(frames: list[FrameType], took: Seconds) -> None:
    """A checker has caught Stuck and gone on: let its next line, the first of its ``except``, raise as well."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line" and frame in frames:
            raise Stuck(took=took)  # which ends the tracing too
        return trace

    for frame in frames:
        frame.f_trace = trace
    sys.settrace(trace)
