"""
What QMTP's packages and answers look like between qmq peers, and its answers to others (docs/qmtp.md).

The extension of the envelope is a netstring before the message that carries
what QMTP has no place for; such a package's answers carry their codes in full.
Other answers are qmail's: K, Z or D, a text, and the status as ``(#x.y.z)``.
Pure.
"""

from __future__ import annotations

import re

from qmq.mail import Envelope, Origin, Reply, Token, value
from qmq.wire.netstring import ProtocolError

# Version 1 ends in made-here, or in the time of birth behind it, in milliseconds.
_FIELDS = 12
# HELO and user name as long as the primary lets them in, with room to spare.
EXTENSION_OCTETS = 16384
_HEX = b"0123456789abcdef"
_BODY_TYPES = frozenset({b"7BIT", b"8BITMIME", b"BINARYMIME"})
_FLAGS = frozenset({b"0", b"1"})
# The netstring of an extension up to the field behind *low*, as it nearly always is.
_FRONT = re.compile(rb"([1-9][0-9]{0,4}):\x011\0([^\0]{1,99})\0([0-9a-f]{1,15})\0([0-9a-f]{1,15})\0")
_KNOWN, _KNOWN_OCTETS = 1000, 300
# 2**63 would not fit a store's integer.
_HIGHEST = (1 << 63) - 1

_TEXT_OCTETS = 2000  # of an answer; below what any client takes
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\n]")
_FULL = re.compile(r"([245][0-9][0-9]) (|[245]\.[0-9]{1,3}\.[0-9]{1,3}) (.*)", re.DOTALL)
_STATUS = re.compile(r" ?\(#([245]\.[0-9]{1,3}\.[0-9]{1,3})\)\s*\Z")
_MEANING = {0x4B: (250, "2.0.0"), 0x5A: (451, "4.0.0"), 0x44: (554, "5.0.0")}  # K, Z, D

NOT_QMTP = Reply(451, "4.5.0", "next hop's answer is not proper QMTP")


@value
class Extension:
    """What travels between qmq peers beside QMTP: *low* is the lowest seq of the token's peer still in doubt."""

    token: Token
    low: int
    origin: Origin
    body_type: bytes
    smtputf8: bool


def pack_reply(reply: Reply, extended: bool) -> bytes:
    """The answer as a netstring: qmail's form, or with the code in full between qmq peers."""
    code, text = reply.code, reply.text[:_TEXT_OCTETS]
    letter = "K" if code < 300 else "D" if code >= 500 else "Z"
    if not (text.isascii() and text.isprintable()):
        text = _UNPRINTABLE.sub("?", text)
    if extended:
        text = f"{letter}{code} {reply.status} {text}"
    else:
        text = f"{letter}{text.replace(chr(10), ' ')}{f' (#{reply.status})' if reply.status else ''}"
    return f"{len(text)}:{text},".encode("ascii")


def parse_reply(raw: bytes, extended: bool, mta: str) -> Reply:
    """What an answer means; anything but K, Z and D is temporary, and nobody's word."""
    meaning = _MEANING.get(raw[0]) if raw else None
    if meaning is None:
        return NOT_QMTP
    code, status = meaning
    text = _UNPRINTABLE.sub("?", raw[1:].decode("ascii", "replace"))
    if extended and (full := _FULL.fullmatch(text)) is not None and full[1][0] == status[0]:
        if full[2][:1] in {"", status[0]}:
            return Reply(int(full[1]), full[2], full[3], mta)
    elif (found := _STATUS.search(text)) is not None and found[1][0] == status[0]:
        status = found[1]
        text = text[: found.start()]
    return Reply(code, status, text.replace("\n", " "), mta)


def pack_extension(envelope: Envelope, low: int) -> bytes:
    """The extension as a netstring. Raises ValueError if a field holds a NUL, or they are too long together."""
    token, origin = envelope.token, envelope.origin
    flag = b"1" if envelope.smtputf8 else b"0"
    packed = b"\x011\0%b\0%x\0%x\0%b\0%b\0%b" % (
        token.peer, token.seq, low, envelope.body_type, flag, origin.fields,
    )  # fmt: skip
    if packed.count(b"\0") - (origin.born > 0) != _FIELDS - 1 or len(packed) > EXTENSION_OCTETS:
        raise ValueError("a field of the envelope cannot be sent to a peer")
    return b"%d:%b," % (len(packed), packed)


def parse_extension(data: bytes) -> Extension:
    """The extension of what its netstring holds. Raises ProtocolError."""
    fields = data[1:].split(b"\0")
    born = _number(fields.pop()) / 1000 if len(fields) == _FIELDS + 1 else 0.0
    if len(fields) != _FIELDS:
        raise ProtocolError("not the fields of an extension")
    version, peer, seq, low, body_type, smtputf8, protocol, client, port, helo, user, made_here = fields
    if version != b"1" or not peer or body_type not in _BODY_TYPES or smtputf8 not in _FLAGS or made_here not in _FLAGS:
        raise ProtocolError("not an extension of version 1")
    if not port.isdigit() or len(port) > 5:
        raise ProtocolError("no port")
    origin = Origin(protocol, client, int(port), helo, user, made_here == b"1", born)
    return Extension(Token(peer, _number(seq)), _number(low), origin, body_type, smtputf8 == b"1")


class Extensions:
    """
    Reads the extensions of one connection.

    But for the token and *low* they are the same for all messages of a client,
    and read once.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Origin, bytes, bool]] = {}  # by what follows *low*

    def find(self, data: bytes, at: int) -> tuple[Extension, int] | None:
        """
        The extension whose netstring begins at *at*, and where its octets end.

        None: it is not all there, or must be looked at more closely. Raises ProtocolError.
        """
        front = _FRONT.match(data, at)
        if front is None:
            return None
        octets, peer, seq, low = front.groups()
        end = at + len(octets) + 1 + int(octets)
        known = self._known.get(data[front.end() : end])
        if known is None:
            if int(octets) > EXTENSION_OCTETS or data[end : end + 1] != b",":
                return None
            return self.read(data[front.end(1) + 1 : end]), end
        origin, body_type, smtputf8 = known
        return Extension(Token(peer, int(seq, 16)), int(low, 16), origin, body_type, smtputf8), end

    def read(self, data: bytes) -> Extension:
        """As parse_extension; it is known then."""
        extension = parse_extension(data)
        rest = data.split(b"\0", 4)[4]
        if len(rest) <= _KNOWN_OCTETS:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[rest] = extension.origin, extension.body_type, extension.smtputf8
        return extension


def _number(digits: bytes) -> int:
    """A number in lower-case hex; int() alone would take signs, spaces and underscores."""
    if not 1 <= len(digits) <= 16 or digits.translate(None, _HEX) or (number := int(digits, 16)) > _HIGHEST:
        raise ProtocolError("no number")
    return number
