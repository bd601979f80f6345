"""
Running other people's programs: a bounded number at once, each for a bounded time.

A program is given bytes on descriptors of its choice and answers with its exit
code; what it says on standard output goes nowhere, of standard error the first
line or two are kept for the log. It leads a process group of its own, so that
what it has started ends with it when its time is over. Nothing here waits.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ProcessTerminated
from twisted.internet.interfaces import IPullProducer
from twisted.internet.process import Process
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Octets, Seconds

_log = Logger()

_KEPT: Octets = 1024  # of standard error
# A child of the program may hold standard error open for ever: so long we wait for it.
_LINGER: Seconds = 1.0
# Above all descriptors that a program is given, so that none of ours is in the way of one of its.
_HIGH = 64
# Python ignores the first two, and who started us perhaps others; a program is to find them as they are by default.
_DEFAULTS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class ProgramTrouble(Exception):
    """A program gave no exit code: not begun, out of time, ended by a signal. The text is for the log."""

    def __init__(self, text: str, stderr: bytes = b"") -> None:
        super().__init__(text)
        self.stderr = stderr


class Exit(int):
    """An exit code, 0 to 255, and what the program said on standard error (1 KB at most, any bytes)."""

    stderr: bytes = b""


class Programs:
    """
    Starts programs, at most *at_once*; *waiting* more may wait for their turn.

    *spawn* makes a Group from what twisted's Process takes.
    """

    def __init__(
        self, reactor: Any, *, at_once: int = 10, waiting: int = 100, spawn: Callable[..., Any] | None = None
    ) -> None:
        self._reactor = reactor
        self._at_once = at_once
        self._most_waiting = waiting
        self._spawn = spawn or Group
        self._waiting: deque[_Run] = deque()
        self.running = 0  # processes that have not ended, given up ones too

    def run(
        self, argv: Sequence[str], feeds: Mapping[int, bytes | Iterable[bytes]], environ: Mapping[str, str],
        seconds: Seconds,
    ) -> Deferred[Exit]:  # fmt: skip
        """
        The exit code of the program *argv* (its first word is its path), with nothing but *environ* around it.

        *feeds* are written to its descriptors as fast as it reads them, then
        closed; it need not read them. Descriptors 0 to 2 that are not fed lead
        nowhere. Fails with ProgramTrouble; also after *seconds*, the wait for
        its turn included. Then, and if the Deferred is cancelled, its whole
        process group is killed.
        """
        run = _Run(self, list(argv), dict(feeds), dict(environ))
        if self.running >= self._at_once and len(self._waiting) >= self._most_waiting:
            run.fail(f"too many programs wait for their turn ({self._most_waiting})")
            return run.result
        run.timer = self._reactor.callLater(seconds, run.late, seconds)
        self._waiting.append(run)
        self._next()
        return run.result

    def _next(self) -> None:
        while self._waiting and self.running < self._at_once:
            run = self._waiting.popleft()
            self.running += 1
            try:
                run.start(self._reactor, self._spawn)
            except (OSError, ValueError) as error:  # ValueError: a NUL in a word
                self.running -= 1
                run.fail(f"cannot run {run.name}: {getattr(error, 'strerror', error)}")

    def ended(self) -> None:
        """A process is gone."""
        self.running -= 1
        self._next()

    def forget(self, run: _Run) -> None:
        """It will not have its turn."""
        self._waiting.remove(run)


class _Run(ProcessProtocol):
    """One program, from the wish to run it to its end."""

    def __init__(
        self, programs: Programs, argv: list[str], feeds: dict[int, bytes | Iterable[bytes]], environ: dict[str, str]
    ) -> None:
        self.name = argv[0]
        self.result: Deferred[Exit] = Deferred(self._cancelled)
        self.timer: Any = None
        self._programs = programs
        self._argv = argv
        self._feeds = feeds
        self._environ = environ
        self._stderr = b""
        self._done = False
        self._exited = False
        self._linger: Any = None

    def start(self, reactor: Any, spawn: Callable[..., Any]) -> None:
        """Raises OSError."""
        self._reactor = reactor
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            descriptors: dict[int, int | str] = {0: nothing, 1: nothing, 2: "r"}
            descriptors.update(dict.fromkeys(self._feeds, "w"))
            spawn(reactor, self.name, self._argv, self._environ, None, self, None, None, descriptors)
        finally:
            os.close(nothing)

    def connectionMade(self) -> None:
        """It runs."""
        transport: Any = self.transport
        for descriptor, feed in self._feeds.items():
            if isinstance(feed, bytes):
                transport.writeToChild(descriptor, feed)
                transport.closeChildFD(descriptor)
            else:
                writer = transport.pipes[descriptor]
                writer.registerProducer(_Feed(iter(feed), writer, self._unfed), False)
        self._feeds = {}

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Of standard error."""
        if len(self._stderr) < _KEPT:
            self._stderr = (self._stderr + data)[:_KEPT]

    def childConnectionLost(self, childFD: int) -> None:
        """It closed one of its descriptors, as it may."""

    def processExited(self, reason: Failure) -> None:
        """The program itself has ended; what it has started may have not."""
        self._exited = True
        self._linger = self._reactor.callLater(_LINGER, self._cut)

    def _cut(self) -> None:
        """Let go of descriptors that somebody else still holds."""
        transport: Any = self.transport
        for pipe in tuple(transport.pipes.values()):
            pipe.connectionLost(Failure(ConnectionDone()))

    def processEnded(self, reason: Failure) -> None:
        """And all that it said has been read."""
        if self._linger is not None and self._linger.active():
            self._linger.cancel()
        self._programs.ended()
        ended: Any = reason.value
        if isinstance(ended, ProcessTerminated) and ended.signal is not None:
            self.fail(f"{self.name} was ended by signal {ended.signal}")
        elif self._finish():
            code = Exit(ended.exitCode)
            code.stderr = self._stderr
            self.result.callback(code)

    def late(self, seconds: Seconds) -> None:
        """Its time is over."""
        self._give_up()
        self.fail(f"{self.name} took longer than {seconds:g} s")

    def fail(self, text: str) -> None:
        """There will be no exit code, or nobody waits for it."""
        if self._finish():
            self.result.errback(ProgramTrouble(text, self._stderr))

    def _finish(self) -> bool:
        """Whether this is the end of it, which comes once."""
        if self._done:
            return False
        self._done = True
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        return True

    def _cancelled(self, _: object) -> None:
        if self._finish():
            self._give_up()

    def _unfed(self, failure: Failure) -> None:
        self._give_up()
        self.fail(f"what {self.name} was to be given cannot be read: {failure.getErrorMessage()}")

    def _give_up(self) -> None:
        transport: Any = self.transport
        if transport is None:
            self._programs.forget(self)
            return
        if not self._exited:  # else its number may be another's by now
            transport.kill()


