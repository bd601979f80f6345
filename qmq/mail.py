"""
The words every room speaks: addresses, envelopes, bodies, replies.

Imports nothing of ours and no Twisted. Bytes are what came over the wire or
goes over it; text is for people. One currency between all stages is Reply:
QMTP's K, Z and D are 250, 451 and 554.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

Seconds = float
Octets = int

# A due time (wall clock) that never comes: of a message that the operator holds.
HELD: Seconds = 1e15
# What a site begins with that is another queue of this gateway: its mail is moved there.
QUEUE = b"queue:"

# Frozen values cost 0.2 us an object more at run time; the tests pay that, and
# production does not. To mypy a value is always frozen.
STRICT = bool(os.environ.get("QMQ_STRICT"))

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(cls: type[T]) -> type[T]:
    """A frozen value: to mypy always, at run time under QMQ_STRICT (the tests)."""
    return dataclass(slots=True, frozen=STRICT, unsafe_hash=not STRICT)(cls)


@value
class Address:
    """
    A mailbox, unquoted: ``"a b"@X.org`` is ``Address(b"a b", b"x.org")``.

    The domain is in lower case and without a trailing dot; a non-ASCII domain
    (SMTPUTF8) is in UTF-8. The null sender is ``Address(b"", b"")``, and
    ``<postmaster>`` has an empty domain.
    """

    local: bytes
    domain: bytes

    def __bytes__(self) -> bytes:
        """The raw form, as QMTP carries it: no quoting, no brackets."""
        return self.local + b"@" + self.domain if self.domain else self.local


NULL_SENDER = Address(b"", b"")
# SPAMCONTROL, qmail: the sender of a double bounce. It is known inside our stores, and between qmq peers, alone.
DOUBLE_BOUNCE_SENDER = Address(b"#", b"[]")

_ATOMS = re.compile(rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\xff-]+)*")


def path(address: Address) -> bytes:
    """The address between ``<`` and ``>`` in SMTP, its local part quoted where it must be (RFC 5321 4.1.2)."""
    local = address.local
    if local and not _ATOMS.fullmatch(local):
        local = b'"' + local.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    return local + b"@" + address.domain if address.domain else local


def address(raw: bytes) -> Address:
    """The address of a raw form, as QMTP carries it: cut at the last @, the domain in lower case."""
    local, at, domain = raw.rpartition(b"@")
    return Address(local, domain.lower().removesuffix(b".")) if at else Address(domain, b"")


def wire_sender(sender: Address) -> Address:
    """The sender as another host must hear it: a double bounce's mark is the null sender there."""
    return NULL_SENDER if sender == DOUBLE_BOUNCE_SENDER else sender


@value
class Token:
    """
    What makes an accepted message one message, whoever hands it over again (DESIGN 2 rule 4).

    *peer* names the store whose number *seq* is; numbers of one peer never
    decrease. The queue id that people see is the two joined.
    """

    peer: bytes
    seq: int

    @property
    def id(self) -> bytes:
        """The queue id, the same in replies, Received fields, log lines and bounces."""
        return b"%s-%x" % (self.peer, self.seq)


@value
class Origin:
    """Who brought a message; all of it is for Received fields, logs and checks of later stages."""

    protocol: bytes = b""  # the Received field's "with": ESMTP, ESMTPS, QMTP...
    client: bytes = b""  # IP address; empty: made here
    port: int = 0
    helo: bytes = b""
    user: bytes = b""  # authenticated as
    made_here: bool = False  # our own bounces and notices
    born: Seconds = 0.0  # wall clock, to the millisecond, when this gateway first took it; 0: whoever keeps it says
    _fields: bytes = field(init=False, compare=False, repr=False, default=b"")

    @property
    def fields(self) -> bytes:
        """As qmq peers write it (docs/qmtp.md), a NUL between two; made at its first use, for all of a session."""
        if not self._fields:
            said = b"%b\0%b\0%d\0%b\0%b\0%d" % (
                self.protocol, self.client, self.port, self.helo, self.user, self.made_here,
            )  # fmt: skip
            if self.born > 0:
                said += b"\0%x" % int(self.born * 1000)
            object.__setattr__(self, "_fields", said)
        return self._fields


@value
class Envelope:
    """Sender and recipients, the token, and the ESMTP parameters that must travel with them."""

    token: Token
    sender: Address
    recipients: tuple[Address, ...]
    origin: Origin = Origin()
    body_type: bytes = b"7BIT"  # 7BIT, 8BITMIME or BINARYMIME, as MAIL declared it (RFC 6152, RFC 3030)
    smtputf8: bool = False  # RFC 6531


class MemoryBody:
    """A message's text in memory: lines end in CRLF, not dot-stuffed, without the final dot."""

    __slots__ = ("data", "size")

    path: None = None

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def chunks(self, octets: Octets = 65536) -> Iterator[bytes]:
        """The text in order, in pieces of at most *octets*; whole if it is short."""
        data = self.data
        if self.size <= octets:
            yield data
            return
        for start in range(0, self.size, octets):
            yield data[start : start + octets]


