"""
Netstrings: ``LENGTH:octets,``, the length in decimal.

Pure, and strict where int() is not: a length is ASCII digits, twelve at the
most, without a leading zero but for ``0`` itself. No sign, no space, no
underscore (SPAMCONTROL 3.1).
"""

from __future__ import annotations

from qmq.mail import Octets

# Twelve digits are a terabyte; the digits are counted before the number is made, for zeros have no end either.
_DIGITS = 12
_ZERO = 0x30
_COMMA = 0x2C


class ProtocolError(Exception):
    """The peer does not speak the protocol: nothing after this octet can be trusted, and nothing is answered."""


def pack(data: bytes) -> bytes:
    """*data* as a netstring."""
    return b"%d:%b," % (len(data), data)


def read_length(data: bytes, at: int) -> tuple[Octets, int] | None:
    """
    The length that begins at *at*, and where its octets begin; None if more must be read.

    Raises ProtocolError as soon as the octets there cannot be a length.
    """
    colon = data.find(b":", at, at + _DIGITS + 1)
    digits = data[at:colon] if colon >= 0 else data[at : at + _DIGITS + 1]
    if not digits.isdigit():  # of bytes: ASCII digits only, and false for none
        if digits or colon >= 0:
            raise ProtocolError("no length")
        return None
    if digits[0] == _ZERO and len(digits) > 1:
        raise ProtocolError("a length with a leading zero")
    if colon >= 0:
        return int(digits), colon + 1
    if len(digits) > _DIGITS:
        raise ProtocolError("a length without end")
    return None


def read_items(data: bytes) -> list[bytes]:
    """The netstrings that *data* is made of; raises ProtocolError unless they fill it to the octet."""
    items = []
    at = 0
    size = len(data)
    while at < size:
        found = read_length(data, at)
        if found is None:
            raise ProtocolError("a list that ends within a length")
        octets, start = found
        at = start + octets
        if at >= size or data[at] != _COMMA:
            raise ProtocolError("an item that does not fit its list")
        items.append(data[start:at])
        at += 1
    return items
