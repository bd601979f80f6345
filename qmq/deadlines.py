"""
When a client has taken too long.

Pure: times are the caller's, of a clock that does not jump. A session is looked
at now and then, say once a second, instead of setting a timer for each of its
commands; a deadline is as exact as that.
"""

from __future__ import annotations

from enum import Enum

from qmq.mail import Octets, Reply, Seconds, value

IDLE = Reply(421, "4.4.2", "you have been idle for too long, closing")
TOO_LONG = Reply(421, "4.4.2", "this session has lasted too long, closing")
TOO_SLOW = Reply(421, "4.4.2", "this comes too slowly, closing")


@value
class Deadlines:
    """How long a client may take. RFC 5321 4.5.3.2.7: no less than 5 minutes for a command."""

    idle: Seconds = 300  # without a completed command or a piece of a body
    session: Seconds = 3600
    body_rate: float = 100  # octets a second, on average, that a body needs once it has lasted *idle*
    handshake: Seconds = 60  # TLS
    unread: Seconds = 60  # that replies wait for the client to read them
    closing: Seconds = 10  # for our last words to leave


class Stage(Enum):
    """What a session is waiting for."""

    COMMAND = "the client's next command"
    BODY = "the rest of a body"
    ANSWER = "our own answer: never too long here"
    HANDSHAKE = "the client's half of a TLS handshake"
    READER = "the client to read what we said"
    END = "our last words to leave"

    @property
    def deaf(self) -> bool:
        """Words would not reach the client."""
        return self in _DEAF


_DEAF = frozenset({Stage.HANDSHAKE, Stage.READER, Stage.END})


class Watch:
    """Over one session, from the first look on."""

    __slots__ = ("_began", "_deadlines", "_quiet", "_seen", "_since")

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._began: Seconds | None = None
        self._seen: tuple[Stage, object] | None = None
        self._since: Seconds = 0  # in that stage
        self._quiet: Seconds = 0  # since the last sign of life

    def look(self, now: Seconds, stage: Stage, body: tuple[object, Octets] | None, *, moved: bool) -> Reply | None:
        """
        What to hang up with, if a deadline is exceeded.

        *body* is which one is coming, and how much of it has come; *moved*: a
        command or a piece of a body was completed since the last look.
        """
        if self._began is None:
            self._began = now
        seen = stage, body and body[0]
        if seen != self._seen:
            self._seen, self._since = seen, now
        if moved or stage is Stage.ANSWER:
            self._quiet = now
        limits, lasted = self._deadlines, now - self._since
        match stage:
            case Stage.ANSWER:
                return None
            case Stage.HANDSHAKE:
                return TOO_SLOW if lasted > limits.handshake else None
            case Stage.READER:
                return TOO_SLOW if lasted > limits.unread else None
            case Stage.END:
                return TOO_SLOW if lasted > limits.closing else None
            case Stage.COMMAND | Stage.BODY:
                if now - self._quiet > limits.idle:
                    return IDLE
                if now - self._began > limits.session:
                    return TOO_LONG
                if body is not None and lasted > limits.idle and body[1] < lasted * limits.body_rate:
                    return TOO_SLOW
                return None
