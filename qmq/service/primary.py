"""The primary: ESMTP in, hand-over to the instances, and a queue of its own for what is uncertain."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import directlyProvides

from qmq.conf import checks
from qmq.conf.clients import layers, listener_word
from qmq.conf.model import Conf, Instance
from qmq.conf.settings import OWN_CHECKS
from qmq.deadlines import Deadlines
from qmq.deliver.destinations import Destinations
from qmq.interfaces import INextHop, IRecipientChecker, ISenderChecker
from qmq.mail import Address
from qmq.queue.runner import Queue
from qmq.queue.schedule import parse_schedule
from qmq.receive.catalogue import installed, look_in, make_checkers, terms_of
from qmq.receive.clients import Clients
from qmq.receive.draft import Drafts
from qmq.receive.guard import Guard
from qmq.receive.policy import Policy
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import Crowd, SMTPFactory
from qmq.receive.tally import Tallies
from qmq.routing import ByDomain, HandOverDialler, Intake, OpenTokens, Router, Waiting, stop_all
from qmq.rules.watched import Files
from qmq.service.common import House, spool
from qmq.service.handover import hop_to
from qmq.service.instance import InstanceService, bouncer
from qmq.sockets import Listener, Sockets
from qmq.tls import server_options

NAME = "primary"
_log = Logger()


def smtp_word(listen: tuple[str, int]) -> str:
    """The word of a listening socket."""
    return f"smtp/{listen[0]}:{listen[1]}"


def listeners(conf: Conf) -> list[Listener]:
    """Where clients come."""
    return [Listener(smtp_word(listen), host=listen[0], port=listen[1]) for listen in conf.primary.listen]


class PrimaryService(MultiService):
    """
    All of the primary. *here* are the instances that run in this process.

    What came before a stop and was not handed over is counted once the store is open.
    """

    def __init__(self, house: House, sockets: Sockets, here: Mapping[str, InstanceService]) -> None:
        super().__init__()
        self.setName(NAME)
        self.started: Deferred[None] = Deferred()
        self._house = house
        self._sockets = sockets
        self._ports: list[Any] = []
        self._factories: list[SMTPFactory] = []
        self._numbers = count(1)  # of the connections, over reloads too
        self._guard = Guard()
        self._tallies = Tallies()
        conf, primary = house.conf, house.conf.primary
        folder = os.path.join(conf.general.spool, NAME)
        self._drafts = Drafts(os.path.join(folder, "drafts"), primary.inline, primary.header)
        self.spool = spool(house, folder)
        self._tokens = OpenTokens(self.spool.next_token, lambda: self.spool.lowest)
        self.intake = Intake(
            self._instance_of, house.reactor.seconds, house.wall, self.spool.free,
            sessions=primary.sessions, share=primary.share,
            budget=(primary.budget_messages, primary.budget_bytes, primary.budget_age),
        )  # fmt: skip
        directlyProvides(self.intake, ISenderChecker, IRecipientChecker)
        self._hops = {i.name: hop_to(house, i, here, self._tokens.lowest) for i in conf.instances}
        self.queue = self._make_queue()
        self.queue.setServiceParent(self)
        self._watch: LoopingCall | None = None
        self.router = Router(self._instance_of, self._hops, self.queue, self.intake, house.log, house.wall)
        target = conf.bounces or conf.default
        self._bounce_hops: dict[str, Any] = {}
        way = partial(self._bounce_way, here, target)
        self.queue.bouncer = bouncer(house, target or conf.instances[0], way, self.spool)

    def startService(self) -> None:
        """Open the store, count what waits in it, listen."""
        super().startService()
        self.queue.started().addCallback(self._count).addCallback(self._listen).chainDeferred(self.started)

    def stopService(self) -> Deferred[Any]:
        """No new sessions; those that wait for an answer get it, then the queue finishes."""
        if self._watch is not None and self._watch.running:
            self._watch.stop()
        closed = gatherResults([maybeDeferred(port.stopListening) for port in self._ports], consumeErrors=True)
        self._ports = []
        for factory in self._factories:
            factory.hang_up()
        closed.addBoth(lambda _: MultiService.stopService(self))
        return closed.addBoth(self._hang_up)

    def watch(self, states: Callable[[], dict[str, Any]]) -> None:
        """Learn the states of the instances in this process, once a second."""

        def learn() -> None:
            for name, state in states().items():
                self.intake.tell(name, state)

        self._watch = LoopingCall(learn)
        self._watch.clock = self._house.reactor
        self._watch.start(1)

    def reconfigure(self) -> None:
        """New sessions go by the new configuration; open ones by the one they began with."""
        door = self._open_door()
        for listen, factory, port in zip(self._house.conf.primary.listen, self._factories, self._ports, strict=True):
            fresh = self._listener(door, listen)
            fresh.sessions = factory.sessions
            port.factory = fresh
        self._factories = [port.factory for port in self._ports]

    def about(self) -> dict[str, Any]:
        """For `qmq stat`."""
        return {
            "sessions": sum(len(factory.sessions) for factory in self._factories),
            "waiting": {name: len(waiting) for name, waiting in self.intake.waiting.items()},
            "checks": self._tallies.facts(),
        }

    def _instance_of(self, recipient: Address) -> str | None:
        instance = self._house.conf.instance_for(recipient.domain)
        return None if instance is None else instance.name

    def _make_queue(self) -> Queue:
        house, primary = self._house, self._house.conf.primary
        destinations = Destinations(
            HandOverDialler(self._hops, self.intake.waiting), house.reactor,
            concurrency=max(120, 4 * len(self._hops)), slots=8, slots_max=16, back_off=(0.5, 5),
        )  # fmt: skip
        return Queue(
            NAME, self.spool, destinations, self._site_of, parse_schedule(primary.retry), primary.lifetime,
            primary.lifetime, None, house.reactor, house.wall, house.log, stop_seconds=house.conf.general.stop,
        )  # fmt: skip

    def _bounce_way(
        self, here: Mapping[str, InstanceService], target: Instance | None, low: Callable[[], int]
    ) -> INextHop:
        """Without a bounce or default instance a bounce goes to whoever has its recipient's domain, or nowhere."""
        takers = [target] if target is not None else self._house.conf.instances
        self._bounce_hops = {i.name: hop_to(self._house, i, here, low) for i in takers}
        return ByDomain(lambda r: target.name if target is not None else self._instance_of(r), self._bounce_hops)

    def _hang_up(self, _: Any) -> Deferred[Any]:
        """A bounce that is not answered by now is offered again after the next start."""
        self._guard.stop()
        stop_all(self._bounce_hops)
        return stop_all(self._hops)

    def _site_of(self, recipient: Address) -> bytes:
        """A site of our own queue is an instance: it was fixed when the message was taken, whatever a reload says."""
        return (self._instance_of(recipient) or "").encode()

    async def _count_waiting(self) -> None:
        after = 0
        while self.spool.messages:
            entries = await self.spool.find({}, after, 1000)
            for entry in entries:
                waiting = self.intake.waiting.setdefault(entry.site.decode(), Waiting())
                waiting.add(entry.message.envelope.token.id, entry.message.size, entry.born)
            if len(entries) < 1000:
                return
            after = entries[-1].number

    def _count(self, _: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self._count_waiting())

    def _listen(self, _: Any) -> None:
        self._drafts.clear()
        shutil.rmtree(checks.room(self._house.conf), ignore_errors=True)  # what a check of an earlier run left there
        door = self._open_door()
        for listen in self._house.conf.primary.listen:
            factory = self._listener(door, listen)
            self._factories.append(factory)
            self._ports.append(self._sockets.adopt(self._house.reactor, smtp_word(listen), factory))

    def _listener(self, door: Door, listen: tuple[str, int]) -> SMTPFactory:
        """What the clients that come there meet."""
        house, conf, primary = self._house, self._house.conf, self._house.conf.primary
        tls = server_options(primary.certificate, primary.key or None) if primary.certificate else None
        reception = Reception(
            me=conf.general.me.encode(), policy=door.policy, hop=self.router, drafts=self._drafts,
            next_token=self._tokens.begin, forget_token=self._tokens.end, log=house.log, clock=house.reactor,
            wall=house.wall, limits=_limits(conf), starttls=tls is not None, greeting=primary.greeting,
            localiphost=primary.localiphost, classic=primary.codes == "classic",
        )  # fmt: skip
        crowd = Crowd(min(primary.sessions, _room(conf)), primary.sessions_per_client, primary.limit_exempt)
        deadlines = Deadlines(idle=primary.timeout, session=primary.session)
        who = partial(door.clients.session, listener=listener_word(listen))
        return SMTPFactory(reception, who=who, crowd=crowd, deadlines=deadlines, context=tls)

    def _open_door(self) -> Door:
        """The checks and the clients' settings, as the configuration is now."""
        house, conf = self._house, self._house.conf
        files = Files(house.log.warning)
        context = checks.context(
            conf, house.reactor, files, reactor=house.reactor, resolver=house.resolver, mx=house.mx
        )  # fmt: skip
        os.makedirs(context.spool, mode=0o700, exist_ok=True)
        look_in(context.folder)
        options = dict(conf.primary.checks)
        made = make_checkers(_there(conf.primary.checks), context, options)
        policy = Policy(
            [*made, ("intake", self.intake)], house.reactor, terms=terms_of(options), guard=self._guard,
            tallies=self._tallies, call_from_thread=house.reactor.callFromThread,
        )  # fmt: skip
        clients = Clients(layers(conf), files, house.resolver, house.reactor, numbers=self._numbers)
        return Door(policy, clients)


