"""
The text of a message on the wire: where it ends, its dots, its lines.

Pure: bytes in, bytes out, cut wherever the network cut them. Only CRLF.CRLF
ends a text (RFC 5321 4.1.1.4); a line ends in CRLF and in nothing else (2.3.8).
Whoever is generous here lets one message smuggle in another (VU#302671).
"""

from __future__ import annotations

from collections.abc import Iterator
from io import IncrementalNewlineDecoder

from qmq.mail import Octets

# RFC 5321 4.5.3.1.6 asks for 1000, CRLF included and the dot of transparency
# not; the world's HTML mail is longer, and is passed on as it came.
LINE_OCTETS: Octets = 65536
PART_OCTETS: Octets = 65536

_DOT = 0x2E
_CR = 0x0D
# What ends the lines of a text in which nothing stands alone.
_WHOLE = (None, "\r\n")


def has_bare(data: bytes) -> bool:
    """Whether a CR or an LF stands alone in a text that ends here."""
    ends = _line_ends()
    ends.decode(data.decode("latin-1"), final=True)
    return ends.newlines not in _WHOLE


def _line_ends() -> IncrementalNewlineDecoder:
    """
    What tells by which ends the lines of a stream are ended: of all there is in C, what sees them in one pass.

    64 KiB of mail take 25 us, the worst that can be made up 100; two searches by re
    took 50 to 80, and 2000 where all lines are empty.
    """
    return IncrementalNewlineDecoder(None, translate=False)


def whole_text(buffer: bytes, at: int, line_octets: Octets) -> bytes | None:
    """
    The text of a DATA that begins at *at*, if all of it is there and it is as most are.

    It has no dot that was stuffed, no bare CR or LF, and is shorter than one line may be; its end mark,
    of 3 octets, lies behind it. None: it is for `Text`.
    """
    # What is cut ends anywhere: that is seen without looking through it.
    if not buffer.endswith(b"\r\n") or (end := buffer.find(b"\r\n.", at)) < 0 or buffer[at] == _DOT:
        return None
    end += 2
    if end - at > line_octets or not buffer.startswith(b".\r\n", end):
        return None
    text = buffer[at:end]
    return None if has_bare(text) else text


class LineCheck:
    """
    Tells on a stream whether each line ends in CRLF and is no longer than *line_octets*, CRLF included.

    *bare*: a CR or an LF stood alone. *too_long*: a line was. Neither is taken back.
    """

    __slots__ = ("_ends", "_line", "_line_octets", "bare", "too_long")

    def __init__(self, line_octets: Octets = LINE_OCTETS) -> None:
        self.bare = False
        self.too_long = False
        self._line_octets = line_octets
        self._line: Octets = 0  # of the unfinished line
        self._ends = _line_ends()  # of a CR that came last it lets the next octet say whether it is bare

    def feed(self, data: bytes) -> bool:
        """Look at the next octets; true while all is well."""
        ends = self._ends
        ends.decode(data.decode("latin-1"))
        if ends.newlines not in _WHOLE:
            self.bare = True
        size = self._line + len(data)
        if size > self._line_octets and self._longest(data) > self._line_octets:
            self.too_long = True
        end = data.rfind(b"\n")
        self._line = size if end < 0 else len(data) - end - 1
        return not (self.bare or self.too_long)

    def end(self) -> bool:
        """No more comes; true if all was well. The last line need not be finished (RFC 3030 has no such rule)."""
        self._ends.decode("", final=True)
        if self._ends.newlines not in _WHOLE:
            self.bare = True
        return not (self.bare or self.too_long)

    def _longest(self, data: bytes) -> Octets:
        """Octets of the longest line that *data* goes on with, or begins; only as exact as the limit needs."""
        first = data.find(b"\n") + 1
        if not first:
            return self._line + len(data)
        if len(data) <= self._line_octets:
            return self._line + first
        *lines, unfinished = data[first:].split(b"\n")
        return max(self._line + first, len(unfinished), 1 + max(map(len, lines), default=0))


