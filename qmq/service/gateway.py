"""The whole of one process: which roles it runs, its sockets, its workers, its signals."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.admin.control import ControlFactory, Desk
from qmq.conf.load import load
from qmq.conf.model import Conf, Instance
from qmq.conf.written import ConfErrors
from qmq.privileges import CannotDrop, become, own
from qmq.processes import CHILD, Lifeline, Workers
from qmq.routing import InProcess
from qmq.service import instance as instances
from qmq.service import primary as primaries
from qmq.service.common import House, open_house, say
from qmq.service.handover import hop_to
from qmq.service.instance import InstanceService
from qmq.service.primary import PrimaryService
from qmq.sockets import CannotListen, Listener, Sockets, reachable

log = Logger()


def crews(conf: Conf) -> dict[str, tuple[str, ...]]:
    """Which worker runs which instances: `process = own` has one of its own, the rest are dealt out evenly."""
    dealt: dict[str, list[str]] = {}
    local = [i for i in conf.instances if not i.handover.host]
    shared = [i for i in local if i.process != "own"]
    for n, instance in enumerate(shared):
        dealt.setdefault(f"worker-{n % max(1, conf.general.workers) + 1}", []).append(instance.name)
    for instance in local:
        if instance.process == "own":
            dealt[f"worker-{instance.name}"] = [instance.name]
    return {name: tuple(crew) for name, crew in dealt.items()}


class Gateway(MultiService):
    """
    The root of the service tree.

    Without *only* and with workers: primary here, instances in workers. With
    ``workers = 0``: all here, and a hand-over is a call. With *only*: those
    roles and no others, with inherited sockets if a main process started us.
    """

    def __init__(self, reactor: Any, conf: Conf, only: Sequence[str], environ: Mapping[str, str]) -> None:
        super().__init__()
        self._reactor = reactor
        self._conf = conf
        self._child = environ.get(CHILD, "")
        self._sockets = Sockets()
        self._sockets.inherit(environ)
        names = [i.name for i in conf.instances if not i.handover.host]
        self._crews = {} if only or not conf.general.workers else crews(conf)
        self._primary_here = not only or "primary" in only
        self._here = [name for name in names if (name in only if only else not self._crews)]
        self._process = self._child or ("-".join(only) if only else "main")
        self._house: House | None = None
        self.primary: PrimaryService | None = None
        self.instances: dict[str, InstanceService] = {}
        self._workers: Workers | None = None

    def privilegedStartService(self) -> None:
        """As root, if we are: folders and sockets, then never root again."""
        try:
            self._prepare()
        except (CannotListen, CannotDrop, OSError) as error:
            say(f"qmq cannot start: {error}")
            sys.exit(1)
        super().privilegedStartService()

    def _prepare(self) -> None:
        conf = self._conf
        _more_descriptors()
        for folder in (conf.general.spool, os.path.join(conf.general.spool, "run")):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            own(folder, conf.general.user)
        for instance in conf.instances:
            os.makedirs(instance.spool, mode=0o700, exist_ok=True)
            own(instance.spool, conf.general.user)
        if not self._child:
            wanted = self._listeners()
            self._sockets.open(wanted)
            for listener in wanted:
                if listener.path:
                    own(reachable(listener.path), conf.general.user)
                    own(reachable(listener.path) + ".lock", conf.general.user)
        become(conf.general.user)

    def startService(self) -> None:
        """Open the stores, listen, start the workers; say so in one line when all is ready."""
        self._house = house = open_house(self._reactor, self._conf)
        for name in self._here:
            service = InstanceService(house, self._conf.instance(name), self._sockets)
            self.instances[name] = service
            service.setServiceParent(self)
        for service in self.instances.values():
            service.bounce_to(partial(self._bounce_hop, house, service))
        if self._primary_here:
            self.primary = PrimaryService(house, self._sockets, self.instances)
            self.primary.setServiceParent(self)
        self._add_workers()
        super().startService()
        self._signals()
        started: list[Deferred[None]] = [s.started for s in self.instances.values()]
        if self.primary is not None:
            started.append(self.primary.started)
        gatherResults(started, consumeErrors=True).addCallbacks(self._up, self._trouble)

    def stopService(self) -> Deferred[None]:
        """Workers and instances finish or give back what is in flight."""
        stopped: Deferred[None] = super().stopService()
        return stopped.addBoth(self._last)

    def reload(self) -> str:
        """Read conf-qmq again; with errors nothing changes. What was done, for the operator."""
        house = self._house
        if house is None:
            return "not started yet"
        try:
            conf = load(self._conf.path, rules=not self._child)
        except ConfErrors as errors:
            log.error("conf-qmq was not reloaded: {errors}", errors=str(errors))  # noqa: TRY400 - no traceback for a mistake
            return f"not reloaded: {errors}"
        fixed = _fixed(self._conf, conf)
        if fixed:
            return f"not reloaded: {fixed}; restart for that"
        house.conf = self._conf = conf
        for name, service in self.instances.items():
            service.reconfigure(conf.instance(name))
        if self.primary is not None:
            self.primary.reconfigure()
        if self._workers is not None:
            self._workers.order("reload")
        log.info("conf-qmq reloaded")
        return "reloaded"

    def due_now(self) -> None:
        """SIGALRM, as for qmail-send: everything is due."""
        for service in self.instances.values():
            service.queue.due_now({})
        if self._workers is not None:
            self._workers.order("now")

    def _listeners(self) -> list[Listener]:
        wanted = primaries.listeners(self._conf) if self._primary_here else []
        crewed = {name for crew in self._crews.values() for name in crew}
        for instance in self._conf.instances:
            if instance.name in crewed or instance.name in self._here:
                wanted += instances.listeners(self._conf, instance)
        control = os.path.join(self._conf.general.spool, "run", f"{self._process}.control")
        return [*wanted, Listener("control", path=control)]

    def _bounce_hop(self, house: House, service: InstanceService, low: Callable[[], int]) -> Any:
        """Where an instance's bounces go: to the bounce instance, else to the default one, else to its own queue."""
        target: Instance | None = house.conf.bounces or house.conf.default
        if target is None or target.name == service.name:
            return InProcess(service.queue, low)
        return hop_to(house, target, self.instances, low)

    def _add_workers(self) -> None:
        if self._crews:
            conf = self._conf
            self._workers = Workers(
                self._reactor, self._sockets, ["-n", "--pidfile=", "qmq", "--conf", conf.path], self._crews,
                lambda name: [w.word for w in instances.listeners(conf, conf.instance(name))],
                told=self._told, all_ready=self._ready, stop_seconds=conf.general.stop,
            )  # fmt: skip
            self._workers.setServiceParent(self)
        if self._child:
            orders = {"reload": self.reload, "now": self.due_now}
            self._lifeline = Lifeline(self._reactor, self._states, orders)

    def _told(self, name: str, state: dict[str, Any]) -> None:
        if self.primary is not None:
            self.primary.intake.tell(name, state)

    def _states(self) -> dict[str, Any]:
        return {name: service.state() for name, service in self.instances.items()}

    def _up(self, _: Any) -> None:
        # What is here now stays: the collector need not look at it again. A
        # message makes some fifty objects and no cycles.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        queues = {name: service.queue for name, service in self.instances.items()}
        if self.primary is not None:
            queues["primary"] = self.primary.queue
        desk = Desk(self._process, queues, self._about, self.reload)
        if self._child:
            control = os.path.join(self._conf.general.spool, "run", f"{self._child}.control")
            self._sockets.open([Listener("control", path=control)])
            self._lifeline.setServiceParent(self)
        self._sockets.adopt(self._reactor, "control", ControlFactory(desk))
        if self.primary is not None:
            self.primary.watch(self._states)
        if not self._crews and not self._child:
            self._ready()

    def _ready(self) -> None:
        addresses = " ".join(f"{w.word.partition('/')[0]}={w.address}" for w in self._listeners() if not w.path)
        here = len(self._conf.instances)
        say(f"qmq ready: {addresses} ({here} instances, spool {self._conf.general.spool})")

    def _trouble(self, failure: Failure) -> None:
        cause: Any = failure.value
        if isinstance(cause, FirstError):
            cause = cause.subFailure.value
        log.critical("cannot start: {cause}", cause=cause)
        say(f"qmq cannot start: {cause}")
        self._reactor.exitStatus = 1
        if self._reactor.running:
            self._reactor.stop()

    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = {}
        if self._workers is not None:
            about["workers"] = self._workers.pids()
        if self.primary is not None:
            about["primary"] = self.primary.about()
        return about

    def _signals(self) -> None:
        def stop(*_: Any) -> None:
            # Once: a terminal's Ctrl-C comes to a worker as well as the main process's TERM.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._reactor.callFromThread(self._reactor.stop)

        def install() -> None:
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN if self._child else stop)
            signal.signal(signal.SIGHUP, lambda *_: self._reactor.callFromThread(self.reload))
            signal.signal(signal.SIGALRM, lambda *_: self._reactor.callFromThread(self.due_now))

        self._reactor.callWhenRunning(install)

    def _last(self, result: Any) -> Any:
        if self._house is not None:
            self._house.close()
        self._sockets.close()
        return result


def _more_descriptors() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fixed(old: Conf, new: Conf) -> str:
    """What differs and can't be changed without a restart; empty if nothing."""
    if old.primary.listen != new.primary.listen:
        return "[primary] listen has changed"
    if (old.general.spool, old.general.user, old.general.workers) != (
        new.general.spool, new.general.user, new.general.workers,
    ):  # fmt: skip
        return "spool, user or workers has changed"
    if [(i.name, i.number, i.spool, i.handover, i.process, i.qmtp_listen) for i in old.instances] != [
        (i.name, i.number, i.spool, i.handover, i.process, i.qmtp_listen) for i in new.instances
    ]:
        return "instances came or went, or changed spool, handover, process or qmtp-listen"
    return ""
