"""
The database of a store: its tables, and how a connection to it is made.

One row a message and site; what changes together lies together, and a body is
a row of its own, so that rewriting a message never rewrites its text. A fresh
row has no due time and is in no index of due times: claiming it costs nothing.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import apsw

from qmq.interfaces import SpoolTrouble
from qmq.spool.bodies import sync_folder
from qmq.spool.table import Broken

VERSION = 3
# Before it, two connections could damage a WAL database (the WAL-reset bug of 3.7.0 to 3.51.2).
OLDEST_SQLITE = (3, 51, 3)

# What the disk does, not what we asked for.
IO_ERRORS = (
    apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.ProtocolError, apsw.ReadOnlyError,
)  # fmt: skip

# For who looks in by destination; sorted by number, as every index is at last. Fresh mail is not in it either,
# and trying again changes nothing of it: therefore a column of its own that is written once.
LINE = "CREATE INDEX message_line ON message (site) WHERE waited IS NOT NULL"
# What makes a format of the one before.
STEPS = {
    1: f"ALTER TABLE message ADD COLUMN waited DEFAULT 1; {LINE}",
    2: "INSERT INTO meta VALUES ('journal', 0), ('secret', random() & 0xFFFFFFFF)",
}

TABLES = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE peer (peer BLOB PRIMARY KEY, low INTEGER) WITHOUT ROWID;
CREATE TABLE message (
  number INTEGER PRIMARY KEY,   -- start's epoch * 2**32 + counter: never used twice
  peer BLOB, seq INTEGER, part INTEGER,
  site BLOB,
  due REAL,                     -- NULL: fresh, in hand
  attempts INTEGER, born REAL, size INTEGER,
  body INTEGER,                 -- row of body; negative: number of a file
  record BLOB,
  waited DEFAULT 1);            -- NULL: has never been out of hand
CREATE UNIQUE INDEX message_token ON message (peer, seq, part);
CREATE INDEX message_due ON message (due, site) WHERE due IS NOT NULL;
CREATE INDEX message_site ON message (site, due) WHERE due IS NOT NULL;
{LINE};
CREATE TABLE body (number INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE tombstone (peer BLOB, seq INTEGER, recipients BLOB, PRIMARY KEY (peer, seq)) WITHOUT ROWID;
CREATE TABLE damaged (
  number INTEGER PRIMARY KEY, peer BLOB, seq INTEGER, part INTEGER, site BLOB, due REAL,
  attempts INTEGER, born REAL, size INTEGER, body INTEGER, record BLOB, why TEXT);
"""


def connect(
    path: str, *, make: bool, cache: int = 512, autocheckpoint: int = 4000, vfs: str | None = None
) -> apsw.Connection:
    """
    A connection to the database at *path*; *cache* is in KiB.

    *make*: made if there is none. Else that is Broken: whoever had it open before must not begin with
    an empty one because its device is gone. An older format is made the present one.

    Nobody else can use the file while it is open: the lock on the folder says
    so already, and exclusive locking saves the shared memory and its locks.
    """
    if sqlite_version() < OLDEST_SQLITE:
        raise SpoolTrouble(f"SQLite {apsw.sqlite_lib_version()} may damage the spool; 3.51.3 or later is needed")
    # Made here for its mode: SQLite gives the same to the files beside it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT * make | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise Broken(str(error)) from error
    connection = apsw.Connection(path, vfs=vfs)
    try:
        connection.set_busy_timeout(2000)
        # Before all that reads the file: else there is shared memory all the same, a descriptor and 32 KiB of it.
        connection.pragma("locking_mode", "exclusive")
        connection.pragma("cache_size", -cache)
        connection.pragma("temp_store", "memory")
        version = connection.pragma("user_version")
        connection.pragma("journal_mode", "wal")
        connection.pragma("synchronous", "full")
        connection.pragma("wal_autocheckpoint", autocheckpoint)
        connection.pragma("journal_size_limit", 32 << 20)
        if version == 0 and make:
            _make(connection)
            sync_folder(os.path.dirname(path))
        elif version == 0:
            raise Broken(f"{path}: it is empty")  # noqa: TRY301 - closed below
        elif version in STEPS:
            _step(connection, version)
        elif version != VERSION:
            raise SpoolTrouble(f"{path}: format {version}; this program reads {VERSION}")  # noqa: TRY301 - closed below
        for name in ("busy", "wanted"):
            connection.execute(f"CREATE TEMP TABLE {name} (site BLOB PRIMARY KEY) WITHOUT ROWID")
    except BaseException:
        connection.close(True)  # by force: the error is what matters
        raise
    return connection


def shrink(connection: apsw.Connection, pages: int = 4096) -> None:
    """Give the disk back what a flood took, once most of a long file is unused and the rest is quickly copied."""
    # Incremental vacuum would do it in pieces, but costs every message 2-3 us for its map of pages.
    count, unused = connection.pragma("page_count"), connection.pragma("freelist_count")
    if count > pages and unused * 2 > count and count - unused < 16 * pages:
        with suppress(apsw.Error):  # another time, then
            connection.execute("VACUUM")


def void(connection: apsw.Connection) -> None:
    """
    After a commit that failed: write over what it left in the log, as well as the disk lets us.

    Its frames may be complete there without having been synced, and whoever opens the database next would believe them.
    """
    with suppress(apsw.Error):
        connection.pragma("synchronous", "off")
        # SQLite writes no page that does not change.
        connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'voided'")
    with suppress(apsw.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.pragma("synchronous", "full")


@contextmanager
def translated(folder: str) -> Iterator[None]:
    """Errors of SQLite become ours, but for the full disk, which commit answers itself."""
    try:
        yield
    except apsw.FullError:
        raise
    except IO_ERRORS as error:
        raise Broken(f"{folder}: {error}") from error
    except apsw.Error as error:
        raise SpoolTrouble(f"{folder}: {error}") from error


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """All or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            # The first error tells what is wrong; an open transaction ends with its connection.
            with suppress(apsw.Error):
                connection.execute("ROLLBACK")
        raise


def sqlite_version() -> tuple[int, ...]:
    """Of the library that is loaded."""
    return tuple(int(part) for part in apsw.sqlite_lib_version().split("."))


def _make(connection: apsw.Connection) -> None:
    tag = "".join(secrets.choice("abcdefghijklmnopqrstuvwxyz234567") for _ in range(6)).encode("ascii")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(TABLES)
    connection.execute("INSERT INTO meta VALUES ('tag', ?), ('epoch', 0), ('voided', 0)", (tag,))
    connection.execute(STEPS[2])
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _step(connection: apsw.Connection, version: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for each in range(version, VERSION):
        connection.execute(STEPS[each])
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")
