"""
A connection to an SMTP or LMTP server: greeting, EHLO, STARTTLS, then message after message.

The opening is a dialogue that waits for each answer, so a coroutine; what comes
after is the wire's, and this protocol only carries bytes, long texts and
reports. Somebody checks once a second for all connections (`check`) how many
checks ago there was progress: a whole reply, or a piece of a long text that the
server has taken. Single octets are none, so that dripping helps nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHandshakeListener, IPullProducer, IReactorTime, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.manner import STALE, Manner, TLSFailure, turned_away
from qmq.interfaces import IConnection
from qmq.mail import DeliveryFailure, Message, Reply, Seconds
from qmq.sends import fast_writer, hurry
from qmq.wire.replies import ProtocolError, ReplyParser
from qmq.wire.smtp_client import Finished, SMTPClientWire
from qmq.wire.smtp_envelope import Extensions, extensions
from qmq.wire.smtp_transaction import Stage

_log = Logger()

# How long the answer to QUIT is waited for; it changes nothing any more.
_FAREWELL: Seconds = 5

# EHLO's answer has a line for each extension; servers of today offer up to fifteen.
_EHLO_LINES = 64


@implementer(IConnection, IHandshakeListener, IPullProducer)
class SMTPConnection(Protocol):
    """
    One connection for one site's work (IWork).

    *ready* fires with it once messages can be sent, or fails with
    DeliveryFailure; then the connection is closed. *gone* is called when the
    transport is.
    """

    def __init__(
        self, clock: IReactorTime, work: Any, host: str, address: str, manner: Manner, gone: Callable[[Any], None]
    ) -> None:
        self.host = host
        self.mta = f"{host} ({address})" if address != host else f"[{host}]"
        self.tls = ""  # protocol, cipher, and "verified" if so; empty in clear
        self.offered = Extensions()
        self.ready: Deferred[SMTPConnection] = Deferred(self._given_up)
        self._clock = clock
        self._work = work
        self._manner = manner
        self._gone = gone
        self._parser: ReplyParser | None = ReplyParser(self.mta, _EHLO_LINES)  # while opening
        self._waiting: Deferred[Any] | None = None  # the opening's next reply, or the handshake
        self._shaking = False  # between STARTTLS's 220 and the answer to EHLO behind it
        self._wire: SMTPClientWire | None = None  # once ready
        self._write: Callable[[bytes], None]
        self._left = manner.messages
        self._fresh = 0  # the wire's count of replies when the last message was begun
        self._producing = False
        self._closing = False  # asked to close when nothing is outstanding
        self._over = False  # reported as lost; nothing more is sent
        self._since = clock.seconds()  # the last progress; by `check` the server's time is counted from then
        self._moved = False  # there was progress since, of which `check` has still to take the time
        self._limit = manner.command_seconds  # of that time, except while messages are under way

    # IConnection

    def send(self, message: Message) -> None:
        """Begin with this message; only while idle. It is never reported before this returns."""
        wire = self._wire
        if wire is None or self._over:
            self._clock.callLater(0, self._work.finished, message, [STALE] * len(message.envelope.recipients))
            return
        self._moved = True
        finished = self._start(wire, message)
        if finished:
            self._clock.callLater(0, self._go_on, wire, finished)
        else:
            self._write(wire.to_send())

    def close(self) -> None:
        """End in order (QUIT) if idle, at once if no text has left whole, else after what is outstanding."""
        self._closing = True
        wire = self._wire
        if self._over:
            return
        if wire is None or not (wire.idle or wire.in_doubt):
            self.abort()
        elif wire.idle:
            self._quit()

    def abort(self) -> None:
        """Cut now; what is outstanding is reported with 4yz."""
        self._cut(Reply(451, "4.4.2", f"the connection to {self.mta} was given up"))

    def check(self, now: Seconds) -> None:
        """Act if the server's time, or an idle connection's, is over by *now* (the clock's seconds)."""
        wire = self._wire
        if self._moved:
            self._moved, self._since = False, now
        if now - self._since < (self._limit if wire is None or self._over else self._patience(wire)):
            return
        if self._over:
            self._abort_transport()
        elif wire is None:
            self._cut(Reply(451, "4.4.2", f"{self.mta} gave no answer in time"))
        elif wire.idle:
            self._quit()
        else:
            self._cut(Reply(451, "4.4.2", f"{self.mta} gave no answer in time ({wire.stage.name.lower()})"))

    def not_reached(self, reason: Failure) -> None:
        """There will be no transport."""
        self._fail(Reply(451, "4.4.1", f"cannot connect to {self.mta}: {reason.getErrorMessage()}"))

    # The opening.

    def connectionMade(self) -> None:
        """Keep the line alive, and wait for the banner."""
        transport = self.transport
        assert transport is not None
        if ITCPTransport.providedBy(transport):
            transport.setTcpNoDelay(True)
            transport.setTcpKeepAlive(True)
        self._write = transport.write
        self._extend(self._manner.command_seconds)
        Deferred.fromCoroutine(self._open()).addErrback(self._not_opened)

    async def _open(self) -> None:
        banner = await self._reply()
        if not banner.ok:
            raise DeliveryFailure(turned_away(banner))
        await self._hello()
        manner = self._manner
        if manner.tls is not None and self.offered.starttls:
            answer = await self._ask(b"STARTTLS\r\n")
            if answer.ok:
                await self._start_tls(manner.tls)
        if manner.tls_required and not self.tls:
            raise DeliveryFailure(Reply(451, "4.7.10", "encryption is required, and not to be had", self.mta))
        self._begin()

    async def _hello(self) -> None:
        manner = self._manner
        verb = b"LHLO" if manner.lmtp else b"EHLO"
        answer = await self._ask(b"%s %s\r\n" % (verb, manner.helo))
        if answer.ok:
            self.offered = extensions(answer)
        elif answer.permanent and not manner.lmtp:
            # RFC 5321 3.2: a server without extensions.
            self.offered = Extensions()
            answer = await self._ask(b"HELO %s\r\n" % manner.helo)
        if not answer.ok:
            raise DeliveryFailure(turned_away(answer))

    async def _start_tls(self, options: Callable[[str], Any]) -> None:
        # Nothing said in clear counts inside: octets behind the 220 have cut the connection already (see
        # _opening_reply), and what was offered is asked anew (RFC 3207 4.2; CVE-2021-38371 in a client).
        transport: Any = self.transport
        self._parser = ReplyParser(self.mta, _EHLO_LINES)
        self.offered = Extensions()
        self._shaking = True
        self._waiting = Deferred()
        self._extend(self._manner.tls_seconds)
        handshake = self._waiting
        transport.startTLS(options(self.host))
        await handshake
        await self._hello()
        self._shaking = False
        text = self._manner.tls_text
        self.tls = text(transport) if text is not None else "TLS"

    def handshakeCompleted(self) -> None:
        """TLS is on."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def _ask(self, command: bytes) -> Deferred[Reply]:
        self._write(command)
        return self._reply()

    def _reply(self) -> Deferred[Reply]:
        self._extend(self._manner.command_seconds)
        self._waiting = waiting = Deferred[Reply]()
        return waiting

    def _opening_reply(self, parser: ReplyParser, data: bytes) -> None:
        early = False
        try:
            parser.receive(data)
            reply = parser.next_reply()
            early = reply is not None and parser.held
        except ProtocolError as error:
            self._cut(Reply(451, "4.5.0", f"{self.mta} broke the protocol: {error}"))
            return
        if reply is None:
            return
        waiting, self._waiting = self._waiting, None
        if early or waiting is None:
            self._cut(Reply(451, "4.5.0", f"{self.mta} broke the protocol: an answer to what was not asked yet"))
            return
        waiting.callback(reply)

    def _begin(self) -> None:
        transport: Any = self.transport
        manner = self._manner
        self._parser = None
        self._wire = SMTPClientWire(self.offered, self.mta, lmtp=manner.lmtp, chunking=manner.chunking, tls=self.tls)
        self._write = fast_writer(transport)
        self._extend(manner.idle_seconds)
        self.ready.callback(self)

    def _not_opened(self, failure: Failure) -> None:
        if failure.check(DeliveryFailure):
            self._fail(cast("DeliveryFailure", failure.value).reply)
            return
        if not self._shaking:  # a host's name that no certificate can have is the host's fault, all else is ours
            _log.failure("cannot open a connection to {mta}", failure, mta=self.mta)
        self._fail(Reply(451, "4.3.0", f"cannot open a connection to {self.mta}: {failure.value}"))

    def _fail(self, reply: Reply) -> None:
        """The opening has come to nothing."""
        if self._over:
            return
        self._over = True
        self._abort_transport()
        self.ready.errback(TLSFailure(reply) if self._shaking else DeliveryFailure(reply))

    def _given_up(self, _ready: Deferred[SMTPConnection]) -> None:
        self._over = True
        self._abort_transport()

    # Messages.

    def dataReceived(self, data: bytes) -> None:
        """Replies have come."""
        wire = self._wire
        if self._over:
            if self.transport is not None:
                self.transport.loseConnection()  # QUIT is answered
        elif wire is not None:
            answered = wire.answered
            finished = wire.receive(data)
            self._moved = self._moved or wire.answered != answered
            if finished or wire.trouble is not None:
                self._go_on(wire, finished)
            else:
                self._flush(wire)
        elif self._parser is not None:
            self._opening_reply(self._parser, data)

    def _go_on(self, wire: SMTPClientWire, finished: Finished) -> None:
        """Send what follows, then report what is known: the network does not wait for our books."""
        if wire.trouble is None:
            # A connection that was idle before is the site's, to send on it what it likes.
            while finished and wire.idle and (message := self._more()) is not None:
                finished += self._start(wire, message)
            self._flush(wire)
        work = self._work
        for message, replies in finished:
            work.finished(message, replies)
        if self._over:
            return
        if wire.trouble is not None:
            # A text that we could not read is no mark against the server.
            self._lose(None if wire.trouble.status == "4.3.0" and not wire.trouble.mta else wire.trouble)
            self._abort_transport()
        elif wire.idle:
            if self._closing or self._left <= 0:
                self._quit()
            elif finished:
                self._moved = True
                work.idle(self)

    def _more(self) -> Message | None:
        if self._closing or self._over or self._left <= 0:
            return None
        message: Message | None = self._work.take()
        return message

    def _start(self, wire: SMTPClientWire, message: Message) -> Finished:
        """Begin with this one; finished at once is what asks for something that the server does not offer."""
        self._left -= 1
        self._fresh = wire.answered
        refusal = wire.send(message)
        return [] if refusal is None else [(message, [refusal] * len(message.envelope.recipients))]

    def _flush(self, wire: SMTPClientWire) -> None:
        if out := wire.to_send():
            self._write(out)
        if wire.streaming and not self._producing:
            self._producing = True
            # A piece at a time, when the one before has left: memory is bounded by two pieces, however long the text.
            transport: Any = self.transport
            hurry(transport)
            transport.registerProducer(self, streaming=False)

    def resumeProducing(self) -> None:
        """The transport has room for the next piece of a long text."""
        wire = self._wire
        transport: Any = self.transport
        chunk = b""
        while wire is not None and wire.streaming and not chunk:
            chunk = wire.next_chunk()
        if chunk:
            transport.write(chunk)
        if wire is None or self._over:
            return
        self._moved = True
        if not wire.streaming:
            self._producing = False
            transport.unregisterProducer()
            if wire.trouble is not None:
                # Later: what is reported may lead back here.
                self._clock.callLater(0, self._go_on, wire, wire.finished())

    def stopProducing(self) -> None:
        """The transport is going; connectionLost tells the rest."""

    def _patience(self, wire: SMTPClientWire) -> Seconds:
        """How long the server may take for what is waited for now, or the connection be idle."""
        manner = self._manner
        match wire.stage:
            case Stage.END:
                return manner.end_seconds
            case Stage.COMMAND:
                return manner.command_seconds
            case Stage.TEXT:
                return manner.data_seconds
            case Stage.INITIATION:
                return manner.initiation_seconds
            case Stage.IDLE:
                return manner.idle_seconds

    def _extend(self, seconds: Seconds) -> None:
        self._since, self._limit = self._clock.seconds(), seconds

    # The end.

    def _quit(self) -> None:
        self._write(b"QUIT\r\n")
        self._extend(_FAREWELL)
        self._lose(None)

    def _cut(self, reason: Reply) -> None:
        """Report what is outstanding with *reason*, and leave."""
        if self._over:
            self._abort_transport()
            return
        wire = self._wire
        if wire is None:
            self._fail(reason)
            return
        wire.abandon(reason)
        self._lose(reason, wire.finished())
        self._abort_transport()

    def _lose(self, reason: Reply | None, finished: Finished | None = None) -> None:
        self._over = True
        for message, replies in finished or ():
            self._work.finished(message, replies)
        # A connection that the server closed while it was idle is no mark against the server.
        self._work.lost(self, None if reason is STALE else reason)

    def _abort_transport(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The transport is gone."""
        wire = self._wire
        self._gone(self)
        if self._over:
            return
        text = (
            f"{self.mta} closed the connection"
            if reason.check(ConnectionDone, ConnectionLost)
            else f"{self.mta}: {reason.value}"
        )
        if wire is None:
            self._fail(Reply(451, "4.4.2", text))
        elif wire.idle:
            self._lose(None)  # the server's idle time was over before ours
        else:
            kept = self._manner.messages - self._left > 1
            stale = kept and wire.answered == self._fresh
            self._cut(STALE if stale else Reply(451, "4.4.2", text))
