"""
The main process and its workers: who starts whom, and how each knows the other lives.

A worker is nothing but ``twistd qmq --only INSTANCE,INSTANCE`` with its
listening sockets inherited and two pipes: on descriptor 3 it beats once a
second and tells which instances refuse mail; descriptor 4 carries orders, and
its end means that the main process is gone, so the worker ends too. A worker
that is silent for 10 s is killed, and started again after a pause that grows
while it keeps failing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.internet.stdio import StandardIO
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.mail import Seconds
from qmq.sockets import INHERITED, Sockets

BEATS, ORDERS = 3, 4  # the child's descriptors
_FIRST_SOCKET = 5
# Marks a child, so that it looks for its parent.
CHILD = "QMQ_CHILD"
_BEAT: Seconds = 1.0
_SILENCE: Seconds = 10.0
# Until the first beat: imports, a long wait for a store's lock, a slow disk.
_START: Seconds = 60.0
_PAUSES: Sequence[Seconds] = (0.1, 0.5, 1, 2, 5, 10, 30)
_LONG_LIFE: Seconds = 60.0

log = Logger()


class Worker(ProcessProtocol):
    """One child process and what it says."""

    def __init__(self, name: str, told: Callable[[dict[str, Any]], None], gone: Callable[[Worker], None]) -> None:
        self.name = name
        self._told = told
        self._gone = gone
        self._buffer = b""
        self.ready = False
        self.heard: Seconds | None = None
        self.started: Seconds = 0
        self.failures = 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """Beats, one JSON object a line."""
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            self._told(json.loads(line))

    def processEnded(self, reason: Failure) -> None:
        """The child is gone, whatever the cause."""
        self._gone(self)

    def order(self, what: str) -> None:
        """Send one order: ``reload``."""
        if self.transport is not None:
            self.transport.writeToChild(ORDERS, what.encode() + b"\n")

    def end(self, sig: str) -> None:
        """Signal it, if it still lives."""
        try:
            if self.transport is not None:
                self.transport.signalProcess(sig)
        except ProcessExitedAlready:
            pass  # what was wanted


class Workers(Service):
    """
    Starts the workers, hears their beats, starts them again.

    *crews* maps a worker's name to the instances it runs; *told(instance,
    state)* passes on what a worker says of an instance, *all_ready* is called
    once, when each has said that it is ready. *stop_seconds* is what a worker
    may take to finish its deliveries.
    """

    def __init__(
        self,
        reactor: Any,
        sockets: Sockets,
        arguments: Sequence[str],
        crews: Mapping[str, Sequence[str]],
        words: Callable[[str], Sequence[str]],
        *,
        told: Callable[[str, dict[str, Any]], None],
        all_ready: Callable[[], None],
        stop_seconds: Seconds,
    ) -> None:
        self._reactor = reactor
        self._sockets = sockets
        self._arguments = arguments
        self._crews = crews
        self._words = words
        self._told = told
        self._all_ready = all_ready
        self._stop_seconds = stop_seconds
        self._workers: dict[str, Worker] = {}
        self._failures: dict[str, int] = {}
        self._restarts: dict[str, Any] = {}
        self._watch = LoopingCall(self._look)
        self._watch.clock = reactor
        self._stopped: Deferred[None] | None = None
        self._announced = False

    def startService(self) -> None:
        """Start all workers."""
        super().startService()
        for name in self._crews:
            self._start(name)
        if self._crews:
            self._watch.start(_BEAT, now=False)

    def stopService(self) -> Deferred[None]:
        """Ask all to stop; those that don't within their time are killed."""
        super().stopService()
        if self._watch.running:
            self._watch.stop()
        for call in self._restarts.values():
            call.cancel()
        self._restarts.clear()
        if not self._workers:
            return succeed(None)
        self._stopped = Deferred()
        for worker in self._workers.values():
            worker.end("TERM")
        hard = self._reactor.callLater(self._stop_seconds + 5, self._kill)
        return self._stopped.addBoth(lambda _: hard.cancel() if hard.active() else None)

    def order(self, what: str) -> None:
        """Tell every worker."""
        for worker in self._workers.values():
            worker.order(what)

    def pids(self) -> dict[str, int]:
        """The process id of each worker that runs."""
        return {name: worker.transport.pid for name, worker in self._workers.items() if worker.transport}

    def _kill(self) -> None:
        for worker in self._workers.values():
            worker.end("KILL")

    def _start(self, name: str) -> None:
        self._restarts.pop(name, None)
        worker = Worker(name, lambda said: self._hear(worker, said), self._lost)
        descriptors: dict[int, int | str] = {0: 0, 1: 1, 2: 2, BEATS: "r", ORDERS: "w"}
        inherited: list[str] = []
        for word in (word for instance in self._crews[name] for word in self._words(instance)):
            number = _FIRST_SOCKET + len(inherited)
            descriptors[number] = self._sockets.descriptor(word)
            inherited.append(f"{word}={number}")
        environ = {**os.environ, INHERITED: " ".join(inherited), CHILD: name}
        command = [
            sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *self._arguments,
            "--only", ",".join(self._crews[name]),
        ]  # fmt: skip
        worker.started = self._reactor.seconds()
        self._workers[name] = worker
        self._reactor.spawnProcess(worker, sys.executable, command, environ, childFDs=descriptors)

    def _hear(self, worker: Worker, said: dict[str, Any]) -> None:
        worker.heard = self._reactor.seconds()
        worker.ready = True
        for instance, state in said.get("states", {}).items():
            self._told(instance, state)
        if not self._announced and all(w.ready for w in self._workers.values()) and not self._restarts:
            self._announced = True
            self._all_ready()

    def _look(self) -> None:
        now = self._reactor.seconds()
        for worker in list(self._workers.values()):
            silent = now - (worker.started + _START - _SILENCE if worker.heard is None else worker.heard)
            if silent > _SILENCE:
                log.warn("{worker} has been silent for {silent:.0f} s: killed", worker=worker.name, silent=silent)
                worker.heard = now  # once
                worker.end("KILL")

    def _lost(self, worker: Worker) -> None:
        self._workers.pop(worker.name, None)
        if self._stopped is not None or not self.running:
            if not self._workers and self._stopped is not None:
                stopped, self._stopped = self._stopped, None
                stopped.callback(None)
            return
        failures = self._failures.get(worker.name, 0)
        lived = self._reactor.seconds() - worker.started
        self._failures[worker.name] = failures = 0 if lived > _LONG_LIFE else failures + 1
        pause = _PAUSES[min(failures, len(_PAUSES) - 1)]
        log.warn("{worker} ended; starting it again in {pause} s", worker=worker.name, pause=pause)
        self._restarts[worker.name] = self._reactor.callLater(pause, self._start, worker.name)


