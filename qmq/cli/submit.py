"""
Hands a message to the primary by SMTP, for programs that wait: one answer for the whole message.

A recipient that is refused means that nothing is sent: whoever is told to try
again (EX_TEMPFAIL) can do so without sending anybody a second copy.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import smtplib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qmq.mail import Octets, Seconds
from qmq.wire.text import Stuffer

Place = tuple[str, int]

# RFC 5321 4.5.3.2 gives 5 minutes to a command and 10 to the end of the data.
_PATIENCE: Seconds = 300
_FINAL: Seconds = 600


class NotSent(Exception):
    """The message was not taken: *code* is the exit code (sysexits.h), the text is for who sent it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Submission:
    """
    A message ready to go: *octets* is its size, *pieces* are its text, lines ending in CRLF, dots not stuffed.

    *eight_bit*: it has octets above 127.
    """

    sender: bytes
    recipients: Sequence[bytes]
    pieces: Iterable[bytes]
    octets: Octets
    eight_bit: bool


def connected(place: Place) -> socket.socket:
    """A connection to the primary that listens there. Raises NotSent."""
    host, port = place
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        return socket.create_connection((host, port), _PATIENCE)
    except OSError as error:
        why = error.strerror or str(error)
        raise NotSent(
            os.EX_TEMPFAIL, f"no gateway answers at {host} port {port} ({why}); start it, or try again later"
        ) from None


def submit(place: Place, me: str, message: Submission) -> str:
    """Hand it over; what the primary said when it took it. Raises NotSent: then nobody gets it."""
    try:
        return _submit(_greeted(place, me), message)
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(os.EX_TEMPFAIL, f"the gateway broke off ({error}); try again later") from None


def probe(place: Place, me: str, sender: bytes, recipients: Sequence[bytes]) -> list[tuple[bytes, int, str]]:
    """What the primary would say to each recipient: code and text. Raises NotSent."""
    try:
        smtp = _greeted(place, me)
        _mail(smtp, Submission(sender, recipients, (), 0, eight_bit=False))
        found = [(one, *_said(smtp.docmd("RCPT", f"TO:<{_text(one)}>"))) for one in recipients]
        _quit(smtp)
    except (smtplib.SMTPException, OSError) as error:
        raise NotSent(os.EX_TEMPFAIL, f"the gateway broke off ({error}); try again later") from None
    return found


def converse(place: Place) -> None:
    """
    SMTP between standard input and output and the primary, octet for octet, until the primary hangs up.

    The end of the input is a QUIT: to close our side would be to hang up
    before the last answer. Within a message it is text, and nothing is sent.
    Raises OSError if input or output is closed.
    """
    for standard in (0, 1):
        os.fstat(standard)  # closed ones would be our connection's number
    with connected(place) as primary, selectors.DefaultSelector() as ready:
        primary.settimeout(None)
        ready.register(primary, selectors.EVENT_READ)
        try:
            ready.register(0, selectors.EVENT_READ)
        except PermissionError:  # a file, which is always ready
            while _passed_on(primary):
                pass
        while True:
            for key, _ in ready.select():
                if key.fd == 0:
                    if not _passed_on(primary):
                        ready.unregister(0)
                elif data := primary.recv(65536):
                    _write(data)
                else:
                    return


def _passed_on(primary: socket.socket) -> bool:
    """Send what stands in the input; false at its end."""
    data = os.read(0, 65536)
    primary.sendall(data or b"QUIT\r\n")
    return bool(data)


def _greeted(place: Place, me: str) -> smtplib.SMTP:
    # By itself smtplib looks up names, and asks for ours; so it gets a connection.
    smtp = smtplib.SMTP(local_hostname=me)
    smtp.sock = connected(place)
    for reply in (smtp.getreply, smtp.ehlo):
        code, text = _said(reply())
        if code not in {220, 250}:
            raise _refused("", code, text, "")
    return smtp


def _submit(smtp: smtplib.SMTP, message: Submission) -> str:
    _mail(smtp, message)
    for one in message.recipients:
        shown = _text(one)
        code, text = _said(smtp.docmd("RCPT", f"TO:<{shown}>"))
        if code >= 300:
            source = smtp.sock.getsockname()[0] if smtp.sock else ""
            _quit(smtp)
            raise _refused(f"<{shown}>: ", code, text, source)
    code, text = _said(smtp.docmd("DATA"))
    if code != 354:
        raise _refused("", code, text, "")
    stuffer = Stuffer()
    for piece in message.pieces:
        smtp.send(stuffer.feed(piece))
    smtp.send(stuffer.end())
    assert smtp.sock is not None
    smtp.sock.settimeout(_FINAL)
    code, text = _said(smtp.getreply())
    _quit(smtp)
    if code >= 300:
        raise _refused("", code, text, "")
    return f"{code} {text}"


def _mail(smtp: smtplib.SMTP, message: Submission) -> None:
    most = int(smtp.esmtp_features.get("size") or 0)
    if most and message.octets > most:
        raise NotSent(
            os.EX_UNAVAILABLE, f"the message has {message.octets} octets, {most} are allowed (databytes in [primary])"
        )
    words = [f"FROM:<{_text(message.sender)}>"]
    if smtp.has_extn("size") and message.octets:
        words.append(f"SIZE={message.octets}")
    if smtp.has_extn("8bitmime") and message.eight_bit:
        words.append("BODY=8BITMIME")
    if not all(one.isascii() for one in (message.sender, *message.recipients)):
        if not smtp.has_extn("smtputf8"):
            raise NotSent(os.EX_UNAVAILABLE, "an address is not ASCII, and the gateway does not offer SMTPUTF8")
        words.append("SMTPUTF8")
        smtp.command_encoding = "utf-8"
    code, text = _said(smtp.docmd("MAIL", " ".join(words)))
    if code >= 300:
        raise _refused(f"sender <{_text(message.sender)}>: ", code, text, "")


def _refused(what: str, code: int, text: str, source: str) -> NotSent:
    """What a refusal means to a program, and to whoever reads what it says."""
    if code < 500:
        return NotSent(os.EX_TEMPFAIL, f"{what}{code} {text}; nothing was sent: try again later")
    if text.startswith("5.1.1"):
        return NotSent(os.EX_NOUSER, f"{what}{code} {text}; nothing was sent")
    if text.startswith(("5.1.3", "5.6")):
        return NotSent(os.EX_DATAERR, f"{what}{code} {text}; nothing was sent")
    remedy = "nothing was sent"
    if source and (text.startswith("5.7.1") or "rcpthosts" in text):
        remedy += f"; a domain that is no instance's: put {source} into relay in [qmq], and `qmq reload`"
    return NotSent(os.EX_UNAVAILABLE, f"{what}{code} {text}; {remedy}")


def _said(reply: tuple[int, bytes]) -> tuple[int, str]:
    code, text = reply
    return code, " ".join("".join(c if c.isprintable() else " " for c in text.decode("utf-8", "replace")).split())


def _quit(smtp: smtplib.SMTP) -> None:
    with contextlib.suppress(smtplib.SMTPException, OSError):  # all that counts was said before
        smtp.quit()


def _text(address: bytes) -> str:
    """Raises NotSent: what cannot be said in SMTP is no address."""
    try:
        text = address.decode("utf-8")
    except UnicodeDecodeError:
        raise NotSent(os.EX_DATAERR, f"{address!r} is no address: write it in UTF-8") from None
    if any(c < " " or c == "\x7f" for c in text):
        raise NotSent(os.EX_DATAERR, f"{text!r} is no address: it has a control character")
    return text


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
