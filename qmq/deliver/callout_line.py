"""
A connection on which a host is asked whether mailboxes exist: MAIL from nobody, RCPT, and never a message.

In clear, for nothing is said that the address's owner would mind; a host that
wants TLS first does not tell. One question at a time.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.python.failure import Failure

from qmq.deliver.mx import Candidate
from qmq.mail import Address, Reply, Seconds, path
from qmq.wire.replies import ProtocolError, ReplyParser
from qmq.wire.smtp_envelope import extensions

_LINES = 64  # of a reply: EHLO's has about a dozen
# 5yz replies that say nothing of the mailbox: our syntax, no mail host, TLS or login first, or the mailbox is full.
_NO_ANSWER = frozenset({500, 501, 502, 503, 504, 521, 530, 534, 535, 538, 552, 555, 556})


class NoAnswer(Exception):
    """The host does not tell for now. The text is for the log."""


class Line(Protocol):
    """One connection, from its greeting on."""

    def __init__(self, host: str, address: str) -> None:
        self.mta = f"{host} ({address})"
        self._parser = ReplyParser(self.mta, _LINES)
        self._awaited: Deferred[Reply] | None = Deferred()  # the greeting
        self._greeting: Deferred[Reply] = self._awaited
        self._utf8 = False
        self._begun = False  # a transaction is to be reset
        self._over = ""

    async def greet(self, helo: bytes, *, lmtp: bool) -> None:
        """Greeting and EHLO, or HELO where that is unknown; raises NoAnswer."""
        reply = await self._greeting
        if reply.code != 220:
            raise NoAnswer(f"{self.mta} greets with {reply.code} {reply.text}")
        reply = await self._say((b"LHLO " if lmtp else b"EHLO ") + helo)
        if reply.ok:
            self._utf8 = extensions(reply).smtputf8
            return
        if reply.permanent and not lmtp:
            reply = await self._say(b"HELO " + helo)
        if not reply.ok:
            raise NoAnswer(f"{self.mta} answers HELO with {reply.code} {reply.text}")

    async def ask(self, recipient: Address) -> bool:
        """Whether there is such a mailbox; raises NoAnswer."""
        words = path(recipient)
        # A line end would be a command of its own to the host. And what it can't be told it can't deliver.
        if (not words.isascii() and not self._utf8) or any(octet < 32 or octet == 127 for octet in words):
            return False
        if self._begun:
            self._begun = False
            if not (await self._say(b"RSET")).ok:
                raise NoAnswer(f"{self.mta} does not take RSET")
        reply = await self._say(b"MAIL FROM:<>" + (b"" if words.isascii() else b" SMTPUTF8"))
        if not reply.ok:
            raise NoAnswer(f"{self.mta} answers MAIL FROM:<> with {reply.code} {reply.text}")
        self._begun = True
        reply = await self._say(b"RCPT TO:<" + words + b">")
        if reply.ok:
            return True
        if reply.permanent and reply.code not in _NO_ANSWER:
            return False
        raise NoAnswer(f"{self.mta} answers RCPT with {reply.code} {reply.text}")

    def _say(self, command: bytes) -> Deferred[Reply]:
        answer: Deferred[Reply] = Deferred()
        if self._over:
            answer.errback(NoAnswer(self._over))
            return answer
        self._awaited = answer
        transport: Any = self.transport
        transport.write(command + b"\r\n")
        return answer

    def dataReceived(self, data: bytes) -> None:
        """Replies."""
        self._parser.receive(data)
        try:
            while (reply := self._parser.next_reply()) is not None:
                awaited, self._awaited = self._awaited, None
                if awaited is None or self._parser.held:
                    # An early reply must not be taken for the answer to the next question.
                    self._awaited = awaited
                    self.end(f"{self.mta} says what nobody asked")
                    return
                if reply.code == 421:
                    awaited.errback(NoAnswer(f"{self.mta} closes: {reply.text}"))
                else:
                    awaited.callback(reply)
        except ProtocolError as error:
            self.end(f"{self.mta} speaks no SMTP: {error}")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The host is gone; if it was asked something it did not tell."""
        self.end(f"{self.mta} has closed the connection")

    def quit(self) -> None:
        """In order, without waiting for the answer."""
        transport: Any = self.transport
        if transport is not None and not self._over:
            self._over = "closed"
            self._awaited = Deferred()  # QUIT's answer, which nobody needs
            self._awaited.addErrback(lambda _: None)
            transport.write(b"QUIT\r\n")
            transport.loseConnection()

    def end(self, why: str) -> None:
        """Cut it; what was asked fails with NoAnswer."""
        self._over = self._over or why
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            awaited.errback(NoAnswer(why))
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()


class _Connecting(ClientFactory):
    noisy = False

    def __init__(self, line: Line) -> None:
        self._line = line

    def buildProtocol(self, addr: Any) -> Line:
        return self._line

    def clientConnectionFailed(self, connector: Any, reason: Failure) -> None:
        self._line.end(f"{self._line.mta} cannot be reached: {reason.getErrorMessage()}")


async def open_line(reactor: Any, candidate: Candidate, helo: bytes, seconds: Seconds, *, lmtp: bool) -> Line:
    """A line past EHLO, within *seconds*; raises NoAnswer."""
    line = Line(candidate.host, candidate.address)
    connecting = _Connecting(line)
    try:
        connector = (
            reactor.connectTCP(candidate.address, candidate.port, connecting, timeout=seconds)
            if candidate.port
            else reactor.connectUNIX(candidate.address, connecting, timeout=seconds)
        )
    except OSError as error:  # no descriptor left for a unix socket
        raise NoAnswer(f"{line.mta} cannot be reached: {error}") from error
    timer = reactor.callLater(seconds, line.end, f"{line.mta} does not greet within {seconds:g} s")
    try:
        await line.greet(helo, lmtp=lmtp)
    except NoAnswer as trouble:
        line.end(str(trouble))
        connector.disconnect()
        raise
    finally:
        if timer.active():
            timer.cancel()
    return line