class Lifeline(Service):
    """
    The worker's side: beats, takes orders, ends with the main process.

    *states* gives what to say of each instance; *orders* maps an order to what
    it does.
    """

    def __init__(
        self, reactor: Any, states: Callable[[], dict[str, Any]], orders: Mapping[str, Callable[[], Any]]
    ) -> None:
        self._reactor = reactor
        self._states = states
        self._pipe = _Orders(orders, self._orphaned)
        self._beat = LoopingCall(self._tell)
        self._beat.clock = reactor

    def startService(self) -> None:
        """Begin to beat: the parent takes the first one for "ready"."""
        super().startService()
        # mypy sees the signature of another system
        StandardIO(self._pipe, stdin=ORDERS, stdout=BEATS, reactor=self._reactor)  # type: ignore[call-arg]
        self._beat.start(_BEAT)

    def _orphaned(self) -> None:
        if self._beat.running:
            self._beat.stop()
        if self.running:
            os.kill(os.getpid(), signal.SIGTERM)

    def _tell(self) -> None:
        if self._pipe.transport is not None:
            self._pipe.transport.write(json.dumps({"states": self._states()}).encode() + b"\n")


class _Orders(Protocol):
    """The two pipes to the main process."""

    def __init__(self, orders: Mapping[str, Callable[[], Any]], orphaned: Callable[[], None]) -> None:
        self._orders = orders
        self._orphaned = orphaned
        self._buffer = b""

    def dataReceived(self, data: bytes) -> None:
        """Orders, one word a line."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            order = self._orders.get(line.decode())
            if order is not None:
                order()

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The main process is gone: finish and go too."""
        self._orphaned()
