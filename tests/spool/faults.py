"""A SQLite VFS whose disk fails when told to."""

from __future__ import annotations

from typing import Any

import apsw


class FaultyVFS(apsw.VFS):
    """*sync*: each fsync fails; *full*: each write finds the disk full; *read_only*: nothing can be changed. *syncs* counts those done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sync = self.full = self.write = self.read_only = False
        self.syncs = 0
        super().__init__(name, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        if self.read_only and not flags[0] & apsw.SQLITE_OPEN_READONLY:
            raise apsw.CantOpenError("open: EROFS")
        return FaultyFile(self, name, flags)


class FaultyFile(apsw.VFSFile):
    def __init__(self, vfs: FaultyVFS, name: Any, flags: list[int]) -> None:
        self.vfs = vfs
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:
        if self.vfs.sync:
            raise apsw.IOError("fsync: EIO")
        self.vfs.syncs += 1
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:
        if self.vfs.read_only:
            raise apsw.ReadOnlyError("truncate: EROFS")
        super().xTruncate(size)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.vfs.read_only:
            raise apsw.ReadOnlyError("write: EROFS")
        if self.vfs.full:
            raise apsw.FullError("write: ENOSPC")
        if self.vfs.write:
            raise apsw.IOError("write: EIO")
        super().xWrite(data, offset)
