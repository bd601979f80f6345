"""
Base64 text that gives away what a part is: SPAMCONTROL's Warlord (SPAMCONTROL 2.13).

Pure. Two lists: *types*, the first nine characters of a part (54 bits of its
first octets), and *loaders*, five characters anywhere in it. A part's text is
compared without line ends, blanks and whatever else is not base64, so that
nothing can hide between two characters. Five characters mean certain octets at
one of three alignments: who wants a word found lists all three, as the default
list does with 32.dll. Five characters are 30 bits: with four signatures one in some
250 MB of innocent attachments is hit, as with the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import closing

import cdbx

from qmq.mail import value
from qmq.rules.cdb import open_cdb
from qmq.rules.watched import BadLine, Slips, lines

Finder = Callable[[bytes], bytes | None]

TYPE = 9
LOADER = 5

# SPAMCONTROL's own lists: the headers of DOS and Windows programs, and fragments of the names of their libraries.
TYPES = frozenset(
    (
        b"TVqQAAMAA TVpQAAIAA TVpAALQAc TVpyAXkAX TVrmAU4AA TVrhARwAk "
        b"TVoFAQUAA TVoAAAQAA TVoIARMAA TVouARsAA TVrQAT8AA TVoAAAEAA"
    ).split()
)
LOADERS = frozenset(b"Mi5kb MzIuZ MyLmR MyLkR".split())

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NO_BASE64 = bytes(set(range(256)) - set(_ALPHABET))
_SIGNATURE = re.compile(rb"[A-Za-z0-9+/]+")
_INSIDE = re.compile(rb"(?<=[A-Za-z0-9+/])[ \t]++(?=[A-Za-z0-9+/])")
# Where base64 is over: padding, or an empty line, as it was to the original. What a mailing list writes below it has
# blanks by right.
_EMPTY = re.compile(rb"\n\r?+\n")


def read_types(path: str) -> frozenset[bytes]:
    """control/badmimetypes, or the cdb made of it; raises OSError and BadLine."""
    return _read(path, TYPE)


def read_loaders(path: str) -> Loaders:
    """control/badloadertypes, or the cdb made of it; raises OSError and BadLine."""
    return Loaders(_read(path, LOADER))


def _read(path: str, length: int) -> frozenset[bytes]:
    """The first *length* characters of each line, or key; what stands behind them does not count."""
    found = set()
    slips = Slips()
    for number, line in _keys(path) if path.endswith(".cdb") else lines(path):
        signature = line.split()[0] if line else line
        with slips:
            if len(signature) < length or not _SIGNATURE.fullmatch(signature):
                shown = signature[:40].decode("ascii", "replace")
                remedy = f"write {length} characters of base64 text"
                raise BadLine(path, number, f"{shown!r} is no base64 signature", remedy)
            found.add(signature[:length])
    slips.tell()
    return frozenset(found)


def _keys(path: str) -> list[tuple[int, bytes]]:
    open_cdb(path).close()  # whether it is one at all
    try:
        with closing(cdbx.CDB(path)) as cdb:
            return [(0, bytes(key)) for key in cdb]
    except (OSError, MemoryError, SystemError) as trouble:
        raise BadLine(path, 0, f"cannot be read: {trouble}", "make it again from its text") from trouble


class Loaders:
    """A list of loaders' signatures, made into what finds them."""

    __slots__ = ("_finders", "_loaders")

    def __init__(self, loaders: Iterable[bytes] = ()) -> None:
        self._loaders = frozenset(loaders)
        self._finders: dict[bytes, Finder | None] = {}

    def finder(self, first: bytes) -> Finder | None:
        """What finds in a text one of those that begin with *first* (empty: any); None if there are none."""
        if first not in self._finders:
            self._finders[first] = _finder(loader for loader in self._loaders if loader.startswith(first))
        return self._finders[first]


def _finder(loaders: Iterable[bytes]) -> Finder | None:
    alike: dict[bytes, list[bytes]] = {}
    for loader in sorted(loaders):
        alike.setdefault(loader[:1], []).append(re.escape(loader))
    # A pattern that can begin with one character only is ten times as fast; the original wants it so of the whole list.
    searches = [re.compile(b"|".join(group)).search for group in alike.values()]

    def found(text: bytes) -> bytes | None:
        match = next((match for search in searches if (match := search(text))), None)
        return match[0] if match else None

    return found if searches else None


@value
class Signatures:
    """What to look for: *types* at a part's beginning, *loader* anywhere, *blanks* inside its lines."""

    types: frozenset[bytes] = frozenset()
    loader: Finder | None = None
    blanks: bool = False


class Hunt:
    """
    Reads the base64 parts of one message (qmq.rules.mime.Reader) until something is found.

    *hit* says what: ``("MIME", nine characters)`` or
    ``("Loader", five characters)``; of a short part fewer.
    """

    __slots__ = ("_before", "_begun", "_blanks", "_first", "_signatures", "_tail", "hit")

    def __init__(self, signatures: Signatures) -> None:
        self.hit: tuple[str, bytes] | None = None
        self._signatures = signatures
        self._first = b""  # the part's first characters
        self._begun = False  # they are complete, and no hit
        self._tail = b""  # the last characters, without line ends
        self._blanks = False  # still to be looked for in this part
        self._before = b""  # the last of the text before, as far as blanks or an empty line may follow it

    def part(self) -> None:
        """A part begins."""
        self._first = self._tail = self._before = b""
        self._begun = False
        self._blanks = self._signatures.blanks

    def text(self, text: bytes) -> None:
        """Some of it."""
        if self.hit is not None:
            return
        loader = self._signatures.loader
        if self._begun and loader is None and not self._blanks:
            return
        bare = text.translate(None, _NO_BASE64)
        if not self._begun:
            self._begin(bare)
        if self._blanks and self.hit is None:
            self._look_for_blanks(text)
        if loader is not None and self.hit is None:
            bare = self._tail + bare
            if found := loader(bare):
                self.hit = "Loader", found
            self._tail = bare[1 - LOADER :]

    def _begin(self, bare: bytes) -> None:
        self._first = (self._first + bare[:TYPE])[:TYPE]
        if len(self._first) == TYPE:
            self._begun = True
            if self._first in self._signatures.types:
                self.hit = "MIME", self._first

    def _look_for_blanks(self, text: bytes) -> None:
        text = self._before + text if self._before else text.lstrip()
        if (end := text.find(b"=")) >= 0:
            self._blanks = False
            text = text[:end]
        if empty := _EMPTY.search(text):
            self._blanks = False
            text = text[: empty.start()]
        if (b" " in text or b"\t" in text) and _INSIDE.search(text):
            self.hit = "MIME", self._first
        bare = text.rstrip(b" \t")
        self._before = text[-2:] if bare == text else bare[-1:] + b" "
