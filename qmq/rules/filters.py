"""
What other people's filters are told of a message, and what our refusals of content say.

Pure. The variables are those that qmail-smtpd of SPAMCONTROL sets for its
children (SPAMCONTROL 2.3), the envelope is qmail-queue's.
"""

from __future__ import annotations

import os
import re

from qmq.mail import Message, Reply
from qmq.session import Session, Verdict

_REFUSED = Reply(554, "5.3.2", "sorry, I do not take messages of such content")
_LATER = Reply(451, "4.3.0", "this message cannot be examined now, try again later")
# No value of a variable can hold a NUL, and none of ours a line's end: scripts are not always careful.
_UNFIT = re.compile(r"[\0\r\n]")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def refused(session: Session, condition: str, info: str) -> Verdict:
    """A refusal of content, with the site's own text (REPLY_CONTENT); *condition* is for the log (SPAMCONTROL 2.5)."""
    reply = session.environment.worded(_REFUSED, "REPLY_CONTENT")
    return Verdict(reply=reply, reason=f"Reject::DATA::{condition}", info=info)


def deferred(condition: str, info: str) -> Verdict:
    """No judgement could be had."""
    return Verdict(reply=_LATER, reason=f"Reject::DATA::{condition}", info=info)


def surroundings(session: Session, message: Message) -> dict[str, str]:
    """
    The whole environment of a filter's process.

    The client's own variables (tcprules, conf-qmq), and over them what is known
    of the session. Not QMAILQUEUE: a wrapper written for qmail may end with
    ``exec ${QMAILQUEUE-...}``, which would be itself again.
    """
    settings = session.environment
    user = session.user if session.user != settings.info else b""
    envelope = message.envelope
    recipients = [settings.deliverto] if settings.deliverto else []
    recipients += [bytes(recipient) for recipient in envelope.recipients]
    found: dict[str, bytes | str] = {
        "PATH": os.environ.get("PATH", _PATH),
        **settings.variables,
        "PROTO": "TCP",
        "TCPREMOTEIP": session.client,
        "TCPREMOTEPORT": str(session.port),
        "TCPREMOTEHOST": session.host,
        "TCPLOCALIP": session.server,
        "TCPLOCALPORT": str(session.server_port),
        "HELOHOST": session.helo,
        "MAILFROM": bytes(envelope.sender),
        # Blank separated, and a blank at the end.
        "RCPTTO": b"".join(recipient + b" " for recipient in recipients),
    }
    if user:
        found["AUTHUSER"] = user
    if session.user:
        found["TCPREMOTEINFO"] = session.user
    if session.relay:
        found["RELAYCLIENT"] = settings.relayclient or b""
    found.pop("QMAILQUEUE", None)
    return {name: _fit(text) for name, text in found.items() if "=" not in name and not _UNFIT.search(name)}


def _fit(text: bytes | str) -> str:
    return _UNFIT.sub("", os.fsdecode(text) if isinstance(text, bytes) else text)


def of_envelope(message: Message) -> dict[str, str]:
    """As surroundings, where only the envelope is known: at an instance."""
    envelope, origin = message.envelope, message.envelope.origin
    found: dict[str, bytes | str] = {
        "PATH": os.environ.get("PATH", _PATH),
        "PROTO": "TCP",
        "TCPREMOTEIP": origin.client,
        "TCPREMOTEPORT": str(origin.port),
        "HELOHOST": origin.helo,
        "MAILFROM": bytes(envelope.sender),
        "RCPTTO": b"".join(bytes(recipient) + b" " for recipient in envelope.recipients),
    }
    return {name: _fit(text) for name, text in found.items()}


def queue_envelope(message: Message) -> bytes:
    """The envelope as qmail-queue reads it: F, the sender, NUL; T, a recipient, NUL, for each; NUL."""
    envelope = message.envelope
    recipients = b"".join(b"T%s\0" % bytes(recipient) for recipient in envelope.recipients)
    return b"F%s\0%s\0" % (bytes(envelope.sender), recipients)
