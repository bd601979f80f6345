"""
A connection to a site that speaks plain QMTP, as deliveries use it.

What QMTP has no word for, a BINARYMIME or SMTPUTF8 message, is refused here.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.qmtp_line import Line
from qmq.interfaces import IConnection
from qmq.mail import DeliveryFailure, Message, Replies, Reply, Seconds
from qmq.wire.qmtp_client import refusal


@implementer(IConnection)
class QMTPConnection:
    """
    One connection for one site's work (IWork); two packages at a time, one on its way while the other is answered.

    *ready* fires with it, or fails with DeliveryFailure. Within *seconds* an
    answer must come, or a piece of a large body be taken.
    """

    def __init__(self, clock: IReactorTime, work: Any, mta: str, seconds: Seconds) -> None:
        self.line = Line(self, extension=False, mta=mta)
        self.ready: Deferred[QMTPConnection] = Deferred()
        self._clock = clock
        self._work = work
        self._mta = mta
        self._seconds = seconds
        self._jobs: deque[Message] = deque()
        self._closing = False
        self._over = False
        self._deadline: Seconds = 0
        self._timer: IDelayedCall | None = None

    def send(self, message: Message) -> None:
        """As IConnection.send; never reported before this returns."""
        reply = Reply(451, "4.4.2", f"connection to {self._mta} lost") if self._over else refusal(message)
        if reply is not None:
            self._clock.callLater(0, self._refuse, message, reply)
            return
        self._put(message)
        self._take()

    def close(self) -> None:
        """As IConnection.close."""
        self._closing = True
        if not self._jobs and not self._over:
            self.line.close()

    def abort(self) -> None:
        """As IConnection.abort."""
        self.line.cut(Reply(451, "4.4.2", f"connection to {self._mta} was given up"))

    def not_reached(self, reason: Failure) -> None:
        """There will be no connection."""
        if not self.ready.called:
            text = f"cannot connect to {self._mta}: {reason.getErrorMessage()}"
            self.ready.errback(DeliveryFailure(Reply(451, "4.4.1", text)))

    def made(self, line: Line) -> None:
        """Ready at once."""
        if self.ready.called:
            self.abort()
        else:
            self.ready.callback(self)

    def answered(self, line: Line, finished: list[Replies]) -> None:
        """Pass it on, and go on."""
        self._deadline = self._clock.seconds() + self._seconds
        for message, replies in zip([self._jobs.popleft() for _ in finished], finished, strict=True):
            self._work.finished(message, replies)
        self._go_on()

    def free(self, line: Line) -> None:
        """A large body has left."""
        self._take()

    def lost(self, line: Line, finished: list[Replies]) -> None:
        """Pass on what is known."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        jobs, self._jobs = self._jobs, deque()
        for message, replies in zip(jobs, finished, strict=True):
            self._work.finished(message, replies)
        self._work.lost(self, Reply(451, "4.4.2", f"connection to {self._mta} lost") if jobs else None)

    def _put(self, message: Message) -> None:
        self._deadline = self._clock.seconds() + self._seconds
        self._jobs.append(message)
        self.line.send(message)
        self.line.flush()
        if self._timer is None:
            self._timer = self._clock.callLater(self._seconds, self._check)

    def _refuse(self, message: Message, reply: Reply) -> None:
        self._work.finished(message, [reply] * len(message.envelope.recipients))
        self._go_on()

    def _take(self) -> None:
        """Ask for more while there is room."""
        while not (self._closing or self._over or self.line.streaming) and len(self._jobs) < 2:
            message = self._work.take()
            if message is None:
                break
            if (reply := refusal(message)) is not None:
                self._work.finished(message, [reply] * len(message.envelope.recipients))
            else:
                self._put(message)

    def _go_on(self) -> None:
        self._take()
        if self._jobs or self._over:
            return
        if self._closing:
            self.line.close()
        else:
            self._work.idle(self)

    def _check(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        if self.line.moved:
            self.line.moved = False
            self._deadline = now + self._seconds
        if not self._jobs:
            return
        if now >= self._deadline:
            self.line.cut(Reply(451, "4.4.2", f"no answer from {self._mta}"))
        else:
            self._timer = self._clock.callLater(self._deadline - now, self._check)
