"""
How a queue is looked into: one piece after the other, each a job of its own.

Between two pieces mail is kept, settled and claimed. A piece tells where the
next begins; where a query names destinations it is found out first which
sites they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred

from qmq.mail import Clock, Entry, Octets, Seconds
from qmq.spool.query import Query, parse
from qmq.spool.table import Held, Table

Words = Mapping[str, str]
Ask = Callable[[Callable[[Table], Any]], Deferred[Any]]


class Looking:
    """Asks the table through *ask*; *wall* is the clock against which ages are meant."""

    def __init__(self, ask: Ask, wall: Clock) -> None:
        self._ask = ask
        self._wall = wall
        self._found: tuple[tuple[bytes, ...], frozenset[bytes]] = ((), frozenset())  # of whom, and the sites

    async def find(self, words: Words, after: int, limit: int) -> Sequence[Entry]:
        """As ISpool.find."""
        query = await self._query(words, after)
        found: list[Entry] = []
        on: int | None = after
        while on is not None and len(found) < limit:
            some, on = await self._ask(partial(_scan, query, on, limit - len(found)))
            found += some
        return found

    async def survey(self, words: Words, after: int) -> tuple[int, Octets, int | None]:
        """As ISpool.survey."""
        query = await self._query(words, after)
        counted: tuple[int, Octets, int | None] = await self._ask(lambda table: table.survey(query, after))
        return counted

    async def seize(self, words: Words, after: int, limit: int) -> tuple[list[Held], int | None]:
        """A piece of ISpool.seize, as the table gives it out. Whoever cancels this loses what was taken."""
        query = await self._query(words, after)
        taken: tuple[list[Held], int | None] = await self._ask(lambda table: table.seize(query, after, limit))
        return taken

    async def due_now(self, words: Words) -> int:
        """As ISpool.due_now."""
        now, total = self._wall(), 0
        query = await self._query(words, 0)
        on: int | None = 0
        while on is not None:
            hastened, on = await self._ask(partial(_hasten, query, now, on))
            total += hastened
        return total

    async def _query(self, words: Words, after: int) -> Query:
        """Ready to be asked. Whoever goes on where a piece ended means the sites that were found at its beginning."""
        query = parse(words, self._wall())
        if not query.destinations:
            return query
        names, sites = self._found
        if names != query.destinations or not after:
            found: set[bytes] = set()
            on: bytes | None = b""
            while on is not None:
                some, on = await self._ask(partial(_sites, query, on))
                found.update(some)
            sites = frozenset(found)
            self._found = query.destinations, sites
        return replace(query, sites=sites if query.sites is None else sites & query.sites)


def _scan(query: Query, after: int, limit: int, table: Table) -> tuple[list[Entry], int | None]:
    return table.scan(query, after, limit)


def _hasten(query: Query, now: Seconds, after: int, table: Table) -> tuple[int, int | None]:
    return table.hasten(query, now, after)


def _sites(query: Query, after: bytes, table: Table) -> tuple[list[bytes], bytes | None]:
    return table.sites(query, after)
