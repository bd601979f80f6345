"""
What an SMTP client says, as events; what we answer, as bytes (RFC 5321, 3030, 6531).

Pure: no socket, no clock. Pull: the next command stays bytes until the present
one is answered, so that what a client pipelines (RFC 2920) is seen in order
however slow an answer is. A refused DATA leaves the wire in command mode, a
BDAT's octets are read whatever is thought of them, and nothing in a text is
ever taken for a command but what stands behind its true end.

The wire holds no transaction: whether a command fits now is the dialogue's to
say. It remembers one thing only: whether MAIL allowed UTF-8 in addresses.
"""

from __future__ import annotations

from qmq.mail import Octets, Reply
from qmq.wire.path import PLAIN_OCTETS
from qmq.wire.smtp_commands import BARE_LF, NO_UTF8, NOT_SMTP, TLS_HANDSHAKE, USUAL, parse_command, usual_command
from qmq.wire.smtp_events import BodyPart, Chunk, DataStart, Event, MailFrom, Malformed, Quit, RcptTo, StartTLS
from qmq.wire.text import LINE_OCTETS, PART_OCTETS, Text, whole_text

# RFC 5321 4.5.3.1.4 asks for 512, and each extension for some more.
COMMAND_OCTETS: Octets = 2048

LINE_TOO_LONG = Reply(554, "5.6.0", "a line of the message is too long")
_BARE_IN_TEXT = Malformed(Reply(554, "5.5.2", "bare CR or LF in the message; lines end in CRLF, closing"), close=True)
_ENDLESS = Malformed(Reply(500, "5.5.2", "command line too long, closing"), close=True)
# After these, what is read next is another thing than a command, or nothing.
_SELDOM = frozenset({Malformed, Quit, Chunk})


