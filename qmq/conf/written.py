"""
What somebody wrote, where it stands, and what is to be said about it.

Every value keeps its file and line until it is a setting, so that every error
names them. Findings gathers errors and warnings; nothing stops at the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Written:
    """
    A text and its place. Line 0 is the file as a whole.

    *lines* has the line of each line of *text*, for values that run over
    several. *classic*: from qmail's control files, where nobody could know
    our bounds: what is out of bounds there is taken, with a warning.
    """

    path: str
    line: int
    text: str = ""
    lines: tuple[int, ...] = ()
    classic: bool = False

    def rows(self) -> Iterator[Written]:
        """Each line of the text that is not empty, with its own place."""
        for line, text in zip(self.lines or (self.line,), self.text.split("\n"), strict=False):
            if text := text.strip():
                yield Written(self.path, line, text, classic=self.classic)

    def words(self) -> Iterator[Written]:
        """Each word of the text, with its own place; a comma parts words too."""
        for row in self.rows():
            for word in row.text.replace(",", " ").split():
                yield Written(row.path, row.line, word, classic=row.classic)

    @property
    def place(self) -> str:
        """``path:line``, as editors and compilers write it."""
        return f"{self.path}:{self.line}" if self.line else self.path


@dataclass(frozen=True, slots=True)
class Note:
    """An error or a warning: where, what is wrong, and what to write instead."""

    path: str
    line: int
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line, with the place in front."""
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


class ConfErrors(Exception):
    """The configuration cannot be used: all that is wrong with it, in the order of the files' lines."""

    def __init__(self, errors: tuple[Note, ...], warnings: tuple[Note, ...] = ()) -> None:
        super().__init__("\n".join(map(str, errors)))
        self.errors = errors
        self.warnings = warnings


class Findings:
    """Errors and warnings, as they are found."""

    def __init__(self) -> None:
        self.errors: list[Note] = []
        self.warnings: list[Note] = []

    def error(self, at: Written, text: str, remedy: str = "") -> None:
        """The configuration cannot be used so."""
        self.errors.append(Note(at.path, at.line, text, remedy))

    def warning(self, at: Written, text: str, remedy: str = "") -> None:
        """It can, but the operator should know."""
        self.warnings.append(Note(at.path, at.line, text, remedy))

    def raise_errors(self) -> None:
        """End here with ConfErrors if there is any error."""
        if self.errors:
            raise ConfErrors(in_order(self.errors), in_order(self.warnings))


def in_order(notes: list[Note]) -> tuple[Note, ...]:
    """The notes by file (as first named) and line; each once."""
    paths = list(dict.fromkeys(note.path for note in notes))
    return tuple(sorted(dict.fromkeys(notes), key=lambda note: (paths.index(note.path), note.line)))