@implementer(IPullProducer)
class _Feed:
    """Gives a program one piece after the other, each when it has read the one before."""

    def __init__(self, pieces: Iterator[bytes], writer: Any, failed: Callable[[Failure], None]) -> None:
        self._pieces = pieces
        self._writer = writer
        self._failed = failed

    def resumeProducing(self) -> None:
        """The next piece, or the end."""
        try:
            piece = next((piece for piece in self._pieces if piece), None)
        except Exception:  # noqa: BLE001 - whatever it is read from
            self._end()
            self._failed(Failure())
            return
        if piece is None:
            self._end()
        else:
            self._writer.write(piece)

    def stopProducing(self) -> None:
        """The program wants no more."""

    def _end(self) -> None:
        self._writer.unregisterProducer()
        self._writer.loseConnection()


class Group(Process):
    """
    A process that leads a group of its own.

    reactor.spawnProcess can't make one. And as it may fork, a program that
    can't be executed is to it one that ended with 1, which to a checker of
    recipients means "no such mailbox". Ours raises OSError.
    """

    def _fork(
        self, path: Any, uid: Any, gid: Any, executable: str, args: list[str], environment: Mapping[str, str],
        **kwargs: Any,
    ) -> None:  # fmt: skip
        fdmap: dict[int, int] = kwargs["fdmap"]
        moved: dict[int, int] = {}
        try:
            for child, parent in fdmap.items():
                moved[child] = fcntl.fcntl(parent, fcntl.F_DUPFD_CLOEXEC, _HIGH)
            self.pid = os.posix_spawn(
                executable,
                args,
                environment,
                file_actions=[(os.POSIX_SPAWN_DUP2, parent, child) for child, parent in moved.items()]
                + [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited() if descriptor not in moved],
                setpgroup=0,
                setsigdef=_DEFAULTS,
            )
        finally:
            for descriptor in moved.values():
                os.close(descriptor)
        self.status = -1

    def kill(self) -> None:
        """End it, and what it has started, at once; only while it has not been reaped."""
        assert self.pid is not None
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # what was wanted
        except PermissionError:
            _log.warn("process {pid} runs as somebody else and cannot be ended", pid=self.pid)


@cache
def _inherited() -> tuple[int, ...]:
    """
    The descriptors that whoever started us left to us and to our children.

    All others the kernel closes by itself (PEP 446), so that nobody has to go
    through thousands of connections to start a program.
    """
    found = []
    for name in os.listdir("/dev/fd"):
        try:
            if os.get_inheritable(int(name)):
                found.append(int(name))
        except OSError:
            pass  # the one that listdir itself read by
    return tuple(found)


def executable(program: str, folder: str = "") -> str:
    """
    The path of a program: with a slash in its name from *folder* on, else looked for in PATH.

    Raises ValueError, with a text for the operator, if there is none that we may execute.
    """
    if "/" not in program:
        found = shutil.which(program)
        if found is None:
            raise ValueError(f"there is no program {program} in PATH; say its whole path")
        return os.path.abspath(found)
    path = os.path.join(folder, program)
    try:
        facts = os.stat(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be run: {error.strerror}; say the whole path of a program") from None
    if not stat.S_ISREG(facts.st_mode) or not os.access(path, os.X_OK):
        raise ValueError(f"{path} is not executable for qmq's account; chmod it, or say another program")
    return path
