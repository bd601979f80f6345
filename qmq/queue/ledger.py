"""
What a queue counts, and whom it tells.

Plain numbers, entered as things happen and read by whoever looks in: nothing is
counted by asking the spool.
"""

# ruff: noqa: A002 - a message has an id, here as everywhere
from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

from qmq.mail import QUEUE, Address, Entry, Reply, Seconds
from qmq.queue.settle import Outcomes, Settled

# Deliveries of which the times are kept.
_RING = 1024


class Bouncer(Protocol):
    """Who tells senders what became of their mail; True: it is safe on disk there, or nobody is to be told."""

    def bounce(self, entry: Entry) -> Deferred[bool]:
        """The recipients in *bouncing* failed. The same number and generation mean the same bounce."""

    def delayed(self, entry: Entry) -> Deferred[bool]:
        """The recipients are still tried; their latest replies are in *last*."""


class QueueLog(Protocol):
    """What a queue has to say; the event log's words."""

    def delivered(self, id: bytes, queue: str, recipient: Address, reply: Reply, seconds: Seconds) -> None:
        """The next host took it, *seconds* after it came."""

    def moved(self, id: bytes, queue: str, recipient: Address, to: str, seconds: Seconds) -> None:
        """The queue *to* of this gateway took it, *seconds* after it came."""

    def deferred(self, id: bytes, queue: str, recipient: Address, due: Seconds, reply: Reply) -> None:
        """It is tried again at *due* (wall clock)."""

    def failed(self, id: bytes, queue: str, recipient: Address, reply: Reply) -> None:
        """No further attempt."""

    def deleted(self, id: bytes, queue: str, recipient: Address) -> None:
        """An operator threw it away; nobody is told."""

    def warning(self, text: str) -> None:
        """For the operator."""


class Ledger:
    """Counts of *queue* since the start, and the times of the latest deliveries; writes each fact to its log."""

    __slots__ = (
        "_log", "_next", "_queue", "_times", "accepted", "bounced", "deferred", "deleted", "delivered", "failed",
        "moved",
    )  # fmt: skip

    def __init__(self, queue: str, log: QueueLog) -> None:
        self._queue = queue
        self._log = log
        self.accepted = 0  # messages; the rest are recipients
        self.delivered = 0
        self.moved = 0  # to another queue
        self.deferred = 0
        self.failed = 0
        self.bounced = 0
        self.deleted = 0
        self._times: list[Seconds] = []
        self._next = 0

    def enter(self, entry: Entry, settled: Settled, age: Seconds) -> None:
        """An attempt at a message of this *age*, or what an operator did with it, is *settled* in the entry."""
        if settled.delivered:
            self.taken(entry, settled.delivered, age)
        queue_id = entry.message.envelope.token.id
        for recipient, reply in settled.deferred:
            self._log.deferred(queue_id, self._queue, recipient, entry.due or 0, reply)
            self.deferred += 1
        for recipient, reply in settled.failed:
            self._log.failed(queue_id, self._queue, recipient, reply)
            self.failed += 1
        for recipient in settled.deleted:
            self._log.deleted(queue_id, self._queue, recipient)
            self.deleted += 1

    def taken(self, entry: Entry, delivered: Outcomes, age: Seconds) -> None:
        """As `enter`, of these alone: the next host, or another queue of ours, took the message for them."""
        queue_id = entry.message.envelope.token.id
        if entry.site.startswith(QUEUE):
            to = entry.site.removeprefix(QUEUE).decode("utf-8", "backslashreplace")
            for recipient, _ in delivered:
                self._log.moved(queue_id, self._queue, recipient, to, age)
                self.moved += 1
            return
        for recipient, reply in delivered:
            self._log.delivered(queue_id, self._queue, recipient, reply, age)
            self.delivered += 1
        times = self._times
        if len(times) < _RING:
            times.append(age)
        else:
            times[self._next] = age
            self._next = (self._next + 1) % _RING

    def numbers(self) -> dict[str, float]:
        """For who looks in; p50 and p99 are seconds from acceptance to delivery."""
        median, most = self._percentiles()
        return {
            "accepted": self.accepted,
            "delivered": self.delivered,
            "moved": self.moved,
            "deferred": self.deferred,
            "failed": self.failed,
            "bounced": self.bounced,
            "deleted": self.deleted,
            "p50": median,
            "p99": most,
        }

    def _percentiles(self) -> tuple[Seconds, Seconds]:
        times = sorted(self._times)
        if not times:
            return (0.0, 0.0)
        last = len(times) - 1
        return (max(0.0, times[last // 2]), max(0.0, times[last * 99 // 100]))
