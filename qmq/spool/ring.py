"""
Writes that no thread waits for: the kernel does (io_uring), and the loop hears when they are done.

A thread that waits for the disk takes the interpreter from the loop's before it
begins, and again when it is done. Of what is asked for here nothing blocks: what
has to wait is done by the kernel's own threads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from caio import linux_uring  # None where there is none
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Octets

# What is to be written: to this descriptor, these octets, at that place.
Piece = tuple[int, bytes, Octets]
Done = Callable[[int], None]

_MOST = 16  # under way at once

# Where the kernel gives a write that has to wait to a thread of its own before it begins. XFS and btrfs begin it in
# the thread that asks, and that one waits for the disk then.
_APART = frozenset({"ext4"})
_MOUNTS = "/proc/self/mountinfo"


def suits(device: int) -> bool:
    """Whether a write to a file on the *device* (st_dev) never has to wait in the thread that asks for it."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError), open(_MOUNTS, encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")  # proc(5)
            if before.split()[2] == wanted:
                return after.split()[0] in _APART
    return False


@implementer(IReadDescriptor)
class Ring:
    """
    The kernel's, of one process; made when it is first needed, after the process became a daemon.

    The reactor reads it: it becomes readable when something is done; one that has *between* asks
    while something is under way, for a turn is long where a hundred sessions are busy. Where it is not to be had
    (an old kernel, a sysctl, a container's rules), `write` says so ever after.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor = reactor
        self._context: Any = None
        self._under_way = 0
        self._useless = linux_uring is None
        self._over: deque[tuple[Done, int]] = deque()

    def write(self, piece: Piece, done: Done) -> bool:
        """
        Have it written; then *done* hears from the loop how many octets were, or less than 0 if that failed.

        Whether it is durable then is the descriptor's to say (O_DSYNC). False: it is not being written.
        """
        if self._useless or (self._context is None and not self._open()):
            return False
        fd, octets, at = piece
        operation = linux_uring.Operation.write(octets, fd, at)
        operation.set_callback(partial(self._written, done))
        try:
            self._context.submit(operation)
            self._context.flush()
        except (OverflowError, SystemError):
            # It lies between us and the kernel, which will not take it: without another flush it never does.
            self._useless = True
            return False
        self._under_way += 1
        self._ask_between(self._hear)
        return True

    def _ask_between(self, ask: Callable[[], None] | None) -> None:
        if hasattr(self._reactor, "between"):
            self._reactor.between = ask

    def _open(self) -> bool:
        try:
            self._context = linux_uring.Context(_MOST)
        except SystemError:
            self._useless = True
            return False
        os.set_inheritable(self._context.fileno, False)
        self._reactor.addReader(self)
        return True

    def _written(self, done: Done, octets: int) -> None:
        self._over.append((done, octets))

    def close(self) -> None:
        """Let go of it; a later write makes another. What is under way is done, and nobody hears of it."""
        if self._context is not None:
            self._reactor.removeReader(self)
            self.connectionLost()

    # What the reactor calls.

    def fileno(self) -> int:
        """As IFileDescriptor.fileno."""
        return -1 if self._context is None else int(self._context.fileno)

    def logPrefix(self) -> str:
        """As ILoggingContext.logPrefix."""
        return "ring"

    def doRead(self) -> None:
        """As IReadDescriptor.doRead."""
        with suppress(BlockingIOError):
            self._context.poll()
        self._hear()

    def _hear(self) -> None:
        self._context.process_events()
        over = self._over
        while over:
            done, octets = over.popleft()
            self._under_way -= 1
            if not self._under_way:
                self._ask_between(None)
            try:
                done(octets)
            except Exception:  # noqa: BLE001 - whatever one store does with it, the others have to hear of theirs
                Logger(namespace="qmq.spool").failure("after a write")

    def connectionLost(self, reason: Failure | None = None) -> None:
        """As IFileDescriptor.connectionLost: the reactor ends."""
        self._context, self._under_way = None, 0
        self._ask_between(None)
