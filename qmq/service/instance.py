"""One instance: store, schedule, deliveries, bounces and its listeners, as one service."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from qmq.bounce.bouncer import Bouncer
from qmq.conf.model import Conf, Instance, site_for
from qmq.deliver.destinations import Destinations
from qmq.deliver.dial import Dialler
from qmq.deliver.manner import Manner
from qmq.deliver.mx import Candidate
from qmq.deliver.qmtp import dial_qmtp
from qmq.mail import Address, Reply, Seconds
from qmq.queue.runner import Queue
from qmq.queue.schedule import parse_schedule
from qmq.receive.draft import Drafts
from qmq.receive.policy import Policy
from qmq.receive.qmtp import QMTPFactory
from qmq.receive.reception import Limits, Reception
from qmq.receive.smtp import Crowd, SMTPFactory
from qmq.routing import stop_all
from qmq.service.common import House, spool
from qmq.service.trust import HandOverOnly
from qmq.sockets import Listener, Sockets
from qmq.tls import client_options, session_text

_NOT_OURS = Reply(553, "5.7.1", "sorry, that domain isn't in my list of allowed rcpthosts")


def unix_word(name: str) -> str:
    """The word of an instance's unix socket for hand-over."""
    return f"hand-over/{name}"


def tcp_word(name: str) -> str:
    """The word of an instance's TCP socket."""
    return f"qmtp/{name}"


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
        found.append(Listener(tcp_word(instance.name), host=host, port=port))
    return found


class InstanceService(MultiService):
    """A queue and what belongs to it; `bounce_to` comes before it starts."""

    def __init__(self, house: House, instance: Instance, sockets: Sockets) -> None:
        super().__init__()
        self.setName(instance.name)
        self.started: Deferred[None] = Deferred()
        self._house = house
        self._name = instance.name
        self._sockets = sockets
        self._ports: list[Any] = []
        self._factories: list[QMTPFactory | SMTPFactory] = []
        self.spool = spool(house, instance.spool)
        self._drafts = Drafts(os.path.join(instance.spool, "drafts"), house.conf.primary.inline)
        self.queue = self._make_queue(instance)
        self.queue.setServiceParent(self)
        self._bouncer: Bouncer | None = None

    def bounce_to(self, way: Callable[[Callable[[], int]], Any]) -> None:
        """*way* gives the INextHop for bounces: their tokens are the bouncer's, and so is the lowest in doubt."""
        instance = self._house.conf.instance(self._name)
        self.queue.bouncer = self._bouncer = bouncer(self._house, instance, way, self.spool)

    def startService(self) -> None:
        """Open the store, then listen."""
        super().startService()
        self.queue.started().addCallback(self._listen).chainDeferred(self.started)

    def stopService(self) -> Deferred[Any]:
        """Take nothing more, then let the queue finish."""
        closed = gatherResults([maybeDeferred(port.stopListening) for port in self._ports], consumeErrors=True)
        self._ports = []
        ending: list[Deferred[Any]] = [closed, *(maybeDeferred(_end, factory) for factory in self._factories)]
        ended: Deferred[Any] = gatherResults(ending, consumeErrors=True)
        ended.addBoth(lambda _: MultiService.stopService(self))
        return ended.addBoth(self._hang_up)

    def reconfigure(self, instance: Instance) -> None:
        """Take over what may change while it runs."""
        self.queue.reconfigure(
            self._site_of, parse_schedule(instance.retry), instance.lifetime, instance.bounce_lifetime,
            instance.concurrency, instance.concurrency_per_host, instance.limit_messages, instance.limit_bytes,
            instance.delay_notice,
        )  # fmt: skip

    def state(self) -> dict[str, bool]:
        """What the primary should know before it takes mail for us."""
        spool, instance = self.spool, self._house.conf.instance(self._name)
        full = spool.messages >= instance.limit_messages or spool.octets >= instance.limit_bytes or not spool.free()
        return {"refusing": self.queue.refusing, "full": full}

    def _hang_up(self, stopped: Any) -> Any:
        """What the bounces' hop has not answered by now is offered again after the next start."""
        if self._bouncer is not None:
            stop_all({"bounces": self._bouncer.hop})
        return stopped

    def _site_of(self, recipient: Address) -> bytes:
        return site_of(self._house.conf, self._house.conf.instance(self._name), recipient)

    def _make_queue(self, instance: Instance) -> Queue:
        destinations = Destinations(
            _dialler(self._house, instance), self._house.reactor,
            concurrency=instance.concurrency, slots_max=instance.concurrency_per_host,
        )  # fmt: skip
        return Queue(
            instance.name, self.spool, destinations, self._site_of, parse_schedule(instance.retry),
            instance.lifetime, instance.bounce_lifetime, None, self._house.reactor, self._house.wall, self._house.log,
            limit_messages=instance.limit_messages, limit_octets=instance.limit_bytes,
            stop_seconds=self._house.conf.general.stop, notice=instance.delay_notice,
        )  # fmt: skip

    def _listen(self, _: Any) -> None:
        self._drafts.clear()
        instance = self._house.conf.instance(self._name)
        for word, extension in ((unix_word(self._name), True), (tcp_word(self._name), False)):
            if word in self._sockets:
                smtp = instance.handover.protocol == "smtp"
                factory = self._smtp(instance) if smtp else self._qmtp(instance, extension=extension)
                self._factories.append(factory)
                self._ports.append(self._sockets.adopt(self._house.reactor, word, factory))

    def _qmtp(self, instance: Instance, *, extension: bool) -> QMTPFactory:
        return QMTPFactory(
            clock=self._house.reactor, wall=self._house.wall, drafts=self._drafts, hop=self.queue,
            next_token=self.spool.next_token, accept=self._accept, me=self._house.conf.general.me.encode(),
            peers=instance.peers, extension=extension,
            extension_peers=instance.qmq_peers, message_octets=instance.databytes, max_hops=instance.hops,
        )  # fmt: skip

    def _smtp(self, instance: Instance) -> SMTPFactory:
        """Hand-over by SMTP: peers alone, for our domains alone."""
        house = self._house
        peers = [("peers", HandOverOnly(instance.peers, self._accept))]
        reception = Reception(
            me=house.conf.general.me.encode(), policy=Policy(peers, house.reactor),
            hop=self.queue, drafts=self._drafts, next_token=self.spool.next_token, log=house.log,
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

    A bounce for one of our own customers goes to that customer's host: by MX it
    would come back to ourselves (SPAMCONTROL 1.8).
    """
    if instance.role == "bounce" and instance.route(recipient.domain) is None:
        owner = conf.owner(recipient.domain) if recipient.domain else None
        if owner is not None and owner[1] and owner[0].role == "normal":
            return site_for(owner[0], recipient)
    return site_for(instance, recipient)


def bouncer(house: House, instance: Instance, way: Callable[[Callable[[], int]], Any], spool: Any) -> Bouncer:
    """
    For an instance's queue, or with the bounce instance's manners for the primary's.

    *way* gives its hop, which must be nobody else's: the lowest number in
    doubt that it tells is that of the bouncer's tokens.
    """
    made = Bouncer(
        way(lambda: made.low), spool, queue=instance.name, me=house.conf.general.me,
        bouncefrom=instance.bouncefrom, bouncehost=instance.bouncehost,
        doublebounceto=instance.doublebounceto or "", bouncemaxbytes=instance.bouncemaxbytes,
        wall=house.wall, log=house.log, read_body=spool.body,
    )  # fmt: skip
    return made


def _dialler(house: House, instance: Instance) -> Dialler:
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
