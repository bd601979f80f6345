"""
QMTP, the client's side (docs/qmtp.md): messages out one behind the other, answers in, in the same order.

Our bodies have CRLF lines, so a package's line-end code is always 13. No
Twisted, no clock; a body in a file is read piece by piece, as the caller asks.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator

from qmq.mail import Message, Octets, Replies, Reply, wire_sender
from qmq.wire.netstring import ProtocolError, read_length
from qmq.wire.qmtp_forms import NOT_QMTP, pack_extension, parse_reply

_COMMA = 0x2C
_PIECE = 65536  # octets of a file sent at once
# What a qmq peer says of nearly every recipient, a comma in the text apart; its length must fit as well.
_TAKEN = re.compile(rb"([1-9][0-9]{0,3}):K250 2\.0\.0 ([ -+\--~]{0,2000}),")
_BEFORE_TEXT = len(b"K250 2.0.0 ")

BINARY = Reply(554, "5.6.3", "next hop takes no BINARYMIME message")
UTF8 = Reply(553, "5.6.7", "next hop takes no SMTPUTF8 message")


class QMTPClientWire:
    """
    The client's side: messages out, in order; answers in.

    *extension*: every package carries it. *mta* names the peer in the replies
    that it really gave. A reply longer than *reply_octets* breaks the connection.
    """

    def __init__(self, *, extension: bool, mta: str, reply_octets: Octets = 4096) -> None:
        self._extension = extension
        self._mta = mta
        self._reply_octets = reply_octets
        self._pending: deque[int] = deque()  # recipients of each package
        self._replies: list[Reply] = []  # of the oldest package
        self._buffer = b""
        self._said = b"?"  # the latest answer's netstring, and what it means: to one message they are alike
        self._reply = NOT_QMTP
        self._chunks: Iterator[bytes] | None = None
        self._left: Octets = 0
        self._tail = b""
        self.broken = ""  # why no further answer can be believed

    @property
    def streaming(self) -> bool:
        """A body is on its way: call next_chunk until this is false, and send nothing else."""
        return self._chunks is not None

    def send(self, message: Message, low: int = 0) -> list[bytes]:
        """
        What to write, in pieces: the whole package, or its beginning if the body is a file.

        The message has a recipient. Raises ValueError if a field of the
        extension holds a NUL, or they are too long together.
        """
        envelope, fields, body = message.envelope, message.fields, message.body
        if self._extension:
            extension, sender = pack_extension(envelope, low), bytes(envelope.sender)
        else:
            extension, sender = b"", bytes(wire_sender(envelope.sender))
        recipients = b"".join([b"%d:%b," % (len(raw := bytes(one)), raw) for one in envelope.recipients])
        tail = b",%d:%b,%d:%b," % (len(sender), sender, len(recipients), recipients)
        head = b"%b%d:\r%b" % (extension, len(fields) + body.size + 1, fields)
        self._pending.append(len(envelope.recipients))
        if body.data is not None:
            return [head, body.data, tail]
        self._chunks = body.chunks(_PIECE)
        self._left = body.size
        self._tail = tail
        return [head]

    def next_chunk(self) -> bytes:
        """The next piece of the body, the last with the envelope. Raises OSError or ValueError: cut the connection."""
        assert self._chunks is not None
        chunk = next(self._chunks, b"")
        self._left -= len(chunk)
        if self._left < 0 or (self._left and not chunk):
            raise ValueError("the body's file has not the size it had")
        if self._left:
            return chunk
        self._chunks = None
        return chunk + self._tail

    def receive(self, data: bytes) -> list[Replies]:
        """The packages answered in full by these bytes, oldest first. If *broken* is set then: cut the connection."""
        data = self._buffer + data if self._buffer else data
        finished: list[Replies] = []
        at = 0
        try:
            while end := self._answer(data, at):
                at = end
                self._replies.append(self._reply)
                if len(self._replies) == self._pending[0]:
                    self._pending.popleft()
                    finished.append(self._replies)
                    self._replies = []
        except ProtocolError as error:
            self.broken = str(error)
        self._buffer = data[at:]
        return finished

    def cut(self, unknown: Reply) -> list[Replies]:
        """The connection is gone: all outstanding packages, with what was answered, and *unknown* for the rest."""
        finished: list[Replies] = []
        while self._pending:
            answered, self._replies = self._replies, []
            finished.append([*answered, *[unknown] * (self._pending.popleft() - len(answered))])
        self._chunks = None
        return finished

    def _answer(self, data: bytes, at: int) -> int:
        """Read the answer that begins at *at*; where it ends, or 0: more must come."""
        if self._pending and data.startswith(self._said, at):
            return at + len(self._said)
        taken = _TAKEN.match(data, at) if self._pending and self._extension else None
        if taken is not None and len(text := taken[2]) + _BEFORE_TEXT == int(taken[1]):
            self._reply = Reply(250, "2.0.0", text.decode("ascii"), self._mta)
            self._said = taken[0]
            return taken.end()
        found = read_length(data, at)
        if found is None:
            return 0
        octets, start = found
        end = start + octets
        if octets > self._reply_octets:
            raise ProtocolError("an answer without end")
        if not self._pending:
            raise ProtocolError("an answer to nothing")
        if end >= len(data):
            return 0
        if data[end] != _COMMA:
            raise ProtocolError("no comma")
        self._reply = parse_reply(data[start:end], self._extension, self._mta)
        self._said = data[at : end + 1]
        return end + 1


def refusal(message: Message) -> Reply | None:
    """Why a plain QMTP peer cannot be given this message: it has no word for BINARYMIME (RFC 3030 3) or SMTPUTF8."""
    if message.envelope.body_type == b"BINARYMIME":
        return BINARY
    return UTF8 if message.envelope.smtputf8 else None
