"""
The log's word for what happened at the front door: SPAMCONTROL's Action::Type::Condition (2.18).

A word of ours that the original did not know has the same form, with another
condition. What has not that form is of type SMTP, condition Other, and is told
as the event's information.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from qmq.mail import Reply
from qmq.session import Session, Transaction

_FORM = re.compile(r"(Accept|Reject|Info)::([A-Z]{2,8})::([A-Za-z0-9_.+/-]{1,100})").fullmatch


class Tail(Enum):
    """What stands behind the protocol and the client in the classic line."""

    BRIEF = "H F T"
    INFO = "H F T 'info'"
    HOST = "H"
    AUTH = "?= 'user'"
    TLS = "!= 'DN'"
    OURS = "H F T, and 'info' if there is any"


class Event(NamedTuple):
    """A word for the log, taken apart."""

    word: str
    action: str
    type: str
    condition: str
    tail: Tail


_ACCEPTED_BY = ("Recipients_Cdb", "Recipients_Pam", "Recipients_Wild", "Rcpthosts_Rcptto")
_TAILS = {
    **{f"Accept::{type_}::{source}": Tail.BRIEF for type_ in ("RCPT", "SPF") for source in _ACCEPTED_BY},
    "Accept::ORIG::Local_Sender": Tail.BRIEF,
    "Accept::SNDR::Relay_Client": Tail.BRIEF,
    "Reject::SNDR::Bad_Helo": Tail.INFO,
    "Reject::SNDR::DNS_Helo": Tail.INFO,
    "Reject::SNDR::Invalid_Relay": Tail.BRIEF,
    "Reject::ORIG::Bad_Mailfrom": Tail.INFO,
    "Reject::ORIG::DNS_MF": Tail.BRIEF,
    "Reject::ORIG::Invalid_Mailfrom": Tail.BRIEF,
    "Reject::RCPT::Bad_Rcptto": Tail.BRIEF,
    "Reject::RCPT::Failed_Rcptto": Tail.BRIEF,
    "Reject::RCPT::Toomany_Rcptto": Tail.BRIEF,
    "Reject::DATA::Invalid_Size": Tail.BRIEF,
    "Reject::DATA::Bad_MIME": Tail.INFO,
    "Reject::DATA::Bad_Loader": Tail.INFO,
    "Reject::DATA::Spam_Message": Tail.INFO,
    "Reject::DATA::MIME_Attach": Tail.INFO,
    "Reject::DATA::Virus_Infected": Tail.INFO,
    "Reject::SPF::Fail": Tail.BRIEF,
    "Reject::TLS::missing": Tail.HOST,
    # The original meant F and T too, but gave the wrong arguments; its successor writes the host alone.
    "Reject::AUTH::missing": Tail.HOST,
}
_FAMILIES = {"AUTH": Tail.AUTH, "TLS": Tail.TLS}


# The words are our checkers'; but what a stranger's checker makes up shall not fill the memory.
@lru_cache(maxsize=1024)
def _known(word: str) -> Event | None:
    form = _FORM(word)
    if form is None:
        return None
    action, type_, condition = form.groups()
    return Event(word, action, type_, condition, _TAILS.get(word) or _FAMILIES.get(type_, Tail.OURS))


_ACCEPTED = Event("Accept::RCPT::Other", "Accept", "RCPT", "Other", Tail.OURS)
_REJECTED = Event("Reject::SMTP::Other", "Reject", "SMTP", "Other", Tail.OURS)
_NOTED = Event("Info::SMTP::Other", "Info", "SMTP", "Other", Tail.OURS)


def passed(reason: str, info: str) -> tuple[Event, str]:
    """The event of a recipient that was accepted, and its information."""
    event = _known(reason)
    return (_ACCEPTED, f"{reason} {info}".strip()) if event is None else (event, info)


def refused(reason: str, info: str, reply: Reply) -> tuple[Event, str]:
    """The event of a refusal; without any word for it, the reply is its information."""
    event = _known(reason)
    if event is not None:
        return event, info
    return _REJECTED, f"{reason} {info}".strip() or f"{reply.code} {reply.status} {reply.text}"


def noted(reason: str, info: str) -> tuple[Event, str]:
    """The event of something that had no answer."""
    event = _known(reason)
    return (_NOTED, f"{reason} {info}".strip()) if event is None else (event, info)


def protocol(session: Session, transaction: Transaction | None) -> str:
    """As the original tags it (2.19): plain SMTP is ESMTP too; S: TLS, A: authenticated, M: sender verified."""
    word = "ESMTPS" if session.tls else "ESMTP"
    # A user that TCPREMOTEINFO names has proved nothing.
    if session.user and session.user != session.environment.info:
        word += "A"
    if transaction is not None and transaction.protocol:
        word += transaction.protocol.decode("latin-1")
    return word
