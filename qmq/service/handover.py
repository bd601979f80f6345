"""The ways to an instance: a call, QMTP over its unix socket, or QMTP, SMTP, LMTP to another host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.protocol import ClientFactory

from qmq.conf.model import Instance
from qmq.deliver.destinations import Destinations
from qmq.deliver.dial import Dialler
from qmq.deliver.manner import Manner
from qmq.deliver.qmtp import QMTPClient
from qmq.routing import ByDestination, InProcess
from qmq.service.common import House
from qmq.service.instance import InstanceService, unix_path
from qmq.sockets import reachable


def hop_to(house: House, target: Instance, here: Mapping[str, InstanceService], low: Callable[[], int]) -> Any:
    """An INextHop; *low* gives the lowest number of our tokens that is in doubt."""
    protocol, host, port = target.handover.protocol, target.handover.host, target.handover.port
    if not host and target.name in here:
        return InProcess(here[target.name].queue, low)
    if protocol in ("qmtp", "qmq"):
        return _by_qmtp(house, target, low)
    if not host:
        assert target.qmtp_listen is not None  # conf sees to that
        host, port = target.qmtp_listen
    return _by_destination(house, target, f"{protocol}:[{host}]:{port}" if ":" in host else f"{protocol}:{host}:{port}")


def _by_qmtp(house: House, target: Instance, low: Callable[[], int]) -> QMTPClient:
    primary, reactor = house.conf.primary, house.reactor
    host, port = target.handover.host, target.handover.port
    if host:

        def connect(factory: ClientFactory) -> Any:
            return reactor.connectTCP(host, port, factory, timeout=target.timeoutconnect)
    else:
        path = reachable(unix_path(house.conf, target.name))

        def connect(factory: ClientFactory) -> Any:
            return reactor.connectUNIX(path, factory, timeout=target.timeoutconnect)

    return QMTPClient(
        reactor, connect, extension=not host or target.handover.protocol == "qmq", low=low, mta=target.name,
        connections=primary.handover_connections, seconds=primary.handover_time,
    )  # fmt: skip


def _by_destination(house: House, target: Instance, site: str) -> ByDestination:
    """A host like any other, but for the time that the client of the primary waits."""
    primary, seconds = house.conf.primary, house.conf.primary.handover_time
    manner = Manner(helo=house.conf.general.me.encode(), command_seconds=seconds, end_seconds=seconds)
    dialler = Dialler(house.reactor, house.mx, manner, timeout_connect=target.timeoutconnect)
    destinations = Destinations(
        dialler, house.reactor, concurrency=2 * primary.handover_connections,
        slots=primary.handover_connections, slots_max=primary.handover_connections, back_off=(1, 10),
    )  # fmt: skip
    return ByDestination(destinations, site.encode(), target.name)