@dataclass(frozen=True, slots=True)
class Door:
    """What all listeners of one configuration share: who clients are, and what checkers think of them."""

    policy: Policy
    clients: Clients


def _limits(conf: Conf) -> Limits:
    primary = conf.primary
    return Limits(
        databytes=max(primary.databytes, primary.databytes_most), line=primary.line, command=primary.command,
        recipients=primary.recipients, errors=primary.errors, hops=primary.hops, helo=primary.helo == "required",
        held=primary.verdicts == "rcpt",
    )  # fmt: skip


def _room(conf: Conf) -> int:
    """
    How many sessions the process has descriptors for; a session has its socket, and its draft may be a file.

    Beyond it a client gets 421. Without this bound clients would take the
    descriptors that handing over and storing need, and nobody be served.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = 32 + len(conf.instances) * (2 + conf.primary.handover_connections)
    return max(8, (descriptors - ours) // 2)


def _there(named: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """
    The checks to make: one of qmq's own whose file was taken away is left out, loudly.

    Without rcpthosts nobody vouches for a recipient, and all are refused. Any
    other name that is not installed is a mistake, and make_checkers says so.
    """
    known = installed()
    names = [name for name, _ in named]
    for name in names:
        if name in OWN_CHECKS and name not in known:
            _log.error("the check {name} is not installed: it is left out", name=name)
    return [name for name in names if name in known or name not in OWN_CHECKS]
