"""The whole of one process: which roles it runs, its sockets, its workers, its signals."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import asdict
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, FirstError, ensureDeferred, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.admin.control import ControlFactory, Desk
from qmq.conf.explain import census
from qmq.conf.model import Conf
from qmq.cord import CHILD
from qmq.lifeline import Lifeline
from qmq.mail import Seconds
from qmq.notify import Notifier, listen_fds, matched
from qmq.paths import reachable
from qmq.privileges import CannotDrop, become, own
from qmq.processes import Workers
from qmq.service.common import House, mark, more_descriptors, open_house, say, spare_collector, sweep_controls
from qmq.service.crews import COMMAND, Roles, crew, crews, free_stores, listeners, takes_mail
from qmq.service.handover import Hops
from qmq.service.heirs import Heirs
from qmq.service.instance import InstanceService
from qmq.service.known import Known
from qmq.service.primary import PrimaryService
from qmq.service.reload import Reload
from qmq.service.succession import Succession
from qmq.sockets import CannotListen, Listener, Sockets

log = Logger()

# So long clients wait for the workers' instances at a start; longer, and their mail is kept by the primary.
_PATIENCE: Seconds = 3


class Gateway(MultiService):
    """
    The root of the service tree.

    Without *only* and with workers: primary here, instances in workers. With
    ``workers = 0``: all here, and a hand-over is a call. With *only*: those
    roles and no others, with inherited sockets if a main process started us.
    """

    def __init__(self, reactor: Any, conf: Conf, only: Sequence[str], environ: MutableMapping[str, str]) -> None:
        super().__init__()
        self.reactor = reactor
        self.conf = conf
        self.only = tuple(only)
        self.child = environ.get(CHILD, "")
        self.sockets = Sockets()
        self.sockets.inherit(environ)
        self.reloading = Reload(self)
        self.succession = Succession(self, environ)
        self.process = self.child or ("-".join(only) if only else "main")
        self.known = Known(self)
        self.stores: tuple[str, ...] = ()  # of the primaries that are ours or our workers'
        self.roles: Roles = ()  # of this process
        self.crews: dict[str, Roles] = {}
        self.given: dict[str, Sequence[str]] = {}  # the words of the sockets that each worker has
        self.instances: dict[str, InstanceService] = {}
        self.primary: PrimaryService | None = None
        self.workers: Workers | None = None
        self.heirs: Heirs | None = None
        self.notifier = Notifier(environ, reactor, self.known.line)
        self._environ = environ
        self._house: House | None = None
        self.control: Any = None  # the port that commands come to

    # To start

    def privilegedStartService(self) -> None:
        """As root, if we are: folders and sockets, then never root again."""
        try:
            self._prepare()
        except (CannotListen, CannotDrop, OSError) as error:
            say(f"qmq cannot start: {error}")
            sys.exit(1)
        super().privilegedStartService()

    def _prepare(self) -> None:
        conf = self.conf
        more_descriptors()
        self.make_folders(conf)
        if not self.child:
            sweep_controls(conf)
            wanted = [*self.listeners(conf), self.control_listener()]
            self._take_activated(wanted)
            self.sockets.open(wanted)
            for listener in wanted:
                if listener.path:
                    own(reachable(listener.path), conf.general.user)
                    own(reachable(listener.path) + ".lock", conf.general.user)
        become(conf.general.user)

    def _take_activated(self, wanted: Sequence[Listener]) -> None:
        """What systemd has opened for us (socket activation)."""
        words = {(listener.host, listener.port): listener.word for listener in wanted if not listener.path}
        ours, others = matched(listen_fds(self._environ, os.getpid()), words)
        for word, descriptor in ours.items():
            self.sockets.take(word, descriptor)
        for descriptor, what in others.items():
            log.warn("a socket was passed to us that conf-qmq does not listen on: {what}", what=what)
            os.close(descriptor)

    def use(self, conf: Conf) -> None:
        """From now on everybody who looks finds this one."""
        self.conf = self.house.conf = conf
        self.house.mx.own_names = frozenset([conf.general.me])

    def reopen_logs(self) -> None:
        """Here and in the workers; whatever becomes of a reload (logrotate)."""
        self.house.reopen()
        if self.workers is not None:
            self.workers.order_all({"do": "reopen"})

    def make_folders(self, conf: Conf) -> None:
        """Those of the stores, and where the sockets are; an instance's own device may be away, and come later."""
        user = conf.general.user
        for folder in (conf.general.spool, os.path.join(conf.general.spool, "run")):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            own(folder, user)
        for instance in conf.instances:
            try:
                if not instance.handover.host and not os.path.exists(mark(conf, instance.spool)):
                    os.makedirs(instance.spool, mode=0o700, exist_ok=True)
                    own(instance.spool, user)
            except OSError as error:
                log.error("{name}: {error}", name=instance.name, error=error)  # noqa: TRY400 - its text says all

    def startService(self) -> None:
        """Open the stores, listen, start the workers; say so in one line when all is ready."""
        self._house = open_house(self.reactor, self.conf, os.getppid() if self.child else 0)
        if self.child:
            orders: dict[str, Callable[..., Any]] = {
                "reload": lambda order, fds: ensureDeferred(self.reloading.ordered(order, fds)),
                "reopen": lambda *_: self.house.reopen(),
                "now": lambda *_: self.due_now(),
                "leave": lambda *_: self.succession.leave(),
            }
            self.lifeline = Lifeline(
                self.reactor, self.known.beat, orders, told=self.known.told, orphaned=self.sockets.let_go,
                grace=self.conf.general.stop + 25,
            )  # fmt: skip
            self.lifeline.hold()
        super().startService()
        self._signals()
        self.succession.turn().addCallback(lambda _: self.begin()).addErrback(self._trouble)

    @property
    def house(self) -> House:
        """What all services share, from startService on."""
        assert self._house is not None
        return self._house

    def begin(self) -> None:
        """Run what is ours to run."""
        self.stores = self._choose_stores()
        self.roles, self.crews = self.deal(self.conf)
        started = self.run(self.roles)
        self._inherit()
        if self.crews:
            self.start_workers()
        self.known.start()
        gatherResults(started, consumeErrors=True).addCallbacks(self._up, self._trouble)

    def resume(self) -> None:
        """After everything was let go for a successor that did not come."""
        if len(self.stores) > 1:  # theirs are leaving with their last sessions
            self.stores = self._choose_stores()
        self.roles, self.crews = self.deal(self.conf)
        self.run([role for role in self.roles if not takes_mail(role)])
        if self.crews:
            self.start_workers()
        self._inherit()

    def run(self, roles: Sequence[str]) -> list[Deferred[None]]:
        """Start these roles here; a Deferred for each that fires when it is up."""
        started = []
        for role in roles:
            service: InstanceService | PrimaryService
            if takes_mail(role):
                service = self.primary = PrimaryService(
                    self.house, self.sockets, self.instances, self.known.states, role,
                    patience=_PATIENCE if self.crews and not self.succession.succeeds else 0,
                )  # fmt: skip
            else:
                service = self.instances[role] = InstanceService(
                    self.house, self.conf.instance(role), self.sockets,
                    lambda low: Hops(self.house, self.instances, low),
                )  # fmt: skip
            started.append(service.started)
            service.setServiceParent(self)
        return started

    async def become(self, roles: Roles) -> list[str]:
        """Run these roles and no others, by the configuration as it is now. What was not well."""
        gone = {name: self.instances.pop(name) for name in list(self.instances) if name not in roles}
        for service in (*self.instances.values(), self.primary, self.heirs):
            if service is not None:
                service.reconfigure()
        troubles = []
        for name, ended in gone.items():
            await maybeDeferred(ended.disownServiceParent)
            # Taken in the very second before it went.
            if (left := ended.spool.messages) and name not in self.conf:
                troubles.append(f"{name} has {left} messages left: `retired = {name}=OTHER` in [qmq] brings them there")
        self.roles = roles
        fresh = [role for role in roles if not takes_mail(role) and role not in self.instances]
        for started in self.run(fresh):
            started.addErrback(lambda failure: log.error("{error}", error=failure.getErrorMessage()))
        return troubles

    def deal(self, conf: Conf) -> tuple[Roles, dict[str, Roles]]:
        """What this process runs, and what its workers run."""
        names = [i.name for i in conf.instances if not i.handover.host]
        if self.only:
            said = [role for role in self.only if not takes_mail(role)]
            return (*self.stores, *(name for name in names if name in said)), {}
        if not conf.general.workers:
            return (*self.stores, *names), {}
        apart = self.stores if len(self.stores) > 1 else ()
        return () if apart else self.stores, crews(conf, apart, self.crews)

    def _choose_stores(self) -> tuple[str, ...]:
        if self.child:
            return tuple(role for role in self.only if takes_mail(role))
        if self.only and "primary" not in self.only:
            return ()
        many = 1 if self.only or not self.conf.general.workers else self.conf.primary.processes
        return tuple(free_stores(self.conf, many))

    def _inherit(self) -> None:
        if self.stores and not self.child:
            self.heirs = Heirs(self.house, self.instances, self.known.states, lambda: self.stores)
            self.heirs.setServiceParent(self)

    def listeners(self, conf: Conf) -> list[Listener]:
        """All sockets of this process and its workers, but for the one of the commands."""
        roles = [i.name for i in conf.instances if not i.handover.host]
        if self.only:
            roles = [role for role in self.only if not takes_mail(role) and role in roles]
        takes = not self.only or any(takes_mail(role) for role in self.only)
        found = listeners(conf, "primary") if takes else []
        return found + [listener for role in roles for listener in listeners(conf, role)]

    def control_listener(self) -> Listener:
        """Where commands come."""
        return Listener("control", path=os.path.join(self.conf.general.spool, "run", f"{self.process}.control"))

    def start_workers(self) -> None:
        """Those of `crews`."""
        command = [*COMMAND, "--conf", self.conf.path]
        self.workers = Workers(
            self.reactor, self.sockets, command, told=self.known.heard, away=self.known.away,
            all_ready=self._ready, stop_seconds=self.conf.general.stop,
        )  # fmt: skip
        for name, roles in self.crews.items():
            self.known.note_away(roles)
            new = crew(self.conf, name, roles)
            self.given[name] = new.words
            self.workers.add(new)
        self.workers.setServiceParent(self)

    def _up(self, _: Any) -> None:
        spare_collector()
        self.known.tell()
        if self.child:
            self.lifeline.setServiceParent(self)
            self._open_control(50)
        else:
            self.serve_commands()
            if not self.crews:
                self._ready()

    def _open_control(self, tries: int) -> None:
        """A worker's: the one before it, which has just closed its stores, may not have ended yet."""
        try:
            self.sockets.open([self.control_listener()], patience=0)
        except CannotListen as error:
            if tries:
                self.reactor.callLater(0.2, self._open_control, tries - 1)
            else:
                log.error("{error}", error=error)  # noqa: TRY400 - its text says all
            return
        self.serve_commands()

    def serve_commands(self, word: str = "control") -> None:
        """At that socket."""
        desk = Desk(self.process, self.queues, self.about, self._doings())
        self.control = self.sockets.adopt(self.reactor, word, ControlFactory(desk, self.reactor))

    def _doings(self) -> dict[str, Callable[..., Awaitable[None] | None]]:
        """What only a main process can be asked."""
        if self.child or self.succession.leaving:
            return {}
        return {"reload": self.reloading.reload, "diff": self.reloading.diff, "restart": self.succession.restart}

    def _ready(self) -> None:
        found = self.listeners(self.conf)
        addresses = " ".join(f"{w.word.partition('/')[0]}={w.address}" for w in found if not w.path)
        say(f"qmq ready: {addresses} ({census(self.conf)}, spool {self.conf.general.spool})")
        if self.primary is not None:
            self.primary.welcome()
        self.notifier.ready()
        self.succession.done()

    def _trouble(self, failure: Failure) -> None:
        cause: Any = failure.value
        if isinstance(cause, FirstError):
            cause = cause.subFailure.value
        log.critical("cannot start: {cause}", cause=cause)
        say(f"qmq cannot start: {cause}")
        self.reactor.exitStatus = 1
        if self.reactor.running:
            self.reactor.stop()

    # For people

    def queues(self) -> dict[str, Any]:
        """The queues of this process, by name."""
        found = {name: service.queue for name, service in self.instances.items()}
        if self.primary is not None:
            found[self.primary.kept.name or ""] = self.primary.kept.queue
        return found | (self.heirs.queues() if self.heirs is not None else {})

    def about(self) -> dict[str, Any]:
        """Facts of this process, for `qmq stat`."""
        about: dict[str, Any] = {"main": not self.child and not self.succession.leaving}
        if self.succession.leaving:
            about["leaving"] = True
        if self.workers is not None:
            about["workers"] = self.workers.pids()
            about["processes"] = [asdict(standing) for standing in self.workers.standings()]
        if self.primary is not None:
            about["primary"] = self.primary.about()
        return about

    def due_now(self) -> None:
        """SIGALRM, as for qmail-send: everything is due."""
        for service in self.instances.values():
            service.queue.due_now({})
        if self.workers is not None:
            self.workers.order_all({"do": "now"})

    # To end

    def stopService(self) -> Deferred[None]:
        """Workers and instances finish or give back what is in flight."""
        self.notifier.stopping()
        self.known.stop()
        stopped: Deferred[None] = super().stopService()
        return stopped.addBoth(self._last)

    def _signals(self) -> None:
        def stop(*_: Any) -> None:
            self.succession.stopped()
            # Once: a terminal's Ctrl-C comes to a worker as well as the main process's TERM.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.reactor.callFromThread(self.reactor.stop)

        def install() -> None:
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN if self.child else stop)
            signal.signal(signal.SIGALRM, lambda *_: self.reactor.callFromThread(self.due_now))
            # A worker is told by the main process, which has looked at the whole before.
            signal.signal(signal.SIGHUP, signal.SIG_IGN if self.child else self._hung_up)

        self.reactor.callWhenRunning(install)

    def _hung_up(self, *_: Any) -> None:
        if self.succession.hung_up():
            return
        self.reactor.callFromThread(lambda: ensureDeferred(_quietly(self.reloading.reload)))

    def _last(self, result: Any) -> Any:
        if self._house is not None:
            self._house.close()
        self.sockets.close()
        return result


async def _quietly(doing: Callable[..., Awaitable[None] | None]) -> None:
    """As a command does it, but nobody listens: what it says is in the log."""
    try:
        done = doing({}, lambda _: None)
        if done is not None:
            await done
    except Exception:  # noqa: BLE001 - the process goes on as it was
        log.failure("a signal could not be obeyed")
