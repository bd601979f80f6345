"""
What an instance asks before it takes a message: a program of its own, so that its refusal reaches the client.

A program written to stand in qmail-queue's place: the message on descriptor 0,
the envelope on 1, and the exit code says what becomes of it (SPAMCONTROL 4.9).
It only judges. One that hangs or fails costs its instance's mail a 451 and
nobody else anything: its processes, its time and its connections are its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from qmq.commands import Commands, strange
from qmq.interfaces import INextHop
from qmq.mail import Message, Reply
from qmq.programs import Exit
from qmq.rules.filters import of_envelope, queue_envelope

# By qmail-queue's exit codes for what will not change; 115 is an older 11.
_CONTENT = {
    32: Reply(554, "5.7.1", "this message has a virus"),
    33: Reply(554, "5.7.1", "this message is spam"),
    34: Reply(554, "5.7.1", "this message has an attachment that is not wanted"),
}
_REFUSED = Reply(554, "5.3.0", "this message is refused")
_LATER = Reply(451, "4.3.0", "the filter of that domain's queue gave no verdict, try again later")


@implementer(INextHop)
class Filtered:
    """
    The queue *hop* behind the program *command*; *name* is who speaks in its replies.

    What was made here (bounces, notices) is not asked about.
    """

    def __init__(self, hop: Any, commands: Commands, command: str, name: str) -> None:
        self._hop = hop
        self._commands = commands
        self._command = command
        self._name = name

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """As INextHop.send."""
        return self._asked(message, lambda: self._hop.send(message))

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Sequence[Reply]]:
        """As the queue's."""
        return self._asked(message, lambda: self._hop.send_in_doubt(message, low))

    def _asked(self, message: Message, send: Any) -> Deferred[Sequence[Reply]]:
        if message.envelope.origin.made_here:
            sent: Deferred[Sequence[Reply]] = send()
            return sent
        return Deferred.fromCoroutine(self._ask(message, send))

    async def _ask(self, message: Message, send: Any) -> Sequence[Reply]:
        feeds: dict[int, bytes | Iterable[bytes]] = {0: message.chunks(), 1: queue_envelope(message)}
        verdict = self._verdict(await self._commands.run(self._command, of_envelope(message), feeds))
        if verdict is None:
            replies: Sequence[Reply] = await send()
            return replies
        spoken = Reply(verdict.code, verdict.status, verdict.text, self._name)
        return [spoken] * len(message.envelope.recipients)

    def _verdict(self, code: Exit | None) -> Reply | None:
        if code is None:
            return _LATER
        if code == 0:
            return None
        if 11 <= code <= 40 or code == 115:
            return _CONTENT.get(code, _REFUSED)
        strange(self._command, code)
        return _LATER
