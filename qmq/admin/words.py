"""
What can be asked of queues, each word a coroutine over one queue.

Everything goes piece by piece: a piece is told before the next is fetched, and
nobody asks for more than the asker takes. Nothing grows with a queue's depth.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from qmq.admin.facts import facts, more
from qmq.mail import Entry, Octets, Seconds

# The first page is small, so that it is there at once; making JSON of a later one takes some milliseconds.
_FIRST, _PAGE = 20, 100
_CHUNK: Octets = 65536
# Of the header of a message, as much is shown.
_HEADER: Octets = 65536

Query = Mapping[str, str]


class Say(Protocol):
    """Tells whoever asked, fact by fact."""

    def __call__(self, fact: dict[str, Any]) -> None:
        """One fact; what JSON can say."""

    def room(self) -> Awaitable[None]:
        """Fires when the asker has taken enough of what was told; awaited by whoever tells much."""


async def listed(name: str, queue: Any, request: Mapping[str, Any], say: Say, wall: Callable[[], Seconds]) -> None:
    """Every entry that matches *query* above number *after*, at most *limit* of them (0: all)."""
    query, after, left = asked(request), int(request.get("after") or 0), int(request.get("limit") or 0) or None
    page = _FIRST
    while True:
        size = page if left is None else min(page, left)
        entries = await queue.spool.find(query, after, size)
        now = wall()
        for entry in entries:
            say({"queue": name, **facts(entry, now)})
        if left is not None:
            left -= len(entries)
        if len(entries) < size or left == 0:
            return
        await say.room()
        after, page = entries[-1].number, _PAGE


async def counted(name: str, queue: Any, request: Mapping[str, Any], say: Say) -> None:
    """How many entries match and their octets, so far; the last with *all*."""
    query, after = asked(request), 0
    count = octets = 0
    while True:
        piece, size, following = await queue.spool.survey(query, after)
        count, octets = count + piece, octets + size
        fact = {"queue": name, "counted": count, "octets": octets}
        if following is None:
            say({**fact, "all": True})
            return
        say(fact)
        await say.room()
        after = following


async def acted(name: str, queue: Any, request: Mapping[str, Any], say: Say) -> None:
    """Hold, release, now, delete, bounce, move what matches; how many so far, at last with how many come *later*."""
    result = await queue.act(
        request["do"], asked(request), lambda done: say({"queue": name, "done": done}),
        to=str(request.get("to") or ""), reason=str(request.get("reason") or ""),
    )  # fmt: skip
    say({"queue": name, "done": result.done, "later": result.later})


async def shown(name: str, queue: Any, request: Mapping[str, Any], say: Say, wall: Callable[[], Seconds]) -> None:
    """The entries of message *id*, all that is known of them, and the message's header."""
    for found in await queue.spool.find({"id": _id(request)}, 0, _PAGE):
        entry = await queue.spool.peek(found.number)
        if entry is not None:
            say({"queue": name, **facts(entry, wall()), **more(entry), "header": _header(entry)})
            await say.room()


async def written(name: str, queue: Any, request: Mapping[str, Any], say: Say) -> None:
    """The text of message *id*, base64, in pieces of 64 KiB; the last with *all*."""
    for found in await queue.spool.find({"id": _id(request)}, 0, 1):
        entry = await queue.spool.peek(found.number)
        if entry is None:
            return
        try:
            for chunk in entry.message.chunks(_CHUNK):
                say({"queue": name, "text": base64.b64encode(chunk).decode("ascii")})
                await say.room()
        except FileNotFoundError:
            say({"queue": name, "trouble": "it has just left the queue"})
            return
        say({"queue": name, "text": "", "all": True})


def asked(request: Mapping[str, Any]) -> dict[str, str]:
    """The query of a request; words that say nothing are left out."""
    query = request.get("query") or {}
    return {str(word): str(text) for word, text in query.items() if text not in (None, "")}


def _id(request: Mapping[str, Any]) -> str:
    wanted = str(request.get("id") or "")
    if not wanted:
        raise ValueError("which message? say its id")
    return wanted


def _header(entry: Entry) -> str:
    """Up to the first empty line; of a long message whose file has gone, only our own fields."""
    text = entry.message.fields
    try:
        for chunk in entry.message.body.chunks(_HEADER):
            text += chunk
            break
    except FileNotFoundError:
        pass  # delivered meanwhile: what is known is told
    return text[:_HEADER].partition(b"\r\n\r\n")[0].decode("utf-8", "backslashreplace").replace("\r\n", "\n")
