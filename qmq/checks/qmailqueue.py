"""
Filters written to stand in qmail-queue's place: QMAILQUEUE (SPAMCONTROL 2.3, 2.13, 4.9).

The program reads the message on descriptor 0 and the envelope on 1, and its
exit code says what becomes of the message. Here it only judges: what it does to
the message is not taken over, for behind it stands no qmail-queue. A wrapper
that ends with ``exec qmail-queue`` should end with ``exit 0``; as one that finds
itself in QMAILQUEUE would never end, the variable is not in its environment. It
need not read all that it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from zope.interface import implementer

from qmq.commands import OPTIONS, Commands, from_options, strange
from qmq.interfaces import Answer, ICheckerFactory, IMessageChecker, ISelective
from qmq.mail import Message, Reply
from qmq.receive.context import Context
from qmq.rules.filters import deferred, queue_envelope, refused, surroundings
from qmq.rules.options import known
from qmq.session import Environment, Session, Transaction, Verdict

# By exit code: the log's condition, and what stands between its quotes.
_CONTENT = {
    32: ("Virus_Infected", "AV scanner"),
    33: ("Spam_Message", "spam"),
    34: ("MIME_Attach", "MIME"),
}
_VIRUS = 32
_REFUSED = Reply(554, "5.3.0", "this message is refused")


@implementer(IMessageChecker, ISelective)
class QmailQueue:
    """Asks the filter that QMAILQUEUE of the client names, else *command*."""

    def __init__(self, commands: Commands, command: str | None = None) -> None:
        self._commands = commands
        self._command = command
        self.limit = commands.time + 5

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom there is a filter."""
        return bool(self._filter(environment))

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """A refusal, 451, or nothing."""
        command = self._filter(session.environment)
        return self._ask(session, message, command) if command else None

    def _filter(self, settings: Environment) -> str | None:
        command = settings.qmailqueue
        # Set to nothing is off.
        return self._command if command is None and "QMAILQUEUE" not in settings.variables else command

    async def _ask(self, session: Session, message: Message, command: str) -> Verdict | None:
        feeds: dict[int, bytes | Iterable[bytes]] = {0: message.chunks(), 1: queue_envelope(message)}
        code = await self._commands.run(command, surroundings(session, message), feeds)
        if code is None:
            return deferred("Queue_Temporary", command)
        if code == 0:
            return None
        if code in _CONTENT:
            condition, info = _CONTENT[code]
            if code == _VIRUS and session.environment.qhpsi:
                info = session.environment.qhpsi  # the original took it for QHPSI's finding
            return refused(session, condition, info)
        # What will not change, by qmail-queue's own codes; 115 is an older 11.
        if 11 <= code <= 40 or code == 115:
            return Verdict(reply=_REFUSED, reason="Reject::DATA::Queue_Permanent", info=f"exit {int(code)}")
        strange(command, code)
        return deferred("Queue_Temporary", f"exit {int(code)}")


@implementer(ICheckerFactory)
class Factory:
    """Makes QmailQueue."""

    name = "qmailqueue"
    help = "asks a filter written for QMAILQUEUE: exit code 0 goes on, 11 to 40 refuse, others defer"
    options = OPTIONS

    def make(self, context: Context, options: Mapping[str, str]) -> QmailQueue:
        """Raises ValueError for a command that is not there."""
        known(self.name, options, OPTIONS)
        commands, command = from_options(self.name, options, context.reactor, context.folder)
        return QmailQueue(commands, command)
