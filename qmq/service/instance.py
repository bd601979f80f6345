"""One instance: store, schedule, deliveries, bounces and its listeners, as one service."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.bounce.bouncer import Bouncer
from qmq.commands import Commands
from qmq.conf.model import Conf, Instance, Listen, site_for
from qmq.deliver.destinations import Destinations
from qmq.deliver.dial import Dialler
from qmq.deliver.manner import Manner
from qmq.deliver.mx import Candidate
from qmq.deliver.qmtp import dial_qmtp
from qmq.filters import Filtered
from qmq.interfaces import INextHop
from qmq.kin import is_kin
from qmq.mail import QUEUE, Address, Reply, Seconds
from qmq.programs import Programs
from qmq.queue.marks import Marks
from qmq.queue.runner import Queue
from qmq.queue.schedule import parse_schedule
from qmq.queue.terms import Terms
from qmq.receive.draft import Drafts
from qmq.receive.policy import Policy
from qmq.receive.qmtp import QMTPFactory
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import Crowd, SMTPFactory
from qmq.routing.diallers import MoveDialler
from qmq.routing.router import ByDomain
from qmq.service.common import House, spool
from qmq.service.trust import HandOverOnly
from qmq.sockets import Listener, Sockets
from qmq.spool.store import Store
from qmq.tls import client_options, session_text

log = Logger()

# Packages of one connection that wait for the store together.
_WINDOW = 64
_NOT_OURS = Reply(553, "5.7.1", "sorry, that domain isn't in my list of allowed rcpthosts")


def unix_word(name: str) -> str:
    """The word of an instance's unix socket for hand-over."""
    return f"hand-over/{name}"


def tcp_word(name: str, listen: Listen) -> str:
    """The word of an instance's TCP socket."""
    return f"qmtp/{name}/{listen[0]}:{listen[1]}"


def unix_path(conf: Conf, name: str) -> str:
    """Where an instance's hand-over socket is."""
    return os.path.join(conf.general.spool, "run", f"{name}.qmtp")


def listeners(conf: Conf, instance: Instance) -> list[Listener]:
    """The sockets of an instance that runs here."""
    if instance.handover.host:
        return []
    found = []
    if instance.handover.protocol == "qmtp":
        found.append(Listener(unix_word(instance.name), path=unix_path(conf, instance.name)))
    if instance.qmtp_listen is not None:
        host, port = instance.qmtp_listen
        found.append(Listener(tcp_word(instance.name, instance.qmtp_listen), host=host, port=port))
    return found


