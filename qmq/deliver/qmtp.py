"""
Mail handed on by QMTP: the kept connections to one instance, and deliveries to a site that speaks QMTP.

What a peer has answered is its word; whatever it has not answered when a
connection ends, or when the time is over, is in doubt: a 451 with an empty
``mta``. The caller keeps such a message under its token and hands it over again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IConnector, IReactorTCP, IReactorTime
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.qmtp_line import Line, Owner
from qmq.interfaces import IConnection, INextHop
from qmq.mail import DeliveryFailure, Message, Replies, Reply, Seconds
from qmq.wire.qmtp_client import refusal

_BACK_OFF_FIRST = 0.1
_BACK_OFF_MOST = 1.0


class _Calls(ClientFactory):
    """One attempt to connect, told to whoever made it."""

    noisy = False

    def __init__(self, line: Line, failed: Callable[[Failure], None]) -> None:
        self._line = line
        self._failed = failed

    def buildProtocol(self, addr: IAddress | None) -> Line:
        return self._line

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        self._failed(reason)


class _Job:
    """A message that was sent, or waits to be."""

    __slots__ = ("deferred", "message", "since")

    def __init__(self, message: Message, since: Seconds) -> None:
        self.message = message
        self.since = since
        self.deferred: Deferred[Replies] = Deferred()

    def done(self, replies: Replies) -> None:
        if not self.deferred.called:  # else its caller has cancelled it
            self.deferred.callback(replies)

    def unknown(self, reply: Reply) -> None:
        self.done([reply] * len(self.message.envelope.recipients))


@implementer(INextHop)
class QMTPClient:
    """
    The way to one instance: up to *connections* kept open, each with up to *window* messages unanswered.

    *connect* begins one connection, by TCP or unix socket. With *extension* every
    message travels with its token and *low()*, the lowest seq still in doubt here.
    *mta* is the instance's name, in the replies it gives. A connection is added
    when each has *crowd* messages outstanding; beyond *waiting* messages that find
    no room, and while nobody listens, the answer is 451 at once. No message waits
    longer than *seconds* for its answer, which ends the connection it went by.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[ClientFactory], IConnector],
        *,
        extension: bool,
        low: Callable[[], int],
        mta: str,
        connections: int = 4,
        window: int = 64,
        crowd: int = 16,
        waiting: int = 1000,
        seconds: Seconds = 120.0,
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._extension = extension
        self._low = low
        self._mta = mta
        self._connections = connections
        self._window = window
        self._crowd = crowd
        self._most = waiting
        self._seconds = seconds
        self._lines: dict[Line, deque[_Job]] = {}
        self._calling: dict[Line, IConnector | None] = {}
        self._proven: set[Line] = set()  # have answered once
        self._waiting: deque[_Job] = deque()
        self._not_before: Seconds = 0
        self._back_off: Seconds = 0
        self._sweeping = False
        self._flushing = False
        self._stopped: Deferred[None] | None = None
        self._down = Reply(451, "4.4.1", f"{mta} cannot be reached")
        self._silent = Reply(451, "4.4.2", f"no answer from {mta}")
        self._busy = Reply(451, "4.3.2", f"too much waits for {mta}")

    def send(self, message: Message) -> Deferred[Replies]:
        """As INextHop.send; a 4yz with an empty ``mta`` leaves the message in doubt."""
        envelope = message.envelope
        if not envelope.recipients:
            return succeed(())
        if not self._extension and (refused := refusal(message)) is not None:
            return succeed([refused] * len(envelope.recipients))
        job = _Job(message, self._clock.seconds())
        line = self._choose()
        if line is not None:
            self._give(line, job)
        elif self._stopped is not None or len(self._waiting) >= self._most:
            job.unknown(self._busy)
        elif not self._lines and not self._calling:
            job.unknown(self._down)
        else:
            self._waiting.append(job)
            self._watch()
        return job.deferred

    def stop(self) -> Deferred[None]:
        """Take nothing further; fires when what was sent is answered, or its time is over, and all is closed."""
        if self._stopped is None:
            self._stopped = Deferred()
            for job in self._drain():
                job.unknown(self._down)
            for connector in tuple(self._calling.values()):
                if connector is not None:
                    connector.stopConnecting()
            for line, jobs in tuple(self._lines.items()):
                if not jobs:
                    line.close()
            self._ended()
        return self._stopped if not self._stopped.called else succeed(None)

    def made(self, line: Line) -> None:
        """A connection is there."""
        self._calling.pop(line, None)
        self._lines[line] = deque()
        if self._stopped is not None:
            line.close()
        self._serve()

    def answered(self, line: Line, finished: list[Replies]) -> None:
        """What a peer has said is its word."""
        if line not in self._proven:
            self._proven.add(line)
            self._back_off = 0
        jobs = self._lines[line]
        done = [jobs.popleft() for _ in finished]
        for job, replies in zip(done, finished, strict=True):
            job.done(replies)
        if self._waiting:
            self._serve()
        if self._stopped is not None and not jobs:
            line.close()

    def free(self, line: Line) -> None:
        """A large body has left."""
        self._serve()

    def lost(self, line: Line, finished: list[Replies]) -> None:
        """A connection is gone; what it had is answered as far as is known."""
        jobs = self._lines.pop(line)
        if line in self._proven:
            self._proven.remove(line)
        else:
            self._wait_a_little()  # a peer that hangs up on us: do not ring it up for every message
        for job, replies in zip(jobs, finished, strict=True):
            job.done(replies)
        self._serve()
        self._ended()

    def _choose(self) -> Line | None:
        """The open line with the least to do, if any has room; may ring up another one for next time."""
        best = None
        least = self._window
        for line, jobs in self._lines.items():
            if len(jobs) < least and not line.streaming:
                best, least = line, len(jobs)
        if (
            least >= self._crowd or best is None
        ) and len(self._lines) + len(self._calling) < self._connections:
            self._call()
            if best is None and self._lines:
                return self._choose_open()
        return best

    def _choose_open(self) -> Line | None:
        return next((one for one, jobs in self._lines.items() if len(jobs) < self._window and not one.streaming), None)

    def _give(self, line: Line, job: _Job) -> None:
        jobs = self._lines[line]
        try:
            line.send(job.message, self._low())
        except (OSError, ValueError):
            job.unknown(Reply(451, "4.3.0", "message cannot be handed over"))
            return
        jobs.append(job)
        if len(jobs) == 1:
            line.flush()
            self._watch()
        elif not self._flushing:
            # Many sessions are served in one turn of the loop: what they hand over while answers are awaited
            # leaves together.
            self._flushing = True
            self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for line in tuple(self._lines):
            line.flush()
