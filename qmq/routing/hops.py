"""The joint INextHop, for an instance's queue in this process or behind a destination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface import implementer

from qmq.interfaces import INextHop
from qmq.mail import Message, Reply


@implementer(INextHop)
class InProcess:
    """Hand-over as a call: the instance's queue is in this process."""

    def __init__(self, queue: Any, lowest: Callable[[], int]) -> None:
        self._queue = queue
        self._lowest = lowest

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """As the queue says."""
        replies: Deferred[Sequence[Reply]] = self._queue.send_in_doubt(message, self._lowest())
        return replies


@implementer(INextHop)
class ByDestination:
    """Hand-over by SMTP or LMTP: a site like any other, delivered to while the client waits."""

    def __init__(self, destinations: Any, site: bytes, mta: str) -> None:
        self._destinations = destinations
        self._site = site
        self._mta = mta

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """What the host says of each recipient."""
        fate: Deferred[Sequence[Reply]] = Deferred()
        self._destinations.add(message, lambda _, replies: fate.callback(replies), self._site)
        return fate


def stop_all(hops: Mapping[str, Any]) -> Deferred[Any]:
    """Close the hand-over connections."""
    return gatherResults([hop.stop() for hop in hops.values() if hasattr(hop, "stop")])
