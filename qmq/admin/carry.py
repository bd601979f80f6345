"""
Whole messages, for `qmq export`: everything that is known of each, then its text, piece by piece.

Several queues tell in turn, so each piece names its entry. A piece is told
before the next is read, and nobody gets more than it takes.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from qmq.admin.facts import facts, more
from qmq.admin.words import Say, asked
from qmq.mail import Entry, Octets, Seconds

_PAGE = 100
_CHUNK: Octets = 65536


async def carried(name: str, queue: Any, request: Mapping[str, Any], say: Say, wall: Callable[[], Seconds]) -> None:
    """Every entry that matches *query*: its facts, its text in base64, and *all*; or *gone*, if it went meanwhile."""
    query, after = asked(request), 0
    while True:
        entries = await queue.spool.find(query, after, _PAGE)
        for found in entries:
            entry = await queue.spool.peek(found.number)
            if entry is not None:
                await _carry(name, entry, say, wall())
        if len(entries) < _PAGE:
            return
        after = entries[-1].number


async def _carry(name: str, entry: Entry, say: Say, now: Seconds) -> None:
    known = more(entry)
    known["origin"]["port"] = entry.message.envelope.origin.port
    say({"queue": name, **facts(entry, now), **known})
    mine = {"queue": name, "number": entry.number}
    try:
        for chunk in entry.message.chunks(_CHUNK):
            say({**mine, "text": base64.b64encode(chunk).decode("ascii")})
            await say.room()
    except FileNotFoundError:
        say({**mine, "gone": True})
        return
    say({**mine, "all": True})
