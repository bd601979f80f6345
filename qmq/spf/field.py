"""
The Received-SPF field (RFC 7208 9.1).

Nearly all in it comes from strangers: a value that is no plain word is quoted,
and what is not printable ASCII becomes a question mark, so that nothing ends
the value, the line or the field.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qmq.spf.record import Result

_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_NOT_A_COMMENT = re.compile(r"[^\x20-\x7e]|[()\\]")
_DOT_ATOM = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
# An address has at most 320 octets; quoted this is 640, and RFC 5322 2.1.1 allows 998.
_LONGEST = 320
_RESULTS = frozenset(result.value for result in Result)
# The order of SPFINFO (SPAMCONTROL 2.19) behind the result.
_KEYS = ("identity", "client-ip", "helo", "envelope-from", "receiver", "problem", "mechanism")

Pairs = Sequence[tuple[str, str]]


def received_spf(result: str, comment: str, pairs: Pairs) -> bytes:
    """The field with its CRLF; *pairs* are key and value, empty ones are left out."""
    words = [f"{key}={_value(text[:_LONGEST])};" for key, text in pairs if text]
    remark = f" ({_NOT_A_COMMENT.sub('?', comment[:_LONGEST])})" if comment else ""
    return "\r\n\t".join([f"Received-SPF: {result}{remark}", *words]).encode("ascii") + b"\r\n"


def handed_in(info: str, client: str, helo: str, sender: str) -> bytes:
    """
    The field of an SPFINFO variable, ``result|identity|clientip|helo|envelopefrom|receiver|problem|mechanism|``.

    What it leaves empty of client, HELO and sender is the session's. Without a
    result of RFC 7208 2.6 in it there is no field: b"".
    """
    result, *rest = info.split("|")
    result = result.strip().lower()
    if result not in _RESULTS:
        return b""
    said = dict(zip(_KEYS, (text.strip() for text in rest), strict=False))
    known = {"client-ip": client, "helo": helo, "envelope-from": sender}
    return received_spf(result, "", [(key, said.get(key) or known.get(key, "")) for key in _KEYS])


def _value(text: str) -> str:
    if _DOT_ATOM.fullmatch(text):
        return text
    text = _UNPRINTABLE.sub("?", text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
