"""
Facts as lines: what happened, and fields by name.

    delivered id=q1-2a queue=customer1 to=<u@example.org> delay=0.4 reply="250 2.0.0 ok"

A value with a space, a quote or anything but printable ASCII in it stands in
quotes, escaped as in JSON: no stranger writes a line of his own into it. What
happens at the front door is told in the classic form; the line of the accepted
message binds its queue id to the session's number there.
"""

# ruff: noqa: A002 - a message has an id, here as everywhere
from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from functools import lru_cache

from qmq.lines.classic import noted, passed, refused
from qmq.mail import Address, Octets, Reply, Seconds
from qmq.session import Session

__all__ = [
    "CLOSE", "OPEN", "THEN", "accepted", "bounced", "deferred", "deleted", "delivered", "dropped_bounce", "failed",
    "handed", "kept", "moved", "noted", "passed", "refused", "warning",
]  # fmt: skip

# Before the time, between the time and the fact, and behind it.
OPEN, THEN, CLOSE = "", "Z ", "\n"

_LONGEST_VALUE = 1000
_PLAIN = re.compile(r"[!#-<>-~]{1,1000}").fullmatch  # no space, quote or equals sign: stands as it is
_QUOTABLE = re.compile(r"[ !#-\[\]-~]{0,1000}").fullmatch  # no quote or backslash: nothing to escape within quotes
# A delivery all of whose words stand as they are: neither a space nor an equals sign is in them, so all are ours.
_PLAIN_DELIVERY = re.compile(
    r"id=[!#-<>-~]{1,99} queue=[!#-<>-~]{1,99} to=<[!#-<>-~]{1,499}@[!#-<>?A-~]{1,499}>"
).fullmatch
# Likewise of an accepted message with one recipient: its id, and whom it is from and to.
_PLAIN_ACCEPTED = re.compile(
    r"([!#-<>-~]{1,1000}) (from=<[!#-<>-~]{1,998}> recipients=1 to=<[!#-<>-~]{1,998}>)"
).fullmatch
_MOST_RECIPIENTS = 100


def _text(text: str) -> str:
    """One word, whatever a stranger wrote."""
    if _PLAIN(text):
        return text
    return _sentence(text)


def _sentence(text: str) -> str:
    """What has a space in it, at least."""
    return f'"{text}"' if _QUOTABLE(text) else json.dumps(text[:_LONGEST_VALUE])


_known = lru_cache(maxsize=256)(_text)  # for what is the same in many lines: who took the message


def _bytes(raw: bytes) -> str:
    return _text(raw.decode("utf-8", "backslashreplace"))


def _mailbox(address: Address) -> str:
    domain = address.domain
    raw = b"<%b@%b>" % (address.local, domain) if domain else b"<%b>" % address.local
    return _text(raw.decode("utf-8", "backslashreplace"))


def _mailboxes(recipients: Sequence[Address]) -> str:
    if len(recipients) == 1:
        return f"recipients=1 to={_mailbox(recipients[0])}"
    some = ",".join(map(_mailbox, recipients[:_MOST_RECIPIENTS]))
    return f"recipients={len(recipients)} to={some}"


def _answer(reply: Reply) -> str:
    words = _sentence(f"{reply.code} {reply.status} {reply.text}" if reply.status else f"{reply.code} {reply.text}")
    tls = f" tls={_known(reply.tls)}" if reply.tls else ""
    return f"{words} mta={_known(reply.mta)}{tls}" if reply.mta else words


# What a session says again and again, and the next one of the same client.
@lru_cache(maxsize=1024)
def _client(client: str, helo: bytes, tls: str, user: bytes) -> str:
    with_tls = f" tls={_text(tls)}" if tls else ""
    as_user = f" user={_bytes(user)}" if user else ""
    return f"client={_text(client)} helo={_bytes(helo)}{with_tls}{as_user}"


def accepted(id: bytes, session: Session, sender: Address, recipients: Sequence[Address], size: Octets) -> str:
    """The primary said 250."""
    client = _client(session.client, session.helo, session.tls, session.user)
    if len(recipients) == 1 and sender.domain and (to := recipients[0]).domain:
        words = b"%b from=<%b@%b> recipients=1 to=<%b@%b>" % (id, sender.local, sender.domain, to.local, to.domain)
        if (plain := _PLAIN_ACCEPTED(words.decode("latin-1"))) is not None:
            which, whom = plain.groups()
            return f"accepted id={which} session={session.number} {client} {whom} size={size}"
    return (
        f"accepted id={_bytes(id)} session={session.number} {client} from={_mailbox(sender)}"
        f" {_mailboxes(recipients)} size={size}"
    )


def handed(id: bytes, instance: str, recipients: Sequence[Address]) -> str:
    """An instance took it."""
    return f"handed id={_bytes(id)} instance={_text(instance)} {_mailboxes(recipients)}"


def kept(id: bytes, reason: str) -> str:
    """The primary's own store took it."""
    return f"kept id={_bytes(id)} reason={_text(reason)}"


def _delivery(id: bytes, queue: str, recipient: Address) -> str:
    local, domain = recipient.local.decode("latin-1"), recipient.domain.decode("latin-1")
    words = f"id={id.decode('latin-1')} queue={queue} to=<{local}@{domain}>"
    if _PLAIN_DELIVERY(words):
        return words
    return f"id={_bytes(id)} queue={_text(queue)} to={_mailbox(recipient)}"


def delivered(id: bytes, queue: str, recipient: Address, reply: Reply, seconds: Seconds) -> str:
    """The next host took it."""
    return f"delivered {_delivery(id, queue, recipient)} delay={seconds:.1f} reply={_answer(reply)}"


def moved(id: bytes, queue: str, recipient: Address, to: str, seconds: Seconds) -> str:
    """Another queue of this gateway took it."""
    return f"moved {_delivery(id, queue, recipient)} instance={_text(to)} delay={seconds:.1f}"


def deferred(id: bytes, queue: str, recipient: Address, due: Seconds, reply: Reply) -> str:
    """It is tried again."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(due)))
    return f"deferred {_delivery(id, queue, recipient)} due={when} reply={_answer(reply)}"


def failed(id: bytes, queue: str, recipient: Address, reply: Reply) -> str:
    """No further attempt."""
    return f"failed {_delivery(id, queue, recipient)} reply={_answer(reply)}"


def deleted(id: bytes, queue: str, recipient: Address) -> str:
    """An operator threw it away."""
    return f"deleted {_delivery(id, queue, recipient)}"


def bounced(id: bytes, bounce_id: bytes, queue: str, to: Address) -> str:
    """A notice about it was taken over."""
    return f"bounced id={_bytes(id)} bounce={_bytes(bounce_id)} queue={_text(queue)} to={_mailbox(to)}"


def dropped_bounce(id: bytes, queue: str, why: str) -> str:
    """Nobody will be told of its failure."""
    return f"dropped-bounce id={_bytes(id)} queue={_text(queue)} why={_text(why)}"


def warning(text: str) -> str:
    """For the operator."""
    return f"warning text={json.dumps(text[:_LONGEST_VALUE])}"
