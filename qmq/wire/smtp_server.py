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

import re
from collections.abc import Callable

from qmq.mail import Octets, Reply
from qmq.wire.path import BadPath, parse_path
from qmq.wire.smtp_events import (
    BodyPart,
    Chunk,
    DataStart,
    Event,
    Hello,
    Help,
    MailFrom,
    Malformed,
    Noop,
    Quit,
    RcptTo,
    Reset,
    StartTLS,
    Verify,
)
from qmq.wire.text import LINE_OCTETS, PART_OCTETS, Text

# RFC 5321 4.5.3.1.4 asks for 512, and each extension for some more.
COMMAND_OCTETS: Octets = 2048

LINE_TOO_LONG = Reply(554, "5.6.0", "a line of the message is too long")
_BARE_IN_TEXT = Malformed(Reply(554, "5.5.2", "bare CR or LF in the message; lines end in CRLF, closing"), close=True)
_BARE_IN_COMMAND = Malformed(Reply(500, "5.5.2", "bare LF in a command; lines end in CRLF, closing"), close=True)
_ENDLESS = Malformed(Reply(500, "5.5.2", "command line too long, closing"), close=True)
_NOT_SMTP = Malformed(Reply(500, "5.5.1", "this is an SMTP server, closing"), close=True)
_CONTROL_OCTET = Malformed(Reply(501, "5.5.2", "control character in a command"))
_UNKNOWN = Malformed(Reply(500, "5.5.1", "unknown command"))
_NOT_OFFERED = Malformed(Reply(502, "5.5.1", "command not implemented"))
_TAKES_NO_ARGUMENT = Malformed(Reply(501, "5.5.4", "this command takes no argument"))
_HELO_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: HELO or EHLO, and your host's name"))
_VRFY_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: VRFY name"))
_MAIL_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: MAIL FROM:<address>"))
_RCPT_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: RCPT TO:<address>"))
_PARAMETER_SYNTAX = Malformed(Reply(501, "5.5.4", "bad parameter"))
_PARAMETER_TWICE = Malformed(Reply(501, "5.5.4", "parameter given twice"))
_PARAMETER_UNKNOWN = Malformed(Reply(555, "5.5.4", "unknown parameter"))
_NO_SENDER_DOMAIN = Malformed(Reply(553, "5.1.7", "sender's address has no domain"))
_NULL_RECIPIENT = Malformed(Reply(501, "5.1.3", "a recipient can't be empty"))
_NO_UTF8 = Malformed(Reply(553, "5.6.7", "a non-ASCII address needs SMTPUTF8 at MAIL"))
# Its octets would be read as commands.
_BDAT_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: BDAT size [LAST], closing"), close=True)


