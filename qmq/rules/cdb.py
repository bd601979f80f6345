"""
Reading cdb files: the compiled rules of qmail and SPAMCONTROL.

Through the library cdbx. A small file is copied and its copy mapped: a look-up
costs a third of a microsecond. A big one is read where it stands, through the
kernel's cache, in some four microseconds: millions of keys cost no memory of
ours. It is not mapped, for who shortened it in place would kill the process
(SIGBUS). Files should be replaced by renaming, as all makers of cdb do.
"""

from __future__ import annotations

import os
import struct
from io import FileIO

import cdbx

from qmq.mail import Octets
from qmq.rules.watched import BadLine

# cdb's header: 256 tables, each the place of its slots and their number, 8 octets a slot.
_HEADER = struct.Struct("<" + "II" * 256)
_SLOT: Octets = 8
# What is copied into memory. A tcprules file of 10,000 addresses has about as much.
_SMALL: Octets = 1 << 20
_COPIES = hasattr(os, "memfd_create")  # Linux, FreeBSD
_REMEDY = "make it again with the program that made it, and rename it into place"


class CDB:
    """
    One cdb file, as it was when it was opened; made by open_cdb.

    Closed at the latest when nobody holds it any more, so a file of rules that
    is read again need not be closed by whoever uses it.
    """

    __slots__ = ("_cdb", "path")

    def __init__(self, path: str, cdb: cdbx.CDB) -> None:
        self.path = path
        self._cdb = cdb

    def get(self, key: bytes) -> bytes | None:
        """The first value of *key*, None if there is no such key; raises OSError if the file is damaged or closed."""
        try:
            found: bytes | None = self._cdb.get(key)
        except (OSError, MemoryError, SystemError) as trouble:  # a damaged length may ask for 4 GiB
            raise OSError(f"{self.path}: cannot be read: {trouble}") from trouble
        return found

    def __contains__(self, key: bytes) -> bool:
        return self.get(key) is not None

    def close(self) -> None:
        """Close the file; again does nothing."""
        self._cdb.close()


def open_cdb(path: str) -> CDB:
    """
    The cdb file at *path*; raises OSError, and BadLine for what is cut short or no cdb at all.

    To be given to Context.watch. A cdb has no checksum: what is damaged inside
    is found by CDB.get, or not.
    """
    file = FileIO(path)  # the CDB closes it
    try:
        header = file.read(_HEADER.size)
        size = os.fstat(file.fileno()).st_size
        _look_over(path, header, size)
        small = _COPIES and size <= _SMALL
        if small:
            with file as original:
                file = _copy(header, original)
        cdb = cdbx.CDB(file, close=True, mmap=small)
    except (OSError, SystemError) as trouble:
        file.close()
        raise BadLine(path, 0, f"cannot be read as a cdb file: {trouble}", _REMEDY) from trouble
    except BaseException:
        file.close()
        raise
    return CDB(path, cdb)


def _copy(header: bytes, original: FileIO) -> FileIO:
    """A file in memory that nobody else has, with the same text; *original* stands behind its header."""
    copy = FileIO(os.memfd_create("qmq-cdb"), "rb+")
    copy.write(header + original.read())
    return copy


def _look_over(path: str, header: bytes, size: Octets) -> None:
    """All tables must lie within the file: they are its end, so what is cut short shows here."""
    if len(header) < _HEADER.size:
        raise BadLine(path, 0, f"is no cdb file: it has only {len(header)} octets", _REMEDY)
    places = _HEADER.unpack(header)
    for place, slots in zip(places[::2], places[1::2], strict=True):
        if slots and not (_HEADER.size <= place and place + slots * _SLOT <= size):
            raise BadLine(path, 0, "is no cdb file, or was cut short", _REMEDY)
