"""
The base64 parts of a message, found as it goes by.

A walk takes a message in pieces of any length and tells a reader where a part
in base64 begins and what text it has. It follows multiparts and messages within
messages by a table of open boundaries, without recursion; memory is bounded by
limits of its own and time is linear in the octets fed, whatever a stranger
wrote (RELIABILITY 2.5). It is made for filters: where mail programs differ it
takes the reading that shows more. Not followed: what is itself encoded (a
message in base64 is a part in base64), message/partial, and text after the
budgets of depth and parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import Protocol

from qmq.mail import Body, Octets
from qmq.rules.mime_fields import BOUNDARY, FIELD, boundaries, is_base64, kind

# Multiparts within each other: people's mail rarely has more than 5. Each level makes boundaries dearer to find.
DEPTH = 30
# Parts of a message. A digest of a busy mailing list has some hundreds.
PARTS = 10_000
# What is kept of a header that has not ended, to look at its fields together; they are looked at piecemeal then.
_HEADER: Octets = 16_384
# What is fed at once; the most hostile 8 KiB that are known take 3 ms, honest ones 0.03.
_STEP: Octets = 8192
# Content-Type fields of one part that are looked at: the first ones and the last; one would do.
_TYPES = 8
# A boundary's line: the boundary, `--`, blanks. Longer lines are no honest one's.
_LINE: Octets = BOUNDARY + 100

_HEADER_ENDS = re.compile(rb"\n(?:\r?\n|--)")
_NAME = re.compile(rb"\ncontent-t(ype|ransfer-encoding)[ \t]*+:")
_FIELD_ENDS = re.compile(rb"\n(?![ \t])")
# What begins a line that goes on with the field before it, as far as can be known.
_FOLDED = frozenset({b" ", b"\t", b""})
_MESSAGES = frozenset({b"rfc822", b"global", b"news"})
_BEGUN = (b"\n", b"\n-")  # a boundary's line may follow


class Reader(Protocol):
    """Who is told of parts in base64."""

    def part(self) -> None:
        """A part begins; the one before, if any, is over."""

    def text(self, text: bytes) -> None:
        """Some of the part's text as it is on the wire: lines, whole or not."""


