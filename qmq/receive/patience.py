"""How much a client may get wrong, and how long it may talk without mail, before it is cut off."""

from __future__ import annotations

from qmq.mail import Reply
from qmq.receive.replies import TOO_MANY_ERRORS, TOO_MUCH_TALK


class Patience:
    """With one client; both counts begin anew with each message that we take."""

    __slots__ = ("_errors", "_most_errors", "_most_talk", "_talk")

    def __init__(self, errors: int, talk: int) -> None:
        self._most_errors = errors
        self._most_talk = talk
        self._errors = self._talk = 0

    def refuse(self, reply: Reply) -> Reply:
        """*reply*, or a 421 if there were too many refusals (5yz)."""
        if reply.permanent:
            self._errors += 1
            if self._errors > self._most_errors:
                return TOO_MANY_ERRORS
        return reply

    def talked(self, reply: Reply, commands: int = 1) -> Reply:
        """*reply*, or a 421 if there was too much talk without mail."""
        self._talk += commands
        return TOO_MUCH_TALK if self._talk > self._most_talk else reply

    def rewarded(self) -> None:
        """A message was taken."""
        self._errors = self._talk = 0
