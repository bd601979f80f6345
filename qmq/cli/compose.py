"""
What sendmail makes of the text a program writes to it: lines, header, recipients, and what is missing.

Pure. The rules are those of Postfix's sendmail and cleanup: fields are added
where none is, Bcc and its like are taken away, everything else stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from email.utils import formataddr

from qmq.cli.mailboxes import BadMailbox, mailboxes
from qmq.mail import Octets

_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:")
# What a mailbox file has in front of each message, or an old UUCP host had.
_FROM_LINE = re.compile(rb">*From ")
# Postfix's message_drop_headers: who is hidden, and what the next host writes itself.
_DROPPED = frozenset({b"bcc", b"resent-bcc", b"content-length", b"return-path"})
_RECIPIENTS = frozenset({b"to", b"cc", b"bcc"})
_RESENT = frozenset({b"resent-to", b"resent-cc", b"resent-bcc"})


class BadText(ValueError):
    """A text that is no message we can send; says what is wrong."""


def text_lines(read: Callable[[Octets], bytes], *, dot_ends: bool, longest: Octets) -> Iterator[bytes]:
    """
    The lines of a text, each ending in CRLF; *read* is a file's readline.

    A line ends in LF or CRLF. A CR elsewhere becomes a blank, as with Postfix
    since 3.9: neither may go out alone. A line of more than *longest* octets,
    CRLF included, is broken, and goes on with a blank (Postfix's
    smtp_line_length_limit). With *dot_ends* a line of one dot ends the text.
    """
    room = longest - 4  # CRLF, a blank in front, and a CR of the piece before
    begun = False  # the line's beginning went out before
    kept = b""  # a CR whose LF may come
    while piece := read(room):
        whole = piece.endswith(b"\n")
        line, kept = kept + piece, b""
        if whole:
            line = line[:-1].rstrip(b"\r")
        elif line.endswith(b"\r"):
            line, kept = line[:-1], b"\r"
        line = line.replace(b"\r", b" ")
        if whole and dot_ends and not begun and line == b".":
            return
        if begun and line:
            yield b" %b\r\n" % line
        elif not begun and (line or whole):
            yield b"%b\r\n" % line
        begun = not whole and (begun or bool(line))


def header_of(lines: Iterator[bytes], most: Octets) -> tuple[list[bytes], bytes]:
    """
    The header's fields, each with its lines, and the body's first line if no empty line parts the two.

    A From line in front is passed over. *lines* then gives the body. Raises
    BadText if the header is longer than *most* octets.
    """
    fields: list[bytes] = []
    octets = 0
    for line in lines:
        octets += len(line)
        if octets > most:
            raise BadText(f"the header is longer than {most} octets")
        if line == b"\r\n":
            return fields, b""
        if line[0] in b" \t" and fields:
            fields[-1] += line
        elif _FIELD.match(line):
            fields.append(line)
        elif fields or not _FROM_LINE.match(line):
            return fields, line
    return fields, b""


def name_of(field: bytes) -> bytes:
    """A field's name in lower case."""
    return field.partition(b":")[0].rstrip(b" \t").lower()


def recipients_of(fields: Iterable[bytes]) -> list[bytes]:
    """Whom the header names: To, Cc, Bcc; of a message that was resent only those of its Resent fields."""
    names = {name_of(field) for field in fields}
    wanted = _RESENT if names & _RESENT else _RECIPIENTS
    found: list[bytes] = []
    for field in fields:
        if name_of(field) in wanted:
            try:
                found += mailboxes(field.partition(b":")[2])
            except BadMailbox as error:
                raise BadText(f"{name_of(field).decode().capitalize()}: {error}") from None
    return [one for one in found if one]


def completed(fields: list[bytes], author: tuple[str, str], message_id: str, date: str) -> bytes:
    """
    The header as it goes out, without the empty line behind it.

    *author* is a name and an address: the From of a message that has none. A
    message that is resent lacks Resent fields, if any.
    """
    kept = [field for field in fields if name_of(field) not in _DROPPED]
    names = {name_of(field) for field in fields}
    prefix = "Resent-" if any(name.startswith(b"resent-") for name in names) else ""
    lacking = {
        "Message-Id": message_id,
        "Date": date,
        "From": _mailbox(*author),
    }
    added = [
        f"{prefix}{name}: {value}\r\n".encode("utf-8", "surrogateescape")
        for name, value in lacking.items()
        if f"{prefix}{name}".lower().encode() not in names
    ]
    return b"".join([*kept, *added])


def qualified(raw: bytes, me: str) -> bytes:
    """The address, with our own domain if it has none."""
    return raw if not raw or b"@" in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", raw) else raw + b"@" + me.encode()


def _mailbox(name: str, address: str) -> str:
    if not address:
        address = "MAILER-DAEMON"
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    try:
        return formataddr((name, address))
    except UnicodeError:
        return f"<{address}>"  # an address of RFC 6531, or a name that is no UTF-8
