"""
A message's text while it comes in.

Short texts stay in memory; a long one goes to a file as it comes. Nothing here
is durable: a draft is nobody's mail yet, and what a crash leaves behind is
removed at the next start.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from itertools import count

from qmq.mail import Body, FileBody, MemoryBody, Octets

_SUFFIX = ".draft"
# A client that sends an octet at a time must not cost an object an octet.
_PARTS = 256


class Drafts:
    """
    Where drafts live: a folder of this process's own.

    Texts up to *inline* octets stay in memory. Of each text the header is kept
    in memory, up to *header* octets.
    """

    def __init__(self, folder: str, inline: Octets = 131072, header: Octets = 1048576) -> None:
        self._folder = folder
        self._inline = inline
        self._header = header
        self.short = min(inline, header)  # octets of a text that needs no draft: no file, and no header too long
        numbers = count(1)
        run = secrets.token_hex(8)
        self._name: Callable[[], str] = lambda: os.path.join(folder, f"{run}-{next(numbers):x}{_SUFFIX}")

    def clear(self) -> int:
        """Make the folder, and remove what earlier runs left in it; how many files."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        leftovers = [entry.path for entry in os.scandir(self._folder) if entry.name.endswith(_SUFFIX)]
        for path in leftovers:
            os.unlink(path)
        return len(leftovers)

    def begin(self, limit: Octets = 0) -> Draft:
        """A new draft; beyond *limit* octets (0: any) all is counted and thrown away but the header."""
        return Draft(self._name, self._inline, self._header, limit)


class Draft:
    """
    One text; made by Drafts.begin, ended by discard.

    *trouble* is the error of the file if there was one; the text is lost then.
    """

    __slots__ = (
        "_fd", "_head", "_header_octets", "_held", "_inline", "_limit", "_name", "_parts", "_path", "size", "trouble",
    )  # fmt: skip

    def __init__(self, name: Callable[[], str], inline: Octets, header: Octets, limit: Octets) -> None:
        self.size: Octets = 0
        self.trouble: OSError | None = None
        self._name = name
        self._inline = inline
        self._header_octets = header
        self._limit = limit
        self._parts: list[bytes] = []  # not in the file yet
        self._held: Octets = 0  # octets in them
        self._head = b""  # once there is a file, or too much: the text's beginning
        self._path: str | None = None
        self._fd = -1

    @property
    def over(self) -> bool:
        """More than the limit has come."""
        return 0 < self._limit < self.size

    def write(self, data: bytes) -> None:
        """Take the next piece. Never raises: see *trouble*."""
        self.size += len(data)
        if self.trouble is not None:
            return
        if 0 < self._limit < self.size:
            if self.size - len(data) <= self._limit:  # only now
                head = (self._beginning() + data)[: self._header_octets]
                self.discard()
                self._head = head
            return
        parts = self._parts
        parts.append(data)
        self._held += len(data)
        if self._held > self._inline:
            self._spill()
        elif len(parts) > _PARTS:
            self._parts = [b"".join(parts)]

    def header(self) -> bytes | None:
        """The text up to the empty line, or all of it if it has none; None: it is longer than we keep."""
        text = self._beginning()
        if text.startswith(b"\r\n"):
            return b""
        end = text.find(b"\r\n\r\n", 0, self._header_octets)
        if end >= 0:
            return text[: end + 2]
        return text if self.size <= self._header_octets else None

    def close(self) -> Body:
        """The text as a body. Its file, if it has one, stays until discard. Raises OSError."""
        if self.trouble is not None:
            raise self.trouble
        if self._path is None:
            return MemoryBody(self._whole())
        self._spill()
        if self.trouble is not None:
            raise self.trouble
        os.close(self._fd)
        self._fd = -1
        return FileBody(self._path, self.size)

    def discard(self) -> None:
        """Forget the text, and remove its file. More than once does no harm."""
        self._parts = []
        self._head = b""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._path is not None:
            # Gone already, or the disk is in trouble: clear() finds it at the next start.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._path = None

    def _beginning(self) -> bytes:
        """All of the text, or as much of it as a header may have and more."""
        head = self._head
        return head + self._whole() if len(head) < self._header_octets else head

    def _whole(self) -> bytes:
        parts = self._parts
        if len(parts) != 1:
            self._parts = parts = [b"".join(parts)]
        return parts[0]

    def _spill(self) -> None:
        """Move what is in memory to the file."""
        text = memoryview(self._whole())
        missing = self._header_octets - len(self._head)
        if missing > 0:
            self._head += text[:missing]
        try:
            if self._fd < 0:
                path = self._name()
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                self._path = path
            while text:
                text = text[os.write(self._fd, text) :]
        except OSError as error:
            self.discard()
            self.trouble = error
        self._parts = []
        self._held = 0
