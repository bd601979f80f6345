"""What the primary keeps itself: hand-overs to several instances, unanswered ones, those for who is away."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults

from qmq.bounce.bouncer import Bouncer
from qmq.conf.model import Conf
from qmq.deliver.destinations import Destinations
from qmq.mail import Address, Entry, Message, Reply
from qmq.queue.marks import Marks
from qmq.queue.runner import Queue
from qmq.queue.schedule import parse_schedule
from qmq.queue.terms import Terms
from qmq.routing.diallers import HandOverDialler
from qmq.routing.router import ByDomain
from qmq.routing.states import States, Waiting
from qmq.routing.tokens import OpenTokens
from qmq.service.common import House, spool
from qmq.service.handover import Hops
from qmq.service.instance import InstanceService, bouncer
from qmq.spool.sqlite import INODES


def store(conf: Conf, name: str) -> str:
    """The folder of one of the primary's stores: ``primary``, ``primary-2``..."""
    return os.path.join(conf.general.spool, name)


class KeptService(MultiService):
    """
    One store of the primary's, with its queue, its tokens and its ways to the instances.

    A process that takes mail has one; what another left behind is opened as one
    until it is empty. *here* are the instances of this process; *waiting*
    counts what is kept for whom.
    """

    def __init__(
        self, house: House, name: str, here: Mapping[str, InstanceService], states: States, waiting: dict[str, Waiting]
    ) -> None:
        super().__init__()
        self.setName(name)
        self.started: Deferred[None] = Deferred()
        self._house = house
        self._waiting = waiting
        self._states = states
        folder = store(house.conf, name)
        self.spool = spool(house, folder, house.conf.primary.reserve)
        self.tokens = OpenTokens(self.spool.next_token, lambda: self.spool.lowest)
        self.hops = Hops(house, here, self.tokens.lowest)
        self._bounce_hops = Hops(house, here, lambda: self._bouncer.low)
        self._bouncer = self._make_bouncer()
        self.queue = Queue(
            name, self.spool, self._destinations(), self._site_of, _terms(house.conf), self._bouncer,
            house.reactor, house.wall, house.log, stop_seconds=house.conf.general.stop,
            marks=Marks(folder, house.disk(folder).run), movable=False,
        )  # fmt: skip
        self.queue.given_up = self._given_up
        self.queue.setServiceParent(self)

    def startService(self) -> None:
        """Open the store and count what waits in it."""
        self._states.back.append(self._back)
        super().startService()
        self.queue.started().addCallback(self._count).chainDeferred(self.started)

    def stopService(self) -> Deferred[Any]:
        """Let the queue finish; a bounce that is not answered by now is offered again after the next start."""
        self._states.back.remove(self._back)
        stopped: Deferred[Any] = super().stopService()
        return stopped.addBoth(lambda _: gatherResults([self.hops.stop(), self._bounce_hops.stop()]))

    def reconfigure(self) -> None:
        """Instances may have come and gone, or moved to another host."""
        conf = self._house.conf
        self.spool.bound(conf.primary.reserve, INODES, None)
        self.queue.destinations.reconfigure(_slots(conf), 16)
        self.hops.refresh()
        self._bounce_hops.refresh()
        self._bouncer = self._make_bouncer()
        self.queue.reconfigure(self._site_of, _terms(self._house.conf), self._bouncer)

    def take(self, message: Message, names: Sequence[str]) -> Deferred[Sequence[Reply]]:
        """As qmq.routing.router.HandOvers."""
        token = message.envelope.token
        replies: Deferred[Sequence[Reply]] = self.queue.take(message, [n.encode() for n in names], token.seq + 1)
        return replies

    def left(self) -> dict[str, int]:
        """How many messages are kept for whom."""
        return {name: len(waiting) for name, waiting in self._waiting.items() if len(waiting)}

    def _back(self, name: str) -> None:
        """An instance that was away is there again: its mail need not wait for its next time."""
        if self.spool.messages:
            self.queue.destinations.awaken()
            self.queue.due_now({"site": name}).addErrback(lambda _: None)  # then its schedule brings it

    def _given_up(self, entry: Entry) -> None:
        """It expired, or an operator had it deleted or returned: it is not kept for anybody any more."""
        waiting = self._waiting.get(entry.site.decode())
        if waiting is not None:
            waiting.remove(entry.message.envelope.token.id)

    def _destinations(self) -> Destinations:
        house = self._house
        dialler = HandOverDialler(self.hops, self._waiting, self._states.away)
        return Destinations(
            dialler, house.reactor, concurrency=_slots(house.conf),
            slots=8, slots_max=16, back_off=(0.5, 5),
        )  # fmt: skip

    def _make_bouncer(self) -> Bouncer:
        """Without a bounce or default instance a bounce goes to whoever has its recipient's domain, or nowhere."""
        conf = self._house.conf
        target = conf.bounces or conf.default

        def to(recipient: Address) -> str | None:
            now = self._house.conf
            found = now.bounces or now.default or now.instance_for(recipient.domain)
            return None if found is None else found.name

        return bouncer(self._house, target or conf.instances[0], ByDomain(to, self._bounce_hops), self.spool)

    def _site_of(self, recipient: Address) -> bytes:
        """A site of our own queue is an instance: it was fixed when the message was taken, whatever a reload says."""
        instance = self._house.conf.instance_for(recipient.domain)
        return b"" if instance is None else instance.name.encode()

    def _count(self, _: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self._count_waiting())

    async def _count_waiting(self) -> None:
        after = 0
        while self.spool.messages:
            entries = await self.spool.find({}, after, 1000)
            for entry in entries:
                waiting = self._waiting.setdefault(entry.site.decode(), Waiting())
                waiting.add(entry.message.envelope.token.id, entry.message.size, entry.born)
            if len(entries) < 1000:
                return
            after = entries[-1].number


def _slots(conf: Conf) -> int:
    """Hand-overs at once: some for every instance."""
    return max(120, 4 * len(conf.instances))


def _terms(conf: Conf) -> Terms:
    primary = conf.primary
    return Terms(parse_schedule(primary.retry), primary.lifetime, primary.lifetime)
