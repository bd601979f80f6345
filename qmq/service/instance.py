"""One instance: store, schedule, deliveries, bounces and QMTP listener, as one service."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger

from qmq.bounce.bouncer import Bouncer
from qmq.conf.model import Conf, Instance, site_for
from qmq.deliver.destinations import Destinations
from qmq.deliver.dial import Dialler
from qmq.deliver.qmtp import QMTPClient, dial_qmtp
from qmq.log import EventLog
from qmq.mail import Address, Reply
from qmq.queue.runner import Queue
from qmq.queue.schedule import parse_schedule
from qmq.receive.draft import Drafts
from qmq.receive.qmtp import QMTPFactory
from qmq.routing import InProcess
from qmq.service.common import House
from qmq.sockets import Listener, Sockets, reachable
from qmq.spool.sqlite import SQLiteSpool

log = Logger()

_NOT_OURS = Reply(553, "5.7.1", "sorry, that domain isn't in my list of allowed rcpthosts")


def unix_word(name: str) -> str:
    """The word of an instance's unix socket for hand-over."""
    return f"hand-over/{name}"


def tcp_word(name: str) -> str:
    """The word of an instance's TCP socket for QMTP."""
    return f"qmtp/{name}"


def unix_path(conf: Conf, name: str) -> str:
    """Where an instance's hand-over socket is."""
    return os.path.join(conf.general.spool, "run", f"{name}.qmtp")


def listeners(conf: Conf, instance: Instance) -> list[Listener]:
    """The sockets of an instance that runs here."""
    if instance.handover.address:
        return []
    found = [Listener(unix_word(instance.name), path=unix_path(conf, instance.name))]
    if instance.qmtp_listen is not None:
        host, port = instance.qmtp_listen
        found.append(Listener(tcp_word(instance.name), host=host, port=port))
    return found


class InstanceService(MultiService):
    """A queue and what belongs to it. *bounce_hop* gives the INextHop for its bounces."""

    def __init__(
        self,
        house: House,
        instance: Instance,
        sockets: Sockets,
        bounce_hop: Callable[[InstanceService], Any],
    ) -> None:
        super().__init__()
        self.name = instance.name
        self.setName(instance.name)
        self._house = house
        self._instance = instance
        self._sockets = sockets
        conf = house.conf
        self.spool = SQLiteSpool(
            instance.spool, clock=house.reactor, writers=house.writers, wall=house.wall,
            inline=conf.primary.inline, reserve=conf.primary.reserve,
        )  # fmt: skip
        self._drafts = Drafts(os.path.join(instance.spool, "drafts"), conf.primary.inline)
        self.destinations = _destinations(house, instance)
        self.queue = Queue(
            instance.name,
            self.spool,
            self.destinations,
            lambda recipient: site_of(house.conf, instance.name, recipient),
            parse_schedule(instance.retry),
            instance.lifetime,
            instance.bounce_lifetime,
            None,
            house.reactor,
            house.wall,
            house.log,
            limit_messages=instance.limit_messages,
            limit_octets=instance.limit_bytes,
            stop_seconds=conf.general.stop,
            notice=instance.delay_notice,
        )
        self._bounce_hop = bounce_hop
        self._ports: list[Any] = []

    def reconfigure(self, conf: Conf) -> None:
        """Take over what may change while it runs."""

    def startService(self) -> None:
        """Open the store, then listen."""
        super().startService()
