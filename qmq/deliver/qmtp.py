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
from twisted.internet.interfaces import IConnector, IReactorTime
from twisted.internet.protocol import ClientFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.qmtp_line import Call, Line
from qmq.deliver.qmtp_site import QMTPConnection
from qmq.interfaces import INextHop
from qmq.mail import Message, Replies, Reply, Seconds
from qmq.wire.qmtp_client import refusal

_BACK_OFF_FIRST: Seconds = 0.1
_BACK_OFF_MOST: Seconds = 1.0


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
    no room, and for a moment after nobody listened, the answer is 451 at once. No
    message waits longer than *seconds* for its answer; that ends the connection
    it went by. Cancelling a Deferred takes back a message that still waits.
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
        self._proven: set[Line] = set()  # lines that have answered
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
        recipients = len(message.envelope.recipients)
        if not recipients:
            return succeed(())
        if not self._extension and (refused := refusal(message)) is not None:
            return succeed([refused] * recipients)
        if self._stopped is not None:
            return succeed([self._down] * recipients)
        job = _Job(message, self._clock.seconds())
        line = self._choose()
        if line is not None:
            self._give(line, job)
        elif not self._lines and not self._calling:
            job.unknown(self._down)
        elif len(self._waiting) >= self._most:
            job.unknown(self._busy)
        else:
            self._waiting.append(job)
        if not self._sweeping:
            self._sweeping = True
            self._clock.callLater(1.0, self._sweep)
        return job.deferred

    def stop(self) -> Deferred[None]:
        """Take nothing further; fires when what was sent is answered, or its time is over, and all is closed."""
        if self._stopped is None:
            self._stopped = Deferred()
            self._refuse_waiting()
            for connector in tuple(self._calling.values()):
                if connector is not None:
                    connector.disconnect()
            for line, jobs in tuple(self._lines.items()):
                if not jobs:
                    line.close()
            self._ended()
        return self._stopped if not self._stopped.called else succeed(None)

    # What lines tell their owner.

    def made(self, line: Line) -> None:
        """A connection is there."""
        self._calling.pop(line, None)
        self._lines[line] = deque()
        if self._stopped is not None:
            line.close()
        self._serve()

    def answered(self, line: Line, finished: list[Replies]) -> None:
        """What the peer has said is its word."""
        if line not in self._proven:
            self._proven.add(line)
            self._back_off = 0
        jobs = self._lines[line]
        done = [jobs.popleft() for _ in finished]
        for job, replies in zip(done, finished, strict=True):
            job.done(replies)
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
            self._hold_off()  # a peer that hangs up on us: do not ring it up for every message
        for job, replies in zip(jobs, finished, strict=True):
            job.done(replies)
        self._serve()
        self._ended()

    def _choose(self) -> Line | None:
        """The open line with the least to do, if one has room; rings up another if there is much to do."""
        line = self._least()
        if (
            (line is None or len(self._lines[line]) >= self._crowd)
            and not self._calling
            and len(self._lines) < self._connections
            and self._clock.seconds() >= self._not_before
        ):
            self._call()
            line = self._least()  # in memory, a connection may be there at once
        return line

    def _least(self) -> Line | None:
        best = None
        least = self._window
        for line, jobs in self._lines.items():
            if len(jobs) < least and not line.streaming:
                best, least = line, len(jobs)
        return best

    def _give(self, line: Line, job: _Job) -> None:
        jobs = self._lines[line]
        jobs.append(job)  # before it is sent: a large body may have left, and made room, before that returns
        try:
            line.send(job.message, self._low())
        except ValueError:
            jobs.pop()
            job.unknown(Reply(451, "4.3.0", "message cannot be handed over"))
            return
        if len(jobs) == 1:
            line.flush()
        elif not self._flushing:
            # Many sessions are served in one turn of the loop: while an answer is awaited anyway, what they
            # hand over leaves together.
            self._flushing = True
            self._clock.callLater(0, self._flush)

    def _flush(self) -> None:
        self._flushing = False
        for line in tuple(self._lines):
            line.flush()

    def _serve(self) -> None:
        """Send what waits, as far as there is room; answer it if nobody is there to take it."""
        while self._waiting:
            if self._waiting[0].deferred.called:
                self._waiting.popleft()
            elif (line := self._choose()) is not None:
                self._give(line, self._waiting.popleft())
            else:
                break
        if not self._lines and not self._calling:
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            job.unknown(self._down)

    def _call(self) -> None:
        line = Line(self, extension=self._extension, mta=self._mta)
        self._calling[line] = None
        try:
            connector = self._connect(Call(line, lambda _: self._not_reached(line)))
        except OSError:  # no descriptor left for a unix socket; a TCP connector would report it
            self._not_reached(line)
            return
        if line in self._calling:
            self._calling[line] = connector

    def _not_reached(self, line: Line) -> None:
        del self._calling[line]
        self._hold_off()
        self._serve()
        self._ended()

    def _hold_off(self) -> None:
        self._back_off = min(_BACK_OFF_MOST, self._back_off * 2 or _BACK_OFF_FIRST)
        self._not_before = self._clock.seconds() + self._back_off

    def _sweep(self) -> None:
        """Once a second while anything is awaited: whose time is over?"""
        since = self._clock.seconds() - self._seconds
        for line, jobs in tuple(self._lines.items()):
            if jobs and jobs[0].since <= since:
                line.cut(self._silent)
        while self._waiting and self._waiting[0].since <= since:
            self._waiting.popleft().unknown(self._silent)
        self._sweeping = bool(self._waiting) or any(self._lines.values())
        if self._sweeping:
            self._clock.callLater(1.0, self._sweep)

    def _ended(self) -> None:
        if self._stopped is not None and not (self._lines or self._calling or self._stopped.called):
            self._stopped.callback(None)


def dial_qmtp(
    reactor: Any,
    address: str,
    port: int,
    work: Any,
    *,
    host: str = "",
    timeout_connect: Seconds = 60,
    timeout_remote: Seconds = 300,
    bind: tuple[str, int] | None = None,
) -> Deferred[Any]:
    """
    An IConnection for *work* (IWork) to a site that speaks plain QMTP; fails with DeliveryFailure.

    Within *timeout_remote* seconds each answer must come, and each piece of a
    large body be taken. Cancelling gives up.
    """
    mta = f"{host} ({address})" if host not in {"", address} else f"[{address}]"
    connection = QMTPConnection(reactor, work, mta, timeout_remote)
    call = Call(connection.line, connection.not_reached)
    connector = reactor.connectTCP(address, port, call, timeout=timeout_connect, bindAddress=bind)
    connection.ready.addErrback(_give_up, connector)
    return connection.ready


def _give_up(failure: Failure, connector: IConnector) -> Failure:
    connector.disconnect()
    return failure
