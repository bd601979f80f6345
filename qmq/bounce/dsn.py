"""
A delivery status notification: bytes about a message, for its sender (RFC 3464, RFC 6522).

Pure. Three parts: for people, one paragraph a recipient; for machines; and the
header of the message, or the whole of it. What strangers wrote (replies,
addresses, the header) is made printable and cut, so that none of it becomes a
field, a part or a line of ours. 8-bit text goes as it is, and is declared; the
envelope needs SMTPUTF8 only if the sender's own address is not ASCII (RFC 6533).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from email.utils import formatdate
from hashlib import blake2b
from typing import Literal

from qmq.mail import Address, Octets, Reply, Seconds, path, value

Kind = Literal["failed", "delayed"]

# A hostile reply may be endless; a reader has had enough long before this.
_LINES = 8
_LINE: Octets = 500
# With more recipients than this, one line of each reply must do.
_MANY_RECIPIENTS = 50
# RFC 5321 4.5.3.1.6: a line of text has at most 1000 octets with CRLF.
_LONGEST_LINE: Octets = 998

_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}", re.ASCII)
_CONTROLS = bytes(c for c in range(256) if (c < 32 and c != 9) or c == 127)
_NO_CONTROLS = bytes.maketrans(_CONTROLS, b"?" * len(_CONTROLS))
# RFC 6533 3: what does not stand for itself in utf-8-addr-xtext.
_XTEXT = re.compile(r"[^!-*,-<>-\[\]-~]")


@value
class Original:
    """
    The message a notice is about.

    *recipients* are those to tell of, with the last reply for each. *header* is
    its header, or the beginning of that; *whole* its whole text if that is to
    go back (it does not if it can't: bare CR or LF, NUL, endless lines).
    """

    id: bytes
    sender: Address
    arrived: Seconds  # wall clock
    recipients: Sequence[tuple[Address, Reply]]
    header: bytes
    whole: bytes | None = None
    smtputf8: bool = False


@value
class Notice:
    """The notice's text, and what its envelope must declare."""

    text: bytes
    body_type: bytes
    smtputf8: bool


def report(
    kind: Kind,
    original: Original,
    *,
    me: str,
    sender: Address,
    to: Address,
    id: bytes,  # noqa: A002 - a message has an id, here as everywhere
    now: Seconds,
    until: Seconds | None = None,
) -> Notice:
    """
    The notice to *to*, written by *me* in the name of *sender* (for the From field).

    *id* is its own queue id; *now* the wall clock, the time of the last attempt
    too; *until* when a delayed message will be given up.
    """
    utf8 = not bytes(to).isascii()
    parts = [
        _part(b"text/plain", _for_people(kind, original, me, until)),
        _part(
            b"message/global-delivery-status" if utf8 else b"message/delivery-status",
            _for_machines(kind, original, me, now, until, utf8=utf8),
        ),
        _copy(original),
    ]
    # Nobody can write a text that contains its own digest.
    boundary = b"=_" + blake2b(b"".join(parts), digest_size=18).hexdigest().encode()
    header = [
        f"Date: {_date(now)}",
        f"From: <{_shown(sender)}>",
        f"To: <{_shown(to)}>",
        "Subject: failure notice" if kind == "failed" else "Subject: delay notice",
        f"Message-ID: <{_printable(id.decode('utf-8', 'replace'), ascii_only=True)}@{me}>",
        "Auto-Submitted: auto-replied",  # RFC 3834 5
        f"X-Qmq-Queue-ID: {_printable(original.id.decode('utf-8', 'replace'), ascii_only=True)}",
        "MIME-Version: 1.0",
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary.decode()}"',
    ]
    if not all(map(bytes.isascii, parts)):
        header.append("Content-Transfer-Encoding: 8bit")
    pieces = [b"\r\n".join(line.encode() for line in header), b"\r\n\r\n"]
    for part in parts:
        pieces += [b"--", boundary, b"\r\n", part, b"\r\n"]
    pieces += [b"--", boundary, b"--\r\n"]
    text = b"".join(pieces)
    return Notice(text, b"7BIT" if text.isascii() else b"8BITMIME", utf8)


def _part(kind: bytes, content: bytes) -> bytes:
    charset = b""
    if kind == b"text/plain":
        charset = b"; charset=us-ascii" if content.isascii() else b"; charset=utf-8"
    encoding = b"" if content.isascii() else b"Content-Transfer-Encoding: 8bit\r\n"
    return b"Content-Type: " + kind + charset + b"\r\n" + encoding + b"\r\n" + content


