"""
The trace fields: the one we add, and those that tell a loop.

RFC 5321 4.4 gives the form of Received; RFC 3848 and RFC 6531 4.3 the words
for the protocol. What a client said stands in it escaped, whoever checked it
before.
"""

from __future__ import annotations

import re
import time

from qmq.mail import Address, Clock, Origin, path
from qmq.session import Session

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
_NOT_A_NAME = re.compile(rb"[^A-Za-z0-9.:_\[\]-]")
_NOT_A_COMMENT = re.compile(r"[^A-Za-z0-9._ -]")
_NO_CONTROLS = bytes(ord("?") if octet < 0x20 or octet == 0x7F else octet for octet in range(256))
_HOP_OCTETS = len("Received:\r\n")  # at least
_WORDS = 8  # of one session; what a stranger's checker makes up is not worth remembering


def hops(header: bytes) -> int:
    """How many times a message has been handed on: its Received and Delivered-To fields."""
    lower = b"\n" + header.lower()
    return lower.count(b"\nreceived:") + lower.count(b"\ndelivered-to:")


def loops(text: bytes, most: int) -> bool:
    """Whether the header of a short text has *most* hops in it."""
    if text.find(b"\r\n\r\n", 0, most * _HOP_OCTETS) >= 0:
        return False  # a header that is too short for so many, as most are
    end = text.find(b"\r\n\r\n")
    header = b"" if text.startswith(b"\r\n") else text if end < 0 else text[: end + 2]
    return hops(header) >= most


def protocol(session: Session, *, smtputf8: bool) -> bytes:
    """The word after "with"."""
    if not session.esmtp:
        return b"SMTP"
    word = b"UTF8SMTP" if smtputf8 else b"ESMTP"
    if session.tls:
        word += b"S"
    return word + b"A" if session.user and session.user != session.environment.info else word


class Arrival:
    """How the messages of one session came: what their Received fields begin with, and their Origin."""

    __slots__ = ("_known", "_session", "_trace")

    def __init__(self, trace: Trace, session: Session) -> None:
        self._trace = trace
        self._session = session
        self._known: dict[tuple[bytes, bool], tuple[bytes, Origin]] = {}

    def of(self, letters: bytes, smtputf8: bool) -> tuple[bytes, Origin]:
        """Of those with these *letters* behind the protocol's word; made once, for most have none."""
        key = letters, smtputf8
        found = self._known.get(key)
        if found is None:
            session = self._session
            word = protocol(session, smtputf8=smtputf8) + letters
            client = session.client.encode("ascii", "replace")
            origin = Origin(word, client, session.port, session.helo, session.user)
            found = self._trace.begun(session, word), origin
            if len(self._known) < _WORDS:
                self._known[key] = found
        return found


class Trace:
    """Writes Received fields in the name of *me*."""

    def __init__(self, me: bytes, wall: Clock) -> None:
        self._me = me
        self._wall = wall
        self._second = -1
        self._date = b""

    def opening(self, session: Session) -> bytes:
        """The part that is the same for all messages of a session, up to "with"."""
        helo = _NOT_A_NAME.sub(b"?", session.helo[:255]) or b"unknown"
        client = session.client.encode("ascii", "replace")
        if b":" in client:
            client = b"IPv6:" + client  # RFC 5321 4.1.3
        name = (
            b"" if session.host == "unknown" else _NOT_A_NAME.sub(b"?", session.host.encode("ascii", "replace")) + b" "
        )
        source = b" (%s[%s])" % (name, client) if client else b" (local)"
        return b"Received: from %s%s\r\n\tby %s with " % (helo, source, self._me)

    def begun(self, session: Session, word: bytes) -> bytes:
        """The part that is the same for all messages of a session under this protocol's *word*, up to "id"."""
        tls = b" (%s)" % _NOT_A_COMMENT.sub("?", session.tls).encode("ascii") if session.tls else b""
        return b"%s%s%s id " % (self.opening(session), word, tls)

    def received(self, begun: bytes, token_id: bytes, only: Address | None) -> bytes:
        """
        The whole field.

        *only* is the recipient if there is but one: more would tell each of the
        others (RFC 5321 7.2).
        """
        to = b"\r\n\tfor <%s>" % path(only).translate(_NO_CONTROLS) if only is not None else b""
        return b"%s%s%s;\r\n\t%s\r\n" % (begun, token_id, to, self.date())

    def date(self) -> bytes:
        """Now, as RFC 5322 writes it; made once a second."""
        now = int(self._wall())
        if now != self._second:
            self._second = now
            t = time.gmtime(now)
            self._date = b"%s, %d %s %d %02d:%02d:%02d +0000" % (
                _DAYS[t.tm_wday], t.tm_mday, _MONTHS[t.tm_mon - 1], t.tm_year, t.tm_hour, t.tm_min, t.tm_sec,
            )  # fmt: skip
        return self._date
