"""How we speak to a site's hosts, and what it means when they do not want to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qmq.mail import DeliveryFailure, Reply, Seconds, value

# What a message gets whose kept connection turned out to be closed before anything was answered: nothing was
# delivered, and a new connection may be tried at once.
STALE = Reply(451, "4.4.2", "the kept connection had been closed by the peer")


@value
class Manner:
    """How we speak to a site's hosts. The times are those of RFC 5321 4.5.3.2."""

    helo: bytes = b"localhost"
    lmtp: bool = False
    tls: Callable[[str], Any] | None = None  # STARTTLS's options for a host's name; None: stay in clear
    tls_text: Callable[[Any], str] | None = None  # of a transport: protocol, cipher, and "verified" if so
    tls_required: bool = False  # no message in clear
    chunking: bool = True  # BDAT where it is offered
    messages: int = 1000  # on one connection
    command_seconds: Seconds = 300  # banner, EHLO, MAIL, RCPT
    initiation_seconds: Seconds = 120  # DATA
    data_seconds: Seconds = 180  # a piece of the text to be taken
    end_seconds: Seconds = 600  # the answer to the final dot
    tls_seconds: Seconds = 60  # the handshake
    idle_seconds: Seconds = 30  # kept open without a message


class TLSFailure(DeliveryFailure):
    """STARTTLS was agreed on, and no encrypted session came of it."""


def turned_away(reply: Reply) -> Reply:
    """
    What a host's refusal to greet means for the mail.

    Nothing of the message was said yet, so it is the host's trouble and
    temporary, as in qmail; but 554 and 521 mean that no mail is taken here
    (RFC 5321 3.1, RFC 7504).
    """
    if reply.temporary or reply.code in {521, 554}:
        return reply
    if reply.code < 400:
        return Reply(451, "4.5.0", f"a greeting with {reply.code}: {reply.text}", reply.mta)
    return Reply(reply.code - 100, "4" + reply.status[1:], reply.text, reply.mta)
