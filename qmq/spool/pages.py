"""
The pages of a store's database: how many are in use, and how many stay in memory.

A body's pages are read again when it is deleted, most often two batches later, and
written twice if a batch outgrows the cache; of a deep queue each row that is tried
again lies elsewhere. So the cache is as large as the batches of late ask for: little
for most stores, more where long mail comes thick.
"""

from __future__ import annotations

import apsw

from qmq.mail import Octets

# The largest cache, KiB; a batch of 40 messages of 64 kB asks for it.
MOST = 16384
# Measured: with so many times its bodies in memory a batch reads nothing again, by 40 sessions.
_TIMES = 6
# Of many, each lies on a page of its own, and so do its places in two indexes.
_ROW: Octets = 4096
# What a batch asked for counts half as much 70 batches later.
_FADES = 0.99


class Pages:
    """Of one connection after the other; *cache* (KiB) is the least cache of each."""

    def __init__(self, cache: int) -> None:
        self._least = self._cache = cache
        self._late: float = 0  # octets of the largest batch of late
        self._connection: apsw.Connection | None = None
        self.used: Octets = 0  # when last weighed

    def of(self, connection: apsw.Connection | None) -> None:
        """A new connection, whose cache is the least; None: there is none any more."""
        self._connection, self._cache, self._late = connection, self._least, 0

    def fit(self, bodies: Octets, rewritten: int) -> None:
        """A batch with so many octets of bodies, and so many rows that are tried again, is about to be written."""
        self._late = max(bodies + rewritten * _ROW, self._late * _FADES)
        wanted = int(self._late) * _TIMES >> 10
        # By powers of two, so that it seldom changes.
        cache = self._least if wanted <= self._least else min(MOST, 1 << wanted.bit_length())
        if cache != self._cache and self._connection is not None:
            self._connection.pragma("cache_size", -cache)
            self._cache = cache

    def weigh(self) -> None:
        """Find out how much of the file is in use; without a connection that is what it was."""
        if (connection := self._connection) is not None:
            pages = connection.pragma("page_count") - connection.pragma("freelist_count")
            self.used = pages * connection.pragma("page_size")
