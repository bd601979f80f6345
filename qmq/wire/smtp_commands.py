"""
One command line of an SMTP client, without its CRLF, as an event.

A line that is no command, or breaks its syntax, is a Malformed with the reply
to give; no reply repeats anything of the line. Verbs and keywords are read in
any case (RFC 5321 2.4), spaces at the end are tolerated (4.1.1), controls never.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from qmq.mail import Address, Reply
from qmq.wire.path import PLAIN, BadPath, parse_path
from qmq.wire.smtp_events import (
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

BARE_LF = Malformed(Reply(500, "5.5.2", "bare LF in a command; lines end in CRLF, closing"), close=True)
NOT_SMTP = Malformed(Reply(500, "5.5.1", "this is an SMTP server, closing"), close=True)
NO_UTF8 = Malformed(Reply(553, "5.6.7", "a non-ASCII address needs SMTPUTF8 at MAIL"))
TLS_HANDSHAKE = 0x16  # RFC 8446 5.1: how a ClientHello begins

_CONTROL_OCTET = Malformed(Reply(501, "5.5.2", "control character in a command"))
_UNKNOWN = Malformed(Reply(500, "5.5.1", "unknown command"))
_NOT_OFFERED = Malformed(Reply(502, "5.5.1", "command not implemented"))
_TAKES_NO_ARGUMENT = Malformed(Reply(501, "5.5.4", "this command takes no argument"))
HELO_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: HELO or EHLO, and your host's name"))
_VRFY_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: VRFY name"))
_MAIL_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: MAIL FROM:<address>"))
_RCPT_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: RCPT TO:<address>"))
_PARAMETER_SYNTAX = Malformed(Reply(501, "5.5.4", "bad parameter"))
_PARAMETER_TWICE = Malformed(Reply(501, "5.5.4", "parameter given twice"))
_PARAMETER_UNKNOWN = Malformed(Reply(555, "5.5.4", "unknown parameter"))
_NO_SENDER_DOMAIN = Malformed(Reply(553, "5.1.7", "sender's address has no domain"))
_NULL_RECIPIENT = Malformed(Reply(501, "5.1.3", "a recipient can't be empty"))
# Its octets would be read as commands.
_BDAT_SYNTAX = Malformed(Reply(501, "5.5.4", "syntax: BDAT size [LAST], closing"), close=True)


# What most clients say, with its CRLF, in a buffer. What does not look like it, or is longer than PLAIN_OCTETS, is for
# parse_command to read.
USUAL = re.compile(
    rb"RCPT TO:%b\r\n|MAIL FROM:%b(?: SIZE=([0-9]{1,20}))?(?: BODY=(7BIT|8BITMIME))?\r\n|DATA\r\n" % (PLAIN, PLAIN)
).match
_DATA = DataStart()


def usual_command(found: re.Match[bytes]) -> Event:
    """The event of a line that USUAL has found: as parse_command would give it."""
    last = found.lastindex
    if last is None:
        return _DATA
    if last == 2:
        local, domain = found.group(1, 2)
        return RcptTo(Address(local, domain.lower()))
    local, domain, size, body_type = found.group(3, 4, 5, 6)
    return MailFrom(Address(local, domain.lower()), int(size or 0), body_type or b"7BIT")


def parse_command(line: bytes) -> Event:
    """
    The event of a command line; whether it fits now, and whether SMTPUTF8 allows an RCPT, is not asked here.

    Closes on what no mail client would send: a bare LF, a TLS handshake, an HTTP request, a header field.
    """
    parse = _COMMANDS.get(line[:4].upper())
    event = parse(line) if parse is not None else _UNKNOWN
    return _suspect(line, event) if type(event) is Malformed else event


_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
# An HTTP request, or a header field of one or of a message whose text we are not reading: somebody speaks
# through this client (ALPACA), and the next lines may be commands.
_ALIEN = re.compile(rb"(?:GET|POST|PUT|HEAD|CONNECT|OPTIONS|DELETE|PATCH|TRACE|PRI)(?: |$)|[!-9;-~]+:", re.IGNORECASE)


def _suspect(line: bytes, event: Malformed) -> Malformed:
    """Why a line is no command, where that matters more than *event*."""
    if line and line[0] == TLS_HANDSHAKE:
        return NOT_SMTP
    if b"\n" in line:
        return BARE_LF
    if _ALIEN.match(line):
        return NOT_SMTP
    if not event.close and _CONTROL.search(line):
        return _CONTROL_OCTET
    return event


def _rcpt(line: bytes) -> Event:
    argument = line[4:]
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


def _mail(line: bytes) -> Event:
    argument = line[4:]
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
        return NO_UTF8
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
    def parse(line: bytes) -> Event:
        argument = line[4:]
        name = argument.strip(b" ")
        if argument and argument[0] != _SPACE:
            return _UNKNOWN
        # Without a name it is bad syntax, but HELOCHECK has a word for it: the dialogue decides.
        return Hello(name, extended) if not name or _HELO_NAME.fullmatch(name) else HELO_SYNTAX

    return parse


def _alone(event: Event, length: int = 4) -> Callable[[bytes], Event]:
    """A command that takes no argument; spaces behind it are tolerated (RFC 5321 4.1.1)."""

    def parse(line: bytes) -> Event:
        if len(line) == length:
            return event
        argument = line[length:]
        if argument[0] != _SPACE:
            return _UNKNOWN
        return _TAKES_NO_ARGUMENT if argument.strip(b" ") else event

    return parse


def _free(event: Event, without: Event) -> Callable[[bytes], Event]:
    """A command whose argument, if any, is not looked at; *without* is for none."""

    def parse(line: bytes) -> Event:
        argument = line[4:]
        if argument and argument[0] != _SPACE:
            return _UNKNOWN
        if _CONTROL.search(argument):
            return _CONTROL_OCTET
        return event if argument.strip(b" ") else without

    return parse


_starttls = _alone(StartTLS(), 8)


def _star(line: bytes) -> Event:
    return _starttls(line) if line[4:8].upper() == b"TTLS" else _UNKNOWN


_CHUNK = re.compile(rb" +([0-9]{1,20})( +LAST)? *", re.IGNORECASE)


def _bdat(line: bytes) -> Event:
    match = _CHUNK.fullmatch(line, 4)
    return Chunk(int(match[1]), bool(match[2])) if match else _BDAT_SYNTAX


# By the first four octets: only STARTTLS is longer.
_COMMANDS: dict[bytes, Callable[[bytes], Event]] = {
    b"RCPT": _rcpt,
    b"MAIL": _mail,
    b"DATA": _alone(_DATA),
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