class InstanceService(MultiService):
    """
    A queue and what belongs to it. *here* are the instances of this process.

    *hops(low)* gives the ways to all instances, for tokens of which *low* is
    the lowest in doubt: one set for bounces, one for what is moved.
    """

    def __init__(self, house: House, instance: Instance, sockets: Sockets, hops: Callable[..., Any]) -> None:
        super().__init__()
        self.setName(instance.name)
        self.started: Deferred[None] = Deferred()
        self._house = house
        self._name = instance.name
        self._conf = house.conf  # as it is applied now
        self._sockets = sockets
        self._served: dict[str, tuple[Any, QMTPFactory | SMTPFactory]] = {}  # by word: the port, who serves it
        self.spool = spool(house, instance.spool, instance.reserve, instance.reserve_inodes, instance.limit_disk)
        self._drafts = Drafts(os.path.join(instance.spool, "drafts"), house.conf.primary.inline)
        self._bouncer: Bouncer
        self._bounce_hops = hops(lambda: self._bouncer.low)
        self._move_hops = hops(lambda: self.spool.oldest)
        self._bouncer = self._make_bouncer(instance)
        self.queue = self._make_queue(instance)
        self.queue.setServiceParent(self)
        self.hop = self._make_hop(instance)

    def startService(self) -> None:
        """
        Open the store, then listen.

        One that cannot be opened is this queue's trouble alone: it takes no
        mail, says why, and is tried again until it can.
        """
        super().startService()
        self._wait()

    def stopService(self) -> Deferred[Any]:
        """Take nothing more, then let the queue finish."""
        ended = self._close(list(self._served))
        ended.addBoth(lambda _: MultiService.stopService(self))
        return ended.addBoth(self._hang_up)

    def reconfigure(self) -> None:
        """Take over what conf-qmq says now; what is on its way goes on as it began."""
        before, self._conf = self._conf, self._house.conf
        instance = self._conf.instance(self._name)
        self._bounce_hops.refresh()
        self._move_hops.refresh()
        self._bouncer = self._make_bouncer(instance)
        self.spool.bound(instance.reserve, instance.reserve_inodes, instance.limit_disk)
        self.queue.destinations.dialler = self._dialler(instance)
        self.queue.destinations.reconfigure(instance.concurrency, instance.concurrency_per_host)
        self.queue.reconfigure(self._site_of, _terms(instance), self._bouncer)
        if _door(before, self._name) != _door(self._conf, self._name):
            self.hop = self._make_hop(instance)
            self._close(list(self._served))
        else:
            wanted = {listener.word for listener in listeners(self._conf, instance)}
            self._close([word for word in self._served if word not in wanted])
        self._listen()
        self._retire(instance)

    def state(self) -> dict[str, Any]:
        """What the primary should know before it takes mail for us, and the main process before it lets us go."""
        queue = self.queue
        if not self.started.called:  # its mail waits with the primary meanwhile
            return {"away": True}
        return {"refusing": queue.refusing, "full": queue.full, "queued": self.spool.messages}

    def _hang_up(self, stopped: Any) -> Any:
        """What the hops have not answered by now is handed over again after the next start."""
        return gatherResults([self._bounce_hops.stop(), self._move_hops.stop()]).addBoth(lambda _: stopped)

    def _site_of(self, recipient: Address) -> bytes:
        return site_of(self._conf, self._conf.instance(self._name), recipient)

    def _make_queue(self, instance: Instance) -> Queue:
        house = self._house
        destinations = Destinations(
            self._dialler(instance), house.reactor,
            concurrency=instance.concurrency, slots_max=instance.concurrency_per_host,
        )  # fmt: skip
        return Queue(
            instance.name, self.spool, destinations, self._site_of, _terms(instance), self._bouncer,
            house.reactor, house.wall, house.log, stop_seconds=house.conf.general.stop,
            marks=Marks(instance.spool, house.disk(instance.spool).run),
        )  # fmt: skip

    def _make_hop(self, instance: Instance) -> Any:
        """What mail is handed over to: the queue, behind its filter if it has one."""
        if not instance.filter:
            return self.queue
        programs = Programs(self._house.reactor, at_once=instance.filter_processes)
        commands = Commands(programs, os.path.dirname(self._conf.path), instance.filter_time)
        return Filtered(self.queue, commands, instance.filter, instance.name)

    def _dialler(self, instance: Instance) -> MoveDialler:
        return MoveDialler(
            dialler(self._house, instance), self._move_hops.get,
            lambda message: self.queue.entry(message),  # noqa: PLW0108 - the queue is made after this
            lambda: self.spool.tag,
        )  # fmt: skip

    def _make_bouncer(self, instance: Instance) -> Bouncer:
        """To the bounce instance, else to the default one, else to its own queue."""

        def to(_: Address) -> str:
            conf = self._house.conf
            found = conf.bounces or conf.default
            return self._name if found is None else found.name

        return bouncer(self._house, instance, ByDomain(to, self._bounce_hops), self.spool)

    def _retire(self, instance: Instance) -> None:
        """What an instance that is no more still holds goes to the one that takes its place."""
        if instance.role == "retired":
            self.queue.resume()
            to = instance.deliver.removeprefix(QUEUE).decode()
            self.queue.act("move", {}, lambda _: None, to=to).addErrback(
                lambda failure: self._house.log.warning(f"{self._name}: {failure.getErrorMessage()}")
            )

    def _wait(self) -> None:
        self.queue.started().addCallbacks(self._open, self._not_open).addErrback(self._broke)

    def _not_open(self, _: Any) -> None:
        """The queue has told why, and tries again."""
        self._up()
        self._wait()

    def _broke(self, failure: Failure) -> None:
        log.failure("{name} could not begin to listen", failure, name=self._name)
        self._up()

    def _up(self) -> None:
        if not self.started.called:
            self.started.callback(None)

    def _open(self, _: Any) -> None:
        self._drafts.clear()
        self._listen()
        self._retire(self._conf.instance(self._name))
        self._up()

    def _close(self, words: list[str]) -> Deferred[Any]:
        """Take no more there; sessions that await an answer end when they have it."""
        ending: list[Deferred[Any]] = []
        for word in words:
            port, factory = self._served.pop(word)
            ending += [maybeDeferred(port.stopListening), maybeDeferred(_end, factory)]
        return gatherResults(ending, consumeErrors=True)

    def _listen(self) -> None:
        instance = self._conf.instance(self._name)
        for listener in listeners(self._conf, instance):
            word, extension = listener.word, bool(listener.path)
            if word in self._sockets and word not in self._served:
                smtp = instance.handover.protocol == "smtp"
                factory = self._smtp(instance) if smtp else self._qmtp(instance, extension=extension)
                self._served[word] = self._sockets.adopt(self._house.reactor, word, factory), factory

    def _qmtp(self, instance: Instance, *, extension: bool) -> QMTPFactory:
        return QMTPFactory(
            clock=self._house.reactor, wall=self._house.wall, drafts=self._drafts, hop=self.hop,
            next_token=self.spool.next_token, accept=self._accept, me=self._house.conf.general.me.encode(),
            peers=instance.peers, extension=extension,
            extension_peers=instance.qmq_peers, message_octets=instance.databytes, max_hops=instance.hops,
            # A filter may take its time: answers come in order, so others' must not stand behind it (DESIGN: rule 7).
            window=1 if instance.filter else _WINDOW,
            kin=lambda peer: is_kin(peer, self._house.main),
        )  # fmt: skip

    def _smtp(self, instance: Instance) -> SMTPFactory:
        """Hand-over by SMTP: peers alone, for our domains alone."""
        house = self._house
        peers = [("peers", HandOverOnly(instance.peers, self._accept))]
        reception = Reception(
            me=house.conf.general.me.encode(), policy=Policy(peers, house.reactor),
            hop=self.hop, drafts=self._drafts, next_token=self.spool.next_token, log=house.log,
            clock=house.reactor, wall=house.wall, limits=Limits(databytes=instance.databytes, hops=instance.hops),
        )  # fmt: skip
        return SMTPFactory(reception, crowd=Crowd(exempt=instance.peers))

    def _accept(self, recipient: Address, trusted: bool) -> Reply | None:
        """Our own hand-over knows what it does; another peer may send to our domains, a relay client's net to any."""
        if trusted:
            return None
        owner = self._house.conf.owner(recipient.domain)
        if owner is not None and owner[0].name == self._name and owner[1]:
            return None
        return _NOT_OURS


