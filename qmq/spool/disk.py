"""The store on disk: a front, a journal for what is fresh, rows for what stays."""

from __future__ import annotations

import os
import time

from twisted.internet.interfaces import IReactorTime

from qmq.mail import Clock, Octets, Seconds
from qmq.spool.fresh import FreshTable
from qmq.spool.journal import Journal
from qmq.spool.sqlite import INODES, RESERVE, SQLiteTable
from qmq.spool.store import Store
from qmq.spool.table import Table
from qmq.spool.tombstones import LIMIT
from qmq.spool.writer import Writers

# When a journal's file has that length, what is fresh becomes rows.
JOURNAL: Octets = 16 << 20


def SQLiteSpool(
    folder: str, *, clock: IReactorTime, writers: Writers, wall: Clock = time.time, inline: Octets = 131072,
    reserve: Octets = RESERVE, inodes: int = INODES, share: Octets | float | None = None, cache: int = 512,
    tombstones: int = LIMIT, patience: Seconds = 10, idle: Seconds = 60, vfs: str | None = None, mark: str = "",
    journal: Octets = JOURNAL,
) -> Store:  # fmt: skip
    """
    The ISpool in *folder*; see Store, SQLiteTable and FreshTable for what the arguments mean.

    *journal*: how long each of the journal's two files may be; 0: there is none, and all mail is made rows.
    """
    rows = SQLiteTable(folder, reserve=reserve, inodes=inodes, share=share, cache=cache, vfs=vfs, mark=mark)
    table: Table = FreshTable(rows, Journal(os.path.join(folder, "journal"), journal)) if journal else rows
    return Store(
        table, clock=clock, writers=writers, wall=wall, inline=inline, tombstones=tombstones, patience=patience,
        idle=idle,
    )  # fmt: skip