class SMTPServerWire:
    """
    The server's side of one connection.

    *classic*: enhanced codes stand where qmail put them. *line_octets*: a longer
    line of a text, CRLF included, spoils the message.
    *command_octets*: a longer command, CRLF included, ends the session. After an
    event that ends it (QUIT, Malformed with *close*), nothing more is read.
    """

    __slots__ = (
        "_at", "_buffer", "_chunk_last", "_chunk_left", "_classic", "_command_octets", "_deaf", "_event",
        "_line_octets", "_out", "_text", "_usual_octets", "_utf8", "_within", "awaiting", "held",
    )  # fmt: skip

    def __init__(
        self, *, line_octets: Octets = LINE_OCTETS, command_octets: Octets = COMMAND_OCTETS, classic: bool = False
    ) -> None:
        self.awaiting = False  # an event awaits its reply
        self.held: Octets = 0  # received and not yet given out
        self._classic = classic
        self._line_octets = line_octets
        self._command_octets = command_octets
        self._usual_octets = min(PLAIN_OCTETS, command_octets)
        self._buffer = b""
        self._at = 0  # what is before was given out
        self._out: list[bytes] = []
        self._event: Event | None = None  # the one that awaits its reply
        self._within = False  # reading what DATA brings
        self._text: Text | None = None  # the reader, if it is not all there at once
        self._chunk_left = -1  # octets of a BDAT still to come; -1: none is being read
        self._chunk_last = False
        self._utf8 = False  # the last MAIL accepted had SMTPUTF8
        self._deaf = False

    def receive(self, data: bytes) -> None:
        """Take bytes; answer nothing yet."""
        if self._deaf:
            return
        self._buffer = self._buffer[self._at :] + data if self.held else data
        self._at = 0
        self.held += len(data)

    def next_event(self) -> Event | None:
        """The next command or piece of body; None: more bytes, or your reply, is needed."""
        if self.awaiting:
            return None
        if self._within:
            return self._text_part()
        if self._chunk_left >= 0:
            return self._chunk_part()

        if not self.held:
            self._forget()  # an idle session keeps no used-up packet
            return None
        buffer, at = self._buffer, self._at
        if (usual := USUAL(buffer, at)) is not None and (end := usual.end()) - at <= self._usual_octets:
            self._at = end
            self.held -= end - at
            self.awaiting = True
            self._event = event = usual_command(usual)
            return event
        end = buffer.find(b"\r\n", at)
        if end < 0 or end + 2 - at > self._command_octets:
            return self._no_command()
        line = buffer[at:end]
        self._at = end + 2
        self.held -= end + 2 - at
        event = parse_command(line)
        if type(event) in _SELDOM or not line.isascii():
            return self._seldom(event)
        self.awaiting = True
        self._event = event
        return event

    def reply(self, reply: Reply) -> None:
        """
        Answer the last event.

        354 to DATA opens the text. 220 to STARTTLS forgets what is buffered. 421
        ends the session: nothing more is read.
        """
        event, self._event = self._event, None
        self._out.append(reply.classic if self._classic else reply.line)
        self.awaiting = False
        code = reply.code
        if code == 250:
            if type(event) is MailFrom:
                self._utf8 = event.smtputf8
        elif code == 354:
            if type(event) is DataStart:
                self._within = True
        elif code == 220:
            if type(event) is StartTLS:
                # RFC 3207 4.2: what was said in clear behind STARTTLS must not be heard inside
                # TLS, or a man in the middle speaks in the client's name (CVE-2011-0411).
                self._forget()
                self._utf8 = False
        elif code == 421:
            self._close()

    def line(self, reply: Reply) -> bytes:
        """A reply as this wire says it."""
        return reply.classic if self._classic else reply.line

    def say(self, raw: bytes) -> None:
        """Reply lines as they go out: the banner, EHLO's answer. Answers the last event if one awaits."""
        self._out.append(raw)
        self._event = None
        self.awaiting = False

    def to_send(self) -> bytes:
        """All that is to go out, once: one write a packet."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _take(self, at: int) -> None:
        self.held -= at - self._at
        self._at = at
        if not self.held:
            self._buffer = b""  # a client that pauses in a body keeps no used-up packet
            self._at = 0

    def _await(self, event: Event) -> Event:
        self.awaiting = True
        self._event = event
        return event

    def _seldom(self, event: Event) -> Event:
        """A command that needs a second look, or changes what is read next."""
        match event:
            case RcptTo() if not self._utf8:
                return self._await(NO_UTF8)
            case Malformed(close=True) | Quit():
                self._close()
            case Chunk(size, last):
                self._chunk_left, self._chunk_last = size, last
                return event
            case _:
                pass
        return self._await(event)

    def _break_off(self, event: Malformed) -> Event:
        self._close()
        return self._await(event)

    def _forget(self) -> None:
        self._buffer = b""
        self._at = self.held = 0

    def _close(self) -> None:
        self._deaf = True
        self._within = False
        self._text = None
        self._chunk_left = -1
        self._forget()

    def _text_part(self) -> Event | None:
        if (text := self._text) is None:
            if not self.held:
                return None
            whole = whole_text(self._buffer, self._at, self._line_octets)
            if whole is not None:
                self._within = False
                self._take(self._at + len(whole) + 3)
                return self._await(BodyPart(whole, True, True))
            text = self._text = Text(self._line_octets)
        while self.held:
            piece, at, ended = text.take(self._buffer, self._at)
            self._take(at)
            lines = text.lines
            if lines.bare:
                return self._break_off(_BARE_IN_TEXT)
            if lines.too_long:
                # The rest is read to its true end, or it would run as commands.
                if not ended and piece:
                    continue
                piece = b""
            if ended:
                self._within = False
                self._text = None
                return self._await(BodyPart(piece, True, True, LINE_TOO_LONG if lines.too_long else None))
            return BodyPart(piece) if piece else None
        return None

    def _chunk_part(self) -> Event | None:
        at = self._at
        left = self._chunk_left
        octets = min(left, self.held, PART_OCTETS)
        data = self._buffer[at : at + octets]
        self._take(at + octets)
        if octets == left:
            self._chunk_left = -1
            return self._await(BodyPart(data, True, self._chunk_last))
        self._chunk_left = left - octets
        return BodyPart(data) if data else None

    def _no_command(self) -> Event | None:
        """No CRLF within a command's length: it is still to come, or never will."""
        buffer, at = self._buffer, self._at
        if buffer[at] == TLS_HANDSHAKE:
            return self._break_off(NOT_SMTP)
        if buffer.find(b"\n", at, at + self._command_octets) >= 0:
            return self._break_off(BARE_LF)
        return self._break_off(_ENDLESS) if self.held > self._command_octets else None
