"""
Files of rules that may be edited while we run.

A file is read when it is first asked for, and read again when it has changed;
whether it has is looked at once after each new connection, so that an edit
holds for the next one (SPAMCONTROL 2.1). What cannot be read then leaves the
rules as they were, with a warning: a slip of the editor must not open the door.
Of a file that is not there nobody need ask: whoever relies on that it is
`absent` hears when it has come.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
# Of a file that is something else altogether each line is bad.
_TOLD = 50


class BadLine(ValueError):
    """A rule that is none: file, line (0: the whole file), what is wrong, what to write instead."""

    def __init__(self, path: str, line: int, text: str, remedy: str = "") -> None:
        place = f"{path}:{line}" if line else path
        super().__init__(f"{place}: {text}" + (f"; {remedy}" if remedy else ""))
        self.path = path
        self.line = line
        self.text = text
        self.remedy = remedy
        self.others: tuple[BadLine, ...] = ()  # further ones of the same file


class Slips:
    """
    The bad lines of one file, so that all of them are told, not the first alone.

    ``with slips:`` around what is done with a line; `tell` when there are no more.
    """

    def __init__(self) -> None:
        self._found: list[BadLine] = []

    def __enter__(self) -> None:
        """A line begins."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        """A BadLine is kept; anything else goes on its way."""
        if not isinstance(error, BadLine):
            return False
        if len(self._found) < _TOLD:
            self._found.append(error)
        return True

    def tell(self) -> None:
        """Raise the first BadLine, which has the others; none if all lines were good."""
        if self._found:
            first, *others = self._found
            first.others = tuple(others)
            raise first


class Files:
    """
    All files that are watched for one listener's rules; *warn* is told what could not be read again.

    Of a file of which somebody was told that it is absent nobody asks any more: after each new connection, when
    *looked* is not *round*, `find` is to be called, which calls *come* (an attribute) if there is one by then.
    """

    def __init__(self, warn: Callable[[str], None] | None = None) -> None:
        self.round = self.looked = 0
        self.come: Callable[[], object] | None = None
        self._absent: set[Watched[Any]] = set()
        self._warn = warn
        self._watched: dict[tuple[str, Callable[[str], Any]], Watched[Any]] = {}

    def look(self) -> None:
        """A new connection: whoever asks a file next learns whether it has changed."""
        self.round += 1

    def find(self) -> None:
        """Look for what was absent."""
        self.looked = self.round
        for watched in tuple(self._absent):
            if watched.there():
                self._absent.clear()  # whoever relies on another of them asks again
                if self.come is not None:
                    self.come()
                break

    def rely(self, watched: Watched[Any]) -> None:
        """Somebody has been told that it is absent."""
        self._absent.add(watched)

    def watch(self, path: str, read: Callable[[str], T], missing: T) -> Watched[T]:
        """
        The rules that *read* makes of the file at *path*; *missing* while there is none.

        *read* is given the path; it raises BadLine for bad rules, OSError for
        what cannot be read. Both are raised here too, the first time.
        """
        key = path, read
        if key not in self._watched:
            self._watched[key] = Watched(self, path, read, missing)
        return self._watched[key]

    def warn(self, text: str) -> None:
        """For the operator."""
        if self._warn is not None:
            self._warn(text)


class Watched(Generic[T]):
    """A file's rules, as they are now; made by Files.watch."""

    __slots__ = ("_files", "_missing", "_read", "_round", "_rules", "_version", "path")

    def __init__(self, files: Files, path: str, read: Callable[[str], T], missing: T) -> None:
        self.path = path
        self._files = files
        self._read = read
        self._missing = missing
        self._version: tuple[int, int, int] | None = None
        self._version = self._look()
        self._round = files.round
        try:
            self._rules = missing if self._version is None else read(path)
        except FileNotFoundError:
            self._rules = missing
        except OSError as trouble:
            raise BadLine(path, 0, f"cannot be read: {trouble.strerror}", "let qmq's account read it") from trouble

    def now(self) -> T:
        """The rules; read again if the file has changed since the last connection."""
        if self._round != self._files.round:
            self._round = self._files.round
            version = self._look()
            if version != self._version:
                self._version = version
                self._again()
        return self._rules

    def absent(self) -> bool:
        """
        Whether there is no such file, so that nobody need ask: should one come, whoever relies on this hears of it.

        False, too, if there is nobody who would tell (Files.come).
        """
        self.now()
        if self._version is not None or self._files.come is None:
            return False
        self._files.rely(self)
        return True

    def there(self) -> bool:
        """Whether there is one by now; it has not been read yet."""
        return self._look() is not None

    def _look(self) -> tuple[int, int, int] | None:
        # Most are not there, and stay away: then this costs half of an exception.
        if self._version is None and not os.access(self.path, os.F_OK, effective_ids=True):
            return None
        try:
            facts = os.stat(self.path)
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size, facts.st_ino

    def _again(self) -> None:
        if self._version is None:
            self._rules = self._missing
            return
        try:
            self._rules = self._read(self.path)
        except (OSError, ValueError) as trouble:
            self._files.warn(f"the rules stay as they were: {trouble}")


def lines(path: str) -> list[tuple[int, bytes]]:
    """
    The lines of a control file with their numbers; raises OSError.

    As qmail reads lists (SPAMCONTROL 2.1): # in the first column is a comment,
    blanks and tabs at the end are cut, what is then empty is passed over.
    """
    with open(path, "rb") as file:
        text = file.read()
    rows = ((number, row.rstrip(b" \t\r")) for number, row in enumerate(text.split(b"\n"), 1))
    return [(number, row) for number, row in rows if row and not row.startswith(b"#")]
