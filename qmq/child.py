"""
One worker as its main process sees it: a child process and the cord to it.

Nothing here judges or starts it again; qmq.processes does.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from itertools import count
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.cord import DESCRIPTOR, Cord
from qmq.mail import Octets, Seconds, value

# Private, writable memory beside what is counted as resident: stacks of 8 MiB, touched in their first pages
# alone. Measured: a worker with four threads has 32 MiB of it, the same under load.
_STACKS: Octets = 64 << 20
# The hard bound: between it and the soft one lies what a worker may take within a second.
_HARD = 1.25

log = Logger()


@value
class Crew:
    """
    What a worker is: its *roles* (the words of --only) and *words*, its listening sockets.

    Past *memory* octets (resident) it is killed and started again; None: no
    bound. *files* is how many descriptors it may have open; None: as many as
    we. *environ* is added to our environment.
    """

    name: str
    roles: tuple[str, ...]
    words: tuple[str, ...] = ()
    memory: Octets | None = None
    files: int | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


class WorkerTrouble(Exception):
    """A worker has not done what it was ordered; the text, for the operator, says why."""


class Child(ProcessProtocol):
    """
    A process that runs *crew*.

    *said(child, facts)* is called for what it tells, *ended(child)* when it is gone.
    """

    def __init__(
        self,
        reactor: Any,
        crew: Crew,
        said: Callable[[Child, dict[str, Any]], None],
        ended: Callable[[Child], None],
    ) -> None:
        self.crew = crew
        self.name = crew.name
        self.started: Seconds = reactor.seconds()
        self.heard: Seconds | None = None
        self.memory: Octets = 0
        self.away = False  # silent, as was told
        self.leaving = False  # it says so
        self.expected = False  # its end is no failure
        self.killed = False
        self.how = ""  # it ended
        self._reactor = reactor
        self._said = said
        self._ended = ended
        self._numbers = count(1)
        self._answers: dict[int, Deferred[Any]] = {}
        self._cord: Cord | None = None
        self._hard: Any = None
        self._waiting: list[Deferred[None]] = []

    def start(self, command: Sequence[str], environ: Mapping[str, str], sockets: Sequence[int]) -> None:
        """Start it, with *sockets* as its descriptors after the cord's; raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            descriptors = {0: 0, 1: 1, 2: 2, DESCRIPTOR: theirs.fileno()}
            descriptors.update(enumerate(sockets, DESCRIPTOR + 1))
            self._reactor.spawnProcess(self, command[0], list(command), dict(environ), childFDs=descriptors)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._cord = Cord(self._reactor, ours, self._hear, self._cut)
        self._cord.start()
        self.bound(self.crew)
        self._schedule(os.SCHED_BATCH)

    def begun(self) -> None:
        """It has been heard for the first time: from now on it is served like all others."""
        self._schedule(os.SCHED_OTHER)

    def _schedule(self, policy: int) -> None:
        """While it starts, which takes a core for half a second, it gives way to those who have mail."""
        if self.pid:
            with contextlib.suppress(OSError):  # gone, or forbidden here
                os.sched_setscheduler(self.pid, policy, os.sched_param(0))

    @property
    def pid(self) -> int:
        """Its process id; 0 if it has none (any more)."""
        return (self.transport.pid if self.transport is not None else None) or 0

    def bound(self, crew: Crew) -> None:
        """Have the kernel hold it to the bounds of *crew* from now on, as far as a running process allows that."""
        self.crew = crew
        if not self.pid:
            return
        try:
            # Not RLIMIT_AS: a worker of 60 MiB maps 360 (arenas that are reserved and not used).
            most = resource.prlimit(self.pid, resource.RLIMIT_DATA)[1]
            data = most if crew.memory is None else _least(int(crew.memory * _HARD) + _STACKS, most)
            resource.prlimit(self.pid, resource.RLIMIT_DATA, (data, most))
        except (OSError, ValueError) as error:
            log.warn("{worker}: no bound on its memory but ours: {error}", worker=self.name, error=error)
        if crew.files is not None:
            try:
                files = _least(crew.files, resource.prlimit(self.pid, resource.RLIMIT_NOFILE)[1])
                # The hard one too: a process raises its own soft one when it starts.
                resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (files, files))
            except (OSError, ValueError) as error:
                log.warn("{worker}: no bound on its descriptors: {error}", worker=self.name, error=error)

    def order(self, order: Mapping[str, Any], descriptors: Sequence[int], seconds: Seconds) -> Deferred[Any]:
        """Its answer; fails with WorkerTrouble, after *seconds* at the latest."""
        number = next(self._numbers)

        def forget(_: object) -> None:
            self._answers.pop(number, None)

        answer: Deferred[Any] = Deferred(forget)
        try:
            sent = self._cord is not None and self._cord.send({**order, "n": number}, descriptors)
        except OSError as error:
            return fail(WorkerTrouble(f"{self.name} cannot be given a socket: {error.strerror}"))
        if not sent:
            return fail(WorkerTrouble(f"{self.name} does not listen"))
        self._answers[number] = answer

        def late(result: Any, _: Seconds) -> Any:
            if isinstance(result, Failure) and result.check(CancelledError):
                raise WorkerTrouble(f"{self.name} did not answer within {seconds:g} s")
            return result

        return answer.addTimeout(seconds, self._reactor, late)

    def tell(self, facts: Mapping[str, Any]) -> None:
        """Tell the newest state of each subject."""
        if self._cord is not None:
            self._cord.tell(facts)

    def end(self, seconds: Seconds) -> Deferred[None]:
        """TERM, and after *seconds* KILL; fires when it is gone. It is expected."""
        self.expected = True
        self.signal(signal.SIGTERM)
        if self._hard is None:
            self._hard = self._reactor.callLater(seconds, self.kill)
        gone: Deferred[None] = Deferred()
        self._waiting.append(gone)
        return gone

    def kill(self) -> None:
        """At once."""
        self.killed = True
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """If it still lives."""
        try:
            if self.transport is not None:
                self.transport.signalProcess(number)
        except ProcessExitedAlready:
            pass  # what was wanted

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """It has no pipes to us."""

    def processEnded(self, reason: Failure) -> None:
        """It is gone, whatever the cause."""
        how: Any = reason.value
        self.how = f"killed by signal {how.signal}" if how.signal else f"exit code {how.exitCode or 0}"
        if self._hard is not None and self._hard.active():
            self._hard.cancel()
        if self._cord is not None:
            self._cord.close()
        self._cut()
        self._ended(self)
        waiting, self._waiting = self._waiting, []
        for gone in waiting:
            gone.callback(None)

    def _hear(self, message: dict[str, Any], descriptors: list[int]) -> None:
        for descriptor in descriptors:  # none is expected from below
            os.close(descriptor)
        if "facts" in message:
            self._said(self, message["facts"])
            return
        answer = self._answers.pop(message.get("n", 0), None)
        if answer is None:
            return  # too late
        if "error" in message:
            answer.errback(WorkerTrouble(f"{self.name}: {message['error']}"))
        else:
            answer.callback(message.get("answer"))

    def _cut(self) -> None:
        """No more answers come; without beats it is found to be silent."""
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            answer.errback(WorkerTrouble(f"{self.name} ended before it answered"))


def _least(wanted: int, most: int) -> int:
    return wanted if most == resource.RLIM_INFINITY else min(wanted, most)
