"""
A worker's side: it beats, does what it is ordered, and ends with the main process or with its memory.

Each beat tells the instances' states and the memory in use. When the cord to
the main process ends, the listening sockets are let go at once, so that a new
main process can open them, and the worker finishes like after a TERM; if it
cannot (its thread is blocked, a service does not stop), it is killed.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import ILogObserver, LogEvent, Logger, LogPublisher, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

from qmq.cord import DESCRIPTOR, Cord
from qmq.mail import Octets, Seconds

BEAT: Seconds = 1.0
# EX_OSERR of sysexits.h: the system gave us no memory.
NO_MEMORY = 71

log = Logger()

Order = Callable[[dict[str, Any], list[int]], Any]


class Lifeline(Service):
    """
    The worker's end of the cord, on descriptor *descriptor*.

    *states* gives what to say of each instance. *orders* maps the word under
    ``do`` of an order to what does it: it is called with the order and the
    descriptors that came along, which are its own, and what it returns (or its
    Deferred gives) is the answer, for JSON; what it raises is answered as text.
    *told* hears the facts of the main process, *orphaned* is called first when
    that one is gone: it should close what others may need. *grace* is what the
    rest of the way may take.
    """

    def __init__(
        self,
        reactor: Any,
        states: Callable[[], dict[str, Any]],
        orders: Mapping[str, Order],
        *,
        told: Callable[[dict[str, Any]], None] = lambda _: None,
        orphaned: Callable[[], None] = lambda: None,
        grace: Seconds = 35.0,
        descriptor: int = DESCRIPTOR,
    ) -> None:
        self._reactor = reactor
        self._states = states
        self._orders = orders
        self._told = told
        self._orphaned = orphaned
        self._grace = grace
        self._cord = Cord(reactor, socket.socket(fileno=descriptor), self._heard, self._lost)
        os.set_inheritable(descriptor, False)  # programs that we start must not hold it open
        self._beat = LoopingCall(self._tell)
        self._beat.clock = reactor
        self._held = self._orphan = self._stopping = False

    def hold(self) -> None:
        """
        From now on this process ends with the main process.

        To be called before there is anything to tell: who waits for a store
        holds sockets that others may need. Orders wait for startService.
        """
        if not self._held:
            self._held = True
            args = os.dup(self._cord.fileno()), self._grace, lambda: self._reactor.callFromThread(self._lost)
            threading.Thread(target=_watch, args=args, name="qmq-lifeline", daemon=True).start()

    def startService(self) -> None:
        """Begin to beat: the main process takes the first one for "ready"."""
        super().startService()
        end_without_memory(globalLogPublisher)
        self.hold()
        if not self._beat.running and not self._orphan:
            self._cord.start()
            # Without beats we are killed, and that is right.
            self._beat.start(BEAT).addErrback(lambda failure: log.failure("no state can be told", failure))

    def stopService(self) -> None:
        """We end. Until then it beats on, so that a long stop is not taken for a hang."""
        self._stopping = True
        super().stopService()

    def _tell(self) -> None:
        states = self._states() if self.running else {}
        self._cord.tell({"states": states, "memory": resident(), "leaving": not self.running})

    def _heard(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if "facts" in message:
            with log.failuresHandled("what the main process told was not understood"):
                self._told(message["facts"])
            return
        order = self._orders.get(message.get("do", ""), _unknown)
        answer: Deferred[Any] = maybeDeferred(order, message, descriptors)
        number = message.get("n")
        answer.addCallback(lambda given: self._answer({"n": number, "answer": given}))
        answer.addErrback(self._refuse, number)

    def _answer(self, message: dict[str, Any]) -> None:
        if not self._cord.send(message):
            log.warn("an answer to order {number} found no room", number=message["n"])

    def _refuse(self, failure: Failure, number: object) -> None:
        log.failure("order {number} was not done", failure, number=number)
        self._answer({"n": number, "error": failure.getErrorMessage() or failure.value.__class__.__name__})

    def _lost(self) -> None:
        if self._orphan:
            return  # known by both ways
        self._orphan = True
        if self._beat.running:
            self._beat.stop()
        with log.failuresHandled("while letting go of what others need"):
            self._orphaned()
        if not self._stopping:
            os.kill(os.getpid(), signal.SIGTERM)


def _unknown(order: dict[str, Any], descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
    raise ValueError(f"no such order: {order.get('do')!r}")


def _watch(descriptor: int, grace: Seconds, gone: Callable[[], None]) -> None:
    """
    Say when the main process is *gone*; kill this process *grace* seconds later, if it is still here.

    In a thread of its own: the reactor's may be what hangs.
    """
    poll = select.poll()
    poll.register(descriptor, 0)  # an end alone
    poll.poll()
    gone()
    time.sleep(grace)
    os.kill(os.getpid(), signal.SIGKILL)


def resident(pid: int | str = "self") -> Octets:
    """The memory that a process occupies (RSS); 0 if it is gone or can't be looked at."""
    with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/statm", encoding="ascii") as figures:
        return int(figures.read().split()[1]) * resource.getpagesize()
    return 0


def end_without_memory(publisher: LogPublisher) -> None:
    """
    From now on a MemoryError that anybody logs, or that ends a thread, ends the process, with exit code NO_MEMORY.

    What has met one may have left anything half done; a new process takes up
    what is on disk.
    """

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        failure = event.get("log_failure")
        if failure is not None and isinstance(failure.value, MemoryError):
            _end()

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, MemoryError):
            _end()

    def thread(args: threading.ExceptHookArgs) -> None:
        hook(args)
        threading.__excepthook__(args)

    def elsewhere(args: sys.UnraisableHookArgs) -> None:
        hook(args)
        sys.__unraisablehook__(args)

    publisher.addObserver(observe)
    threading.excepthook = thread
    sys.unraisablehook = elsewhere


def _end() -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"qmq: out of memory: this process ends\n")
    os._exit(NO_MEMORY)
