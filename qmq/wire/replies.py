"""
A server's SMTP replies, out of the bytes as they come.

No Twisted, no clock. A server may be hostile or broken, so everything is
bounded: a line, the lines of a reply, the text kept of it. What is kept is
printable ASCII only: it ends in bounces, logs and replies of ours. A lone LF
ends a line too; some servers send it, and nothing can be smuggled to a client
by it.
"""

from __future__ import annotations

import re

from qmq.mail import Octets, Reply

# RFC 5321 4.5.3.1.5 allows 512 octets a line; real servers exceed that with long texts, hardly ever this.
LINE_OCTETS: Octets = 4096
KEPT_OCTETS: Octets = 500
LINES = 256
# Replies that are the same each time ("250 2.1.5 Ok") are made once; those with a queue id are not worth a place.
_REMEMBERED = 24

_CODE = re.compile(rb"[2-5][0-9]{2}(?=[ -]|\Z)")
# RFC 3463 2: class, subject, detail.
_STATUS = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |\Z)")
# A line that is a reply, as most are: its code, the status if there is one of the code's class, its text.
_PLAIN = re.compile(r"(([245])[0-9]{2}) (?:(\2\.[0-9]{1,3}\.[0-9]{1,3}) |(?![245]\.[0-9]))([ -~]{0,450})").fullmatch
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class ProtocolError(Exception):
    """What the server says is no SMTP, or answers nothing that was asked; the connection is of no more use."""


class ReplyParser:
    """
    Takes bytes, gives replies, each with *mta* and *tls* filled in.

    Of a long reply the first *kept* lines are kept, at most 500 octets of each.
    """

    __slots__ = ("_buffer", "_code", "_kept", "_lines", "_mta", "_read", "_remembered", "_text", "_tls")

    def __init__(self, mta: str = "", kept: int = 8, tls: str = "") -> None:
        self._mta = mta
        self._tls = tls
        self._kept = kept
        self._buffer = b""
        self._read = 0  # how far the buffer has been read
        self._code = 0  # of the lines read so far; 451 if they contradict each other; 0 between replies
        self._lines = 0
        self._text: list[bytes] = []
        self._remembered: dict[bytes, Reply] = {}

    @property
    def held(self) -> bool:
        """Whether something was received behind the last whole reply."""
        return self._read < len(self._buffer) or self._code != 0

    def receive(self, data: bytes) -> None:
        """Take bytes."""
        self._buffer = self._buffer[self._read :] + data if self._read < len(self._buffer) else data
        self._read = 0

    def next_reply(self) -> Reply | None:
        """The next whole reply, or None: more bytes are needed. Raises ProtocolError."""
        buffer, start = self._buffer, self._read
        while start < len(buffer):
            end = buffer.find(b"\n", start, start + LINE_OCTETS)
            if end < 0:
                if len(buffer) - start >= LINE_OCTETS:
                    raise ProtocolError(f"a line of a reply exceeds {LINE_OCTETS} octets")
                break
            line = buffer[start:end].removesuffix(b"\r")
            self._read = start = end + 1
            reply = None if self._code else self._plain(line)
            if reply is not None or (reply := self._line(line)) is not None:
                return reply
        return None

    def alone(self, data: bytes) -> Reply | None:
        """As `receive` and `next_reply`, if *data* is one reply of a plain line; None: nothing was done."""
        if self.held or not data.endswith(b"\r\n"):
            return None
        return self._plain(data[:-2])

    def _plain(self, line: bytes) -> Reply | None:
        """The reply that this line is, as most are."""
        reply = self._remembered.get(line)
        if reply is None and (found := _PLAIN(line.decode("latin-1"))) is not None:
            code, family, status, text = found.groups()
            reply = Reply(int(code), status or f"{family}.0.0", text, self._mta, self._tls)
            if len(self._remembered) < _REMEMBERED:
                self._remembered[line] = reply
        return reply

    def _line(self, line: bytes) -> Reply | None:
        """The reply that this line completes."""
        if _CODE.match(line) is None:
            raise ProtocolError(f"no reply: {_printable(line[:80])}")
        code = int(line[:3])
        if not self._code:
            self._code = code
        elif self._code // 100 == code // 100:
            self._code = code  # RFC 5321 4.2.1 wants one code; if they agree in what they mean, the last line's counts
        else:
            self._code = 451  # a yes and a no: neither can be believed
        self._lines += 1
        if self._lines <= self._kept:
            self._text.append(line[4 : 4 + KEPT_OCTETS])
        if line[3:4] == b"-":
            if self._lines >= LINES:
                raise ProtocolError(f"a reply of more than {LINES} lines")
            return None
        reply = _reply(self._code, self._text, self._mta, self._tls)
        self._code, self._lines, self._text = 0, 0, []
        return reply


def _reply(code: int, lines: list[bytes], mta: str, tls: str) -> Reply:
    """
    The reply of these lines.

    Its status is the first line's; each line's own is taken off (RFC 2034 4
    repeats it). One of another class than the code, or none, is derived.
    """
    status = ""
    texts = []
    for line in lines:
        text = _printable(line)
        if (found := _STATUS.match(text)) is not None:
            status = status or found[1]
            text = text[found.end() :]
        texts.append(text)
    if code // 100 == 3:
        status = ""
    elif status[:1] != str(code // 100):
        status = f"{code // 100}.0.0"
    return Reply(code, status, "\n".join(texts), mta, tls)


def _printable(octets: bytes) -> str:
    text = octets.decode("latin-1")
    return text if text.isascii() and text.isprintable() else _UNPRINTABLE.sub("?", text)
