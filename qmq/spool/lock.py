"""The one process that has a spool: flock on a file that names the holder for people."""

from __future__ import annotations

import fcntl
import os

from qmq.interfaces import SpoolTrouble


class Held(SpoolTrouble):
    """Another process (or another store of this one) has the spool; the text names its pid."""


class Lock:
    """
    Held from take to drop, and gone with the process however it ends.

    The file stays: removing it would let two processes hold "the" lock.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd: int | None = None

    def take(self) -> None:
        """
        Take it or raise Held at once; taking it twice changes nothing.

        Unless the file is not the one we hold: its folder went and came back as another.
        """
        if self._fd is not None:
            if self._is_ours(self._fd):
                return
            self.drop()
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        except BlockingIOError as error:
            pid = os.pread(fd, 20, 0).decode("ascii", "replace").rstrip("\n") or "unknown"
            os.close(fd)
            raise Held(f"{os.path.dirname(self._path)} is held by process {pid}") from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def drop(self) -> None:
        """Let the next one have it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _is_ours(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self._path))
        except FileNotFoundError:
            return False
