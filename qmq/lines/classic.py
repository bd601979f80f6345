r"""
SPAMCONTROL's line of an event at the front door (2.18), as its analysers know it.

    qmail-smtpd: pid 7 Reject::SNDR::Bad_Helo P:ESMTP S:192.0.2.1:unknown H:x F:a@example.org T:b@example.net '!'

The process id is the session's number. Ordinary values stand as the original
wrote them. The original escaped nothing; here what could end a field, begin
another or be taken for an escape is ``\xNN``, an octet each: blanks, controls,
double quotes, backslashes and whatever is not ASCII; in a host's name colons
too. In the information blanks stand, single quotes do not. Fields are cut
after 1000 octets.
"""

from __future__ import annotations

import re
from functools import lru_cache

from qmq.lines import event as words
from qmq.lines.event import Event, Tail
from qmq.mail import Address, Reply
from qmq.session import Session, Transaction

_LONGEST = 1000
# An apostrophe is ordinary in an address (o'brien), and opens nothing without a blank before it.
_FIELD = re.compile(r"[!#-\[\]-~]{0,1000}").fullmatch
_NO_FIELD = re.compile(r"[^!#-\[\]-~]")
_HOST = re.compile(r"[!#-9;-\[\]-~]{0,1000}").fullmatch
_NO_HOST = re.compile(r"[^!#-9;-\[\]-~]")
# A colon behind what looks like the name of a field is escaped, for those who look for " T:" anywhere.
_INFO = re.compile(r"(?:[ -&(-9;-\[\]-~]|(?<! [PSHFT]):){0,1000}").fullmatch
_NO_INFO = re.compile(r"[^ -&(-\[\]-~]|(?<= [PSHFT]):")


def passed(session: Session, transaction: Transaction, recipient: Address, reason: str, info: str) -> str:
    """A recipient was accepted."""
    return _line(session, transaction, recipient, *words.passed(reason, info))


def refused(
    session: Session, transaction: Transaction | None, recipient: Address | None, reply: Reply, reason: str, info: str
) -> str:
    """A client was told 4yz or 5yz."""
    return _line(session, transaction, recipient, *words.refused(reason, info, reply))


def noted(session: Session, transaction: Transaction | None, recipient: Address | None, reason: str, info: str) -> str:
    """Something had no answer."""
    return _line(session, transaction, recipient, *words.noted(reason, info))


def _line(session: Session, transaction: Transaction | None, recipient: Address | None, event: Event, info: str) -> str:
    head = (
        f"qmail-smtpd: pid {session.number} {event.word} P:{_field(words.protocol(session, transaction))}"
        f" {_source(session.client, session.host)}"
    )
    tail = event.tail
    if tail is Tail.AUTH or tail is Tail.TLS:
        return f"{head} {'?' if tail is Tail.AUTH else '!'}= '{_info(info)}'"
    helo = _helo(session.helo)
    if tail is Tail.HOST:
        return f"{head} H:{helo}"
    if recipient is None and event.type == "DATA" and transaction is not None and transaction.recipients:
        recipient = transaction.recipients[0]  # as the original, which told the first of all
    sender = "" if transaction is None else _mailbox(transaction.sender)
    to = "" if recipient is None else _mailbox(recipient)
    if tail is Tail.INFO or (info and tail is Tail.OURS):
        return f"{head} H:{helo} F:{sender} T:{to} '{_info(info)}'"
    return f"{head} H:{helo} F:{sender} T:{to}"


# What a session says again and again, and the next one of the same client.
@lru_cache(maxsize=1024)
def _source(client: str, host: str) -> str:
    return f"S:{_field(client)}:{host if _HOST(host) else _escape(host, _NO_HOST)}"


@lru_cache(maxsize=1024)
def _helo(name: bytes) -> str:
    return _field(name.decode("latin-1"))


def _field(text: str) -> str:
    return text if _FIELD(text) else _escape(text, _NO_FIELD)


def _info(text: str) -> str:
    return text if _INFO(text) else _escape(text, _NO_INFO)


def _mailbox(address: Address) -> str:
    domain = address.domain
    raw = address.local + b"@" + domain if domain else address.local
    text = raw.decode("latin-1")
    return text if _FIELD(text) else _escape(text, _NO_FIELD)


def _escape(text: str, unsafe: re.Pattern[str]) -> str:
    # What came as octets is latin-1 here, and stays what it was; other text is UTF-8.
    octets = text if text.isascii() or max(text) <= "\xff" else text.encode("utf-8", "replace").decode("latin-1")
    return unsafe.sub(_hex, octets[:_LONGEST])


def _hex(match: re.Match[str]) -> str:
    return f"\\x{ord(match[0]):02x}"
