"""The ways to an instance: a call, QMTP over its unix socket, or QMTP, SMTP, LMTP to another host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory

from qmq.conf.model import Instance
from qmq.deliver.destinations import Destinations
from qmq.deliver.dial import Dialler
from qmq.deliver.manner import Manner
from qmq.deliver.qmtp import QMTPClient
from qmq.paths import reachable
from qmq.routing.hops import ByDestination, InProcess, stop_all
from qmq.service.common import House
from qmq.service.instance import InstanceService, unix_path


class Hops(Mapping[str, Any]):
    """
    The ways from one store to all instances: INextHop by name, each made when it is first asked for.

    *here* are the instances of this process, as they come and go; *low* gives
    the lowest number of the store's tokens that is in doubt. A name that no
    instance has is a KeyError.
    """

    def __init__(self, house: House, here: Mapping[str, InstanceService], low: Callable[[], int]) -> None:
        self._house = house
        self._here = here
        self._low = low
        self._made: dict[str, tuple[Any, Any]] = {}  # what it was made for, and the hop

    def __getitem__(self, name: str) -> Any:
        made = self._made.get(name)
        if made is None:
            target = self._house.conf.instance(name)
            made = self._made[name] = (self._way(name), hop_to(self._house, target, self._here, self._low))
        return made[1]

    def __iter__(self) -> Iterator[str]:
        return iter([instance.name for instance in self._house.conf.instances])

    def __len__(self) -> int:
        return len(self._house.conf.instances)

    def refresh(self) -> None:
        """After the configuration, or what runs here, has changed: ways that lead nowhere now are given up."""
        for name, (way, hop) in list(self._made.items()):
            if way != self._way(name):
                del self._made[name]
                stop_all({name: hop})

    def stop(self) -> Deferred[Any]:
        """Close what is open; answers that are waited for are unknown then."""
        made, self._made = self._made, {}
        return stop_all({name: hop for name, (_, hop) in made.items()})

    def _way(self, name: str) -> Any:
        """All that a hop is made of."""
        conf = self._house.conf
        if name not in conf:
            return None
        target, primary = conf.instance(name), conf.primary
        here = self._here.get(name)
        return (
            here and here.hop, target.handover, target.qmtp_listen, target.timeoutconnect,
            primary.handover_time, primary.handover_connections, conf.general.me,
            target.filter and target.filter_processes,
        )  # fmt: skip


def hop_to(house: House, target: Instance, here: Mapping[str, InstanceService], low: Callable[[], int]) -> Any:
    """An INextHop; *low* gives the lowest number of our tokens that is in doubt."""
    protocol, host, port = target.handover.protocol, target.handover.host, target.handover.port
    if not host and target.name in here:
        return InProcess(here[target.name].hop, low)
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

    # Of a filter as many are asked at once as may run.
    most = max(primary.handover_connections, target.filter_processes if target.filter else 0)
    return QMTPClient(
        reactor, connect, extension=not host or target.handover.protocol == "qmq", low=low, mta=target.name,
        connections=most, seconds=primary.handover_time,
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
