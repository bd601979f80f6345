"""
QMTP, the server's side: mail as netstrings (docs/qmtp.md).

A package is ``netstring(M) netstring(S) netstring(netstring(R1)...)``; M's
first octet says how its lines end, 10 for LF and 13 for CRLF. Each recipient is
answered by a netstring that begins with K, Z or D, in order (SPAMCONTROL 3.2).
A qmq peer may put the envelope's extension in front, where that is allowed.

No Twisted, no clock, no file: bytes in, events out, replies in, bytes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qmq.mail import NULL_SENDER, Address, Octets, Replies, Reply, address, value
from qmq.wire.netstring import ProtocolError, read_items, read_length
from qmq.wire.qmtp_forms import EXTENSION_OCTETS, Extension, Extensions, pack_reply
from qmq.wire.text import has_bare

_LF, _CRLF, _EXTENSION = 0x0A, 0x0D, 0x01
_COMMA = 0x2C
_PIECE = 65536  # octets of a body handed on at once
_ADDRESS_OCTETS = 1000
# An address with a control octet could end a line at the next, SMTP hop; a domain with a space or a bracket, its path.
_CONTROLS = bytes((*range(32), 127))
_DOMAIN = bytes((*b"abcdefghijklmnopqrstuvwxyz0123456789.-_[]:", *range(128, 256)))
# What nearly every package between qmq peers is made of: behind the extension a text in CRLF form, then two addresses
# of which _address would have nothing to say. The lengths must fit as well, or it is not what it looks like.
_USUAL_TEXT = re.compile(rb",([1-9][0-9]{0,8}):\r")
_USUAL_ENVELOPE = re.compile(
    rb",([1-9][0-9]{0,2}):([ -?A-~]{1,999})@([a-z0-9._-]{1,999}(?<!\.)),"
    rb"([1-9][0-9]{0,3}):([1-9][0-9]{0,2}):([ -?A-~]{1,999})@([a-z0-9._-]{1,999}(?<!\.)),,"
)

TOO_BIG = Reply(552, "5.3.4", "message too big")
BAD_LINES = Reply(554, "5.6.0", "bare CR or LF in the message")
BAD_SENDER = Reply(553, "5.1.7", "sender address not acceptable")
BAD_RECIPIENT = Reply(553, "5.1.3", "recipient address not acceptable")
TOO_MANY = Reply(452, "4.5.3", "too many recipients")


@value
class Package:
    """A long message begins: *size* octets will come, as counted on the wire."""

    size: Octets


@value
class BodyPart:
    """A piece of a long message, at most 128 KiB; lines end in CRLF whatever the wire's form."""

    data: bytes


@value
class Mail:
    """
    A package is complete; it awaits ``reply(slot, ...)``, one reply for each of *recipients*.

    A recipient that the wire cannot take stands there as its refusal. *fault*
    refuses all others: too big, bad sender, bare CR or LF; what came of the
    body is then to be thrown away (a message too big has no Package and no
    BodyPart). *eight_bit*: an octet above 127 was in the text; it is not looked
    for where an extension speaks of it. *text* is the message, lines ending in
    CRLF; None of a long one, which came as Package and BodyParts before.
    """

    slot: int
    extension: Extension | None
    sender: Address
    recipients: tuple[Address | Reply, ...]
    fault: Reply | None
    eight_bit: bool
    text: bytes | None


Event = Package | BodyPart | Mail