class Text:
    """
    The text that DATA brings, up to its end mark; dot-stuffing undone.

    One octet or two wait for more where they may belong to the end mark, never
    more. Once *lines* finds a bare CR or LF, what follows must not be read.
    """

    __slots__ = ("_line_start", "_part_octets", "lines")

    def __init__(self, line_octets: Octets = LINE_OCTETS, part_octets: Octets = PART_OCTETS) -> None:
        self.lines = LineCheck(line_octets)
        self._part_octets = max(part_octets, 8)  # an end mark and some more, or it would never move on
        self._line_start = True

    def take(self, buffer: bytes, at: int) -> tuple[bytes, int, bool]:
        """
        A piece of the text from *buffer* at *at*, where to go on, and whether the text ends with it.

        An empty piece without end: more octets are needed.
        """
        stop = min(len(buffer), at + self._part_octets)
        if self._line_start and at < stop and buffer[at] == _DOT:
            head = buffer[at : at + 3]
            if head == b".\r\n":
                return b"", at + 3, True
            if b".\r\n".startswith(head):
                return b"", at, False
            at += 1

        dot = buffer.find(b"\r\n.", at, stop)
        if dot < 0:
            go_on = end = stop - 1 if at < stop and buffer[stop - 1] == _CR else stop
            piece = buffer[at:end]
        elif buffer.startswith(b"\r\n", dot + 3):
            end, go_on = dot + 2, dot + 5
            piece = buffer[at:end]
        else:
            end, go_on = _end_of_stuffed(buffer, dot, stop)
            piece = buffer[at:end].replace(b"\r\n.", b"\r\n")

        if piece:
            self.lines.feed(piece)
            self._line_start = piece.endswith(b"\r\n")
        return piece, go_on, go_on == end + 3


def _end_of_stuffed(buffer: bytes, dot: int, stop: int) -> tuple[int, int]:
    """Where a piece with stuffed dots ends, and where to go on: 3 octets later if there is the end mark."""
    mark = buffer.find(b"\r\n.\r\n", dot, stop)
    if mark >= 0:
        return mark + 2, mark + 5
    tail = buffer[max(dot, stop - 4) : stop]
    if tail.endswith(b"\r\n."):
        stop -= 1
    elif tail.endswith(b"\r\n.\r"):
        stop -= 2
    elif tail.endswith(b"\r"):
        stop -= 1
    return stop, stop


def stuffed(fields: bytes, body: bytes) -> bytes:
    """
    A whole text as it goes over the wire, end mark and all: what a `Stuffer` gives of it, copied once.

    *fields* is empty, or ends in CRLF as each of them does.
    """
    end = b".\r\n" if body.endswith(b"\r\n") or not body else b"\r\n.\r\n"
    return b"".join((_dotted(fields), _dotted(body), end))


def _dotted(lines: bytes) -> bytes:
    if lines.startswith(b"."):
        lines = b"." + lines
    return lines.replace(b"\r\n.", b"\r\n..")  # the same object if there are none; of all searches the fastest


class Stuffer:
    """
    Dot-stuffing of one text on a stream (RFC 5321 4.5.2); the state is kept from piece to piece.

    The text's lines must end in CRLF already: a bare LF would go out as it is.
    """

    __slots__ = ("_cr", "_line_start")

    def __init__(self) -> None:
        self._line_start = True
        self._cr = False

    def feed(self, data: bytes) -> bytes:
        """The next piece as it goes over the wire; the same object if it has no dot to stuff."""
        if not data:
            return data
        stuffed = data.replace(b"\r\n.", b"\r\n..")
        if self._line_start:
            if data[0] == _DOT:
                stuffed = b"." + stuffed
        elif self._cr and data.startswith(b"\n."):
            stuffed = b"\n." + stuffed[1:]
        self._line_start = data.endswith(b"\r\n") or (self._cr and data == b"\n")
        self._cr = data[-1] == _CR
        return stuffed

    def end(self) -> bytes:
        """The end mark, with a CRLF in front if the text's last line has none."""
        return b".\r\n" if self._line_start else b"\r\n.\r\n"


class BrokenText(Exception):
    """A text can't be had whole; why."""


class LongText:
    """
    A text that goes out by pieces, as the server takes them.

    *announced*: its octets, where they were told before (BDAT); None: its dots
    are stuffed, and an end mark closes it (DATA). *over*: the last piece was given.
    """

    __slots__ = ("_chunks", "_stuffer", "_unread", "over", "stuffed")

    def __init__(self, chunks: Iterator[bytes], announced: Octets | None = None) -> None:
        self.over = False
        self.stuffed = announced is None
        self._chunks = chunks
        self._stuffer = Stuffer()
        self._unread = announced or 0

    def next_piece(self) -> bytes:
        """The next, until *over*. Raises BrokenText."""
        try:
            chunk = next(self._chunks, b"")
        except OSError as error:
            raise BrokenText(f"cannot read the message's text: {error.strerror}") from error
        self.over = not chunk
        if self.stuffed:
            return self._stuffer.feed(chunk) if chunk else self._stuffer.end()
        self._unread -= len(chunk)
        if self._unread < 0:
            raise BrokenText("the message's text is longer than it was")
        if self.over and self._unread:
            raise BrokenText("the message's text is shorter than it was")
        return chunk
