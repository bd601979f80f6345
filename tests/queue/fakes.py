"""A spool, a dialler, a bouncer and a log in memory, for the tests of a queue and its destinations."""

# ruff: noqa: A002 - a message has an id, here as in the log
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from qmq.interfaces import IConnection, IDialler, ISpool, SpoolTrouble
from qmq.mail import (
    HELD,
    Address,
    Body,
    DeliveryFailure,
    Entry,
    Envelope,
    FileBody,
    MemoryBody,
    Message,
    Octets,
    Reply,
    Seconds,
    Token,
    address,
)
from qmq.spool.query import parse

OK = Reply(250, "2.0.0", "taken", "mx.example.org (192.0.2.1)")
LATER = Reply(451, "4.7.1", "greylisted", "mx.example.org (192.0.2.1)")
NEVER = Reply(550, "5.1.1", "no such user", "mx.example.org (192.0.2.1)")
CUT = Reply(451, "4.4.2", "connection lost")
UNREACHABLE = Reply(451, "4.4.1", "connection timed out")


def message(*recipients: str, seq: int = 1, sender: str = "s@sender.example", body: Body | None = None) -> Message:
    """A message for these, or for one at example.org."""
    to = tuple(address(r.encode()) for r in recipients or ("u@example.org",))
    envelope = Envelope(Token(b"p", seq), address(sender.encode()), to)
    return Message(envelope, b"", body or MemoryBody(b"Subject: hi\r\n\r\nhi\r\n"))


