"""
The address between < and > in MAIL and RCPT (RFC 5321 4.1.2, RFC 6531 3.3).

What comes out is in one form only: unquoted, the domain in lower case, without
a trailing dot, in NFC if it is not ASCII; so that a domain is compared once,
and can't be a second one to somebody else. Source routes are dropped (RFC 5321
appendix C); u%d@e and d!u@e are odd local parts at e, and mean nothing to us.
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address

import idna

from qmq.mail import NULL_SENDER, Address, Octets, Reply

# RFC 5321 4.5.3.1.1 asks for 64; SRS and VERP senders are longer.
LOCAL_OCTETS: Octets = 256
# RFC 5321 4.5.3.1.2.
DOMAIN_OCTETS: Octets = 255

# No repeat in these can match the same octets in two ways, so that failing takes linear time too.
_ATOM = rb"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = rb"[A-Za-z0-9_-]{1,63}"
# What most paths are, local part and domain parted: in octets of these no quoting, no literal, no route; no dot at an
# end or beside another, and no label too long, for the domain is not either.
PLAIN = (
    rb"<(?![^>]{0,255}\.[.@>])([A-Za-z0-9!#$%&'*+/=?^_`{|}~-][A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]*+)"
    rb"@([A-Za-z0-9_-][A-Za-z0-9_.-]{0,62})>"
)
PLAIN_OCTETS: Octets = 256  # up to so many the limits of both parts hold by themselves
_ORDINARY = re.compile(PLAIN)

_UTF8_ATOM = _ATOM.replace(rb"~-]", rb"~\x80-\xff-]")
_DOT_STRING = re.compile(rb"%b(?:\.%b)*" % (_UTF8_ATOM, _UTF8_ATOM))
_QUOTED_STRING = re.compile(rb'"((?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])+)"')
_QUOTED_PAIR = re.compile(rb"\\(.)")
_DOMAIN = re.compile(rb"[A-Za-z0-9_.\x80-\xff-]+")
_LITERAL = re.compile(rb"\[[0-9A-Za-z.:]+\]")
_AT_DOMAIN = rb"@(?:[A-Za-z0-9_.\x80-\xff-]+|\[[0-9A-Za-z.:]+\])"
_ROUTE = re.compile(rb"%b(?:,%b)*:" % (_AT_DOMAIN, _AT_DOMAIN))
_LABELS = re.compile(rb"%b(?:\.%b)*" % (_LABEL, _LABEL))
# C1 controls, and what some readers take for the end of a line.
_UNPRINTABLE = re.compile("[\x80-\x9f\u2028\u2029]")


class BadPath(Exception):
    """Not an address; *reply* is what to answer (of a recipient: status 5.1.3)."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.text)
        self.reply = reply


_BRACKETS = Reply(501, "5.5.4", "an address must stand between < and >")
_SYNTAX = Reply(501, "5.1.3", "bad address syntax")
_LOCAL = Reply(501, "5.1.3", "bad local part in address")
_TOO_LONG = Reply(501, "5.1.3", "address too long")
_NO_DOMAIN = Reply(553, "5.1.3", "address has no domain")
_BAD_DOMAIN = Reply(501, "5.1.3", "bad domain in address")
_BAD_LITERAL = Reply(501, "5.1.3", "bad address literal")


def parse_path(raw: bytes) -> tuple[Address, bytes]:
    """
    The address that *raw* begins with, and what follows its ``>``.

    ``<>`` is the null sender; ``<postmaster>``, in any case, is the only other
    one without a domain. Non-ASCII addresses are well-formed UTF-8; whether
    they may be used is the caller's question. Raises BadPath.
    """
    match = _ORDINARY.match(raw)
    if match is not None and (end := match.end()) <= PLAIN_OCTETS:
        local, domain = match.groups()
        return Address(local, domain.lower()), raw[end:]
    return _scan(raw)


def _scan(raw: bytes) -> tuple[Address, bytes]:
    if raw.startswith(b"<>"):
        return NULL_SENDER, raw[2:]
    if not raw.startswith(b"<"):
        raise BadPath(_BRACKETS)
    at = 1
    if raw.startswith(b"@", at):
        route = _ROUTE.match(raw, at)
        if route is None:
            raise BadPath(_SYNTAX)
        at = route.end()
    local, at = _local(raw, at)
    if raw.startswith(b">", at):
        if local.lower() != b"postmaster":
            raise BadPath(_NO_DOMAIN)
        return Address(local, b""), raw[at + 1 :]
    if not raw.startswith(b"@", at):
        raise BadPath(_SYNTAX)
    domain, at = _domain(raw, at + 1)
    if not raw.startswith(b">", at):
        raise BadPath(_SYNTAX)
    return Address(local, domain), raw[at + 1 :]


def _local(raw: bytes, at: int) -> tuple[bytes, int]:
    """The local part at *at*, unquoted, and where it ends."""
    if match := _QUOTED_STRING.match(raw, at):
        local = _QUOTED_PAIR.sub(rb"\1", match[1])
    elif match := _DOT_STRING.match(raw, at):
        local = match[0]
    else:
        raise BadPath(_LOCAL)
    if len(local) > LOCAL_OCTETS:
        raise BadPath(_TOO_LONG)
    if not local.isascii() and _UNPRINTABLE.search(_utf8(local)):
        raise BadPath(_LOCAL)
    return local, match.end()


def _domain(raw: bytes, at: int) -> tuple[bytes, int]:
    """The domain or address literal at *at* in its one form, and where it ends."""
    if match := _LITERAL.match(raw, at):
        return _literal(match[0].lower()), match.end()
    match = _DOMAIN.match(raw, at)
    if match is None:
        raise BadPath(_BAD_DOMAIN)
    domain = match[0].removesuffix(b".")
    if not domain.isascii():
        domain = _international(_utf8(domain))
    if len(domain) > DOMAIN_OCTETS:
        raise BadPath(_TOO_LONG)
    if domain.isascii() and not _LABELS.fullmatch(domain):
        raise BadPath(_BAD_DOMAIN)
    return domain.lower(), match.end()


def _literal(literal: bytes) -> bytes:
    text = literal[1:-1].decode("ascii")
    try:
        if text.startswith("ipv6:"):
            IPv6Address(text.removeprefix("ipv6:"))
        else:
            IPv4Address(text)
    except ValueError:
        raise BadPath(_BAD_LITERAL) from None
    return literal


def _international(domain: str) -> bytes:
    """
    The domain in lower case and NFC; each label must be one that IDNA 2008 allows.

    Only "." parts labels: U+FF0E and its like, which IDNA 2003 took for dots, are refused.
    """
    domain = unicodedata.normalize("NFC", domain.lower())
    octets = -1
    for label in domain.split("."):
        ascii_label = label.encode()
        if not label.isascii():
            try:
                ascii_label = idna.alabel(label)
            except idna.IDNAError:
                raise BadPath(_BAD_DOMAIN) from None
        elif not _LABELS.fullmatch(ascii_label):
            raise BadPath(_BAD_DOMAIN)
        octets += len(ascii_label) + 1
    if octets > DOMAIN_OCTETS:
        raise BadPath(_TOO_LONG)
    return domain.encode()


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise BadPath(_SYNTAX) from None
