r"""
Patterns of addresses and names, and lists of them (SPAMCONTROL 2.8).

``*`` is any run of octets, ``?`` exactly one, ``[a-z]`` one of a class and
``[^a-z]`` one that is not in it (``]`` or ``-`` in front, and ``-`` at the
end, stand for themselves; so does a backslash in a class); ``\x`` is x itself.
The whole must match, case counts. No pattern takes more time than its length
times that of what is matched.

Of a list the last line that matches decides: a line ``!pattern`` exempts, any
other refuses. That is the original's walk, which asks a plain line only while
not refused, an exempting one only while refused, and turns at each match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from qmq.rules.watched import BadLine, Slips

Rules = Iterable[tuple[int, bytes]]  # a control file's lines with their numbers

Piece = bytes | frozenset[int] | None  # a literal, a class, a run of stars

_STAR, _ANY, _OPEN, _CLOSE, _DASH, _ESCAPE = b"*?[]-\\"
_SPECIAL = re.compile(rb"[*?[\\]")


class BadPattern(ValueError):
    """What is wrong with a pattern, and what to write instead."""

    def __init__(self, text: str, remedy: str) -> None:
        super().__init__(text)
        self.remedy = remedy


class Walk:
    """
    A list of patterns; *path* is for complaints. Raises BadLine.

    However many lines match but themselves, they cost one look into a table;
    patterns of one kind that stand together are asked together.
    """

    __slots__ = ("_literals", "_runs")

    def __init__(self, rules: Rules, path: str) -> None:
        self._literals: dict[bytes, tuple[int, bool]] = {}  # their last places, and whether they refuse
        runs: list[tuple[int, bool, list[Sequence[Piece]]]] = []
        parted = True  # by a literal of the other kind
        slips = Slips()
        for place, (number, line) in enumerate(rules):
            refuses = not line.startswith(b"!")
            pieces: Sequence[Piece] = ()
            with slips:
                pieces = _parsed(line if refuses else line[1:], path, number)
            if (literal := _literal(pieces)) is not None:
                self._literals[literal] = place, refuses
                parted = parted or refuses != runs[-1][1]
                continue
            together = runs.pop()[2] if not parted and refuses == runs[-1][1] else []
            together.append(pieces)
            runs.append((place, refuses, together))
            parted = False
        slips.tell()
        self._runs = tuple(_Run(*run) for run in reversed(runs))

    def refuses(self, subject: bytes) -> bool:
        """Whether the last line that matches *subject* is a plain one; case counts."""
        place, refused = self._literals.get(subject, _NOWHERE)
        for run in self._runs:
            if run.last < place:
                break
            if run.matches(subject):
                return run.refuses
        return refused


_NOWHERE = -1, False


class _Run:
    """
    Patterns of one kind, between which no literal of the other kind stands.

    A literal of their own kind may: whichever of the two matches, it says the same.
    """

    __slots__ = ("_ends", "_others", "_starts", "_within", "last", "refuses")

    def __init__(self, last: int, refuses: bool, patterns: Sequence[Sequence[Piece]]) -> None:
        self.last = last  # the place of the last of them
        self.refuses = refuses
        starts, ends, within, others = [], [], [], []
        for pieces in patterns:
            match pieces:
                case [None]:
                    starts.append(b"")
                case [None, bytes(text)]:
                    ends.append(text)
                case [bytes(text), None]:
                    starts.append(text)
                case [None, bytes(text), None]:
                    within.append(re.escape(text))
                case _:
                    others.append(b"(?:%b)" % expression(pieces))
        self._starts = tuple(starts)
        self._ends = tuple(ends)
        self._within = re.compile(b"|".join(within)) if within else None
        self._others = re.compile(b"|".join(others), re.DOTALL) if others else None

    def matches(self, subject: bytes) -> bool:
        """Whether one of them matches."""
        if subject.endswith(self._ends) or subject.startswith(self._starts):
            return True
        if self._within is not None and self._within.search(subject):
            return True
        return self._others is not None and self._others.fullmatch(subject) is not None


def plain(text: bytes) -> bool:
    """Whether a pattern has no special octet in it, so that it matches but itself."""
    return not _SPECIAL.search(text)


def _parsed(pattern: bytes, path: str, number: int) -> Sequence[Piece]:
    try:
        return parse(pattern)
    except BadPattern as bad:
        raise BadLine(path, number, str(bad), bad.remedy) from bad


def parse(pattern: bytes) -> Sequence[Piece]:
    """
    The pieces of a pattern; raises BadPattern.

    Letters behind the last @, outside of classes, are put in lower case as our
    domains are: in the original they match what the client has in capitals, so
    that here they would match nothing.
    """
    octets = list(_octets(pattern))
    domain = max((place for place, octet in enumerate(octets) if octet == b"@"), default=len(octets))
    pieces: list[Piece] = []
    for place, octet in enumerate(octets):
        before = pieces[-1] if pieces else b""
        piece = octet.lower() if isinstance(octet, bytes) and place > domain else octet
        if isinstance(piece, bytes) and isinstance(before, bytes):
            pieces[-1:] = [before + piece]
        elif piece is not None or before is not None:
            pieces.append(piece)
    return pieces


def expression(pieces: Sequence[Piece]) -> bytes:
    """As a regular expression for fullmatch, which takes at most the time that the product of both lengths does."""
    stretches = [b""]  # between the stars
    for piece in pieces:
        if piece is None:
            stretches.append(b"")
        else:
            stretches[-1] += re.escape(piece) if isinstance(piece, bytes) else _class(piece)
    if len(stretches) == 1:
        return stretches[0]
    first, *middle, last = stretches
    # The first place where a stretch fits is as good as any later one: no need to go back to it.
    return first + b"".join(b"(?>.*?%b)" % stretch for stretch in middle) + b".*" + last


def _literal(pieces: Sequence[Piece]) -> bytes | None:
    """What the pattern is, if it matches but that."""
    match pieces:
        case []:
            return b""
        case [bytes(text)]:
            return text
    return None


def _octets(pattern: bytes) -> Iterator[Piece]:
    """The pattern's parts, each a star (None) or what one octet must be."""
    at, end = 0, len(pattern)
    while at < end:
        octet = pattern[at]
        at += 1
        if octet == _STAR:
            yield None
        elif octet == _ANY:
            yield frozenset(range(256))
        elif octet == _OPEN:
            members, at = _members(pattern, at)
            yield members
        elif octet == _ESCAPE:
            if at == end:
                raise BadPattern("a backslash with nothing behind it", r"write \\ for a backslash")
            yield pattern[at : at + 1]
            at += 1
        else:
            yield pattern[at - 1 : at]


def _members(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """The class whose text begins at *at*, and where it ends."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    previous = None  # what a range may begin with
    first = True
    while at < len(pattern):
        octet = pattern[at]
        if octet == _CLOSE and not first:
            return frozenset(set(range(256)) - members if negated else members), at + 1
        if octet == _DASH and not first and at + 1 < len(pattern) and pattern[at + 1] != _CLOSE:
            at += 1
            octet = pattern[at]
            if previous is None or octet < previous:
                raise BadPattern("a class with a range that is none", "write the lower end first, as in [0-9]")
            members.update(range(previous, octet))
        members.add(octet)
        previous, first = octet, False
        at += 1
    raise BadPattern("a class without its ]", r"write \[ for the bracket itself")


def _class(members: frozenset[int]) -> bytes:
    if len(members) == 256:
        return b"."
    return b"[" + b"".join(b"\\x%02x" % octet for octet in sorted(members)) + b"]" if members else b"(?!)"
