"""
Which mailboxes exist: the file control/recipients and what it leads to (SPAMCONTROL 2.11).

Pure: reads files, runs nothing. A line names a domain and a source: a cdb, a
plain list, a program. Every source whose line fits the recipient's domain is to
be asked, in the order of the lines, until the first that knows the recipient; a
recipient that none knows is refused.

=========================  ====================================================
``@dom:users.cdb``         the domain itself
``dom:users.cdb``          the domain and all below it
``.dom:users.cdb``         all below it
``*:users.cdb``            any domain
``users.cdb``              any domain
``dom|program a b c``      a program instead, with up to five arguments
``!dom``                   everything in the domain, without asking
``!*``, the last line      everything in domains that no line names
=========================  ====================================================

A source not named ``.cdb`` is a plain list: an address a line, ``@dom`` for all
of a domain. Domains are compared in lower case and label by label; the original
compared the last octets, so that ``dom`` took ``evildom`` too (2.20 defect 7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from qmq.mail import Address, Reply, value
from qmq.rules.cdb import CDB, open_cdb
from qmq.rules.watched import BadLine, Files, Slips, Watched, lines
from qmq.session import Session, Verdict

FOUND = "Accept::RCPT::Recipients_Cdb"
ANSWERED = "Accept::RCPT::Recipients_Pam"
WILD = "Accept::RCPT::Recipients_Wild"
PASSED = "Accept::RCPT::Rcpthosts_Rcptto"  # by !*: rcpthosts alone counted, as without a file

_LOCALHOST = b"localhost"  # where addresses without a domain are
_ARGUMENTS = 5
_REMEMBERED = 10_000  # domains whose sources were gathered
_REMEDY = "say DOMAIN:PATH.cdb, @DOMAIN:PATH.cdb, DOMAIN|PROGRAM, !DOMAIN, *:PATH.cdb or !*"

_DOMAIN = re.compile(rb"(?:[a-z0-9_\x80-\xff-]+\.)*[a-z0-9_\x80-\xff-]+|\[[0-9a-f:.]+\]")

T = TypeVar("T")

_PERMANENT = Reply(550, "5.7.1", "sorry, no mailbox here by that name")
_TEMPORARY = Reply(450, "4.2.1", "sorry, no mailbox here by that name")
_UNKNOWN = {
    reply: Verdict(reply=reply, reason="Reject::RCPT::Failed_Rcptto") for reply in (_PERMANENT, _TEMPORARY)
}  # fmt: skip


def unknown(session: Session) -> Verdict:
    """The refusal of a mailbox that does not exist; counts it against the client."""
    session.conduct.failed_recipients += 1
    environment = session.environment
    reply = _TEMPORARY if environment.recipients450 else _PERMANENT
    if environment.replies:
        return Verdict(reply=environment.worded(reply, "REPLY_MAILBOX"), reason="Reject::RCPT::Failed_Rcptto")
    return _UNKNOWN[reply]


@value
class Keys:
    """What a recipient is looked up by, in lower case: its address, and ``list-@dom`` if it is ``list-any@dom``."""

    domain: bytes
    whole: bytes
    short: bytes


def keys(recipient: Address, breaks: Sequence[bytes] = (b"-",)) -> Keys:
    """Of a recipient; its local part is cut behind the first of *breaks* (qmail's extensions; VERP)."""
    domain = recipient.domain or _LOCALHOST
    local = recipient.local.lower()
    place = min((place for octet in breaks if (place := local.find(octet)) >= 0), default=-1)
    short = local[: place + 1] + b"@" + domain if place >= 0 else b""
    return Keys(domain, local + b"@" + domain, short)


@value
class Program:
    """Asks a program, which is given the address on descriptor 3."""

    argv: tuple[str, ...]


class Everybody:
    """Knows all, for that *reason*."""

    def __init__(self, reason: str = WILD) -> None:
        self._reason = reason

    def knows(self, keys: Keys) -> str:
        """Why the recipient is known."""
        return self._reason


class _Kept(Generic[T]):
    """A source's file; one that is gone goes on as it was, and *warn* is told once."""

    def __init__(self, files: Files, path: str, read: Callable[[str], T]) -> None:
        self._file: Watched[T | None] = files.watch(path, read, None)
        self._warn = files.warn
        self._gone = False
        rules = self._file.now()
        if rules is None:
            raise BadLine(path, 0, "there is no such file", "make it, or take the line out")
        self.path = path
        self._rules = rules

    def now(self) -> T:
        rules = self._file.now()
        if rules is None:
            if not self._gone:
                self._warn(f"{self.path} is gone; its recipients stay as they were")
            self._gone = True
            return self._rules
        self._gone = False
        self._rules = rules
        return rules


class Compiled:
    """Knows what is in a cdb: its keys are ``:`` and the address in lower case. Raises BadLine."""

    def __init__(self, files: Files, path: str) -> None:
        self._file = _Kept(files, path, open_cdb)
        self._warn = files.warn
        self._damaged: CDB | None = None

    def knows(self, keys: Keys) -> str:
        """Why the recipient is known; nothing if it is not, or if the cdb is damaged just there."""
        cdb = self._file.now()
        try:
            if cdb.get(b":" + keys.whole) is not None or (keys.short and cdb.get(b":" + keys.short) is not None):
                return FOUND
        except OSError as trouble:
            if self._damaged is not cdb:
                self._damaged = cdb
                self._warn(f"{trouble}; recipients are looked for elsewhere")
        return ""


class Listed:
    """Knows what is in a plain list. Raises BadLine."""

    def __init__(self, files: Files, path: str) -> None:
        self._file = _Kept(files, path, read_list)

    def knows(self, keys: Keys) -> str:
        """Why the recipient is known; nothing if it is not."""
        known = self._file.now()
        if keys.whole in known or keys.short in known:
            return FOUND
        return WILD if b"@" + keys.domain in known else ""


Source = Everybody | Compiled | Listed | Program


class Recipients:
    """The lines of one file, compiled; made by `read`."""

    def __init__(self) -> None:
        self._any: list[tuple[int, Source]] = []
        self._exact: dict[bytes, list[tuple[int, Source]]] = {}
        self._below: dict[bytes, list[tuple[int, Source]]] = {}
        self._others = False  # !*
        self._gathered: dict[bytes, tuple[Source, ...]] = {}

    def sources(self, domain: bytes) -> tuple[Source, ...]:
        """Those to be asked of a recipient in this domain (in lower case), in order."""
        found = self._gathered.get(domain)
        if found is None:
            found = self._gather(domain)
            if len(self._gathered) >= _REMEMBERED:
                self._gathered.clear()
            self._gathered[domain] = found
        return found

    def add(self, domain: bytes, number: int, source: Source) -> None:
        """A line for ``dom``, ``@dom``, ``.dom`` or ``*``."""
        if domain == b"*":
            self._any.append((number, source))
            return
        name = domain.removeprefix(b"@").removeprefix(b".")
        if domain[:1] != b".":
            self._exact.setdefault(name, []).append((number, source))
        if domain[:1] != b"@":
            self._below.setdefault(name, []).append((number, source))

    def pass_others(self) -> None:
        """The line ``!*``."""
        self._others = True

    def _gather(self, domain: bytes) -> tuple[Source, ...]:
        found = list(self._exact.get(domain, ()))
        parent = domain
        while parent:
            parent = parent.partition(b".")[2]
            found += self._below.get(parent, ())
        named = bool(found)
        found = sorted(found + self._any, key=lambda line: line[0])
        return tuple(source for _, source in found) + ((Everybody(PASSED),) if self._others and not named else ())


def read(path: str, home: str, files: Files, find: Callable[[str], str]) -> Recipients:
    """
    The rules in the file at *path*; relative paths of sources are meant from *home*, qmail's folder.

    *find* gives the path of a program, or raises ValueError. Raises OSError,
    and BadLine for a line that is none or a source that cannot be used.
    """
    recipients = Recipients()
    rows = lines(path)
    slips = Slips()
    for number, row in rows:
        with slips:
            if row == b"!*":
                if number != rows[-1][0]:
                    raise BadLine(path, number, "!* is not the last line", "put it below all others")
                recipients.pass_others()
                break
            try:
                domain, source = _line(row, home, files, find)
            except ValueError as trouble:
                raise BadLine(path, number, str(trouble)) from None
            recipients.add(domain, number, source)
    slips.tell()
    return recipients


def read_list(path: str) -> frozenset[bytes]:
    """The addresses, in lower case, in a plain list; ``@dom`` for all of a domain. Raises OSError and BadLine."""
    known = set()
    slips = Slips()
    for number, row in lines(path):
        local, at, domain = row.strip().lower().rpartition(b"@")
        with slips:
            if not at or not _DOMAIN.fullmatch(domain):
                remedy = "say user@example.org, or @example.org for all"
                raise BadLine(path, number, f"{_text(row)!r} is no address", remedy)
            known.add(local + at + domain)
    slips.tell()
    return frozenset(known)


def _line(row: bytes, home: str, files: Files, find: Callable[[str], str]) -> tuple[bytes, Source]:
    """Domain and source of a line; raises ValueError."""
    if row.startswith(b"!"):
        return _domain(b"@" + row[1:].strip()), Everybody()
    mark = next((octet for octet in row if octet in b":|"), None)
    if mark is None:
        return b"*", _file(row, home, files)
    domain, _, rest = row.partition(bytes((mark,)))
    if mark == ord(":"):
        return _domain(domain.strip()), _file(rest.strip(), home, files)
    words = _text(rest).split()
    if not words:
        raise ValueError(f"no program behind |; {_REMEDY}")
    if len(words) > 1 + _ARGUMENTS:
        raise ValueError(f"a program takes {_ARGUMENTS} arguments at most, not {len(words) - 1}; wrap it in a script")
    return _domain(domain.strip()), Program((find(words[0]), *words[1:]))


def _domain(said: bytes) -> bytes:
    domain = said.lower()
    name = domain[1:] if domain[:1] in {b"@", b"."} else domain
    if domain != b"*" and not _DOMAIN.fullmatch(name):
        raise ValueError(f"{_text(said)!r} is no domain; {_REMEDY}")
    return domain


def _file(name: bytes, home: str, files: Files) -> Source:
    if not name:
        raise ValueError(f"no path behind the domain; {_REMEDY}")
    path = os.path.join(home, os.fsdecode(name))
    return Compiled(files, path) if path.endswith(".cdb") else Listed(files, path)


def _text(octets: bytes) -> str:
    return os.fsdecode(octets)