def _for_people(kind: Kind, original: Original, me: str, until: Seconds | None) -> bytes:
    if kind == "failed":
        news = ["Your message did not reach the addresses below. No further attempt will be made."]
    else:
        end = "" if until is None else f" until {_date(until)}"
        news = [
            "Your message has not reached the addresses below yet. Attempts go on",
            f"by themselves{end}; there is nothing you need to do.",
        ]
    lines = [f"This is qmq at {me}.", "", *news, ""]
    for recipient, reply in original.recipients:
        lines.append(f"<{_shown(recipient)}>:")
        if reply.mta:
            lines.append(f"{_printable(reply.mta)} said:")
        first, *more = _said(reply, len(original.recipients))
        # Indented, a stranger's line can't look like the beginning of a paragraph of ours.
        lines += [first, *("  " + line for line in more), ""]
    lines.append(f"Queue id: {_printable(original.id.decode('utf-8', 'replace'))}")
    lines.append(f"--- Below is {'your message' if _may_go_whole(original) else 'the header of your message'}.")
    return "".join(line + "\r\n" for line in lines).encode()


def _for_machines(kind: Kind, original: Original, me: str, now: Seconds, until: Seconds | None, *, utf8: bool) -> bytes:
    fields = [
        f"Reporting-MTA: dns; {me}",
        f"X-Qmq-Queue-ID: {_printable(original.id.decode('utf-8', 'replace'), ascii_only=True)}",
        f"X-Qmq-Sender: {_typed(original.sender, utf8=utf8)}",
        f"Arrival-Date: {_date(original.arrived)}",
    ]
    for recipient, reply in original.recipients:
        fields += [
            "",
            f"Final-Recipient: {_typed(recipient, utf8=utf8)}",
            f"Action: {kind}",
            f"Status: {_status(kind, reply)}",
        ]
        if reply.mta:
            fields.append(f"Remote-MTA: dns; {_printable(reply.mta, ascii_only=not utf8)}")
        # RFC 3464 2.3.6: "smtp" is for what an SMTP server said; a word of our own has a type of its own.
        said = _said(reply, len(original.recipients), ascii_only=not utf8)
        fields.append(f"Diagnostic-Code: {'smtp' if reply.mta else 'x-qmq'}; " + "\r\n ".join(said))
        fields.append(f"Last-Attempt-Date: {_date(now)}")
        if until is not None and kind == "delayed":
            fields.append(f"Will-Retry-Until: {_date(until)}")
    return "".join(field + "\r\n" for field in fields).encode()


def _copy(original: Original) -> bytes:
    return_path = f"Return-Path: <{_shown(original.sender)}>\r\n".encode()
    if original.whole is not None and _may_go_whole(original):
        return _part(b"message/global" if original.smtputf8 else b"message/rfc822", return_path + original.whole)
    lines = original.header.split(b"\r\n")
    clean = [line.translate(_NO_CONTROLS)[:_LONGEST_LINE] for line in lines if line]
    kind = b"message/global-headers" if original.smtputf8 else b"text/rfc822-headers"
    return _part(kind, return_path + b"".join(line + b"\r\n" for line in clean))


def _may_go_whole(original: Original) -> bool:
    whole = original.whole
    if whole is None or b"\0" in whole:
        return False
    lines = whole.split(b"\r\n")
    ends = len(lines) - 1
    return ends == whole.count(b"\r") == whole.count(b"\n") and max(map(len, lines)) <= _LONGEST_LINE


def _said(reply: Reply, recipients: int, *, ascii_only: bool = False) -> list[str]:
    """The reply's lines that go into the notice: the code before the first, never an empty one."""
    most = _LINES if recipients <= _MANY_RECIPIENTS else 1
    lines = [line for line in reply.text.split("\n", 200) if line.strip()]
    said = [_printable(line.strip(), ascii_only=ascii_only) for line in lines[:most]] or [""]
    code = f"{reply.code} {_printable(reply.status, ascii_only=True)}".strip()
    said[0] = f"{code} {said[0]}".strip()
    return said if len(lines) <= most else [*said, "..."]


def _status(kind: Kind, reply: Reply) -> str:
    if _STATUS.fullmatch(reply.status):
        return reply.status
    return "5.0.0" if kind == "failed" else "4.0.0"


def _typed(address: Address, *, utf8: bool) -> str:
    """An address with its type (RFC 3464 2.3.2, RFC 6533 3)."""
    shown = _shown(address)
    if shown.isascii():
        return f"rfc822; {shown}"
    if utf8:
        return f"utf-8; {shown}"
    return "utf-8; " + _XTEXT.sub(lambda match: f"\\x{{{ord(match[0]):X}}}", shown)


def _shown(address: Address) -> str:
    return _printable(path(address).decode("utf-8", "replace"))


def _printable(text: str, *, ascii_only: bool = False) -> str:
    """One line of it, at most 500 octets; what can't be seen or would turn the line round is a question mark."""
    cut = text[:_LINE].encode("utf-8", "replace")[:_LINE].decode("utf-8", "ignore")
    return "".join(_each(cut, ascii_only=ascii_only))


def _each(text: str, *, ascii_only: bool) -> Iterable[str]:
    for c in text:
        yield c if c.isprintable() and (c < "\x7f" or not ascii_only) else "?"


def _date(at: Seconds) -> str:
    return formatdate(int(at)).replace("-0000", "+0000")
