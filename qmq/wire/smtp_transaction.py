"""A message on its way to an SMTP server: what is known of its recipients so far."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto
from typing import TypeVar

from qmq.mail import Message, Reply
from qmq.wire.replies import ProtocolError

T = TypeVar("T")
_NONE: Iterator[bytes] = iter(())


class Stage(Enum):
    """What the client waits for; each has a time-out of its own (RFC 5321 4.5.3.2)."""

    IDLE = auto()
    COMMAND = auto()  # MAIL, RCPT, RSET
    INITIATION = auto()  # DATA's 354
    TEXT = auto()  # the server to take what was sent of a long text
    END = auto()  # the answer to the whole message


class Transaction:
    """A message on its way, and what is known of its recipients."""

    __slots__ = ("answered", "commands", "lost_way", "message", "refusal", "replies", "sent", "taken")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.replies: list[Reply | None] = [None] * len(message.envelope.recipients)
        self.answered = 0  # recipients
        self.taken: list[int] = []  # recipients accepted at RCPT
        self.refusal: Reply | None = None  # MAIL's
        self.lost_way = False  # a recipient was accepted after MAIL was refused
        self.sent = False  # the text has left, or may have
        self.commands = _NONE  # without PIPELINING: those still to be said

    def recipient_answered(self, reply: Reply) -> bool:
        """The answer to the next RCPT; whether it was the last. Raises ProtocolError."""
        number = self.answered
        self.answered = number + 1
        if self.refusal is not None:
            self.replies[number] = self.refusal
            self.lost_way = self.lost_way or reply.ok
        elif reply.ok:
            self.taken.append(number)
        else:
            self.replies[number] = refusal(reply, "RCPT")
        return self.answered == len(self.replies)

    def end_answered(self, reply: Reply) -> bool:
        """LMTP's answer to the text, for the next recipient that was accepted; whether it was the last."""
        for number in self.taken:
            if self.replies[number] is None:
                self.replies[number] = reply
                break
        return None not in self.replies

    def outcome(self, rest: Reply | None) -> list[Reply]:
        """A reply for each recipient; *rest* for those without one of their own."""
        if rest is None:
            return [known(reply) for reply in self.replies]
        return [reply or rest for reply in self.replies]


def known(thing: T | None) -> T:
    """What must be there by the order of the queue of awaited replies."""
    assert thing is not None
    return thing


def refusal(reply: Reply, command: str) -> Reply:
    """A reply that is no yes, and so must be a no. Raises ProtocolError."""
    if reply.code < 400:
        raise ProtocolError(f"{command} was answered with {reply.code}")
    return reply
