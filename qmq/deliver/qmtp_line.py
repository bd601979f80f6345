"""
One QMTP connection as its owner uses it: packages out, answers in.

A large body leaves piece by piece, as fast as the peer takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, cast
from typing import Protocol as Interface

from twisted.internet import unix
from twisted.internet.interfaces import IAddress, IConnector, IPullProducer, ITCPTransport
from twisted.internet.protocol import ClientFactory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Message, Octets, Replies, Reply
from qmq.sends import fast_writer, hurry
from qmq.wire.qmtp_client import QMTPClientWire

# Of a unix socket, in the kernel, which doubles it. What it has by itself is full with two or three long messages, and
# each time it is, sender and receiver must take turns.
_BUFFER: Octets = 1 << 18


class Owner(Interface):
    """Who uses a line. Of these, only *free* may be called within ``Line.send``."""

    def made(self, line: Line) -> None:
        """The connection is there."""

    def answered(self, line: Line, finished: list[Replies]) -> None:
        """The oldest packages were answered, in order."""

    def free(self, line: Line) -> None:
        """A large body has left: the line takes the next message."""

    def lost(self, line: Line, finished: list[Replies]) -> None:
        """The connection is gone, told once; *finished* has what is known of the packages outstanding."""


@implementer(IPullProducer)
class Line(Protocol):
    """A connection; as a producer it gives its transport a large body piece by piece."""

    _log = Logger()

    def __init__(self, owner: Owner, *, extension: bool, mta: str) -> None:
        self._owner = owner
        self._wire = QMTPClientWire(extension=extension, mta=mta)
        self._mta = mta
        self._out: list[bytes] = []
        self._gone = False
        self._why: Reply | None = None  # it was us who ended it
        self.moved = False  # a piece of a large body has left, since whoever looks here last looked
        self.streaming = False  # a large body is on its way: nothing can be sent now

    def connectionMade(self) -> None:
        """Ready at once: QMTP has no greeting."""
        self._transport = cast("Any", self.transport)  # its interface has no registerProducer, no abortConnection
        if ITCPTransport.providedBy(self._transport):
            self._transport.setTcpKeepAlive(True)  # else a peer that lost its power is found out by a message
        elif isinstance(self._transport, unix.Client):
            self._transport.getHandle().setsockopt(SOL_SOCKET, SO_SNDBUF, _BUFFER)
        self._write = fast_writer(self._transport)
        self._owner.made(self)

    def send(self, message: Message, low: int = 0) -> None:
        """Take a message; small ones leave with flush. Raises ValueError if the wire cannot say it."""
        self._out += self._wire.send(message, low)
        if self._wire.streaming:
            self.streaming = True
            self.flush()
            hurry(self._transport)
            self._transport.registerProducer(self, streaming=False)

    def flush(self) -> None:
        """Write what was taken."""
        if self._out and not self._gone:
            out = b"".join(self._out)
            self._out.clear()
            self._write(out)

    def dataReceived(self, data: bytes) -> None:
        """Answers."""
        if self._gone:
            return
        finished = self._wire.receive(data)
        if finished:
            self._owner.answered(self, finished)
        if self._wire.broken:
            self._log.info("{mta} does not speak QMTP: {why}", mta=self._mta, why=self._wire.broken)
            self.cut(Reply(451, "4.5.0", f"answer of {self._mta} is not proper QMTP"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The peer, or the network, has ended it."""
        self._lost(self._why or Reply(451, "4.4.2", f"connection to {self._mta} lost"))

    def close(self) -> None:
        """End in order; only while nothing is outstanding."""
        self._transport.loseConnection()

    def cut(self, unknown: Reply) -> None:
        """End now; *unknown* is the fate of whatever was not answered."""
        if not self._gone:
            self._transport.abortConnection()
            self._lost(unknown)

    def resumeProducing(self) -> None:
        """The transport has sent what it had."""
        if self._gone or self._why is not None or not self.streaming:
            return
        try:
            chunk = self._wire.next_chunk()
        except (OSError, ValueError):
            self._log.failure("cannot read a body on its way to {mta}", mta=self._mta)
            self._why = Reply(451, "4.3.0", "message cannot be read here")
            self._transport.abortConnection()  # connectionLost follows, but not at once
            return
        # Not by the fast writer: it is the transport that asks for more when it has sent what it was given.
        self._transport.write(chunk)
        self.moved = True
        self.streaming = self._wire.streaming
        if not self.streaming:
            self._transport.unregisterProducer()
            self._owner.free(self)

    def stopProducing(self) -> None:
        """The connection is going; connectionLost follows."""

    def _lost(self, unknown: Reply) -> None:
        if not self._gone:
            self._gone = True
            self._out.clear()
            self._owner.lost(self, self._wire.cut(unknown))


class Call(ClientFactory):
    """Brings a line together with its transport, or tells why not."""

    noisy = False

    def __init__(self, line: Line, failed: Callable[[Failure], None]) -> None:
        self._line = line
        self._failed = failed

    def buildProtocol(self, addr: IAddress | None) -> Line:
        """The line."""
        return self._line

    def clientConnectionFailed(self, connector: IConnector, reason: Failure) -> None:
        """There will be no connection."""
        self._failed(reason)
