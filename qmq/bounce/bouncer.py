"""
Who is told when mail could not be delivered: the sender, the postmaster, or nobody.

A failed message has a bounce with the null sender made for it; a failed bounce
(null sender) a double bounce to the postmaster, whose sender ``#@[]`` marks it
inside our stores; a failed double bounce is dropped with a log line. So no
bounce is ever made for a bounce's bounce, and what is counted by the hour
keeps a flood of forged senders from drowning the postmaster. A notice's token
comes from the delivery's number, so however often it is handed over, it is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from twisted.internet.defer import Deferred

from qmq.bounce.dsn import Kind, Notice, Original, report
from qmq.interfaces import INextHop
from qmq.log import EventLog
from qmq.mail import (
    DOUBLE_BOUNCE_SENDER,
    NULL_SENDER,
    Address,
    Body,
    Clock,
    Entry,
    Envelope,
    MemoryBody,
    Message,
    Octets,
    Origin,
    Reply,
    Seconds,
    Token,
    address,
)

# Of the header as much goes back; of a body that is to go back whole, no more than this is held in memory.
_HEADER: Octets = 65536
_WHOLE: Octets = 10 << 20
_GENERATIONS = 256
_HOUR: Seconds = 3600

# RFC 3834 2: what a machine or a list wrote gets no notice that it did not ask for.
_AUTO_SUBMITTED = re.compile(rb"auto-submitted[ \t]*:(?![ \t]*no[ \t]*(?:;|\r|$))", re.IGNORECASE)
_PRECEDENCE = re.compile(rb"precedence[ \t]*:[ \t]*(?:bulk|list|junk)\b", re.IGNORECASE)
_LIST = re.compile(rb"list-[a-z]+[ \t]*:", re.IGNORECASE)


class Numbers(Protocol):
    """What is needed of an ISpool: its name, and how far back its entries go."""

    tag: bytes
    oldest: int


def is_bulk(header: bytes) -> bool:
    """The header says that a machine or a mailing list wrote the message (RFC 3834, RFC 2919, RFC 2369)."""
    return any(
        _AUTO_SUBMITTED.match(line) or _PRECEDENCE.match(line) or _LIST.match(line) for line in header.split(b"\r\n")
    )


class Bouncer:
    """
    Makes notices about entries of one queue, and hands them to *hop*: the bounce instance, or the queue itself.

    Notices come from *bouncefrom* @ *bouncehost*. *doublebounceto* is an
    address, completed with *me*; empty or beginning with ``@``: double bounces
    are dropped. Messages up to *bouncemaxbytes* go back whole (0: all up to 10
    MiB), of others the header. At most *doubles_an_hour* double bounces are
    made, the rest is dropped. *read_body* gives an entry's body.
    """

    def __init__(
        self,
        hop: INextHop,
        spool: Numbers,
        *,
        me: str,
        log: EventLog,
        wall: Clock,
        read_body: Callable[[Entry], Body | Deferred[Body]],
        queue: str = "",
        bouncefrom: str = "MAILER-DAEMON",
        bouncehost: str | None = None,
        doublebounceto: str = "postmaster",
        bouncemaxbytes: Octets = 65536,
        doubles_an_hour: int = 100,
    ) -> None:
        self.hop = hop
        self._spool = spool
        self._me = me
        self._log = log
        self._wall = wall
        self._read_body = read_body
        self._queue = queue
        self._sender = Address(bouncefrom.encode(), (bouncehost or me).encode())
        self._double_to = _double_to(doublebounceto, me)
        self._most_whole = min(bouncemaxbytes or _WHOLE, _WHOLE)
        self._doubles_an_hour = doubles_an_hour
        self._hour = 0
        self._doubles = 0

    @property
    def low(self) -> int:
        """The lowest seq of our tokens that may still be handed over; goes with each hand-over."""
        return min(self._spool.oldest * _GENERATIONS, 2**62)

    def bounce(self, entry: Entry) -> Deferred[bool]:
        """
        Tell of *entry.bouncing*, as it is now. True: told, or nobody is to be told; False: try again.

        Until it is True nothing in the entry may change but *due*; then its
        owner takes these recipients away and raises *generation*.
        """
        return Deferred.fromCoroutine(self._bounce(entry))

    def delayed(self, entry: Entry, until: Seconds | None = None) -> Deferred[bool]:
        """
        Tell the sender, once, that delivery takes long. True: set *entry.delayed*; False: try again.

        Nobody is told of a bounce's delay, nor of bulk mail's.
        """
        return Deferred.fromCoroutine(self._delayed(entry, until))

    async def _bounce(self, entry: Entry) -> bool:
        if not entry.bouncing:
            return True
        to = return_path(entry.message.envelope.sender)
        # An entry with very many bounces has a peer for each 256 of them: no number is reused.
        group, rest = divmod(entry.generation, _GENERATIONS)
        token = Token(self._spool.tag + b".b" + (b"%d" % group if group else b""), entry.number * _GENERATIONS + rest)
        original = await self._original(entry, entry.bouncing)
        if to not in {NULL_SENDER, DOUBLE_BOUNCE_SENDER}:
            reply = await self._send("failed", original, token, NULL_SENDER, to)
            if not reply.permanent:
                return reply.ok
            self._dropped(original, f"the bounce to its sender was refused: {reply.code} {reply.text}")
        if to == DOUBLE_BOUNCE_SENDER:
            return self._dropped(original, "triple bounce")
        return await self._double(original, token)

    async def _double(self, original: Original, token: Token) -> bool:
        if self._double_to is None:
            return self._dropped(original, "double bounce, doublebounceto is off")
        if not self._may_double():
            return self._dropped(original, f"double bounce, more than {self._doubles_an_hour} in this hour")
        reply = await self._send("failed", original, token, DOUBLE_BOUNCE_SENDER, self._double_to)
        if reply.permanent:
            return self._dropped(original, f"the double bounce was refused: {reply.code} {reply.text}")
        if reply.ok:
            self._doubles += 1
        return reply.ok

    def _may_double(self) -> bool:
        # By the wall clock: a jump begins a new hour, no worse.
        hour = int(self._wall() // _HOUR)
        if hour != self._hour:
            self._hour = hour
            self._doubles = 0
        return self._doubles < self._doubles_an_hour

    async def _delayed(self, entry: Entry, until: Seconds | None) -> bool:
        to = return_path(entry.message.envelope.sender)
        waiting = [(recipient, entry.last.get(recipient)) for recipient in entry.message.envelope.recipients]
        known = tuple((recipient, reply) for recipient, reply in waiting if reply is not None)
        if entry.delayed or not known or to in {NULL_SENDER, DOUBLE_BOUNCE_SENDER}:
            return True
        original = await self._original(entry, known)
        if is_bulk(original.header):
            return True
        # A peer of its own: an entry has one notice of delay, and any number of bounces.
        token = Token(self._spool.tag + b".d", entry.number * _GENERATIONS)
        reply = await self._send("delayed", original, token, NULL_SENDER, to, until)
        if reply.permanent:
            return self._dropped(original, f"the delay notice was refused: {reply.code} {reply.text}")
        return reply.ok

    async def _original(self, entry: Entry, recipients: tuple[tuple[Address, Reply], ...]) -> Original:
        envelope = entry.message.envelope
        fields = entry.message.fields
        whole: bytes | None = None
        try:
            found = self._read_body(entry)
            body = await found if isinstance(found, Deferred) else found
            may_go_whole = envelope.body_type != b"BINARYMIME" and len(fields) + body.size <= self._most_whole
            text = fields + (b"".join(body.chunks()) if may_go_whole else next(iter(body.chunks(_HEADER)), b""))
            whole = text if may_go_whole else None
        except Exception as trouble:  # noqa: BLE001 - whatever the store raises, the sender must be told
            # What we put in front of the text is with the entry.
            self._log.warning(f"no body for the bounce of {envelope.token.id.decode('ascii', 'replace')}: {trouble}")
            text = fields
        return Original(
            envelope.token.id, envelope.sender, entry.born, recipients, header_of(text), whole, envelope.smtputf8
        )

    async def _send(
        self,
        kind: Kind,
        original: Original,
        token: Token,
        sender: Address,
        to: Address,
        until: Seconds | None = None,
    ) -> Reply:
        now = self._wall()
        notice = report(kind, original, me=self._me, sender=self._sender, to=to, id=token.id, now=now, until=until)
        replies = await self.hop.send(_message(notice, token, sender, to))
        if replies[0].ok:
            self._log.bounced(original.id, token.id, self._queue, to)
        return replies[0]

    def _dropped(self, original: Original, why: str) -> bool:
        self._log.dropped_bounce(original.id, self._queue, why)
        return True


def return_path(sender: Address) -> Address:
    """
    Where bounces for *sender* go.

    SPAMCONTROL, qmail: ``list-@host-@[]`` has another sender for each
    recipient on the wire; bounces made here go to ``list-@host``.
    """
    if sender.domain == b"[]" and sender.local.endswith(b"-") and b"@" in sender.local:
        return address(sender.local[:-1])
    return sender


def header_of(text: bytes) -> bytes:
    """The lines before the first empty one, at most 64 KiB of them, each whole."""
    if text.startswith(b"\r\n"):
        return b""
    end = text.find(b"\r\n\r\n", 0, _HEADER)
    if end >= 0:
        return text[: end + 2]
    return text if len(text) <= _HEADER else text[: text.rfind(b"\r\n", 0, _HEADER) + 2]


def _double_to(doublebounceto: str, me: str) -> Address | None:
    if not doublebounceto or doublebounceto.startswith("@"):
        return None
    return address((doublebounceto if "@" in doublebounceto else f"{doublebounceto}@{me}").encode())


def _message(notice: Notice, token: Token, sender: Address, to: Address) -> Message:
    envelope = Envelope(
        token, sender, (to,), Origin(made_here=True), body_type=notice.body_type, smtputf8=notice.smtputf8
    )
    return Message(envelope, b"", MemoryBody(notice.text))