class Walk:
    """
    Follows one message's structure.

    *beyond* is "depth", "parts" or "field" when a budget was used up: what is
    deeper, comes later, or stands further behind in a field is not looked into.
    """

    __slots__ = (
        "_depth", "_digest", "_encoded", "_in_header", "_levels", "_of", "_parts", "_prefixes", "_reader", "_rest",
        "_said", "_types", "base64", "beyond",
    )  # fmt: skip

    def __init__(self, reader: Reader, depth: int = DEPTH, parts: int = PARTS) -> None:
        self.base64 = False  # a part in base64 was seen
        self.beyond = ""
        self._reader = reader
        self._depth = depth
        self._parts = parts  # that may still come
        self._levels: list[tuple[bytes, ...]] = []  # the boundaries of each multipart that is open
        self._of: dict[bytes, int] = {}  # boundary: its level, from 1 on
        self._prefixes: tuple[bytes, ...] = ()  # the keys of _of
        self._digest: set[int] = set()  # levels whose parts are messages if they do not say what they are
        self._rest = b"\n"  # undecided: what begins with a line's end, so that a line's start is found by it
        self._in_header = True
        self._encoded = False  # the present part is in base64
        self._types: list[bytes] = []  # Content-Type fields of the present header
        self._said = False  # the present header said base64

    @property
    def over(self) -> bool:
        """Nothing that comes can matter any more."""
        return not (self._in_header or self._encoded or self._levels) or self.beyond == "parts"

    def feed(self, data: bytes) -> None:
        """The next octets of the message."""
        text = self._rest + data if self._rest else data
        self._rest = b""
        self._go(text, last=False)

    def end(self) -> None:
        """The message is over; its last line may not have an end."""
        text, self._rest = self._rest, b""
        self._go(text, last=True)

    def _go(self, text: bytes, *, last: bool) -> None:
        at = 0
        while at >= 0 and self.beyond != "parts":
            at = self._header(text, at, last) if self._in_header else self._body(text, at, last)

    def _header(self, text: bytes, at: int, last: bool) -> int:
        """Look for its end from *at* on; where to go on, -1 if more has to come."""
        look = at
        while end := _HEADER_ENDS.search(text, look):
            if not end[0].endswith(b"-"):
                self._scan(text[at : end.start() + 1])
                self._decide()
                return end.end() - 1  # at the empty line's own end: a line may begin behind it
            line_ends = self._line_end(text, end.start(), last)
            if line_ends < 0:
                self._keep_header(text, at)
                return -1
            if level := self._delimits(text[end.end() : line_ends]):
                self._scan(text[at : end.start() + 1])
                self._decide()  # a part that is header alone
                return self._delimited(text[end.end() : line_ends], level, line_ends)
            look = end.end()
        if last:
            self._scan(text[at:])
            self._decide()
        else:
            self._keep_header(text, at)
        return -1

    def _keep_header(self, text: bytes, at: int) -> None:
        """Wait for more of the header; a very long one is looked at up to its last field that has begun."""
        if len(text) - at <= _HEADER:
            self._rest = text[at:]
            return
        cut = len(text)
        while (cut := text.rfind(b"\n", at, cut)) > at and text[cut + 1 : cut + 2] in _FOLDED:
            pass
        if cut > at:
            self._scan(text[at : cut + 1])
        else:  # one endless field: its beginning counts
            self._scan(text[at:])
            cut = text.rfind(b"\n", at + 1)
        self._rest = text[cut:] if cut > at else b""

    def _scan(self, text: bytes) -> None:
        """Note the fields of interest in some whole lines of a header; each begins behind a line's end."""
        low = text.lower()
        at = low.find(b"\ncontent-t")
        while at >= 0:
            if name := _NAME.match(low, at):
                begins = name.end()
                ends = _FIELD_ENDS.search(text, begins, begins + FIELD)
                if ends is None and len(text) > begins + FIELD:
                    self.beyond = self.beyond or "field"
                field = text[begins : ends.start() if ends else begins + FIELD]
                if name[1] != b"ype":
                    self._said = self._said or is_base64(field)
                elif len(self._types) < _TYPES:
                    self._types.append(field)
                else:
                    self._types[-1] = field
            at = low.find(b"\ncontent-t", at + 1)

    def _decide(self) -> None:
        """A header is over: what is its part?"""
        types, self._types = self._types, []
        said, self._said = self._said, False
        self._in_header = self._encoded = False
        kinds = [kind(field) for field in types]
        multiparts = sum(first == b"multipart" for first, _ in kinds)
        if multiparts:
            names = tuple(name for field in types for name in boundaries(field))
            opened = bool(names) and self._open(names, digest=(b"multipart", b"digest") in kinds)
            # RFC 2045 6.4: no multipart is encoded itself. With fields that contradict each other it may be none.
            if opened and multiparts == len(kinds):
                return
        if said:
            self._encoded = self.base64 = True
            self._reader.part()
        elif any(first == b"message" and second in _MESSAGES for first, second in kinds) or (
            not types and len(self._levels) in self._digest
        ):
            self._in_header = self._one_more()

    def _open(self, names: tuple[bytes, ...], *, digest: bool) -> bool:
        """Parts between *names* follow; False if that is too deep."""
        if len(self._levels) >= self._depth:
            self.beyond = self.beyond or "depth"
            return False
        self._levels.append(names)
        level = len(self._levels)
        for name in names:
            # A part that uses a boundary of the parts around it: its parts are theirs.
            self._of.setdefault(name, level)
        if digest:
            self._digest.add(level)
        self._prefixes = tuple(self._of)
        return True

    def _one_more(self) -> bool:
        self._parts -= 1
        if self._parts < 0:
            self.beyond = "parts"
            return False
        return True

    def _body(self, text: bytes, at: int, last: bool) -> int:
        """Pass over it, or on to the reader, up to the next line that is a boundary."""
        look = at
        while self._levels:
            hit = text.find(b"\n--", look)
            if hit < 0:
                break
            line_ends = self._line_end(text, hit, last)
            if line_ends < 0:
                self._content(text, at, hit)
                self._rest = text[hit:]
                return -1
            if level := self._delimits(text[hit + 3 : line_ends]):
                self._content(text, at, hit)
                return self._delimited(text[hit + 3 : line_ends], level, line_ends)
            look = hit + 3
        end = len(text)
        if self._levels and not last and text.endswith(_BEGUN):
            end = max(at, text.rfind(b"\n"))
        self._content(text, at, end)
        self._rest = text[end:]
        return -1

    def _content(self, text: bytes, at: int, end: int) -> None:
        if self._encoded and end > at:
            self._reader.text(text[at:end])

    def _line_end(self, text: bytes, at: int, last: bool) -> int:
        """Where the line ends that begins behind *at*, or where it can be no boundary's; -1 if more has to come."""
        end = text.find(b"\n", at + 1, at + _LINE)
        if end >= 0:
            return end
        return min(len(text), at + _LINE) if last or len(text) >= at + _LINE else -1

    def _delimits(self, line: bytes) -> int:
        """The level whose boundary a line begins with, without its ``--``; 0 if it is another line."""
        if not line.startswith(self._prefixes):
            return 0
        # RFC 2046 5.1.1: it is enough that a line begins with the boundary. Of several the longest is meant.
        return self._of[self._meant(line)]

    def _meant(self, line: bytes) -> bytes:
        whole = line.rstrip()
        return whole if whole in self._of else max((p for p in self._prefixes if line.startswith(p)), key=len)

    def _delimited(self, line: bytes, level: int, line_ends: int) -> int:
        """A part is over, and all that is open within it."""
        self._encoded = False
        if len(self._levels) > level:
            for names in self._levels[level:]:
                for name in names:
                    if self._of.get(name, 0) > level:
                        del self._of[name]
            del self._levels[level:]
            self._digest = {digest for digest in self._digest if digest <= level}
            self._prefixes = tuple(self._of)
        # The last boundary does not close its multipart: some show parts that come after it.
        closing = line.removeprefix(self._meant(line)).startswith(b"--")
        self._in_header = not closing and self._one_more()
        return line_ends


def steps(walk: Walk, body: Body, enough: Callable[[], bool]) -> Generator[None, None, None]:
    """Walk through a body until it is over or *enough*; yields after each step, so that others can be served."""
    for chunk in body.chunks():
        for at in range(0, len(chunk), _STEP):
            walk.feed(chunk[at : at + _STEP])
            if walk.over or enough():
                return
            yield
    walk.end()
