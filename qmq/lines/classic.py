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
_BRIEF = Tail.BRIEF  # an enumeration's member costs as much as a call
# An apostrophe is ordinary in an address (o'brien), and opens nothing without a blank before it.
_FIELD = re.compile(r"[!#-\[\]-~]{0,1000}").fullmatch
_NO_FIELD = re.compile(r"[^!#-\[\]-~]")
_HOST = re.compile(r"[!#-9;-\[\]-~]{0,1000}").fullmatch
_NO_HOST = re.compile(r"[^!#-9;-\[\]-~]")
# Two addresses that stand as they are: there is no blank in them, so all are ours.
_PLAIN_WHOM = re.compile(r"F:[!#-\[\]-~]{1,999} T:[!#-\[\]-~]{1,999}").fullmatch
# A colon behind what looks like the name of a field is escaped, for those who look for " T:" anywhere.
_INFO = re.compile(r"(?:[ -&(-9;-\[\]-~]|(?<! [PSHFT]):){0,1000}").fullmatch
_NO_INFO = re.compile(r"[^ -&(-\[\]-~]|(?<= [PSHFT]):")


def passed(session: Session, transaction: Transaction, recipient: Address, reason: str, info: str) -> str:
    """A recipient was accepted."""
    event, info = words.passed(reason, info)
    return _line(session, transaction, recipient, event, info)


def refused(
    session: Session, transaction: Transaction | None, recipient: Address | None, reply: Reply, reason: str, info: str
) -> str:
    """A client was told 4yz or 5yz."""
    return _line(session, transaction, recipient, *words.refused(reason, info, reply))


def noted(session: Session, transaction: Transaction | None, recipient: Address | None, reason: str, info: str) -> str:
    """Something had no answer."""
    return _line(session, transaction, recipient, *words.noted(reason, info))


def _line(session: Session, transaction: Transaction | None, recipient: Address | None, event: Event, info: str) -> str:
    said = _said(event.word, words.protocol(session, transaction), session.client, session.host)
    tail = event.tail
    if tail is not _BRIEF:  # which most are
        head = f"qmail-smtpd: pid {session.number} {said}"
        if tail is Tail.AUTH or tail is Tail.TLS:
            return f"{head} {'?' if tail is Tail.AUTH else '!'}= '{_info(info)}'"
        if tail is Tail.HOST:
            return f"{head} H:{_helo(session.helo)}"
    if recipient is None and event.type == "DATA" and transaction is not None and transaction.recipients:
        recipient = transaction.recipients[0]  # as the original, which told the first of all
    whom = _whom(None if transaction is None else transaction.sender, recipient)
    line = f"qmail-smtpd: pid {session.number} {said} H:{_helo(session.helo)} {whom}"
    if tail is not _BRIEF and (tail is Tail.INFO or (info and tail is Tail.OURS)):
        return f"{line} '{_info(info)}'"
    return line


# What a session says again and again, and the next one of the same client.
@lru_cache(maxsize=1024)
def _said(word: str, protocol: str, client: str, host: str) -> str:
    return f"{word} P:{_field(protocol)} S:{_field(client)}:{host if _HOST(host) else _escape(host, _NO_HOST)}"


@lru_cache(maxsize=1024)
def _helo(name: bytes) -> str:
    return _field(name.decode("latin-1"))


def _field(text: str) -> str:
    return text if _FIELD(text) else _escape(text, _NO_FIELD)


def _info(text: str) -> str:
    return text if _INFO(text) else _escape(text, _NO_INFO)


def _whom(sender: Address | None, recipient: Address | None) -> str:
    if sender is not None and recipient is not None and sender.domain and recipient.domain:
        both = b"F:%b@%b T:%b@%b" % (sender.local, sender.domain, recipient.local, recipient.domain)
        if _PLAIN_WHOM(text := both.decode("latin-1")):
            return text
    return f"F:{'' if sender is None else _mailbox(sender)} T:{'' if recipient is None else _mailbox(recipient)}"


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