def _end(factory: QMTPFactory | SMTPFactory) -> Deferred[None] | None:
    """End its sessions, those that await an answer when they have it."""
    if isinstance(factory, QMTPFactory):
        return factory.stop()
    factory.hang_up()
    return None


def site_of(conf: Conf, instance: Instance, recipient: Address) -> bytes:
    """
    Where an instance delivers a recipient's mail.

    What it has for another instance's domain (a bounce to one of our own
    customers, what was diverted or moved) goes to that one's host: by MX it
    would come back to ourselves (SPAMCONTROL 1.8).
    """
    if instance.role != "retired" and recipient.domain and instance.route(recipient.domain) is None:
        owner = conf.owner(recipient.domain)
        if owner is not None and owner[1] and owner[0] is not instance and owner[0].role == "normal":
            return site_for(owner[0], recipient)
    return site_for(instance, recipient)


def bouncer(house: House, instance: Instance, hop: INextHop, spool: Store) -> Bouncer:
    """
    For an instance's queue, or with the bounce instance's manners for the primary's.

    *hop* must be nobody else's: the lowest number in doubt that it tells is that of the bouncer's tokens.
    """
    return Bouncer(
        hop, spool, queue=instance.name, me=house.conf.general.me,
        bouncefrom=instance.bouncefrom, bouncehost=instance.bouncehost,
        doublebounceto=instance.doublebounceto or "", bouncemaxbytes=instance.bouncemaxbytes,
        wall=house.wall, log=house.log, read_body=spool.body,
    )  # fmt: skip


def _terms(instance: Instance) -> Terms:
    return Terms(
        parse_schedule(instance.retry), instance.lifetime, instance.bounce_lifetime, instance.limit_messages,
        instance.limit_bytes, instance.limit_age, instance.delay_notice,
    )  # fmt: skip


def _door(conf: Conf, name: str) -> tuple[object, ...]:
    """What its listeners are made of."""
    i = conf.instance(name)
    filtering = i.filter, i.filter_time, i.filter_processes
    return conf.general.me, i.peers, i.qmq_peers, i.databytes, i.hops, i.handover, i.qmtp_listen, filtering


def dialler(house: House, instance: Instance) -> Dialler:
    """Connections to hosts as the instance makes them: its name, its address, its patience."""
    reactor, seconds = house.reactor, instance.timeoutremote
    manner = Manner(
        helo=instance.helohost.encode(), tls=None if instance.tls == "none" else client_options, tls_text=session_text,
        command_seconds=seconds, initiation_seconds=min(120, seconds), data_seconds=min(180, seconds),
        end_seconds=max(600, seconds),
    )  # fmt: skip

    def qmtp(candidate: Candidate, work: Any) -> Deferred[Any]:
        return dial_qmtp(
            reactor, candidate.address, candidate.port, work, timeout_connect=instance.timeoutconnect,
            timeout_remote=_at_least(seconds), host=candidate.host, bind=(instance.bind, 0) if instance.bind else None,
        )  # fmt: skip

    return Dialler(
        reactor, house.mx, manner, bind=(instance.bind,) if instance.bind else (),
        qmtp=qmtp, timeout_connect=instance.timeoutconnect,
    )  # fmt: skip


def _at_least(seconds: Seconds) -> Seconds:
    """QMTP's one answer covers what SMTP has ten minutes for."""
    return max(600, seconds)
