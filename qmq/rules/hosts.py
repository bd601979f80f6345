"""
Which domains we take mail for: control/rcpthosts, morercpthosts and morercpthosts.cdb (SPAMCONTROL 2.2).

``dom`` is that domain, ``.dom`` every one below it. A domain beyond ASCII has
two spellings, and is listed by either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterator

import idna

from qmq.rules.cdb import CDB, open_cdb
from qmq.rules.watched import BadLine, Files, Slips, Watched, lines


def walk(domain: bytes) -> Iterator[bytes]:
    """The keys to look for: the domain, its suffixes with their dot from long to short, b"" (SPAMCONTROL 1.6)."""
    yield domain
    at = domain.find(b".", 1)
    while at > 0:
        yield domain[at:]
        at = domain.find(b".", at + 1)
    if domain:
        yield b""


def spellings(pattern: bytes) -> tuple[bytes, ...]:
    """The keys of a pattern: b"" for ``*``; a domain beyond ASCII has two, in UTF-8 and as DNS has it (RFC 5890)."""
    if pattern == b"*":
        return (b"",)
    name = pattern.decode()
    if name.isascii() and "xn--" not in name:
        return (pattern,)
    labels = name.split(".")
    try:
        in_dns = ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
        in_utf8 = ".".join(idna.ulabel(label) if label.startswith("xn--") else label for label in labels)
    except idna.IDNAError:
        return (pattern,)  # "xn--" and no label of IDNA 2008: nobody has another name for it
    return tuple({pattern: None, in_dns.encode(): None, in_utf8.encode(): None})


def listed(hosts: Container[bytes] | CDB, domain: bytes) -> bool:
    """
    Whether the domain (in lower case) is in the list, or a suffix of it from a dot on is.

    Raises OSError for a damaged cdb.
    """
    return any(key and key in hosts for key in walk(domain))


def read(path: str) -> frozenset[bytes]:
    """The keys in a text file; BadLine for what is no domain, and for ``*``, which would open the relay."""
    found: set[bytes] = set()
    slips = Slips()
    for number, row in lines(path):
        with slips:
            found.update(_keys(row, path, number))
    slips.tell()
    return frozenset(found)


def _keys(row: bytes, path: str, number: int) -> tuple[bytes, ...]:
    pattern = row.strip().lower().removesuffix(b".")
    if pattern == b"*":
        raise BadLine(path, number, "'*' would accept mail for every domain", "list the domains")
    remedy = "write example.org, .example.org"
    if not pattern or any(octet in pattern for octet in b" \t@:/"):
        raise BadLine(path, number, f"{row.decode(errors='replace')!r} is no domain", remedy)
    try:
        return spellings(pattern)
    except UnicodeDecodeError:
        raise BadLine(path, number, "this is not UTF-8", remedy) from None


class Hosts:
    """
    The domains that anybody may send to, as they are now.

    While there is a control/rcpthosts, what it lists and what conf-qmq itself
    *says*; else what the configuration *knows*. What morercpthosts lists, as text
    or as cdb, comes on top. Without *says* control/rcpthosts is not asked.
    """

    def __init__(
        self, knows: Callable[[bytes], bool], says: Callable[[bytes], bool] | None, control: str, files: Files
    ) -> None:
        self._knows = knows
        self._says = says
        self._listed: Watched[frozenset[bytes] | None] = files.watch(os.path.join(control, "rcpthosts"), read, None)
        self._more: Watched[frozenset[bytes]] = files.watch(os.path.join(control, "morercpthosts"), read, frozenset())
        self._cdb: Watched[CDB | None] = files.watch(os.path.join(control, "morercpthosts.cdb"), open_cdb, None)

    def has(self, domain: bytes) -> bool:
        """Whether the domain (in lower case) is among them; raises OSError if the cdb is damaged."""
        says = self._says
        hosts = self._listed.now() if says is not None else None
        if hosts is None or says is None:
            if self._knows(domain):
                return True
        elif says(domain) or listed(hosts, domain) or listed(self._more.now(), domain):
            return True
        cdb = self._cdb.now()
        return cdb is not None and listed(cdb, domain)
