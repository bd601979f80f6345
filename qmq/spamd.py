"""
What SpamAssassin thinks of a message: a client of spamd.

The protocol is SPAMC/1.5 (SpamAssassin's spamd/PROTOCOL): one connection a
message, a request that looks like HTTP, an answer of some lines. A bounded
number of messages is asked about at once, each for a bounded time. Nothing
here waits.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred, DeferredSemaphore, TimeoutError  # noqa: A004 - addTimeout's own
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from qmq.mail import Message, Octets, Seconds

_PORT = 783
_LONGEST: Octets = 4096  # of an answer; it has some three lines
_STATUS = re.compile(rb"SPAMD/[0-9.]+ ([0-9]+) ?([^\r\n]*)")
_SPAM = re.compile(rb"^Spam: *\w+ *; *(-?[0-9]{1,9}(?:\.[0-9]{1,9})?) */", re.MULTILINE | re.IGNORECASE)
_ENDS = re.compile(rb"\r?\n\r?\n")


class SpamdTrouble(Exception):
    """There is no score to be had. The text is for the log."""


class Spamd:
    """Asks the spamd at *where* about *at_once* messages at the same time; *waiting* more may wait for their turn."""

    def __init__(
        self, where: IStreamClientEndpoint, clock: IReactorTime, *, at_once: int = 5, waiting: int = 50, user: str = ""
    ) -> None:
        self._endpoint = where
        self._clock = clock
        self._slots = DeferredSemaphore(at_once)
        self._waiting = waiting
        self._user = user  # whose preferences count there

    async def score(self, message: Message, seconds: Seconds) -> float:
        """
        The message's score; raises SpamdTrouble, also if it is not there after *seconds*.

        The wait for its turn is part of them. Raises OSError if the message cannot
        be read. The whole message is in memory meanwhile, so it should have a bound.
        """
        if not self._slots.tokens and len(self._slots.waiting) >= self._waiting:
            raise SpamdTrouble(f"too many messages wait for it ({self._waiting})")
        try:
            return await Deferred.fromCoroutine(self._ask(message)).addTimeout(seconds, self._clock)
        except TimeoutError:
            raise SpamdTrouble(f"no answer within {seconds:g} s") from None

    async def _ask(self, message: Message) -> float:
        await self._slots.acquire()
        try:
            text = b"".join(message.chunks())
            try:
                query: Any = await self._endpoint.connect(Factory.forProtocol(_Query))
            except (error.ConnectError, error.TimeoutError) as trouble:
                raise SpamdTrouble(f"cannot connect: {trouble}") from None
            answer: bytes = await query.ask(text, self._user)
        finally:
            self._slots.release()
        return _score(answer)


class _Query(Protocol):
    """One question and its answer."""

    _answer = b""
    _result: Deferred[bytes] | None = None

    def ask(self, text: bytes, user: str) -> Deferred[bytes]:
        """All lines of the answer; fails with SpamdTrouble."""
        result: Deferred[bytes] = Deferred(self._given_up)
        self._result = result
        transport: Any = self.transport
        whose = f"User: {user}\r\n" if user else ""
        transport.writeSequence([f"CHECK SPAMC/1.5\r\nContent-length: {len(text)}\r\n{whose}\r\n".encode(), text])
        return result

    def dataReceived(self, data: bytes) -> None:
        """Some of the answer."""
        self._answer += data
        if _ENDS.search(self._answer):
            self._over(self._answer)
        elif len(self._answer) > _LONGEST:
            self._over(Failure(SpamdTrouble("its answer does not end")))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It has ended, or died."""
        self._over(self._answer or Failure(SpamdTrouble("it closed the connection")))

    def _over(self, outcome: bytes | Failure) -> None:
        result, self._result = self._result, None
        if result is not None:
            transport: Any = self.transport
            transport.abortConnection()
            result.callback(outcome) if isinstance(outcome, bytes) else result.errback(outcome)

    def _given_up(self, _: object) -> None:
        self._result = None
        transport: Any = self.transport
        transport.abortConnection()


def _score(answer: bytes) -> float:
    status = _STATUS.match(answer)
    if status is None or int(status[1]):
        raise SpamdTrouble(f"it answered {answer[:100]!r}")
    found = _SPAM.search(answer)
    if found is None:
        raise SpamdTrouble(f"there is no score in its answer {answer[:200]!r}")
    return float(found[1])


def endpoint(text: str, reactor: Any) -> IStreamClientEndpoint:
    """Where spamd listens: ``127.0.0.1:783``, ``[::1]:783`` or ``/run/spamd.sock``; raises ValueError."""
    if text.startswith("/"):
        return UNIXClientEndpoint(reactor, text)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?", text)
    port = int(match[3] or _PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ValueError(f"{text!r} is no address of spamd; say 127.0.0.1:783, [::1]:783 or /run/spamd.sock")
    if match[1]:
        return TCP6ClientEndpoint(reactor, str(ipaddress.IPv6Address(match[1])), port)
    return TCP4ClientEndpoint(reactor, str(ipaddress.IPv4Address(match[2])), port)
