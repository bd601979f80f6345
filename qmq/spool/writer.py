"""
What writes for all the stores of a process: threads, and the kernel for what no thread has to wait for.

A store has at most one job in them at a time, so that each store's jobs run in
order though the threads are shared. Stores on a device of its own may have
Writers of their own: a disk that hangs then holds up nobody else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from twisted.python.failure import Failure

from qmq.spool.ring import Done, Piece, Ring

T = TypeVar("T")
Call = Callable[..., Any]
Job = tuple[Callable[[], Any], Callable[[Any], None]]


class Writers:
    """
    *threads* threads at most, started when first needed.

    *call_from_thread* is the reactor's. *in_thread* replaces the threads: tests
    give a plain call for both, and everything happens at once. With a *ring* the
    kernel writes in the place of a thread what `write` is given.
    """

    def __init__(
        self, threads: int = 3, *, call_from_thread: Call, in_thread: Call | None = None, ring: Ring | None = None
    ) -> None:
        self._call_from_thread = call_from_thread
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._most = threads
        self._busy = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._in_thread = in_thread
        self._ring = ring

    def run(self, job: Callable[[], T], done: Callable[[T | Failure], None]) -> None:
        """Run *job* in a thread, then *done* with what it gave, or with its Failure, in the reactor's."""
        if self._in_thread is not None:
            self._in_thread(self._work, job, done)
            return
        self._busy += 1
        if self._busy > len(self._threads) < self._most:
            thread = Thread(target=self._serve, name=f"qmq-writer-{len(self._threads) + 1}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((job, done))

    def write(self, piece: Piece, done: Done) -> bool:
        """
        Have the kernel write *piece*, and no thread wait for it; then as Ring.write.

        False: that is not to be had, and nothing has begun.
        """
        if self._ring is None:
            return False
        self._busy += 1
        if self._ring.write(piece, partial(self._finish, done)):
            return True
        self._busy -= 1
        return False

    def turn(self, begin: Callable[[], None]) -> None:
        """
        Call *begin*, which may `run` a job or `write`, when a thread is free for it; at once if one is.

        Where many stores write at once, more gathers for each until its turn comes.
        """
        if self._busy < self._most:
            begin()
        else:
            self._waiting.append(begin)

    def stop(self) -> None:
        """
        End the threads after what they are at; blocks until then. A later run starts them anew.

        What the kernel is at is done, but nobody hears of it.
        """
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        if self._ring is not None:
            self._ring.close()

    def _serve(self) -> None:
        # A SimpleQueue and no ThreadPool: a commit is handed over in one step,
        # and the reactor's thread gives up the GIL once, not five times.
        while (job := self._jobs.get()) is not None:
            self._work(*job)

    def _finish(self, done: Callable[[Any], None], result: Any) -> None:
        self._busy -= 1
        try:
            done(result)
        finally:
            while self._waiting and self._busy < self._most:
                self._waiting.popleft()()

    def _work(self, job: Callable[[], T], done: Callable[[T | Failure], None]) -> None:
        result: T | Failure
        try:
            result = job()
        except Exception:  # noqa: BLE001 - whatever it was, *done* decides
            result = Failure()
        if self._in_thread is not None:
            self._call_from_thread(done, result)
        else:
            self._call_from_thread(self._finish, done, result)
