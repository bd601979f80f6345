"""
Long bodies as files beside the database: FOLDER/mess/xx/NUMBER, as they came, readable with cat.

The order is that of any mail queue: the file is complete and synced, its name
is synced, and only then the row that speaks of it commits. So a file without
a row was never acknowledged and goes at start; a row without its file is an
alarm. Names are numbers of ours, never anything a stranger said.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress

from qmq.interfaces import SpoolTrouble
from qmq.mail import Body, FileBody, MemoryBody, Octets
from qmq.spool.table import Keep

# link(2) cannot: another device, no hard links there, a foreign owner (fs.protected_hardlinks), too many links.
UNLINKABLE = frozenset({errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS})


class Bodies:
    """
    The files of one store; used by one thread at a time.

    A body's number is never used twice. Neighbours in number share a folder,
    so that a batch has one or two folders to sync.
    """

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(folder, "mess")
        self._unsynced: set[str] = set()
        self.octets: Octets = 0  # of all files; known from the first sweep on

    def path(self, number: int) -> str:
        """Where that body is."""
        return os.path.join(self._folder, f"{number >> 8 & 0xFF:02x}", f"{number:x}")

    def save(self, number: int, body: Body) -> FileBody:
        """A synced file of the same text, its name not yet synced; raises OSError, and then there is no file."""
        path = self.path(number)
        self._make_folder(os.path.dirname(path))
        try:
            if body.path is None or not self._link(body.path, path):
                self._copy(body, path)
            self._sync_file(path, body.size)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(path)
            raise
        self.octets += body.size
        self._unsynced.add(os.path.dirname(path))
        return FileBody(path, body.size)

    def sync(self) -> None:
        """Make the names of all files saved since the last call durable."""
        while self._unsynced:
            sync_folder(next(iter(self._unsynced)))
            self._unsynced.pop()

    def remove(self, number: int) -> None:
        """The file goes, if it is there; whether that is durable does not matter."""
        path = self.path(number)
        with suppress(FileNotFoundError):
            size = os.stat(path).st_size
            os.unlink(path)
            self.octets -= size

    def save_all(self, keeps: Iterable[Keep]) -> list[int]:
        """
        Long bodies into synced files, short ones into memory; the numbers of the files.

        A Keep whose body cannot be had or saved gets its trouble.
        """
        long = []
        for keep in keeps:
            body = keep.body
            try:
                if keep.place < 0:
                    keep.adopt(self.save(-keep.place, body))
                    long.append(keep)
                elif body.path is not None:
                    data = b"".join(body.chunks())
                    if len(data) != body.size:
                        keep.trouble = SpoolTrouble(f"{body.path}: {len(data)} octets, {body.size} were announced")
                    keep.adopt(MemoryBody(data))
            except OSError as error:
                keep.trouble = SpoolTrouble(str(error))
        try:
            self.sync()
        except OSError as error:
            # Files whose names may be gone after a power cut are thrown away.
            for keep in long:
                keep.trouble = SpoolTrouble(str(error))
            self.remove_all(-keep.place for keep in long)
            return []
        return [-keep.place for keep in long]

    def remove_all(self, numbers: Iterable[int]) -> list[str]:
        """Remove these; what went wrong."""
        wrong = []
        for number in numbers:
            try:
                self.remove(number)
            except OSError as error:
                wrong.append(f"a body that is done with stays: {error}")
        return wrong

    def sweep(self, wanted: Iterable[int]) -> list[str]:
        """Remove files that no row speaks of; alarms for the operator about these, and about wanted ones missing."""
        missing = set(wanted)
        removed = octets = 0
        for folder, _, names in os.walk(self._folder):
            for name in names:
                number = _number(name)
                # What somebody else put there is not ours to remove.
                if self.path(number) != os.path.join(folder, name):
                    continue
                if number in missing:
                    missing.discard(number)
                    octets += os.stat(os.path.join(folder, name)).st_size
                else:
                    os.unlink(os.path.join(folder, name))
                    removed += 1
        self.octets = octets
        alarms = [f"{self._folder}: {removed} bodies that were never acknowledged are removed"] * bool(removed)
        alarms += [f"{self.path(number)}: the body of a message is MISSING" for number in sorted(missing)[:20]]
        return [*alarms, *[f"{self._folder}: {len(missing)} bodies are MISSING"] * (len(missing) > 20)]

    def _make_folder(self, folder: str) -> None:
        if os.path.isdir(folder):
            return
        # Parents first; each new name is in the folder above it.
        for each in (self._folder, folder):
            if not os.path.isdir(each):
                os.mkdir(each, 0o700)
            self._unsynced.add(os.path.dirname(each))

    @staticmethod
    def _link(source: str, path: str) -> bool:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno in UNLINKABLE:
                return False
            raise
        return True

    @staticmethod
    def _copy(body: Body, path: str) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.writelines(body.chunks(262144))

    @staticmethod
    def _sync_file(path: str, size: int) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if status.st_size != size:
                raise OSError(errno.EIO, f"body has {status.st_size} octets where {size} were announced", path)
            if status.st_mode & 0o077:
                os.fchmod(fd, 0o600)
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_folder(folder: str) -> None:
    """Names made in this folder become durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _number(name: str) -> int:
    try:
        return int(name, 16)
    except ValueError:
        return -1
