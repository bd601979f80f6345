"""
Messages that no archive of ours has: .eml files, a folder of them, a mailbox file.

They have no envelope: who imports them says it. What makes a message one
message is its text and that envelope, so a second import doubles nothing.
"""

from __future__ import annotations

import hashlib
import io
import mailbox
import os
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

from qmq.cli.compose import text_lines
from qmq.mail import Address, Envelope, Octets, Origin, Token
from qmq.wire.text import LINE_OCTETS

_IN_MEMORY: Octets = 1 << 20
Loose = tuple[str, Envelope, IO[bytes], Octets]


def loose_messages(source: str, sender: Address, recipients: Sequence[Address]) -> Iterator[Loose]:
    """Name, envelope, text and octets of each; the text is to be read before the next is asked for. Raises OSError."""
    if os.path.isdir(source):
        for name in sorted(name for name in os.listdir(source) if name.endswith(".eml")):
            with open(os.path.join(source, name), "rb") as file:
                yield from _one(name, file, sender, recipients)
        return
    with open(source, "rb") as file:
        if file.read(5) != b"From ":
            file.seek(0)
            yield from _one(os.path.basename(source), file, sender, recipients)
            return
    box = mailbox.mbox(source, create=False)
    try:
        for number, key in enumerate(box.iterkeys(), 1):
            yield from _one(f"message {number}", io.BytesIO(box.get_bytes(key)), sender, recipients)
    finally:
        box.close()


def _one(name: str, file: IO[bytes], sender: Address, recipients: Sequence[Address]) -> Iterator[Loose]:
    """Its lines end in CRLF then, whatever they ended in."""
    digest = hashlib.sha256(b"\0".join(map(bytes, (sender, *recipients))) + b"\0\0")
    eight_bit = False
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as text:
        for line in text_lines(file.readline, dot_ends=False, longest=LINE_OCTETS):
            digest.update(line)
            eight_bit = eight_bit or not line.isascii()
            text.write(line)
        octets = text.tell()
        text.seek(0)
        token = Token(b"import." + digest.hexdigest()[:32].encode(), 1)
        utf8 = not all(bytes(one).isascii() for one in (sender, *recipients))
        body_type = b"8BITMIME" if eight_bit else b"7BIT"
        yield name, Envelope(token, sender, tuple(recipients), Origin(), body_type, utf8), text, octets
