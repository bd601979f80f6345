"""
A restart that refuses nobody: a new main process takes over the listening sockets, old sessions finish.

The new process is started with all sockets and locks of the old one, reads
conf-qmq, and says "loaded"; until then nothing has changed. Then the old one
stops accepting (connections wait in the kernel), says "go", and lets go of the
stores: its workers end, its sessions go on, with a store of their own for what
is uncertain, and hand over to the new workers by the same unix sockets. When
the last session is over the old process ends, and the new one inherits what
is left in its store. A new process that dies before it is ready has changed
nothing: the old one goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred, succeed
from twisted.internet.error import ProcessExitedAlready, ReactorNotRunning
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.admin.words import Say
from qmq.conf.written import ConfErrors
from qmq.cord import Cord
from qmq.interfaces import SpoolTrouble
from qmq.paths import reachable
from qmq.service.common import sweep_controls
from qmq.service.crews import COMMAND, takes_mail
from qmq.sockets import Listener
from qmq.spool.lock import Lock
from qmq.stand_in import PASSED_ON, adopt, children

if TYPE_CHECKING:
    from qmq.service.gateway import Gateway

# The successor's descriptor of the cord to its predecessor.
SUCCEEDS = "QMQ_SUCCEEDS"
# A stand-in waits at the place of the first main process, and adopts the later ones.
STAND_IN = "QMQ_STAND_IN"
_CORD = 3
# Reading conf-qmq and its files may take long, the stores of the old workers too.
_PATIENCE = 120.0
# Whether there still is a main process: so often a leaving one looks.
_LOOK = 2.0
# So long whoever asked for the restart may take to read the answer, before the one who gave it ends.
_LAST_WORDS = 0.5

log = Logger()


class Succession:
    """Both sides of it, for one process."""

    def __init__(self, gateway: Gateway, environ: MutableMapping[str, str]) -> None:
        self._gateway = gateway
        self._before = environ.pop(SUCCEEDS, "")
        self._stands_in = environ.get(STAND_IN, "")
        self._predecessor: Cord | None = None
        self._turn: Deferred[None] = Deferred()
        self._successor: _Successor | None = None
        self.leaving = False
        self._watch = LoopingCall(self._look)
        self._watch.clock = gateway.reactor

    # The new process

    @property
    def succeeds(self) -> bool:
        """Whether another process was here before us, whose clients are served on without a pause."""
        return bool(self._before)

    def turn(self) -> Deferred[None]:
        """Fires when it is our turn to open stores and sockets; at once if nobody was here before us."""
        if not self._before:
            return succeed(None)
        self._predecessor = Cord(
            self._gateway.reactor, socket.socket(fileno=int(self._before)), self._told, self._orphaned
        )
        self._predecessor.start()
        self._predecessor.send({"say": "loaded"})
        return self._turn

    def done(self) -> None:
        """All is up here: the old process need not come back."""
        if self._predecessor is not None:
            self._predecessor.send({"say": "ready"})
            self._gateway.sockets.own()

    def _told(self, message: Mapping[str, Any], _: list[int]) -> None:
        if message.get("say") == "go" and not self._turn.called:
            self._turn.callback(None)

    def _orphaned(self) -> None:
        self._gateway.sockets.own()
        # A process that is killed loses its locks a moment later than the cord.
        self._gateway.reactor.callLater(1, sweep_controls, self._gateway.conf)
        if not self._turn.called:  # killed before it let us begin; its sockets and locks are ours now
            self._turn.callback(None)

    # The old process

    async def restart(self, request: Mapping[str, Any], say: Say) -> None:
        """`qmq restart`. Raises ValueError: why all goes on as before."""
        gateway = self._gateway
        if self.leaving or self._successor is not None:
            raise ValueError("a restart is under way")
        # A file that is wrong by our lights may be right by those of a new version; then it says so itself.
        with contextlib.suppress(ConfErrors):
            gateway.reloading.consider()
        successor = self._successor = self._start()
        try:
            await successor.says("loaded")
            say({"step": f"process {successor.pid} has read {gateway.conf.path}"})
            self._hand_over()
            successor.cord.send({"say": "go"})
            say({"step": "connections wait for it; sessions here go on"})
            await self._let_go()
            say({"step": "the stores are free"})
            await successor.says("ready")
            gateway.known.forget()  # our workers have ended, and the new ones listen at the same sockets
        except _Died as died:
            self._successor = None
            if self.leaving:
                self._come_back()
            raise ValueError(f"the new process ended ({died}); its words are in the log; the old one goes on") from None
        log.info("process {pid} has taken over", pid=successor.pid)
        say({"step": f"process {successor.pid} is the gateway", "pid": successor.pid})
        await self._tell_supervisor(successor.pid)
        self._finish()

    def leave(self) -> None:
        """A worker that takes mail: no new clients; it ends with its last session."""
        primary = self._gateway.primary
        if primary is not None:
            self.leaving = True
            primary.leave().addCallback(lambda _: self._gateway.reactor.stop())
            for listener in self._gateway.listeners(self._gateway.conf):
                self._gateway.sockets.drop(listener.word)  # whoever comes next may have to open it anew

    def stopped(self) -> None:
        """We were told to stop while the last sessions go on: whoever told us means the gateway."""
        if self._successor is not None and self.leaving and not self._gateway.notifier.heirloom:
            _pass_on(signal.SIGTERM)

    def hung_up(self) -> bool:
        """Whether a SIGHUP was for the new process, and is passed on."""
        if self._successor is None or not self.leaving:
            return False
        _pass_on(signal.SIGHUP)
        return True

    def _start(self) -> _Successor:
        gateway = self._gateway
        ours, theirs = socket.socketpair()
        sockets, environ = gateway.sockets.hand_down(_CORD + 1)
        command = [*COMMAND, "--conf", gateway.conf.path, *(["--only", ",".join(gateway.only)] if gateway.only else [])]
        environ = {**os.environ, **gateway.notifier.heirloom, **environ, SUCCEEDS: str(_CORD), STAND_IN: "1"}
        successor = _Successor(gateway.reactor, ours)
        descriptors = {0: 0, 1: 1, 2: 2, _CORD: theirs.fileno(), **sockets}
        try:
            gateway.reactor.spawnProcess(successor, command[0], command, environ, childFDs=descriptors)
        finally:
            theirs.close()
        return successor

    def _hand_over(self) -> None:
        """Accept nothing more, clients nor commands: what comes waits in the kernel."""
        gateway = self._gateway
        self.leaving = True
        gateway.control.stopListening()
        self._over = [] if gateway.primary is None else [gateway.primary.leave()]

    async def _let_go(self) -> None:
        """Of the stores; the ways to the queues of this process lead to the new one's from here on."""
        gateway = self._gateway
        gateway.known.forget()
        here = list(gateway.instances.values())
        gateway.instances.clear()
        ending: list[Deferred[Any]] = []
        for service in (gateway.primary, gateway.heirs):
            if service is not None:
                service.reconfigure()
        if gateway.heirs is not None:
            ending.append(maybeDeferred(gateway.heirs.disownServiceParent))
            gateway.heirs = None
        ending += [maybeDeferred(service.disownServiceParent) for service in here]
        if gateway.workers is not None:
            apart = [name for name in gateway.crews if takes_mail(name)]
            for name in apart:
                # It ends with its own last session, and that is no failure.
                gateway.workers.order(name, {"do": "leave"}).addErrback(lambda _: None)
                gateway.workers.expect(name)
                self._over.append(gateway.workers.ended(name))
            ending += [gateway.workers.remove(name) for name in gateway.crews if name not in apart]
        await gatherResults(ending, consumeErrors=True)

    def _come_back(self) -> None:
        """Nobody took over."""
        gateway = self._gateway
        log.error("the new process ended before it was ready; this one goes on")
        self.leaving = False
        gateway.serve_commands()
        if gateway.primary is not None:
            gateway.primary.come_back()
        gateway.resume()

    async def _tell_supervisor(self, pid: int) -> None:
        """It must hear this of us before we end; a queue of its that is full for long is not waited for."""
        for _ in range(100):
            if self._gateway.notifier.main_pid(pid):
                return
            await deferLater(self._gateway.reactor, 0.1)
        log.error("the supervisor was not told of process {pid}", pid=pid)

    def _look(self) -> None:
        """Whoever watches this process, or the one that took over, shall see it when there is no gateway any more."""
        gateway = self._gateway
        lock = Lock(reachable(gateway.control_listener().path) + ".lock")
        try:
            lock.take()
        except SpoolTrouble:
            return  # a main process has it
        lock.drop()
        self._watch.stop()
        log.critical("the process that has taken over is gone: this one ends, too")
        gateway.reactor.exitStatus = 1
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(ReactorNotRunning):  # it is ending already
            self._gateway.reactor.stop()

    def _finish(self) -> None:
        """With the last session this process ends; until then it can be asked, under a name of its own."""
        gateway = self._gateway
        gateway.sockets.disown()
        gateway.sockets.let_go()
        self._watch.start(_LOOK, now=False).addErrback(lambda failure: log.failure("the watch broke", failure))
        stands_in = not (gateway.notifier.heirloom or self._stands_in)
        if stands_in:
            adopt()
        name = f"{gateway.process}-{os.getpid()}.control"
        gateway.sockets.open([Listener("leaving", path=os.path.join(gateway.conf.general.spool, "run", name))])
        gateway.serve_commands("leaving")

        def over(_: Any) -> None:
            if stands_in and self._watch.running:
                # Whoever watches this process (a terminal, a container, svscan) goes on seeing the gateway in it.
                gateway.reactor.addSystemEventTrigger("after", "shutdown", _stand_in)
            self._end()

        told: Deferred[None] = deferLater(gateway.reactor, _LAST_WORDS)
        gatherResults([*self._over, told], consumeErrors=True).addBoth(over)


