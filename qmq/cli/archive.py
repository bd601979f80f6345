"""
Messages in a tar archive: what `qmq export` writes and `qmq import` reads.

The first member, archive.json, has the archive's id. Then each message has two
members, one behind the other: QUEUE/ID.json, its envelope and what is known of
it, and QUEUE/ID.eml, its text as it lies in the queue; end.json is last. Whoever
reads an archive takes texts out of it and never a file: the names in it are a
stranger's. Nothing here grows with the number of messages.
"""

from __future__ import annotations

import io
import json
import math
import re
import secrets
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from qmq.mail import DOUBLE_BOUNCE_SENDER, NULL_SENDER, Address, Envelope, Octets, Origin, Seconds, Token, path
from qmq.wire.path import BadPath, parse_path

_FORMAT = "qmq-export"
_VERSION = 1
_ABOUT = "archive.json"
_END = "end.json"
_JSON_OCTETS: Octets = 4 << 20  # a thousand recipients, each with a long reply, are half a megabyte
_ID = re.compile(r"[0-9a-f]{16,64}")
_BODY_TYPES = frozenset({"7BIT", "8BITMIME", "BINARYMIME"})
_WORD_CHARACTERS = 1000
_NUMBERS = 1 << 62


class BadArchive(Exception):
    """No archive of ours, or a damaged one; says where and why."""


