"""
Threads that write for all the stores of a process.

A store has at most one job in them at a time, so that each store's jobs run in
order though the threads are shared. Stores on a device of its own may have
Writers of their own: a disk that hangs then holds up nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")
Call = Callable[..., Any]


class Writers:
    """
    *threads* threads at most, started when first needed.

    *call_from_thread* is the reactor's. *in_thread* replaces the threads: tests
    give a plain call for both, and everything happens at once.
    """

    def __init__(self, threads: int = 3, *, call_from_thread: Call, in_thread: Call | None = None) -> None:
        self._call_from_thread = call_from_thread
        self._pool: ThreadPool | None = None
        self._threads = threads
        self._in_thread = in_thread

    def run(self, job: Callable[[], T], done: Callable[[T | Failure], None]) -> None:
        """Run *job* in a thread, then *done* with what it gave, or with its Failure, in the reactor's."""
        if self._in_thread is None:
            self._pool = ThreadPool(0, self._threads, "qmq-writers")
            self._pool.start()
            self._in_thread = self._pool.callInThread
        self._in_thread(self._work, job, done)

    def stop(self) -> None:
        """End the threads after what they are at; blocks until then. A later run starts them anew."""
        if self._pool is not None:
            self._pool.stop()
            self._pool = self._in_thread = None

    def _work(self, job: Callable[[], T], done: Callable[[T | Failure], None]) -> None:
        result: T | Failure
        try:
            result = job()
        except Exception:  # noqa: BLE001 - whatever it was, *done* decides
            result = Failure()
        self._call_from_thread(done, result)
