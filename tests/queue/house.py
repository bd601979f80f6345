"""A queue whose spool, hosts, bouncer and clocks the test plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from qmq.deliver.destinations import Destinations
from qmq.mail import Reply
from qmq.queue.runner import Queue, Terms
from qmq.queue.schedule import Quadratic
from tests.queue.fakes import OK, UNREACHABLE, FakeBouncer, FakeDialler, FakeLog, FakeSpool, message

WEEK = 604800.0
NOON = 1_700_000_000.0


def terms(**how: object) -> Terms:
    """Qmail's schedule, a week, a day for bounces; and what the test says."""
    return Terms(Quadratic(20), WEEK, 86400, **how)  # type: ignore[arg-type]  # as the test names them


class House:
    """A queue between a spool and hosts that the test plays; the wall clock goes with the clock, but for jumps."""

    def __init__(
        self, spool: FakeSpool | None = None, concurrency: int = 120, dead: bytes = b"", **how: object
    ) -> None:
        self.clock = Clock()
        self.jump = 0.0
        self.log = FakeLog()
        self.dialler = FakeDialler()
        if dead:
            self.dialler.hosts[dead] = UNREACHABLE
        self.bouncer = FakeBouncer()
        if spool is None:
            spool = FakeSpool(self.wall)
        spool.wall = self.wall
        self.spool = spool
        destinations = Destinations(self.dialler, self.clock, concurrency=concurrency, jitter=lambda: 0.0)
        self.destinations = destinations
        self.asked: list[bytes] = []
        names = {field.name for field in fields(Terms)}
        limits = {word: setting for word, setting in how.items() if word in names}
        settings = {word: setting for word, setting in how.items() if word not in names}
        self.queue = Queue(
            "q1", spool, destinations, self.site_of, terms(**limits), self.bouncer, self.clock, self.wall, self.log,
            **{"jitter": lambda: 0.0, **settings},  # type: ignore[arg-type]  # as the test names them
        )  # fmt: skip
        self.queue.startService()

    def wall(self) -> float:
        return NOON + self.clock.seconds() + self.jump

    def site_of(self, recipient: object) -> bytes:
        self.asked.append(recipient.domain)  # type: ignore[attr-defined]
        return recipient.domain  # type: ignore[attr-defined,no-any-return]

    def send(self, *recipients: str, number: int = 1) -> list[Deferred[Sequence[Reply]]]:
        return [self.queue.send(message(*recipients, seq=self.spool.number + 1)) for _ in range(number)]

    def work(self, reply: Reply = OK, site: bytes | None = None, rounds: int = 2000) -> None:
        """Hosts answer, and the reactor turns, until nothing is on any connection."""
        for _ in range(rounds):
            self.clock.advance(0)
            busy = self.dialler.busy(site)
            if not busy:
                return
            for connection in busy:
                if connection.at_work is not None:
                    connection.answer(reply)

    def wait(self, seconds: float, step: float = 5) -> None:
        for _ in range(int(seconds / step)):
            self.clock.advance(step)

    def delivered(self) -> int:
        return int(self.queue.status()["delivered"])
