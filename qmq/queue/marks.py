"""
What an operator said of a queue, kept over a crash: empty files in its folder.

``paused``: nothing is delivered; ``refusing``: nothing is taken in. People may
look for them, and while the queue is down make or remove them by hand.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from threading import Lock
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

PAUSED, REFUSING = WORDS = ("paused", "refusing")

Run = Callable[[Callable[[], None], Callable[[Any], None]], None]


def _at_once(job: Callable[[], None], done: Callable[[Any], None]) -> None:
    try:
        job()
    except OSError:
        done(Failure())
    else:
        done(None)


class Marks:
    """
    The marks in *folder*; None: none are kept.

    *run* runs a job in a thread, and calls its second argument with a Failure
    or None when it is over (`qmq.spool.writer.Writers.run`): a sync may take long.
    """

    def __init__(self, folder: str | None, run: Run = _at_once) -> None:
        self._folder = folder
        self._run = run
        self._wanted: dict[str, bool] = {}
        self._lock = Lock()  # jobs of one folder come in any order; each writes what is wanted last

    def read(self) -> frozenset[str]:
        """Those that are set; a folder that is not there has none."""
        folder = self._folder
        if folder is None:
            return frozenset()
        return frozenset(word for word in WORDS if os.path.exists(os.path.join(folder, word)))

    def set(self, word: str, on: bool) -> Deferred[None]:
        """Fires when the mark would survive a crash; fails with OSError."""
        written: Deferred[None] = Deferred()
        if self._folder is None:
            written.callback(None)
            return written
        self._wanted[word] = on
        self._run(self._write, written.callback)
        return written

    def _write(self) -> None:
        folder = self._folder
        assert folder is not None
        with self._lock:
            for word, on in list(self._wanted.items()):
                path = os.path.join(folder, word)
                if on:
                    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
