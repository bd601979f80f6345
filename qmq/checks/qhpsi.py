"""
The virus scanner that QHPSI names (SPAMCONTROL 2.13).

It is called with the message's file as its first argument, further words of
QHPSI and QHPSIARG1 to 3 behind it, before the message is taken over. The exit
code QHPSIRC, else 1, says that it found something (in the original the variable
had no effect: 2.20, 4), 0 that it did not. Whatever else happens the message is
deferred. A long message is scanned in the file in which it lies, which does not
have our own Received field in it; the file is for qmq's account alone, so
clamdscan needs --fdpass or --stream.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Mapping

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from qmq.commands import OPTIONS, Commands, from_options, strange
from qmq.interfaces import Answer, ICheckerFactory, IMessageChecker, ISelective
from qmq.mail import Message
from qmq.receive.context import Context
from qmq.rules.filters import deferred, refused, surroundings
from qmq.rules.mime import Walk, steps
from qmq.rules.options import known
from qmq.session import Environment, Session, Transaction, Verdict
from qmq.slices import sliced

_log = Logger()


class _Deaf:
    """A reader of parts that only wants to know whether there are any."""

    def part(self) -> None:
        """It begins."""

    def text(self, text: bytes) -> None:
        """It goes on."""


@implementer(IMessageChecker, ISelective)
class QHPSI:
    """
    Has messages scanned.

    *folder* is for the files of those that are in memory; *command* is the
    scanner of clients for whom QHPSI is not set.
    """

    def __init__(self, commands: Commands, clock: IReactorTime, folder: str, command: str | None = None) -> None:
        self._commands = commands
        self._clock = clock
        self._folder = folder or None
        self._command = command
        self.limit = commands.time + 10  # there is base64 to be looked for, and a file to be written

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom there is a scanner."""
        return bool(self._scanner(environment))

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """A refusal of what is infected, 451 if that cannot be found out, or nothing."""
        settings = session.environment
        command = self._scanner(settings)
        if not command:
            return None
        size = message.size
        if size < settings.qhpsiminsize or 0 < settings.qhpsimaxsize < size:
            return None
        look = False
        if settings.base64:
            # The checker warlord may have looked already.
            looked_at, seen = session.conduct.notes.get("base64", (None, False))
            look = looked_at != transaction.id
            if not look and not seen:
                return None
        return self._scan(session, message, command, look=look)

    def _scanner(self, settings: Environment) -> str | None:
        command = settings.qhpsi
        # Set to nothing is off.
        return self._command if command is None and "QHPSI" not in settings.variables else command

    async def _scan(self, session: Session, message: Message, command: str, *, look: bool) -> Verdict | None:
        if look:
            seen = sliced(_has_base64(message), self._clock)
            if not (seen if isinstance(seen, bool) else await seen):
                return None
        settings = session.environment
        path, written = message.body.path, ""
        try:
            if path is None:
                path = written = self._write(message)
            code = await self._commands.run(
                command, surroundings(session, message), file=[path], more=settings.qhpsiargs
            )
        except OSError as trouble:
            _log.error("no file for the scanner: {trouble}", trouble=str(trouble))
            code = None
        finally:
            if written:
                with contextlib.suppress(FileNotFoundError):  # some scanners take away what they find
                    os.unlink(written)
        if code == 0:
            return None
        if code == settings.qhpsirc:
            return refused(session, "Virus_Infected", command)
        if code is not None:
            strange(command, code)
        return deferred("QHPSI_Trouble", command)

    def _write(self, message: Message) -> str:
        """A file with the whole message, for our account alone; raises OSError."""
        descriptor, path = tempfile.mkstemp(prefix="qhpsi-", dir=self._folder)
        try:
            with open(descriptor, "wb") as file:
                file.writelines(message.chunks())
        except OSError:
            os.unlink(path)
            raise
        return path


def _has_base64(message: Message) -> Generator[None, None, bool]:
    walk = Walk(_Deaf())
    yield from steps(walk, message.body, lambda: walk.base64)
    return walk.base64 or bool(walk.beyond)


@implementer(ICheckerFactory)
class Factory:
    """Makes QHPSI."""

    name = "qhpsi"
    help = "has a virus scanner look at each message: QHPSI, QHPSIARG1-3, QHPSIRC, QHPSIMINSIZE, QHPSIMAXSIZE, BASE64"
    options = OPTIONS

    def make(self, context: Context, options: Mapping[str, str]) -> QHPSI:
        """Raises ValueError for a command that is not there."""
        known(self.name, options, OPTIONS)
        commands, command = from_options(self.name, options, context.reactor, context.folder)
        return QHPSI(commands, context.clock, context.spool, command)