def _pass_on(number: int) -> None:
    """To our successor, or to the one that it has left to us."""
    for pid in children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class _Died(Exception):
    """The new process ended before it was ready."""


class _Successor(ProcessProtocol):
    """The new process, and what it says."""

    def __init__(self, reactor: Any, end: socket.socket) -> None:
        self.cord = Cord(reactor, end, self._told, lambda: None)
        self.cord.start()
        self._said: set[str] = set()
        self._ended = ""
        self._awaited: dict[str, Deferred[None]] = {}
        self._late = reactor.callLater(_PATIENCE, self.signal, "KILL")

    @property
    def pid(self) -> int:
        """Its process id."""
        return (self.transport.pid if self.transport is not None else None) or 0

    def says(self, word: str) -> Deferred[None]:
        """Fires when it has said so; fails with _Died."""
        if word in self._said:
            return succeed(None)
        if self._ended:
            return fail(_Died(self._ended))
        self._awaited[word] = awaited = Deferred[None]()
        return awaited

    def signal(self, sig: str) -> None:
        """If it still lives."""
        try:
            if self.transport is not None:
                self.transport.signalProcess(sig)
        except ProcessExitedAlready:
            pass  # what was wanted, or too late

    def processEnded(self, reason: Failure) -> None:
        """Whoever waits for a word of it waits in vain."""
        self._ended = reason.getErrorMessage()
        if self._late.active():
            self._late.cancel()
        for awaited in self._awaited.values():
            awaited.errback(_Died(self._ended))
        self._awaited.clear()

    def _told(self, message: Mapping[str, Any], _: list[int]) -> None:
        word = str(message.get("say"))
        self._said.add(word)
        if word == "ready" and self._late.active():
            self._late.cancel()
        if (awaited := self._awaited.pop(word, None)) is not None:
            awaited.callback(None)


def _stand_in() -> None:
    """Become a process that only waits for the new one, and passes signals on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # one that comes meanwhile is passed on a moment later
    os.execv(sys.executable, [sys.executable, "-m", "qmq.stand_in"])  # noqa: S606 - that is what is wanted