class SMTPServerWire:
    """
    The server's side of one connection.

    *line_octets*: a longer line of a text, CRLF included, spoils the message.
    *command_octets*: a longer command, CRLF included, ends the session. After an
    event that ends it (QUIT, Malformed with *close*), nothing more is read.
    """

    __slots__ = (
        "_at", "_buffer", "_chunk_last", "_chunk_left", "_command_octets", "_deaf", "_event", "_line_octets", "_out",
        "_text", "_utf8", "awaiting", "held",
    )  # fmt: skip

    def __init__(self, *, line_octets: Octets = LINE_OCTETS, command_octets: Octets = COMMAND_OCTETS) -> None:
        self.awaiting = False  # an event awaits its reply
        self.held: Octets = 0  # received and not yet given out
        self._line_octets = line_octets
        self._command_octets = command_octets
        self._buffer = b""
        self._at = 0  # what is before was given out
        self._out: list[bytes] = []
        self._event: Event | None = None  # the one that awaits its reply
        self._text: Text | None = None  # reading what DATA brings
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
        if not self.held and self._chunk_left:  # BDAT 0 has its part without an octet
            self._forget()  # an idle session keeps no used-up packet
            return None
        if self._text is not None:
            return self._text_part(self._text)
        if self._chunk_left >= 0:
            return self._chunk_part()

        buffer, at = self._buffer, self._at
        end = buffer.find(b"\r\n", at)
        if end < 0 or end + 2 - at > self._command_octets:
            return self._no_command()
        line = buffer[at:end]
        self._take(end + 2)

        parse = _COMMANDS.get(line[:4].upper())
        event = parse(line[4:]) if parse is not None else _UNKNOWN
        if type(event) is RcptTo:
            if not self._utf8 and not line.isascii():
                event = _NO_UTF8
        elif type(event) is Malformed:
            event = _suspect(line, event)
        elif type(event) is Chunk:
            self._chunk_left, self._chunk_last = event.size, event.last
            return event
        return self._await(event)

    def reply(self, reply: Reply) -> None:
        """
        Answer the last event.

        354 to DATA opens the text. 220 to STARTTLS forgets what is buffered. 421
        ends the session: nothing more is read.
        """
        event, self._event = self._event, None
        self.say(reply.line)
        code = reply.code
        if code == 250:
            if type(event) is MailFrom:
                self._utf8 = event.smtputf8
        elif code == 354:
            if type(event) is DataStart:
                self._text = Text(self._line_octets)
        elif code == 220:
            if type(event) is StartTLS:
                # RFC 3207 4.2: what was said in clear behind STARTTLS must not be heard inside
                # TLS, or a man in the middle speaks in the client's name (CVE-2011-0411).
                self._forget()
                self._utf8 = False
        elif code == 421:
            self._close()

    def say(self, raw: bytes) -> None:
        """Reply lines as they go out: the banner, EHLO's answer. Answers the last event if one awaits."""
        self._out.append(raw)
        self.awaiting = False

    def to_send(self) -> bytes:
        """All that is to go out, once: one write a packet."""
        out = b"".join(self._out)
        self._out.clear()
        return out

    def _take(self, at: int) -> None:
        self.held -= at - self._at
        self._at = at

    def _await(self, event: Event) -> Event:
        self.awaiting = True
        self._event = event
        if type(event) is Quit or (type(event) is Malformed and event.close):
            self._close()
        return event

    def _forget(self) -> None:
        self._buffer = b""
        self._at = self.held = 0

    def _close(self) -> None:
        self._deaf = True
        self._text = None
        self._chunk_left = -1
        self._forget()

    def _text_part(self, text: Text) -> Event | None:
        while True:
            piece, at, ended = text.take(self._buffer, self._at)
            self._take(at)
            lines = text.lines
            if lines.bare:
                return self._await(_BARE_IN_TEXT)
            if lines.too_long:
                # The rest is read to its true end, or it would run as commands.
                if not ended and piece:
                    continue
                piece = b""
            if ended:
                self._text = None
                return self._await(BodyPart(piece, True, True, LINE_TOO_LONG if lines.too_long else None))
            return BodyPart(piece) if piece else None

    def _chunk_part(self) -> Event | None:
        at = self._at
        left = self._chunk_left
        octets = min(left, self.held, PART_OCTETS)
        data = self._buffer[at : at + octets]
        self._take(at + octets)
        if octets < left:
            self._chunk_left = left - octets
            return BodyPart(data)
        self._chunk_left = -1
        return self._await(BodyPart(data, True, self._chunk_last))

    def _no_command(self) -> Event | None:
        """No CRLF within a command's length: it is still to come, or never will."""
        buffer, at = self._buffer, self._at
        if buffer[at] == _TLS_HANDSHAKE:
            return self._await(_NOT_SMTP)
        if buffer.find(b"\n", at, at + self._command_octets) >= 0:
            return self._await(_BARE_IN_COMMAND)
        return self._await(_ENDLESS) if self.held > self._command_octets else None


_TLS_HANDSHAKE = 0x16  # RFC 8446 5.1: how a ClientHello begins
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# An HTTP request, or a header field of one or of a message whose text we are not reading: somebody speaks
# through this client (ALPACA), and the next lines may be commands.
_ALIEN = re.compile(rb"(?:GET|POST|PUT|HEAD|CONNECT|OPTIONS|DELETE|PATCH|TRACE|PRI)(?: |$)|[!-9;-~]+:", re.IGNORECASE)


def _suspect(line: bytes, event: Malformed) -> Malformed:
    """Why a line is no command, where that matters more than *event*."""
    if line.startswith(b"\x16"):
        return _NOT_SMTP
    if b"\n" in line:
        return _BARE_IN_COMMAND
    if _ALIEN.match(line):
        return _NOT_SMTP
    if not event.close and _CONTROL.search(line):
        return _CONTROL_OCTET
    return event


def _rcpt(argument: bytes) -> Event:
    if argument[:4].upper() != b" TO:":
        return _RCPT_SYNTAX
    try:
        recipient, rest = parse_path(argument[4:].lstrip(b" "))
    except BadPath as bad:
        return Malformed(bad.reply)
    if rest:
        if rest[0] != _SPACE:
            return _RCPT_SYNTAX
        if not _PARAMETERS.fullmatch(rest):
            return _PARAMETER_SYNTAX
        if rest.strip(b" "):
            return _PARAMETER_UNKNOWN
    return RcptTo(recipient) if recipient.local else _NULL_RECIPIENT