class FileBody:
    """A long message's text in a file that nobody changes any more; whoever made the file removes it."""

    __slots__ = ("path", "size")

    data: None = None

    def __init__(self, path: str, size: Octets) -> None:
        self.path = path
        self.size = size

    def chunks(self, octets: Octets = 65536) -> Iterator[bytes]:
        """The text in order, in pieces of at most *octets*."""
        with open(self.path, "rb", buffering=0) as file:
            while chunk := file.read(octets):
                yield chunk


Body = MemoryBody | FileBody


@value
class Message:
    """Envelope, header fields put in front by us (each ends in CRLF), and the body as it came."""

    envelope: Envelope
    fields: bytes
    body: Body

    @property
    def size(self) -> Octets:
        """Octets of the whole text."""
        return len(self.fields) + self.body.size

    def chunks(self, octets: Octets = 65536) -> Iterator[bytes]:
        """The whole text, our fields first."""
        if self.fields:
            yield self.fields
        yield from self.body.chunks(octets)


# What may stand in a reply's line: printable ASCII and, for SMTPUTF8, text above it (RFC 5321 4.2, RFC 6531 3.7.4.2).
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
# RFC 5321 4.5.3.1.5: 512 octets with code and CRLF.
_TEXT_OCTETS = 480


@value
class Reply:
    """
    What a stage says of a recipient or a command; the one currency between stages.

    *status* is the enhanced code of RFC 3463 ("" for none: banner, 354, 334).
    *text* may have several lines. *mta* names who said it, such as
    ``mail.example.org (192.0.2.1)``; empty means that we did, without having
    the next hop's word: after a cut connection the truth may be otherwise.
    *tls* is what the connection was encrypted by when it was said, for the log;
    a reply that was stored has lost it.
    """

    code: int
    status: str
    text: str
    mta: str = ""
    tls: str = field(compare=False, default="")
    _line: bytes = field(init=False, compare=False, repr=False, default=b"")

    @property
    def line(self) -> bytes:
        """The wire form, all lines; made at its first use, for most replies are never spoken."""
        if not self._line:
            object.__setattr__(self, "_line", self._wire())
        return self._line

    @property
    def classic(self) -> bytes:
        """The wire form as qmail wrote it: ``(#x.y.z)`` at the end of a refusal, no code in what is well."""
        status = _UNPRINTABLE.sub("?", self.status)
        return self._lines("", f" (#{status})" if status and self.code >= 400 else "")

    def _wire(self) -> bytes:
        return self._lines(_UNPRINTABLE.sub("?", self.status) + " " if self.status else "", "")

    def _lines(self, before: str, behind: str) -> bytes:
        """*before* stands in front of each line's text, *behind* at the end of the last."""
        lines = self.text.split("\n")
        last = len(lines) - 1
        return "".join(
            f"{self.code}{' ' if i == last else '-'}{before}{_UNPRINTABLE.sub('?', text)[:_TEXT_OCTETS]}"
            f"{behind if i == last else ''}\r\n"
            for i, text in enumerate(lines)
        ).encode("ascii")

    @property
    def ok(self) -> bool:
        """2yz: it is safe on disk somewhere, or done."""
        return self.code < 300

    @property
    def temporary(self) -> bool:
        """4yz: worth another try."""
        return 400 <= self.code < 500

    @property
    def permanent(self) -> bool:
        """5yz: no use to try again."""
        return self.code >= 500


Replies = Sequence[Reply]  # one per recipient, in the envelope's order


class DeliveryFailure(Exception):
    """No connection to a site could be had; the reply says why and for how long (4yz or 5yz)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


class Entry:
    """
    A message in a queue, for one site: what is stored, and what is to be done.

    Mutable, and owned by whoever has it in hand. *message.envelope.recipients*
    are those still to be delivered to (state "to do"); *bouncing* those that
    failed and whose bounce has not been taken over yet.
    """

    __slots__ = (
        "attempts", "born", "bouncing", "delayed", "due", "fence", "generation", "last", "message", "number", "site",
    )  # fmt: skip

    def __init__(self, number: int, message: Message, site: bytes, born: Seconds) -> None:
        self.number = number  # of this store; never used twice
        self.message = message
        self.site = site
        self.born = born  # wall clock
        self.due: Seconds | None = None  # wall clock of the next attempt; None: in hand
        self.attempts = 0
        self.last: dict[Address, Reply] = {}  # the latest reply of each recipient not delivered yet
        self.bouncing: tuple[tuple[Address, Reply], ...] = ()
        self.generation = 0  # how many bounces this entry has made
        self.delayed = False  # a delay notice was sent
        self.fence = 0  # of the lease under which it is in hand; for stores with several owners


Clock = Callable[[], Seconds]
