"""
From which score on a message is spam, by the recipient's domain: control/spamdomains.

Pure. A line is ``domain:threshold``; -1 is not scanned. ``.domain`` means the
hosts below it, ``*`` all domains; of several lines that match the last one wins
(SPAMCONTROL 2.13).
"""

from __future__ import annotations

import re

from qmq.rules.watched import BadLine, Slips, lines

_LINE = re.compile(rb"@?(\*|\.?[^\s:@*]+)\s*:\s*(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)(?:\s+#.*)?")


class Thresholds:
    """The lines of the file, made for look-ups."""

    __slots__ = ("_all", "_below", "_exact")

    def __init__(self) -> None:
        # Each with the number of its line.
        self._exact: dict[bytes, tuple[int, float]] = {}
        self._below: dict[bytes, tuple[int, float]] = {}
        self._all: tuple[int, float] | None = None

    def add(self, number: int, domain: bytes, threshold: float) -> None:
        """A line; later ones win."""
        if domain == b"*":
            self._all = number, threshold
        elif domain.startswith(b"."):
            self._below[domain[1:].lower()] = number, threshold
        else:
            self._exact[domain.lower()] = number, threshold

    def of(self, domain: bytes) -> float | None:
        """What counts for a domain in lower case; None if no line matches."""
        found = [self._all, self._exact.get(domain)]
        if self._below:
            found += [self._below.get(domain[dot + 1 :]) for dot in range(len(domain)) if domain[dot : dot + 1] == b"."]
        return max((line for line in found if line is not None), default=(0, None))[1]


def read_thresholds(path: str) -> Thresholds:
    """The file at *path*; raises OSError and BadLine."""
    thresholds = Thresholds()
    slips = Slips()
    for number, line in lines(path):
        with slips:
            match = _LINE.fullmatch(line.strip())
            if match is None:
                shown = line[:60].decode("utf-8", "replace")
                remedy = "write one such as example.org:7.5"
                raise BadLine(path, number, f"{shown!r} is no domain with a threshold", remedy)
            thresholds.add(number, match[1].removesuffix(b".") or match[1], float(match[2]))
    slips.tell()
    return thresholds