@implementer(ISpool)
class FakeSpool:
    """Keeps in a dict; *hold* makes keep wait, *broken* makes it fail. Claimed entries come without bodies."""

    tag = b"fake"
    tombstones = 0
    lowest = 2**62
    oldest = 2**62
    full = ""

    def __init__(self, wall: Callable[[], Seconds]) -> None:
        self.wall = wall
        self.entries: dict[int, Entry] = {}
        self.in_hand: set[int] = set()
        self.bodies: dict[int, Body] = {}
        self.settled: list[int] = []
        self.released: list[int] = []
        self.claims: list[tuple[int, tuple[bytes, ...]]] = []
        self.hold: list[Callable[[], None]] | None = None
        self.broken: Exception | None = None
        self.reading: list[tuple[Deferred[Body], Body]] | None = None
        self.seizing: list[Callable[[], None]] | None = None  # a list: seize waits until the test calls what is in it
        self.lows: list[int] = []
        self.octets = 0
        self.running = False
        self.number = 0
        self.seq = 0

    @property
    def messages(self) -> int:  # type: ignore[override]
        return len(self.entries)

    @property
    def birth(self) -> Seconds:
        return min((e.born for e in self.entries.values()), default=inf)

    def start(self) -> Deferred[None]:
        self.running = True
        for number in self.in_hand:
            self.entries[number].due = self.wall()
        self.in_hand.clear()
        return succeed(None)

    def stop(self) -> Deferred[None]:
        self.running = False
        return succeed(None)

    def next_token(self) -> Token:
        self.seq += 1
        return Token(self.tag, self.seq)

    def keep(self, message: Message, sites: Sequence[bytes], low: int) -> Deferred[Sequence[Entry]]:
        self.lows.append(low)
        if self.broken is not None:
            return fail(self.broken)
        if self.hold is None:
            return succeed(self.store(message, sites))
        kept: Deferred[Sequence[Entry]] = Deferred()
        self.hold.append(lambda: kept.callback(self.store(message, sites)))
        return kept

    def store(self, message: Message, sites: Sequence[bytes]) -> list[Entry]:
        found = []
        for site in dict.fromkeys(sites):
            self.number += 1
            to = tuple(r for r, s in zip(message.envelope.recipients, sites, strict=True) if s == site)
            part = message
            if len(to) != len(sites):
                e = message.envelope
                part = Message(Envelope(e.token, e.sender, to), message.fields, message.body)
            entry = Entry(self.number, part, site, self.wall())
            self.entries[entry.number] = entry
            self.bodies[entry.number] = MemoryBody(b"".join(message.body.chunks()))
            self.in_hand.add(entry.number)
            found.append(entry)
        return found

    def settle(self, entry: Entry) -> None:
        assert self.running
        assert entry.number in self.in_hand
        self.settled.append(entry.number)
        if not entry.message.envelope.recipients and not entry.bouncing:
            self._gone(entry)
        elif entry.due is not None:
            self.in_hand.discard(entry.number)

    def done(self, entry: Entry) -> None:
        assert self.running
        assert entry.number in self.in_hand
        self.settled.append(entry.number)
        self._gone(entry)

    def _gone(self, entry: Entry) -> None:
        del self.entries[entry.number]
        self.in_hand.discard(entry.number)

    def release(self, entry: Entry, due: Seconds) -> None:
        assert self.running
        assert entry.number in self.in_hand
        self.released.append(entry.number)
        entry.due = due
        self.in_hand.discard(entry.number)

    def claim(self, now: Seconds, limit: int, busy: Sequence[bytes]) -> Deferred[Sequence[Entry]]:
        self.claims.append((limit, tuple(busy)))
        if self.broken is not None:
            return fail(self.broken)
        due = [
            e for e in self.entries.values()
            if e.number not in self.in_hand and e.due is not None and e.due <= now and e.site not in busy
        ]  # fmt: skip
        due.sort(key=lambda e: (e.due, e.number))
        for entry in due[:limit]:
            self._take(entry)
        return succeed(due[:limit])

    def _take(self, entry: Entry) -> None:
        self.in_hand.add(entry.number)
        entry.due = None
        m = entry.message
        entry.message = Message(m.envelope, m.fields, FileBody("/nowhere", m.body.size))

    def next_due(self, busy: Sequence[bytes]) -> Deferred[Seconds | None]:
        due = [
            e.due for e in self.entries.values()
            if e.number not in self.in_hand and e.due is not None and e.site not in busy
        ]  # fmt: skip
        return succeed(min(due, default=None))

    def body(self, entry: Entry) -> Body | Deferred[Body]:
        body = self.bodies.get(entry.number)
        if body is None:
            raise SpoolTrouble("no body")
        if self.reading is None:
            return body
        read: Deferred[Body] = Deferred()
        self.reading.append((read, body))
        return read

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        site = query.get("site", "").encode()
        found = [
            e for e in self.entries.values()
            if e.number not in self.in_hand and site in (b"", e.site) and (e.due or 0) < HELD
        ]  # fmt: skip
        for entry in found:
            entry.due = self.wall()
        return succeed(len(found))

    def find(self, query: Mapping[str, str], after: int, limit: int) -> Deferred[Sequence[Entry]]:
        return succeed([e for e in self.entries.values() if e.number > after][:limit])

    def survey(self, query: Mapping[str, str], after: int) -> Deferred[tuple[int, Octets, int | None]]:
        return succeed((len(self.entries), self.octets, None))

    def seize(self, query: Mapping[str, str], after: int, limit: int) -> Deferred[tuple[Sequence[Entry], int | None]]:
        if self.broken is not None:
            return fail(self.broken)
        matches = parse(query, self.wall()).matches
        rest = sorted(number for number in self.entries if number > after and number not in self.in_hand)
        some, following = rest[:limit], rest[limit - 1] if len(rest) > limit else None
        found = [entry for entry in map(self.entries.__getitem__, some) if matches(entry)]
        for entry in found:
            self._take(entry)
        if self.seizing is None:
            return succeed((found, following))
        seized: Deferred[tuple[Sequence[Entry], int | None]] = Deferred()
        self.seizing.append(lambda: seized.callback((found, following)))
        return seized

    def peek(self, number: int) -> Deferred[Entry | None]:
        return succeed(self.entries.get(number))

    def due(self) -> list[Seconds]:
        """When the entries that rest are due, from now."""
        return [
            e.due - self.wall() for e in self.entries.values() if e.number not in self.in_hand and e.due is not None
        ]


@implementer(IConnection)
class FakeConnection:
    """Takes one message at a time; the test says what became of it."""

    def __init__(self, site: bytes, work: Any) -> None:
        self.site = site
        self.work = work
        self.at_work: Message | None = None
        self.got: list[Message] = []
        self.state = "open"

    def send(self, message: Message) -> None:
        assert self.at_work is None, "send on a busy connection"
        assert self.state == "open"
        self.at_work = message
        self.got.append(message)

    def answer(self, *replies: Reply) -> None:
        """The host answers, and the next message is taken."""
        message, self.at_work = self.at_work, None
        assert message is not None
        n = len(message.envelope.recipients)
        self.work.finished(message, list(replies) if len(replies) == n else [replies[0] if replies else OK] * n)
        if self.state == "closing":
            self.lose(None)
            return
        following = self.work.take() if self.state == "open" else None
        if following is not None:
            self.send(following)
        elif self.state == "open":
            self.work.idle(self)

    def lose(self, reason: Reply | None = CUT) -> None:
        """The connection is cut."""
        if self.state == "gone":
            return
        self.state = "gone"
        message, self.at_work = self.at_work, None
        if message is not None:
            self.work.finished(message, [reason or CUT] * len(message.envelope.recipients))
        self.work.lost(self, reason)

    def close(self) -> None:
        if self.at_work is None:
            self.lose(None)
        else:
            self.state = "closing"

    def abort(self) -> None:
        self.lose(CUT)


