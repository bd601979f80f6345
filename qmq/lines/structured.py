r"""
Facts as JSON (RFC 8259), an object a line: time, event, and fields by name.

    {"time":"2026-11-23T18:07:02.123Z","event":"delivered","id":"q1-2a","queue":"customer1","to":"u@example.org",...}

ASCII alone. An address is its text, without brackets; what was not there is
null. Octets that are no UTF-8 are ``\xNN`` in the text. Values are cut after
1000 characters, and of the recipients of a message a hundred are named.
"""

# ruff: noqa: A002 - a message has an id, here as everywhere
from __future__ import annotations

import time
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as _quoted

from qmq.lines import event as words
from qmq.lines.event import Event
from qmq.mail import Address, Octets, Reply, Seconds
from qmq.session import Session, Transaction

# Before the time, between the time and the fact, and behind it.
OPEN, THEN, CLOSE = '{"time":"', 'Z","event":', "}\n"

_LONGEST_VALUE = 1000
_MOST_RECIPIENTS = 100


def _text(text: str) -> str:
    return _quoted(text[:_LONGEST_VALUE])


def _bytes(raw: bytes) -> str:
    return _quoted(raw[:_LONGEST_VALUE].decode("utf-8", "backslashreplace"))


def _mailbox(address: Address | None) -> str:
    return "null" if address is None else _bytes(bytes(address))


def _mailboxes(recipients: Sequence[Address]) -> str:
    return f'"recipients":{len(recipients)},"to":[{",".join(map(_mailbox, recipients[:_MOST_RECIPIENTS]))}]'


def _answer(reply: Reply) -> str:
    said = f"{reply.code} {reply.status} {reply.text}" if reply.status else f"{reply.code} {reply.text}"
    return f'"code":{reply.code},"reply":{_text(said)}'


def _their_answer(reply: Reply) -> str:
    return f'{_answer(reply)},"mta":{_text(reply.mta)},"tls":{_text(reply.tls)}'


def _client(session: Session) -> str:
    return (
        f'"session":{session.number},"client":{_text(session.client)},"host":{_text(session.host)}'
        f',"helo":{_bytes(session.helo)},"tls":{_text(session.tls)},"user":{_bytes(session.user)}'
    )


def accepted(id: bytes, session: Session, sender: Address, recipients: Sequence[Address], size: Octets) -> str:
    """The primary said 250."""
    envelope = f'"from":{_mailbox(sender)},{_mailboxes(recipients)},"size":{size}'
    return f'"accepted","id":{_bytes(id)},{_client(session)},{envelope}'


def passed(session: Session, transaction: Transaction, recipient: Address, reason: str, info: str) -> str:
    """A recipient was accepted."""
    return f'"passed",{_smtp(session, transaction, recipient, *words.passed(reason, info))}'


def refused(
    session: Session, transaction: Transaction | None, recipient: Address | None, reply: Reply, reason: str, info: str
) -> str:
    """A client was told 4yz or 5yz."""
    event = words.refused(reason, info, reply)
    return f'"refused",{_smtp(session, transaction, recipient, *event)},{_answer(reply)}'


def noted(session: Session, transaction: Transaction | None, recipient: Address | None, reason: str, info: str) -> str:
    """Something had no answer."""
    return f'"noted",{_smtp(session, transaction, recipient, *words.noted(reason, info))}'


def _smtp(session: Session, transaction: Transaction | None, recipient: Address | None, event: Event, info: str) -> str:
    queue_id = sender = "null"
    if transaction is not None:
        queue_id, sender = _bytes(transaction.id), _mailbox(transaction.sender)
    return (
        f'"action":"{event.action}","type":"{event.type}","condition":{_quoted(event.condition)},"id":{queue_id}'
        f',{_client(session)},"protocol":{_text(words.protocol(session, transaction))}'
        f',"from":{sender},"to":{_mailbox(recipient)},"info":{_text(info)}'
    )


def handed(id: bytes, instance: str, recipients: Sequence[Address]) -> str:
    """An instance took it."""
    return f'"handed","id":{_bytes(id)},"instance":{_text(instance)},{_mailboxes(recipients)}'


def kept(id: bytes, reason: str) -> str:
    """The primary's own store took it."""
    return f'"kept","id":{_bytes(id)},"reason":{_text(reason)}'


def _delivery(id: bytes, queue: str, recipient: Address) -> str:
    return f'"id":{_bytes(id)},"queue":{_text(queue)},"to":{_mailbox(recipient)}'


def delivered(id: bytes, queue: str, recipient: Address, reply: Reply, seconds: Seconds) -> str:
    """The next host took it."""
    return f'"delivered",{_delivery(id, queue, recipient)},"delay":{seconds:.3f},{_their_answer(reply)}'


def moved(id: bytes, queue: str, recipient: Address, to: str, seconds: Seconds) -> str:
    """Another queue of this gateway took it."""
    return f'"moved",{_delivery(id, queue, recipient)},"instance":{_text(to)},"delay":{seconds:.3f}'


def deferred(id: bytes, queue: str, recipient: Address, due: Seconds, reply: Reply) -> str:
    """It is tried again."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(due)))
    return f'"deferred",{_delivery(id, queue, recipient)},"due":"{when}",{_their_answer(reply)}'


def failed(id: bytes, queue: str, recipient: Address, reply: Reply) -> str:
    """No further attempt."""
    return f'"failed",{_delivery(id, queue, recipient)},{_their_answer(reply)}'


def deleted(id: bytes, queue: str, recipient: Address) -> str:
    """An operator threw it away."""
    return f'"deleted",{_delivery(id, queue, recipient)}'


def bounced(id: bytes, bounce_id: bytes, queue: str, to: Address) -> str:
    """A notice about it was taken over."""
    return f'"bounced","id":{_bytes(id)},"bounce":{_bytes(bounce_id)},"queue":{_text(queue)},"to":{_mailbox(to)}'


def dropped_bounce(id: bytes, queue: str, why: str) -> str:
    """Nobody will be told of its failure."""
    return f'"dropped-bounce","id":{_bytes(id)},"queue":{_text(queue)},"why":{_text(why)}'


def warning(text: str) -> str:
    """For the operator."""
    return f'"warning","text":{_text(text)}'
