"""
What is told of an entry: plain facts that JSON can say.

Pure. Addresses are as in SMTP, times seconds since 1970 unless they are ages,
sizes octets.
"""

from __future__ import annotations

import re
from typing import Any

from qmq.mail import HELD, QUEUE, Entry, Reply, Seconds, path

_SCHEME = re.compile(r"[a-z]+:")
_PORT = re.compile(r":[0-9]+$")


def facts(entry: Entry, now: Seconds) -> dict[str, Any]:
    """
    An entry for who looks in; *now* is wall clock.

    *due* is None while it is in hand, and *size* where the spool does not tell
    it. *last* is the latest answer of the recipient that got one.
    """
    envelope = entry.message.envelope
    recipients = [{"address": _text(path(r)), "reply": said(entry.last.get(r))} for r in envelope.recipients]
    bouncing = [{"address": _text(path(r)), "reply": said(reply)} for r, reply in entry.bouncing]
    return {
        "id": envelope.token.id.decode("ascii", "backslashreplace"),
        "number": entry.number,
        "sender": _text(path(envelope.sender)),
        "recipients": recipients,
        "bouncing": bouncing,
        "site": _text(entry.site),
        "destination": destination(_text(entry.site)),
        "born": entry.born,
        "age": round(max(0.0, now - entry.born), 3),
        "due": entry.due,
        "attempts": entry.attempts,
        "size": entry.message.size if entry.message.body is not None else None,
        "state": state(entry),
        "last": next((one["reply"] for one in [*recipients, *bouncing] if one["reply"]), ""),
    }


def more(entry: Entry) -> dict[str, Any]:
    """What is told beside `facts` of a single message: where it came from, what was promised for it."""
    envelope, origin = entry.message.envelope, entry.message.envelope.origin
    return {
        "delayed": entry.delayed,
        "bounces": entry.generation,
        "body_type": _text(envelope.body_type),
        "smtputf8": envelope.smtputf8,
        "origin": {
            "protocol": _text(origin.protocol),
            "client": _text(origin.client),
            "helo": _text(origin.helo),
            "user": _text(origin.user),
            "made_here": origin.made_here,
        },
    }


def state(entry: Entry) -> str:
    """In hand, held, moving (to another queue), bouncing, or waiting for its time: the first of these that is so."""
    if entry.due is None:
        return "in-hand"
    if entry.due >= HELD:
        return "held"
    if entry.site.startswith(QUEUE):
        return "moving"
    return "bouncing" if entry.bouncing else "waiting"


def destination(site: str) -> str:
    """The hosts or domains that a site names, without protocol and port: ``smtp:mail.x.example:25 mx:x.example``."""
    return ", ".join(dict.fromkeys(_PORT.sub("", _SCHEME.sub("", word, count=1)) for word in site.split()))


def said(reply: Reply | None) -> str:
    """A reply in one line; empty if there was none."""
    return "" if reply is None else " ".join(f"{reply.code} {reply.status} {reply.text}".split())


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