@implementer(IDialler)
class FakeDialler:
    """Answers dials as *hosts* says: a Reply refuses, None hangs, what is not named connects."""

    def __init__(self) -> None:
        self.hosts: dict[bytes, Reply | None] = {}
        self.dialled: list[bytes] = []
        self.connections: list[FakeConnection] = []
        self.hanging: list[tuple[bytes, Deferred[Any], Any]] = []
        self.cancelled: list[bytes] = []

    def dial(self, site: bytes, work: Any) -> Deferred[Any]:
        self.dialled.append(site)
        if site not in self.hosts:
            return succeed(self.connect(site, work))
        reply = self.hosts[site]
        if reply is not None:
            return fail(DeliveryFailure(reply))
        dial: Deferred[Any] = Deferred(lambda _: self.cancelled.append(site))
        self.hanging.append((site, dial, work))
        return dial

    def connect(self, site: bytes, work: Any) -> FakeConnection:
        connection = FakeConnection(site, work)
        self.connections.append(connection)
        return connection

    def open(self, site: bytes | None = None) -> list[FakeConnection]:
        """Connections that live."""
        return [c for c in self.connections if c.state != "gone" and site in (None, c.site)]

    def busy(self, site: bytes | None = None) -> list[FakeConnection]:
        """Connections with a message on them."""
        return [c for c in self.open(site) if c.at_work is not None]

    def let_in(self) -> None:
        """Those that hang get their connection."""
        hanging, self.hanging = self.hanging, []
        for site, dial, work in hanging:
            dial.callback(self.connect(site, work))

    def turn_away(self, reply: Reply = UNREACHABLE) -> None:
        """Those that hang time out."""
        hanging, self.hanging = self.hanging, []
        for _, dial, _ in hanging:
            dial.errback(DeliveryFailure(reply))


class FakeBouncer:
    """Takes bounces over, or not, or when the test says."""

    def __init__(self) -> None:
        self.answer: bool | Exception | None = True  # None: later
        self.bounced: list[tuple[int, int, tuple[tuple[Address, Reply], ...]]] = []
        self.notices: list[int] = []
        self.bodies: list[bytes | None] = []
        self.waiting: list[Deferred[bool]] = []

    def bounce(self, entry: Entry) -> Deferred[bool]:
        self.bounced.append((entry.number, entry.generation, entry.bouncing))
        self.bodies.append(entry.message.body.data)
        return self._answered()

    def delayed(self, entry: Entry) -> Deferred[bool]:
        self.notices.append(entry.number)
        return self._answered()

    def _answered(self) -> Deferred[bool]:
        if self.answer is None:
            self.waiting.append(Deferred())
            return self.waiting[-1]
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.answer)


class FakeLog:
    """Remembers the words."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def delivered(self, id: bytes, queue: str, recipient: Address, reply: Reply, seconds: Seconds) -> None:
        self.lines.append(("delivered", id, queue, recipient, reply, seconds))

    def moved(self, id: bytes, queue: str, recipient: Address, to: str, seconds: Seconds) -> None:
        self.lines.append(("moved", id, queue, recipient, to, seconds))

    def deleted(self, id: bytes, queue: str, recipient: Address) -> None:
        self.lines.append(("deleted", id, queue, recipient))

    def deferred(self, id: bytes, queue: str, recipient: Address, due: Seconds, reply: Reply) -> None:
        self.lines.append(("deferred", id, queue, recipient, due, reply))

    def failed(self, id: bytes, queue: str, recipient: Address, reply: Reply) -> None:
        self.lines.append(("failed", id, queue, recipient, reply))

    def warning(self, text: str) -> None:
        self.lines.append(("warning", text))

    def warnings(self) -> list[str]:
        return [line[1] for line in self.lines if line[0] == "warning"]