def _mail(argument: bytes) -> Event:
    if argument[:6].upper() != b" FROM:":
        return _MAIL_SYNTAX
    try:
        sender, rest = parse_path(argument[6:].lstrip(b" "))
    except BadPath as bad:
        reply = bad.reply
        return Malformed(Reply(reply.code, "5.1.7", reply.text) if reply.status == "5.1.3" else reply)
    if sender.local and not sender.domain:
        return _NO_SENDER_DOMAIN
    event = _mail_parameters(MailFrom(sender), rest) if rest else MailFrom(sender)
    if type(event) is MailFrom and not event.smtputf8 and not argument.isascii():
        return _NO_UTF8
    return event


_SPACE = 0x20
# RFC 5321 4.1.2, esmtp-param; spaces behind are tolerated (4.1.1).
_PARAMETERS = re.compile(rb"(?: +[A-Za-z0-9][A-Za-z0-9-]*(?:=[!-<>-~]+)?)* *")
_SIZE_DIGITS = 20  # RFC 1870 4
_BODY_TYPES = frozenset({b"7BIT", b"8BITMIME", b"BINARYMIME"})


def _mail_parameters(event: MailFrom, rest: bytes) -> Event:
    if rest[0] != _SPACE:
        return _MAIL_SYNTAX
    if not _PARAMETERS.fullmatch(rest):
        return _PARAMETER_SYNTAX
    size, body_type, smtputf8 = 0, b"7BIT", False
    seen = set()
    for parameter in rest.split():
        keyword, _, value = parameter.partition(b"=")
        keyword = keyword.upper()
        if keyword in seen:
            return _PARAMETER_TWICE
        seen.add(keyword)
        if keyword == b"SIZE":
            if not value.isdigit() or len(value) > _SIZE_DIGITS:
                return _PARAMETER_SYNTAX
            size = int(value)
        elif keyword == b"BODY":
            body_type = value.upper()
            if body_type not in _BODY_TYPES:
                return _PARAMETER_SYNTAX
        elif keyword == b"SMTPUTF8":
            if value:
                return _PARAMETER_SYNTAX
            smtputf8 = True
        else:
            return _PARAMETER_UNKNOWN
    return MailFrom(event.sender, size, body_type, smtputf8)


_HELO_NAME = re.compile(rb"[!-~]{1,255}")


def _hello(*, extended: bool) -> Callable[[bytes], Event]:
    def parse(argument: bytes) -> Event:
        name = argument.strip(b" ")
        if argument and argument[0] != _SPACE:
            return _UNKNOWN
        return Hello(name, extended) if _HELO_NAME.fullmatch(name) else _HELO_SYNTAX

    return parse


def _alone(event: Event) -> Callable[[bytes], Event]:
    """A command that takes no argument; spaces behind it are tolerated (RFC 5321 4.1.1)."""

    def parse(argument: bytes) -> Event:
        if not argument:
            return event
        if argument[0] != _SPACE:
            return _UNKNOWN
        return _TAKES_NO_ARGUMENT if argument.strip(b" ") else event

    return parse


def _free(event: Event, without: Event) -> Callable[[bytes], Event]:
    """A command whose argument, if any, is not looked at; *without* is for none."""

    def parse(argument: bytes) -> Event:
        if argument and argument[0] != _SPACE:
            return _UNKNOWN
        if _CONTROL.search(argument):
            return _CONTROL_OCTET
        return event if argument.strip(b" ") else without

    return parse


_starttls = _alone(StartTLS())


def _star(argument: bytes) -> Event:
    return _starttls(argument[4:]) if argument[:4].upper() == b"TTLS" else _UNKNOWN


_CHUNK = re.compile(rb" +([0-9]{1,20})( +LAST)? *", re.IGNORECASE)


def _bdat(argument: bytes) -> Event:
    match = _CHUNK.fullmatch(argument)
    return Chunk(int(match[1]), bool(match[2])) if match else _BDAT_SYNTAX


# By the first four octets: only STARTTLS is longer.
_COMMANDS: dict[bytes, Callable[[bytes], Event]] = {
    b"RCPT": _rcpt,
    b"MAIL": _mail,
    b"DATA": _alone(DataStart()),
    b"BDAT": _bdat,
    b"EHLO": _hello(extended=True),
    b"HELO": _hello(extended=False),
    b"QUIT": _alone(Quit()),
    b"RSET": _alone(Reset()),
    b"NOOP": _free(Noop(), Noop()),
    b"STAR": _star,
    b"VRFY": _free(Verify(), _VRFY_SYNTAX),
    b"HELP": _free(Help(), Help()),
    b"EXPN": _free(_NOT_OFFERED, _NOT_OFFERED),
    b"AUTH": _free(_NOT_OFFERED, _NOT_OFFERED),
}
