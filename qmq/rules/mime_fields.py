"""
What two header fields say of a MIME part: Content-Type and Content-Transfer-Encoding.

Read as the most forgiving of mail programs would: where they differ on a field,
every reading counts, for a filter that follows only one of them can be walked
around. Linear in the field's length, and of a field only so much is read.
"""

from __future__ import annotations

import re
from itertools import islice
from urllib.parse import unquote_to_bytes

from qmq.mail import Octets

# Of a field; honest ones with long RFC 2231 file names are shorter.
FIELD: Octets = 8192
# RFC 2046 5.1.1: a boundary has 70 characters at most; whoever takes longer ones stops somewhere too.
BOUNDARY: Octets = 512

# Of one field are taken the first and the last so many; honest ones have one.
_CANDIDATES = 2
_PARAMETERS = 64
_COMMENTS = 32  # pieces of a field with comments that are looked at; they are what costs most

_TYPE = re.compile(rb'[\s"]*+([^\s;/"()]++)\s*+(?:/\s*+([^\s;"()]++))?')
_PARAMETER = re.compile(rb';\s*+([^\s=;"]++)\s*+=\s*+(?:"((?:[^"\\]++|\\.)*)"?|([^;]*+))', re.DOTALL)
# For what has no form at all: no semicolon before it, a quote that does not end.
_LOOSE = re.compile(rb"""boundary(?:\*0?\*?)?\s*+=\s*+["']?([^\s";]++)""", re.IGNORECASE)
# Pieces of a field outside comments, where a quoted string may have parentheses in it, and inside.
_OUTSIDE = re.compile(rb'[^()"\\]++|\\.|"(?:[^"\\]++|\\.)*"?|[()]|\\', re.DOTALL)
_INSIDE = re.compile(rb"[^()\\]++|\\.|[()]|\\", re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NUMBERED = re.compile(rb"boundary\*(\d{1,3})(\*?)")


def kind(content_type: bytes) -> tuple[bytes, bytes]:
    """Type and subtype in lower case, either empty if not said; the field's text may be folded."""
    found = _TYPE.match(_plain(content_type))
    return (found[1].lower(), (found[2] or b"").lower()) if found else (b"", b"")


def is_base64(encoding: bytes) -> bool:
    """
    Whether a Content-Transfer-Encoding may be read as base64.

    The word anywhere in it will do, in quotes and comments too: to look into a part for nothing costs nobody anything.
    """
    return b"base64" in encoding.lower()


def boundaries(content_type: bytes) -> tuple[bytes, ...]:
    """All that may be meant as the boundary of a Content-Type field: mostly one; none if it says none."""
    text = _plain(content_type)
    found: list[bytes] = []
    numbered: dict[int, bytes] = {}
    parameters = list(islice(_PARAMETER.finditer(text), _PARAMETERS))
    for match in parameters:
        name = match[1].lower()
        if not name.startswith(b"boundary"):
            continue
        value = _ESCAPED.sub(rb"\1", match[2]) if match[2] is not None else match[3].strip()
        if name == b"boundary":
            found.append(value)
        elif name == b"boundary*":  # RFC 2231 4: charset'language'text
            found.append(unquote_to_bytes(value.rpartition(b"'")[2]))
        elif part := _NUMBERED.fullmatch(name):  # RFC 2231 3
            number = int(part[1])
            if part[2]:
                value = unquote_to_bytes(value.split(b"'", 2)[-1] if number == 0 else value)
            numbered.setdefault(number, value)
    if numbered:
        found.append(b"".join(numbered[number] for number in sorted(numbered)))
    if not found or len(parameters) == _PARAMETERS:
        found += [match[1] for match in _LOOSE.finditer(text)]
    # Blanks at the end are none of a boundary's (RFC 2046 5.1.1).
    distinct = [name for name in dict.fromkeys(boundary.rstrip()[:BOUNDARY] for boundary in found) if name]
    return tuple(distinct[:_CANDIDATES] + distinct[_CANDIDATES:][-_CANDIDATES:])


def _plain(field: bytes) -> bytes:
    """A field's text in one line, without comments (RFC 5322 3.2.2), which may be nested."""
    text = field[:FIELD].replace(b"\r", b"").replace(b"\n", b"")
    if b"(" not in text:
        return text
    kept: list[bytes] = []
    depth = 0
    end = 0
    for _ in range(_COMMENTS):
        match = (_INSIDE if depth else _OUTSIDE).match(text, end)
        if match is None:
            return b"".join(kept)
        piece = match[0]
        end = match.end()
        if piece == b"(":
            depth += 1
        elif piece == b")":
            depth = max(0, depth - 1)
        elif not depth:
            kept.append(piece)
    # Nobody writes so many comments. What follows is read as if there were no more of them.
    return b"".join([*kept, text[end:]])
