"""
One next-hop site: what is ready for it, its connections, its health.

A site is the IWork of its connections: they take from its ready queue and
report to it. What it may have of the instance's connections and memory is not
its own to say; it asks the house (`qmq.deliver.destinations`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from zope.interface import implementer

from qmq.deliver.manner import STALE
from qmq.interfaces import IWork
from qmq.mail import Message, Reply, Seconds, value

Done = Callable[[Message, Sequence[Reply]], None]

# So many connections cut in a row, each with mail on it and no word of the host between, and the site counts as dead.
# One or two may be the fault of a message that the host can't digest.
BREAKS = 3

# A host that has answered nothing for so long while mail waits is no longer thought to be working.
_PATIENCE: Seconds = 10


@value
class SiteStatus:
    """A site, for people."""

    name: bytes
    ready: int
    connections: int
    dialling: int
    slots: int
    dead_for: Seconds  # until the next try; 0: alive
    reply: Reply | None


class House(Protocol):
    """What a site asks of those who share out connections."""

    count: int  # messages added and not done
    shares: Any  # qmq.deliver.shares, which divides the connections
    slots_max: int

    def now(self) -> Seconds:
        """Monotonic."""

    def want(self, site: Site) -> None:
        """Open connections for what is ready, as far as the site may have more."""

    def again(self, site: Site, message: Message) -> None:
        """The message was not said to anyone yet: over another connection."""

    def well(self, site: Site) -> None:
        """The host has answered: whatever was held against the site is forgotten."""

    def drained(self, site: Site) -> None:
        """There is room again in a ready queue that was full."""

    def gone(self, site: Site, connection: Any, reason: Reply | None) -> None:
        """A connection is no more."""


@implementer(IWork)
class Site:
    """Plain state, changed by the house as well; the methods are IWork's."""

    __slots__ = (
        "breaks", "broken", "credit", "crowded", "dialling", "dones", "down", "failures", "full", "held", "house",
        "hungry", "is_well", "low", "name", "open", "parked", "progress", "proven", "ready", "reply", "slots",
        "touched", "until",
    )  # fmt: skip

    def __init__(self, house: House, name: bytes, slots: int, now: Seconds) -> None:
        self.house = house
        self.name = name
        self.ready: deque[Message] = deque()
        self.dones: dict[int, Done] = {}  # by id() of the message, ready ones and those taken
        self.open: set[Any] = set()
        self.parked: list[Any] = []  # open and idle, the one used last at the end
        self.dialling = 0
        self.held = 0  # open and being dialled
        self.slots = slots  # how many may be held
        self.credit = 0  # what it may still send before it gives way to a site that has no connection
        self.hungry = False  # is in a ring of those waiting for a first connection
        self.full = False  # the ready queue reached its bound; until it is down to *low*
        self.low = 0
        self.proven = False  # its host has answered, and nothing went wrong since
        self.is_well = False  # proven, and nothing to forget
        self.progress = now  # when a host's answer was last seen, or mail began to wait
        self.down = False
        self.broken = False  # down not because of dials that failed, but of connections that were cut
        self.failures = 0  # of the site as a whole, in a row: each doubles the back-off
        self.breaks = 0
        self.until = now  # down: no attempt before
        self.crowded = now  # no further connection before: the host wanted no more than it had
        self.reply: Reply | None = None  # why it is down
        self.touched = now  # when mail for it was last seen while it was down

    def status(self, now: Seconds) -> SiteStatus:
        """For who looks in."""
        dead_for = max(0, self.until - now) if self.down else 0
        reply = self.reply if self.down else None
        return SiteStatus(self.name, len(self.ready), len(self.open), self.dialling, self.slots, dead_for, reply)

    def works(self, now: Seconds) -> bool:
        """Whether its host has answered of late."""
        return self.proven and now - self.progress < _PATIENCE

    def refusal(self, now: Seconds) -> Reply | None:
        """The reply with which mail for it is deferred untried while it is dead; mail was seen for it."""
        if not self.down:
            return None
        self.touched = now
        return self.reply if now < self.until and not self.held else None

    def take(self) -> Message | None:
        """The next message, unless this site's turn is over and another has waited for it."""
        if not self.ready or (self.credit <= 0 and self.house.shares.pressure > 0):
            return None
        return self.pop()

    def pop(self) -> Message:
        """The next message; there is one."""
        ready = self.ready
        message = ready.popleft()
        # Deficit round robin: a turn is counted in messages, a long one as one for each 64 KiB.
        self.credit -= 1 + (message.body.size >> 16)
        if self.full:
            self.roomier()
        return message

    def withdraw(self, messages: Sequence[Message]) -> list[Message]:
        """Take those of *messages* that are ready out of the queue; which they were."""
        wanted = {id(message) for message in messages}
        found = [message for message in self.ready if id(message) in wanted]
        if found:
            left = [message for message in self.ready if id(message) not in wanted]
            self.ready.clear()
            self.ready.extend(left)
            self.roomier()
        return found

    def roomier(self) -> None:
        """The ready queue has become shorter."""
        if self.full and len(self.ready) <= self.low:
            self.full = False
            self.house.drained(self)

    def finished(self, message: Message, replies: Sequence[Reply]) -> None:
        """Learn from the answer, then pass it on."""
        house = self.house
        reply = replies[0]
        if reply is STALE:
            house.again(self, message)  # not twice: a new connection is never stale
            return
        house.count -= 1
        done = self.dones.pop(id(message))
        if reply.code < 300:
            self.progress = house.now()
            if not self.is_well:
                house.well(self)
            if self.slots < house.slots_max:
                self.slots += 1
            if self.ready and self.held < self.slots:
                house.want(self)
        elif reply.mta and reply.code != 421:
            # A refusal too is the word of a host that is up. 421 says that it is about to go.
            self.progress = house.now()
            if not self.is_well:
                house.well(self)
        done(message, replies)

    def idle(self, connection: Any) -> None:
        """Give it the next message, or keep it."""
        if connection not in self.open:
            return  # said before its dial was: it is asked for then
        message = self.take()
        if message is None:
            self.house.shares.park(self, connection)
        else:
            connection.send(message)

    def lost(self, connection: Any, reason: Reply | None) -> None:
        """Forget it."""
        if connection in self.open:
            self.house.gone(self, connection, reason)