class QMTPServerWire:
    """
    The server's side: bytes in, events out, replies in any order, answers in the packages' order.

    At most *window* packages wait for replies; until then what follows is
    parsed. Every bound is in octets: *message_octets* (more is read and answered
    D; 0: no such limit; *hard_octets* ends the connection), *recipients* (beyond:
    refused singly), *list_octets* (sender or recipient list beyond: ends it). Up to
    *whole* octets, in CRLF form, a message is given out whole.

    *looked_at* (an attribute): the client has made sure that its texts have no
    bare CR or LF. Packages of the usual form are not looked at again then.
    """

    def __init__(
        self,
        *,
        extension: bool,
        message_octets: Octets = 0,
        hard_octets: Octets = 1 << 32,
        recipients: int = 1000,
        list_octets: Octets = 1 << 20,
        window: int = 64,
        whole: Octets = 131072,
    ) -> None:
        self._allowed = extension
        self._message_octets = message_octets or hard_octets
        self._hard_octets = hard_octets
        self._recipients = recipients
        self._list_octets = list_octets
        self._window = window
        self._whole = min(whole, self._message_octets)
        self._extensions = Extensions()
        self.looked_at = False
        self.held: Octets = 0  # received and not parsed yet
        self.outstanding = 0  # packages whose answers have not been released to to_send
        self._data = b""  # parsed up to _at; _pieces follow
        self._at = 0
        self._pieces: list[bytes] = []
        self._wanted: Octets = 1  # below so many held octets there is no use in looking
        self._slot = 0
        self._oldest = 0
        self._extended: dict[int, bool] = {}
        self._answers: dict[int, bytes] = {}
        self._out: list[bytes] = []
        self._said: Reply | None = None  # the latest answer, and how it was written
        self._said_extended = False
        self._said_packed = b""
        self._state: Callable[[], Event | None] | None = None  # None: between packages
        self._extension: Extension | None = None
        self._left: Octets = 0
        self._lf = False
        self._exact = False
        self._cr = False  # a CR is held back: the next piece tells whether it is bare
        self._eight_bit = False
        self._fault: Reply | None = None
        self._text: bytes | None = None

    @property
    def within(self) -> bool:
        """A package has begun and is not complete."""
        return self.held > 0 or self._state is not None

    @property
    def full(self) -> bool:
        """The window is full: no event comes before a reply."""
        return self.outstanding >= self._window

    def receive(self, data: bytes) -> None:
        """Take bytes; answer nothing yet."""
        self.held += len(data)
        if self._pieces or self._at < len(self._data):
            self._pieces.append(data)
        else:
            self._data = data
            self._at = 0

    def next_event(self) -> Event | None:
        """The next event; None: more bytes, or a reply, is needed. Raises ProtocolError: close and say nothing."""
        if self.held < self._wanted or self.outstanding >= self._window:
            return None
        if self._pieces:
            self._data = b"".join((self._data[self._at :], *self._pieces))
            self._at = 0
            self._pieces.clear()
        if self._state is not None:
            return self._state()
        if self._allowed and ((usual := self._usual()) is not None or self.held < self._wanted):
            return usual
        return self._start()

    def reply(self, slot: int, replies: Replies) -> None:
        """Answer a package, one reply a recipient; slots in any order."""
        extended = self._extended.pop(slot)
        if len(replies) == 1:
            self._answers[slot] = self._packed(replies[0], extended)
        else:
            self._answers[slot] = b"".join([self._packed(reply, extended) for reply in replies])
        while (answer := self._answers.pop(self._oldest, None)) is not None:
            self._out.append(answer)
            self._oldest += 1
            self.outstanding -= 1

    def _packed(self, reply: Reply, extended: bool) -> bytes:
        """To peers most are the same one."""
        if reply is not self._said or extended is not self._said_extended:
            self._said, self._said_extended = reply, extended
            self._said_packed = pack_reply(reply, extended)
        return self._said_packed

    def to_send(self) -> bytes:
        """All answers that are due."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _start(self) -> Event | None:
        found = read_length(self._data, self._at)
        if found is None:
            return None
        octets, at = found
        if octets == 0:
            raise ProtocolError("a message without line-end code")
        if at >= len(self._data):
            return None
        code = self._data[at]
        if code == _EXTENSION:
            return self._extend(octets, at)
        if code not in {_LF, _CRLF}:
            raise ProtocolError("no such line-end code")
        if octets > self._hard_octets:
            raise ProtocolError("a message beyond all bounds")
        self._exact = self._extension is not None and self._extension.body_type == b"BINARYMIME"
        self._lf = code == _LF
        if self._exact and self._lf:
            raise ProtocolError("BINARYMIME has no line ends to change")
        self._left = octets - 1
        self._cr = self._eight_bit = False
        self._fault = TOO_BIG if self._left > self._message_octets else None
        self._text = None
        self._advance(at + 1)
        if self._left << self._lf <= self._whole:
            self._state = self._short
            return self._short()
        self._state = self._body
        return self._body() if self._fault else Package(self._left)

    def _usual(self) -> Mail | None:
        """A package that is all there, and of the usual form: read at a glance. Any other is left as it is."""
        data = self._data
        found = self._extensions.find(data, self._at)
        if found is None:
            return None
        extension, at = found
        text = _USUAL_TEXT.match(data, at)
        if text is None:
            return None
        start = text.end()
        end = start - 1 + int(text[1])
        if end - start > self._whole:
            return None
        if end >= len(data):
            self._wait(end + 1)
            return None
        envelope = _USUAL_ENVELOPE.match(data, end)
        if envelope is None:
            return None
        octets, local, domain, all_octets, to_octets, to_local, to_domain = envelope.groups()
        size = int(to_octets)
        if (
            int(octets) != len(local) + len(domain) + 1
            or size != len(to_local) + len(to_domain) + 1
            or int(all_octets) != len(to_octets) + size + 2
        ):
            return None
        whole = data[start:end]
        bare = not self.looked_at and extension.body_type != b"BINARYMIME" and has_bare(whole)
        self._advance(envelope.end())
        recipients = (Address(to_local, to_domain),)
        slot = self._begin(extended=True)
        return Mail(slot, extension, Address(local, domain), recipients, BAD_LINES if bare else None, False, whole)

    def _begin(self, *, extended: bool) -> int:
        """The slot of a package that is complete."""
        slot = self._slot
        self._slot = slot + 1
        self.outstanding += 1
        self._extended[slot] = extended
        return slot

    def _extend(self, octets: Octets, at: int) -> Event | None:
        if not self._allowed or self._extension is not None or octets > EXTENSION_OCTETS:
            raise ProtocolError("an extension that is not allowed here")
        end = at + octets
        if end >= len(self._data):
            self._wait(end + 1)
            return None
        if self._data[end] != _COMMA:
            raise ProtocolError("no comma")
        self._extension = self._extensions.read(self._data[at:end])
        self._advance(end + 1)
        self._state = self._start
        return self._start()

    def _short(self) -> Event | None:
        """A text that is given out whole."""
        at = self._at
        end = at + self._left
        if end > len(self._data):
            self._wait(end)
            return None
        self._left = 0
        self._text = self._canonical(self._data[at:end])
        self._advance(end)
        self._state = self._envelope
        return self._envelope()

    def _body(self) -> Event | None:
        while self._left:
            at = self._at
            taken = min(len(self._data) - at, self._left, _PIECE)
            if not taken:
                return None
            self._left -= taken
            self._advance(at + taken)
            if not self._left:
                self._state = self._envelope
            if self._fault is None:
                text = self._canonical(self._data[at : at + taken])
                if text and self._fault is None:
                    return BodyPart(text)
        return self._envelope()

    def _canonical(self, piece: bytes) -> bytes:
        """The piece in CRLF form; sets the fault if a CR or LF stands alone."""
        if self._extension is None and not self._eight_bit and not piece.isascii():
            self._eight_bit = True
        if self._exact:
            return piece
        if self._cr:
            piece = b"\r" + piece
        self._cr = self._left > 0 and piece.endswith(b"\r")
        if self._cr:
            piece = piece[:-1]
        if self._lf:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if has_bare(piece):
            self._fault = BAD_LINES
        return piece

    def _envelope(self) -> Event | None:
        data, at = self._data, self._at
        if at >= len(data):
            return None
        if data[at] != _COMMA:
            raise ProtocolError("no comma")
        found = self._item(at + 1)
        if found is None:
            return None
        raw_sender, at = found
        found = self._item(at)
        if found is None:
            return None
        raw_list, at = found
        sender = self._address(raw_sender) if raw_sender else NULL_SENDER
        if sender is None:
            sender = NULL_SENDER
            self._fault = self._fault or BAD_SENDER
        items = read_items(raw_list)
        known = self._recipients
        recipients: list[Address | Reply] = [self._address(raw) or BAD_RECIPIENT for raw in items[:known]]
        if len(items) > known:
            recipients += [TOO_MANY] * (len(items) - known)
        self._advance(at)
        extension, self._extension = self._extension, None
        text, self._text = self._text, None
        self._state = None
        slot = self._begin(extended=extension is not None)
        return Mail(slot, extension, sender, tuple(recipients), self._fault, self._eight_bit, text)

    def _item(self, at: int) -> tuple[bytes, int] | None:
        """The netstring that begins at *at*, and where the next one does."""
        data = self._data
        found = read_length(data, at)
        if found is None:
            return None
        octets, start = found
        if octets > self._list_octets:
            raise ProtocolError("an envelope beyond all bounds")
        end = start + octets
        if end >= len(data):
            self._wait(end + 1)
            return None
        if data[end] != _COMMA:
            raise ProtocolError("no comma")
        return data[start:end], end + 1

    def _address(self, raw: bytes) -> Address | None:
        """The address, or None if it cannot travel on: see _CONTROLS, and RFC 6531 3.3 for UTF-8."""
        if len(raw) > _ADDRESS_OCTETS or len(raw.translate(None, _CONTROLS)) != len(raw):
            return None
        if not raw.isascii() and not _is_utf8(raw):
            return None
        found = address(raw)
        return found if found.local and not found.domain.translate(None, _DOMAIN) else None

    def _advance(self, at: int) -> None:
        self.held -= at - self._at
        self._at = at
        self._wanted = 1

    def _wait(self, end: int) -> None:
        """There is no use in looking again before the octets up to *end* are there."""
        self._wanted = end - self._at


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
