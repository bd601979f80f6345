"""
The main process and its workers: who starts whom, and how each knows the other lives.

A worker is nothing but ``twistd qmq --only INSTANCE,INSTANCE`` with its
listening sockets inherited and a cord to the main process on descriptor 3. It
beats once a second. One that is silent for 3 s is told of as away; silent for
10 s, or past its memory, it is killed, and started again after a pause that
grows while it keeps failing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from qmq.child import Child, Crew, WorkerTrouble
from qmq.cord import CHILD, DESCRIPTOR
from qmq.lifeline import BEAT, resident
from qmq.mail import Clock, Octets, Seconds, value
from qmq.sockets import INHERITED, LOCKS, Sockets

__all__ = ["Crew", "Standing", "WorkerTrouble", "Workers"]

_AWAY: Seconds = 3.0
_SILENCE: Seconds = 10.0
# Until the first beat: imports, a long wait for a store's lock, a slow disk.
_START: Seconds = 60.0
_PAUSES: Sequence[Seconds] = (0.1, 0.5, 1, 2, 5, 10, 30)
_LONG_LIFE: Seconds = 60.0
# After what it may take to finish its deliveries.
_SLACK: Seconds = 5.0
# What systemd has for the main process alone, and what one main process has for the next.
_OURS = {
    "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", LOCKS,
}  # fmt: skip

log = Logger()


@value
class Standing:
    """How a worker stands: for the operator."""

    name: str
    roles: tuple[str, ...]
    pid: int  # 0: it does not run, and is started again after a pause
    since: Seconds  # wall clock; 0 if it does not run
    restarts: int
    memory: Octets
    silent: Seconds | None  # None: it has said nothing yet


class Workers(Service):
    """
    Starts the workers, hears their beats, starts them again.

    *command* starts a worker, ``--only ROLE,ROLE`` is added; *stop_seconds* is
    what it may take to finish. *told(worker, said)* passes on each beat:
    ``states`` of its instances, ``memory``. *away(worker)* is called when it is
    silent or ends; when it is told of again, it is back. *all_ready* is called
    once, when each worker has been heard, or has failed, and not all of them have.
    """

    def __init__(
        self,
        reactor: Any,
        sockets: Sockets,
        command: Sequence[str],
        *,
        told: Callable[[str, dict[str, Any]], None],
        away: Callable[[str], None],
        all_ready: Callable[[], None],
        stop_seconds: Seconds,
        wall: Clock = time.time,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._command = command
        self._told = told
        self._away = away
        self._all_ready = all_ready
        self._patience = stop_seconds + _SLACK
        self._wall = wall
        self._crews: dict[str, Crew] = {}
        self._children: dict[str, Child] = {}
        self._failures: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._restarts: dict[str, Any] = {}
        self._awaited: dict[str, list[Deferred[None]]] = {}
        self._looked: Seconds = 0.0
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor
        self._announced = False
        self._settled: set[str] = set()

    def startService(self) -> None:
        """Start all workers."""
        super().startService()
        for name in list(self._crews):
            self._start(name)
        self._looked = self._reactor.seconds()
        self._watch.start(BEAT, now=False).addErrback(
            lambda failure: log.failure("nobody watches the workers", failure)
        )

    def stopService(self) -> Deferred[Any]:
        """Ask all to stop; those that don't within their time are killed."""
        super().stopService()
        if self._watch.running:
            self._watch.stop()
        for call in self._restarts.values():
            call.cancel()
        self._restarts.clear()
        return gatherResults([child.end(self._patience) for child in list(self._children.values())])

    def add(self, crew: Crew) -> None:
        """
        One more worker, started now, or with the others.

        One of this name that is about to leave is replaced when it has left.
        Raises ValueError if there is one that stays.
        """
        if crew.name in self._crews:
            raise ValueError(f"there is a worker {crew.name} already")
        self._crews[crew.name] = crew
        if self.running and crew.name not in self._children:
            self._start(crew.name)

    def remove(self, name: str) -> Deferred[None]:
        """Stop it in order, and don't start it again; fires when it is gone."""
        self.expect(name)
        child = self._children.get(name)
        return succeed(None) if child is None else child.end(self._patience)

    def expect(self, name: str) -> None:
        """From now on its end is no failure, and it is not started again: it was told to leave."""
        self._crews.pop(name, None)
        self._failures.pop(name, None)
        if (call := self._restarts.pop(name, None)) is not None:
            call.cancel()
        if (child := self._children.get(name)) is not None:
            child.expected = True

    def ended(self, name: str) -> Deferred[None]:
        """Fires when its process has ended by itself; at once if none runs."""
        ended: Deferred[None] = Deferred()
        if name in self._children:
            self._awaited.setdefault(name, []).append(ended)
        else:
            ended.callback(None)
        return ended

    def change(self, crew: Crew) -> None:
        """
        What the worker of this name is from now on: its bounds at once, roles and sockets when it is started again.

        One that runs is to be ordered to take up the new roles, with the new
        sockets sent along. Raises KeyError if there is no such worker.
        """
        self._crews[crew.name]  # it must be there
        self._crews[crew.name] = crew
        if (child := self._children.get(crew.name)) is not None:
            child.bound(crew)

    def order(
        self, name: str, order: Mapping[str, Any], words: Sequence[str] = (), *, seconds: Seconds = 30.0
    ) -> Deferred[Any]:
        """
        What a worker answers to ``{"do": WORD, ...}``; the sockets *words* are sent along, their names as ``words``.

        One that is starting answers when it is up. Fails with WorkerTrouble.
        """
        child = self._children.get(name)
        if child is None:
            return fail(WorkerTrouble(f"{name} does not run"))
        whole = {**order, "words": list(words)} if words else order
        return child.order(whole, [self._sockets.descriptor(word) for word in words], seconds)

    def order_all(self, order: Mapping[str, Any], *, seconds: Seconds = 30.0) -> Deferred[dict[str, Any]]:
        """What each of the workers that run answers, by name: its answer, or the WorkerTrouble there was with it."""
        names = list(self._children)
        answers = [self.order(name, order, seconds=seconds) for name in names]
        for answer in answers:
            answer.addErrback(lambda failure: (failure.trap(WorkerTrouble), failure.value)[1])
        return gatherResults(answers).addCallback(lambda said: dict(zip(names, said, strict=True)))

    def tell(self, name: str, facts: Mapping[str, Any]) -> None:
        """Tell a worker, if it runs, the present state of each subject; to one that does not read, the newest later."""
        if (child := self._children.get(name)) is not None:
            child.tell(facts)

    def tell_all(self, facts: Mapping[str, Any]) -> None:
        """Tell every worker."""
        for child in self._children.values():
            child.tell(facts)

    def pids(self) -> dict[str, int]:
        """The process id of each worker that runs."""
        return {name: child.pid for name, child in self._children.items() if child.pid}

    def standings(self) -> list[Standing]:
        """All workers, those in a pause before they are started again too."""
        now, wall = self._reactor.seconds(), self._wall()
        found = []
        for name in sorted(self._crews.keys() | self._children.keys()):
            child = self._children.get(name)
            restarts = max(0, self._starts.get(name, 0) - 1)
            if child is None:
                found.append(Standing(name, self._crews[name].roles, 0, 0, restarts, 0, None))
                continue
            silent = None if child.heard is None else max(0.0, now - child.heard)
            since = wall - (now - child.started)
            found.append(Standing(name, child.crew.roles, child.pid, since, restarts, child.memory, silent))
        return found

    def _start(self, name: str) -> None:
        self._restarts.pop(name, None)
        crew = self._crews[name]
        child = Child(self._reactor, crew, self._hear, self._lost)
        inherited = " ".join(f"{word}={number}" for number, word in enumerate(crew.words, DESCRIPTOR + 1))
        environ = {k: v for k, v in os.environ.items() if k not in _OURS}
        environ |= {**crew.environ, INHERITED: inherited, CHILD: name}
        self._starts[name] = self._starts.get(name, 0) + 1
        try:
            sockets = [self._sockets.descriptor(word) for word in crew.words]
            child.start([*self._command, "--only", ",".join(crew.roles)], environ, sockets)
        except (OSError, KeyError) as error:  # KeyError: a socket that was dropped meanwhile
            self._again(child, f"could not be started ({error})")
        else:
            self._children[name] = child

    def _hear(self, child: Child, said: dict[str, Any]) -> None:
        if child.heard is None:
            child.begun()
        child.heard = self._reactor.seconds()
        child.away = False
        child.leaving = bool(said.get("leaving"))
        child.memory = said.get("memory", 0)
        with log.failuresHandled("what {worker} told was not understood", worker=child.name):
            self._told(child.name, said)
        self._settle(child.name)

    def _settle(self, name: str) -> None:
        """It is up, or has failed: the others' readiness does not wait for its next start."""
        self._settled.add(name)
        some = any(child.heard is not None for child in self._children.values())
        if not self._announced and some and self._settled >= self._crews.keys():
            self._announced = True
            self._all_ready()

    def _look(self) -> None:
        now = self._reactor.seconds()
        late, self._looked = now - self._looked - BEAT, now
        for child in list(self._children.values()):
            if late > BEAT:
                # It is we who were stopped or held up: nobody has been silent for that long.
                child.started += late
                child.heard = None if child.heard is None else child.heard + late
            self._judge(child, now)

    def _judge(self, child: Child, now: Seconds) -> None:
        # By our own eyes: one whose thread is blocked tells nothing while it grows.
        child.memory = resident(child.pid) or child.memory
        if child.killed:
            return
        if child.crew.memory is not None and child.memory > child.crew.memory:
            log.warn(
                "{worker} uses {memory} octets of memory, more than its {most}: killed",
                worker=child.name, memory=child.memory, most=child.crew.memory,
            )  # fmt: skip
            child.kill()
            return
        silent = now - (child.started if child.heard is None else child.heard)
        if silent > self._most_silent(child):
            log.warn("{worker} has been silent for {silent:.0f} s: killed", worker=child.name, silent=silent)
            child.kill()
        elif silent > _AWAY and child.heard is not None and not child.away:
            child.away = True
            self._away(child.name)

    def _most_silent(self, child: Child) -> Seconds:
        if child.heard is None:
            return _START
        # It may wait for its last jobs when its reactor has ended.
        return max(self._patience, _SILENCE) if child.leaving or child.expected else _SILENCE

    def _lost(self, child: Child) -> None:
        self._children.pop(child.name, None)
        if not child.away:
            child.away = True
            self._away(child.name)
        for ended in self._awaited.pop(child.name, ()):
            ended.callback(None)
        if not self.running or child.name not in self._crews:
            return
        if child.expected:
            self._start(child.name)  # in its place, as was wanted
        else:
            self._again(child, f"ended ({child.how})")

    def _again(self, child: Child, what: str) -> None:
        name = child.name
        lived = self._reactor.seconds() - child.started
        self._failures[name] = failures = 0 if lived > _LONG_LIFE else self._failures.get(name, 0) + 1
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        log.warn("{worker} {what}; starting it again in {pause} s", worker=name, what=what, pause=pause)
        self._restarts[name] = self._reactor.callLater(pause, self._start, name)
        self._settle(name)
