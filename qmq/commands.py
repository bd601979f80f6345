"""
Command lines of the operator that judge messages by their exit code.

What every checker needs that asks such a program: its words, its time, how many
may run at once, and a line in the log whenever there is no answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from qmq.mail import Seconds
from qmq.programs import Exit, Programs, ProgramTrouble, executable
from qmq.rules.options import count, seconds

_log = Logger()

OPTIONS = {
    "command": "the program of clients whose variable is not set",
    "time": "so long it may take, the wait for its turn included; then 451 (60s)",
    "at-once": "programs that run at the same time (10)",
    "waiting": "messages that may wait for their turn; then 451 (100)",
}


class Runner(Protocol):
    """qmq.programs.Programs, as this sees it."""

    def run(
        self,
        argv: Sequence[str],
        feeds: Mapping[int, bytes | Iterable[bytes]],
        environ: Mapping[str, str],
        seconds: Seconds,
    ) -> Deferred[Exit]:
        """The exit code; fails with ProgramTrouble."""


class Commands:
    """Runs command lines; programs with a slash in their name are meant from *folder* on."""

    def __init__(self, programs: Runner, folder: str = "", time: Seconds = 60) -> None:
        self._programs = programs
        self._folder = folder
        self.time = time

    async def run(
        self,
        command: str,
        environ: Mapping[str, str],
        feeds: Mapping[int, bytes | Iterable[bytes]] | None = None,
        file: Sequence[str] = (),
        more: Sequence[str] = (),
    ) -> Exit | None:
        """
        The exit code of *command*, or None, with a line in the log, if it gave none.

        *file* goes between its first word and the others, *more* behind all. No shell is asked.
        """
        try:
            program, *words = self.argv(command)
            return await self._programs.run([program, *file, *words, *more], feeds or {}, environ, self.time)
        except (ProgramTrouble, ValueError) as trouble:
            said = trouble.stderr.decode("utf-8", "replace") if isinstance(trouble, ProgramTrouble) else ""
            _log.warn(
                "no verdict by {command!r}: {trouble}{words}",
                command=command, trouble=str(trouble), words=f"; it said {said!r}" if said else "",
            )  # fmt: skip
            return None

    def argv(self, command: str) -> list[str]:
        """As qmq.commands.argv."""
        return argv(command, self._folder)


def argv(command: str, folder: str) -> list[str]:
    """The words of a command line, the first of them a path; raises ValueError with a text for the operator."""
    words = shlex.split(command)
    if not words:
        raise ValueError("no program is named; say its path")
    return [executable(words[0], folder), *words[1:]]


def strange(command: str, code: Exit) -> None:
    """A line in the log on an exit code that is no verdict."""
    _log.warn(
        "no verdict by {command!r}: it ended with {code} and said {words!r}",
        command=command, code=int(code), words=code.stderr.decode("utf-8", "replace"),
    )  # fmt: skip


def from_options(checker: str, options: Mapping[str, str], reactor: Any, folder: str) -> tuple[Commands, str | None]:
    """What runs the commands of a checker, by OPTIONS, and the one for all clients, if any; raises ValueError."""
    programs = Programs(
        reactor,
        at_once=count(checker, options, "at-once", 10, 1),
        waiting=count(checker, options, "waiting", 100),
    )
    commands = Commands(programs, folder, seconds(checker, options, "time", 60))
    command = options.get("command")
    if command is not None:
        try:
            commands.argv(command)
        except ValueError as error:
            raise ValueError(f"{checker}: command = {command!r}: {error}") from None
    return commands, command
