"""
What an SPF record says (RFC 7208 4.5, 4.6 and 5).

Pure: text in, a value out. Every term is looked at before any is used, for a
mistake anywhere spoils the record (RFC 7208 4.6).
"""

from __future__ import annotations

import re
import socket
from enum import Enum

from qmq.mail import Octets, value
from qmq.spf.macro import BadMacro, Template, ends_in_macro, template


class Result(Enum):
    """RFC 7208 2.6."""

    NONE = "none"
    NEUTRAL = "neutral"
    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    SOFTFAIL = "softfail"
    TEMPERROR = "temperror"
    PERMERROR = "permerror"


class BadRecord(ValueError):
    """A record that is a PermError; the text says why."""


@value
class Mechanism:
    """One mechanism, and what its match means. *target* is None for the domain itself."""

    text: str  # as it stood in the record
    kind: str  # all, include, a, mx, ptr, ip4, ip6 or exists
    result: Result
    target: Template | None = None
    network: int = 0  # of ip4 and ip6
    prefix4: int = 32
    prefix6: int = 128


@value
class Record:
    """A whole record; unknown modifiers were looked at, and left out."""

    mechanisms: tuple[Mechanism, ...]
    redirect: Template | None = None
    explanation: Template | None = None


# RFC 7208 3.4 wants 450 octets, and the longest in the wild have some 2000; DNS itself would carry 65535.
LONGEST_RECORD: Octets = 8192

_QUALIFIERS = {"+": Result.PASS, "-": Result.FAIL, "~": Result.SOFTFAIL, "?": Result.NEUTRAL}
_MODIFIER = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)=(.*)", re.DOTALL)
_MECHANISM = re.compile(r"([+?~-]?)(all|include|a|mx|ptr|ip4|ip6|exists)(?=[:/]|\Z)(.*)", re.DOTALL | re.IGNORECASE)
_LENGTH = "(0|[1-9][0-9]{0,2})"
_DUAL = re.compile(rf"(?:/{_LENGTH})?(?://{_LENGTH})?\Z")
_OCTET = "(?:0|[1-9][0-9]{0,2})"
_IP4 = re.compile(rf":({_OCTET}(?:\.{_OCTET}){{3}})(?:/{_LENGTH})?")
_IP6 = re.compile(rf":([0-9A-Fa-f:.]+)(?:/{_LENGTH})?")
# RFC 7208 7.1: toplabel, with the dots around it. Not all digits, no hyphen at either end.
_TOP = re.compile(r"\.(?![0-9]+\.?\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.?\Z")


def is_record(text: bytes) -> bool:
    """Is this TXT record one of SPF (RFC 7208 4.5)?"""
    return text[:6].lower() == b"v=spf1" and text[6:7] in {b"", b" "}


def parse(text: bytes) -> Record:
    """What the record says; raises BadRecord."""
    if len(text) > LONGEST_RECORD:
        raise BadRecord(f"a record of {len(text)} octets")
    return _terms(text[6:])


def mechanisms(text: bytes) -> tuple[Mechanism, ...]:
    """Mechanisms alone, without a version in front; raises BadRecord."""
    record = _terms(text)
    if record.redirect is not None or record.explanation is not None or b"=" in text:
        raise BadRecord("only mechanisms may stand here, no modifiers")
    return record.mechanisms


def _terms(raw: bytes) -> Record:
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadRecord("it is not in US-ASCII") from error  # RFC 7208 3.1
    found: list[Mechanism] = []
    modifiers: dict[str, Template] = {}
    for term in text.split(" "):
        if not term:
            continue
        try:
            if modifier := _MODIFIER.fullmatch(term):
                _modify(modifiers, modifier[1].lower(), modifier[2])
            else:
                found.append(_mechanism(term))
        except BadMacro as error:
            raise BadRecord(f"{term[:60]!r}: {error}") from error
    return Record(tuple(found), modifiers.get("redirect"), modifiers.get("exp"))


def _modify(modifiers: dict[str, Template], name: str, said: str) -> None:
    if name not in {"redirect", "exp"}:
        template(said)  # RFC 7208 6: unknown ones are ignored, but must be well formed
        return
    if name in modifiers:
        raise BadRecord(f"{name}= appears twice")
    modifiers[name] = _domain(f"{name}={said}", said)


def _mechanism(term: str) -> Mechanism:
    known = _MECHANISM.fullmatch(term)
    if known is None:
        raise BadRecord(f"there is no mechanism {term[:60]!r}")
    qualifier, kind, rest = known[1], known[2].lower(), known[3]
    result = _QUALIFIERS[qualifier or "+"]
    match kind:
        case "all":
            if rest:
                raise BadRecord(f"{term[:60]!r}: all stands alone")
            return Mechanism(term, kind, result)
        case "ip4" | "ip6":
            return _network(term, kind, result, rest)
        case "a" | "mx":
            prefixes = _DUAL.search(rest)
            assert prefixes is not None  # it matches nothing, too
            four, six = _length(term, prefixes[1], 32), _length(term, prefixes[2], 128)
            rest = rest[: prefixes.start()]
            target = _target(term, rest) if rest else None
            return Mechanism(term, kind, result, target, prefix4=four, prefix6=six)
        case "ptr" if not rest:
            return Mechanism(term, kind, result)
        case _:
            return Mechanism(term, kind, result, _target(term, rest))


def _network(term: str, kind: str, result: Result, rest: str) -> Mechanism:
    four = kind == "ip4"
    found = (_IP4 if four else _IP6).fullmatch(rest)
    if found is None:
        raise BadRecord(f"{term[:60]!r}: no such network")
    width = 32 if four else 128
    length = _length(term, found[2], width)
    try:
        packed = socket.inet_pton(socket.AF_INET if four else socket.AF_INET6, found[1])
    except OSError as error:
        raise BadRecord(f"{term[:60]!r}: no such network") from error
    network = int.from_bytes(packed, "big")
    if four:
        return Mechanism(term, kind, result, network=network, prefix4=length)
    return Mechanism(term, kind, result, network=network, prefix6=length)


def _length(term: str, digits: str | None, width: int) -> int:
    length = width if digits is None else int(digits)
    if length > width:
        raise BadRecord(f"{term[:60]!r}: no prefix is longer than {width}")
    return length


def _target(term: str, rest: str) -> Template:
    if not rest.startswith(":"):
        raise BadRecord(f"{term[:60]!r}: a domain is missing")
    return _domain(term, rest[1:])


def _domain(term: str, said: str) -> Template:
    """RFC 7208 7.1: domain-spec ends in a macro or a top-level label, before anything is expanded."""
    made = template(said)
    if not (ends_in_macro(said) or _TOP.search(said)):
        raise BadRecord(f"{term[:60]!r}: no such domain")
    return made