class Writer:
    """Writes an archive to a file that is open for writing; whoever opened it closes it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - finish closes it
        self._count = 0
        self._latest = ""
        about = {"format": _FORMAT, "version": _VERSION, "id": secrets.token_hex(8), "made": int(time.time())}
        self._add(_ABOUT, _json(about))

    def add(self, facts: dict[str, Any], text: IO[bytes], octets: Octets) -> str:
        """A message: *text* is read from its beginning. The name of its members, without suffix."""
        self._count += 1
        name = f"{facts['queue']}/{facts['id']}"
        if name == self._latest:  # the same message, for another host
            name = f"{name}.{facts['number']}"
        else:
            self._latest = name
        self._add(f"{name}.json", _json({"n": self._count, **facts}), facts["born"])
        text.seek(0)
        self._tar.addfile(_member(f"{name}.eml", octets, facts["born"]), text)
        self._forget()
        return name

    def finish(self) -> None:
        """The last member says that the archive is whole: tarfile takes one that breaks off for one that ends."""
        self._add(_END, _json({"messages": self._count}))
        self._tar.close()

    def _add(self, name: str, data: bytes, born: Seconds = 0.0) -> None:
        self._tar.addfile(_member(name, len(data), born or time.time()), io.BytesIO(data))
        self._forget()

    def _forget(self) -> None:
        self._tar.members = []  # type: ignore[attr-defined]  # typeshed leaves it out; it keeps all, for who looks back


@dataclass(frozen=True, slots=True)
class Carried:
    """A message of an archive; *text* is to be read before the next is asked for."""

    name: str
    archive: str  # its id
    number: int  # in the archive
    facts: dict[str, Any]
    text: IO[bytes]
    octets: Octets

    @property
    def token(self) -> Token:
        """The same whenever it is imported: so a queue that has it knows it."""
        return Token(b"import." + self.archive.encode(), self.number)


@dataclass(frozen=True, slots=True)
class Unread:
    """A member that is no message, and why."""

    name: str
    why: str


def messages_of(file: IO[bytes]) -> Iterator[Carried | Unread]:
    """The messages of an archive, one by one. Raises BadArchive, also after some of them."""
    archive, number, whole = "", 0, False
    waiting: tuple[str, dict[str, Any]] | None = None
    for member, tar in _members(file):
        stem, _, suffix = member.name.rpartition(".")
        if waiting is not None and not (suffix == "eml" and stem == waiting[0]):
            yield Unread(waiting[0], "its text does not follow")
            waiting = None
        if not member.isreg():
            if not member.isdir():
                yield Unread(member.name, "is no file")
            continue
        text = tar.extractfile(member)
        assert text is not None  # it is a file
        if member.name == _ABOUT:
            archive, number, whole = _about(text, member.size), 0, False
        elif not archive:
            raise BadArchive(f"{_ABOUT} does not come first: this is no archive of qmq export")
        elif member.name == _END:
            whole = True
        elif suffix == "json":
            found = _facts(text, member.size, number)
            if isinstance(found, str):
                yield Unread(stem, found)
            else:
                number, waiting = found["n"], (stem, found)
        elif waiting is not None:
            yield Carried(stem, archive, number, waiting[1], text, member.size)
            waiting = None
        else:
            yield Unread(member.name, "its .json does not stand before it")
    if waiting is not None:
        yield Unread(waiting[0], "its text does not follow")
    if not whole:
        raise BadArchive("it breaks off: what stands above is all that is left of it")


def envelope_of(message: Carried) -> Envelope:
    """
    Sender, recipients and whence it came, as the archive says; who had failed is tried again.

    Raises ValueError.
    """
    facts = message.facts
    wanted = _list(facts, "recipients") + _list(facts, "bouncing")
    recipients = tuple(dict.fromkeys(_address(_text(one, "address")) for one in wanted))
    if not recipients or NULL_SENDER in recipients:
        raise ValueError("it has no recipients")
    body_type = _text(facts, "body_type")
    if body_type not in _BODY_TYPES:
        raise ValueError(f"{body_type!r} is no body type")
    return Envelope(
        message.token, _address(_text(facts, "sender")), recipients, _origin(facts), body_type.encode(),
        facts.get("smtputf8") is True,
    )  # fmt: skip


def _origin(facts: dict[str, Any]) -> Origin:
    said = facts.get("origin")
    if not isinstance(said, dict):
        raise ValueError("it has no origin")  # noqa: TRY004 - what is told is the archive's fault
    port, born = said.get("port", 0), facts.get("born")
    if type(port) is not int or not 0 <= port <= 65535:
        raise ValueError("its port is none")
    if not isinstance(born, int | float) or not math.isfinite(born) or born < 0:
        raise ValueError("the time it was taken at is none")
    words = [_text(said, word).encode() for word in ("protocol", "client", "helo", "user")]
    return Origin(words[0], words[1], port, words[2], words[3], said.get("made_here") is True, float(born))


def _members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            while (member := tar.next()) is not None:
                yield member, tar
                tar.members = []  # type: ignore[attr-defined]  # as above
    except (tarfile.TarError, OSError, EOFError) as error:
        raise BadArchive(f"it is damaged, or no tar archive ({error})") from None


def _about(text: IO[bytes], octets: Octets) -> str:
    try:
        about = _parsed(text, octets)
    except ValueError as error:
        raise BadArchive(f"{_ABOUT}: {error}") from None
    name = about.get("id")
    if about.get("format") != _FORMAT or not isinstance(name, str) or not _ID.fullmatch(name):
        raise BadArchive("this is no archive of qmq export")
    if about.get("version") != _VERSION:
        raise BadArchive(f"it is of version {about.get('version')!r}; this qmq reads {_VERSION}")
    return name


def _facts(text: IO[bytes], octets: Octets, after: int) -> dict[str, Any] | str:
    """What is told of a message, or what is wrong with that."""
    try:
        facts = _parsed(text, octets)
    except ValueError as error:
        return str(error)
    number = facts.get("n")
    # A number twice would be one message to the queue: the second would be lost.
    if type(number) is not int or not after < number < _NUMBERS:
        return f"its number is {number!r}, where one above {after} is wanted"
    return facts


def _parsed(text: IO[bytes], octets: Octets) -> dict[str, Any]:
    if octets > _JSON_OCTETS:
        raise ValueError(f"it has {octets} octets, {_JSON_OCTETS} at most are read")
    try:
        found = json.loads(text.read(_JSON_OCTETS))
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - told as all that is wrong with it
    return found


def _list(facts: dict[str, Any], word: str) -> list[Any]:
    found = facts.get(word, [])
    if not isinstance(found, list):
        raise ValueError(f"its {word} are no list")  # noqa: TRY004 - as above
    return found


def _text(facts: Any, word: str) -> str:
    found = facts.get(word) if isinstance(facts, dict) else None
    if not isinstance(found, str) or len(found) > _WORD_CHARACTERS or not all(c.isprintable() for c in found):
        raise ValueError(f"its {word} is none")
    return found


def _address(text: str) -> Address:
    raw = text.encode()
    if raw == path(DOUBLE_BOUNCE_SENDER):
        return DOUBLE_BOUNCE_SENDER
    try:
        found, rest = parse_path(b"<%b>" % raw)
    except BadPath as bad:
        raise ValueError(f"{text!r}: {bad}") from None
    if rest:
        raise ValueError(f"{text!r} is no address")
    return found


def _member(name: str, octets: Octets, born: Seconds) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = octets
    member.mode = 0o600
    member.mtime = int(born)
    return member


def _json(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, indent=1).encode() + b"\n"
