"""
Where a wire meets Twisted.

A wire turns bytes into events and replies into bytes; a dialogue answers
events. The conversation between them is the only part that has a transport: it
pulls one event at a time, so that what a client pipelines waits as bytes until
the command before it is answered. One write a packet, no timer of its own: who
holds the conversations sweeps them, say once a second.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol, TypeVar

from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IHandshakeListener, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deadlines import Deadlines, Stage, Watch
from qmq.mail import Octets, Reply, Seconds
from qmq.sends import fast_writer, hurry


class After(Enum):
    """What is to be done once the reply is written."""

    CLOSE = "close"
    SECURE = "secure"  # STARTTLS


Spoken = Reply | bytes  # bytes: whole reply lines, as they go out
Event_co = TypeVar("Event_co", covariant=True)
Event_contra = TypeVar("Event_contra", contravariant=True)


class Wire(Protocol[Event_co]):
    """What a conversation needs of a wire."""

    held: Octets  # received and not yet given out as events
    awaiting: bool  # the last event has not been answered

    def receive(self, data: bytes) -> None:
        """Take bytes; answer nothing yet."""

    def next_event(self) -> Event_co | None:
        """The next event; None: more bytes, or our reply, is needed."""

    def reply(self, reply: Reply) -> None:
        """Answer the last event."""

    def line(self, reply: Reply) -> bytes:
        """A reply as this wire says it."""

    def say(self, raw: bytes) -> None:
        """The same in bytes; also what nobody asked for, such as the banner."""

    def to_send(self) -> bytes:
        """All that is to go out."""


class Dialogue(Protocol[Event_contra]):
    """What a conversation needs of the one who answers."""

    after: After | None  # read after each answer; the conversation sets it back to None

    def greet(self) -> Spoken | Deferred[Spoken]:
        """The banner."""

    def answer(self, event: Event_contra) -> Spoken | Deferred[Spoken] | None:
        """The answer to an event; None: this one awaits none."""

    def trouble(self) -> Reply:
        """The answer where something broke, with whatever was begun forgotten."""

    def secured(self, tls: str) -> None:
        """The TLS handshake is done: protocol and cipher."""

    def receiving(self) -> tuple[object, Octets] | None:
        """The body that is being received, and how much of it; None between bodies."""

    def early(self) -> None:
        """The client speaks before it was greeted."""

    def cut(self, reply: Reply) -> None:
        """The session is being ended with this reply, which nobody asked for."""

    def lost(self) -> bool:
        """The client is gone. True: what is awaited may be cancelled; False: it has begun to be committed."""


BROKEN = Reply(421, "4.3.0", "trouble here, closing")


# It could be a producer and a listener by other objects; each would cost every session one.
@implementer(IPushProducer, IHandshakeListener)
class Conversation(protocol.Protocol):
    """
    One client, from its connection to its end.

    *begin* makes the dialogue when the connection is there, and *ended* is
    called when it is gone. *held* bounds what is read ahead while an answer is
    awaited. Replies that the client does not read are bounded by the transport's
    buffer (64 KiB): above it nothing more is read or answered until they have
    left.
    """

    _log = Logger()

    def __init__(
        self,
        wire: Wire[Any],
        begin: Callable[[Conversation], Dialogue[Any]],
        *,
        ended: Callable[[Conversation], None],
        context: Any = None,  # an OpenSSL context factory: for After.SECURE
        deadlines: Deadlines = Deadlines(),  # noqa: B008 - a value
        held: Octets = 262144,
    ) -> None:
        self._wire = wire
        self._begin = begin
        self._dialogue: Dialogue[Any]
        self._ended = ended
        self._context = context
        self._held = held
        self._write: Callable[[bytes], None] = _nowhere
        self._awaited: Deferred[Any] | None = None
        self._pumping = False
        self._open = False
        self._greeting = False  # the banner is still to come
        self._gone = False
        self._paused = False  # reading from the transport
        self._full = False  # the transport's buffer
        self._handshaking = False
        self._farewell: Reply | None = None
        self._moved = True  # a command or a piece of a body was completed since the last sweep
        self._watch = Watch(deadlines)

    def connectionMade(self) -> None:
        """Say the banner; what the client says before it waits."""
        transport: Any = self.transport
        self._write = fast_writer(transport)
        transport.registerProducer(self, True)
        self._dialogue = self._begin(self)
        self._open = True
        self._pumping = self._greeting = True
        try:
            self._say(self._dialogue.greet())
        except Exception:  # noqa: BLE001 - whatever broke, only this session feels it
            self._trouble(Failure())
        self._pumping = False
        self._greeting = self._awaited is not None
        self._go_on()

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the client; while an answer is awaited they wait in the wire."""
        if not self._open:
            return
        self._wire.receive(data)
        if self._greeting:
            self._dialogue.early()
        if self._awaited is None and not self._full and not self._pumping:
            self._pump()
        else:
            self._throttle()

    def _pump(self) -> None:
        wire, dialogue = self._wire, self._dialogue
        self._pumping = True
        while self._open and not self._full:
            try:
                if (event := wire.next_event()) is None:
                    break
                self._moved = True
                answer = dialogue.answer(event)
                if type(answer) is Reply:
                    wire.reply(answer)
                elif answer is not None and not self._say(answer):
                    break
            except Exception:  # noqa: BLE001 - as above
                self._trouble(Failure())
            if dialogue.after is not None:
                self._do(dialogue.after)
        self._pumping = False
        if data := wire.to_send():
            self._write(data)
        if self._paused or self._awaited is not None:
            self._throttle()

    def _say(self, answer: Spoken | Deferred[Spoken]) -> bool:
        """Whether it is said; else _answered goes on when it is known."""
        if isinstance(answer, Reply):
            answer = self._wire.line(answer)
        if isinstance(answer, bytes):
            self._wire.say(answer)
            return True
        self._awaited = answer
        # If it has fired already, _answered is called here, below _pump, and leaves the pumping to it: a loop, no
        # recursion, however many messages are pipelined.
        answer.addBoth(self._answered)
        return self._awaited is None

    def _answered(self, result: Spoken | Failure) -> None:
        self._awaited = None
        self._greeting = False
        if not self._open:
            if isinstance(result, Failure) and not result.check(CancelledError):
                self._log.failure("a session broke after its client had gone", result)
            return
        if isinstance(result, Failure):
            self._trouble(result)
        elif isinstance(result, Reply):
            self._wire.reply(result)
        else:
            self._wire.say(result)
        if not self._pumping:
            self._go_on()

    def _go_on(self) -> None:
        """Do what the last answer asked for, and take up what has come meanwhile."""
        if self._awaited is not None:
            return
        if self._dialogue.after is not None:
            self._do(self._dialogue.after)
        if self._farewell is not None:
            self._cut(self._farewell)
        self._pump()

    def _do(self, after: After) -> None:
        self._dialogue.after = None
        if data := self._wire.to_send():
            self._write(data)
        if after is After.CLOSE:
            self._close()
            return
        transport: Any = self.transport
        self._handshaking = True
        hurry(transport)
        try:
            transport.startTLS(self._context)
        except Exception:  # noqa: BLE001 - the context's own
            self._log.failure("TLS could not be started")
            self.abort()

    def _trouble(self, failure: Failure) -> None:
        self._log.failure("a session broke; the client was told to try again", failure)
        reply = self._dialogue.trouble()
        if self._wire.awaiting:
            self._wire.reply(reply)
        else:  # in the middle of a body, or in the wire itself: nobody knows where the next command begins
            self._cut(BROKEN)

    def _throttle(self) -> None:
        pause = self._full or (self._awaited is not None and self._wire.held > self._held)
        if pause is not self._paused and self._open:
            self._paused = pause
            transport: Any = self.transport
            if pause:
                transport.pauseProducing()
            else:
                transport.resumeProducing()

    def hang_up(self, reply: Reply) -> None:
        """End with this, as soon as nothing is awaited any more."""
        if self._awaited is None:
            self._cut(reply)
        else:
            self._farewell = reply

    def _cut(self, reply: Reply) -> None:
        """Say this, unasked, and end."""
        if self._open:
            self._dialogue.cut(reply)
            self._write(self._wire.to_send() + self._wire.line(reply))
            self._close()

    def _close(self) -> None:
        self._open = False
        transport: Any = self.transport
        transport.unregisterProducer()  # with one registered, TLS would not end
        transport.loseConnection()
        self._let_go()

    def abort(self) -> None:
        """Cut now, without a word."""
        self._open = False
        transport: Any = self.transport
        transport.abortConnection()
        self._let_go()

    def _let_go(self) -> None:
        """Forget what was begun; once."""
        if self._gone:
            return
        self._gone = True
        may_cancel = self._dialogue.lost()
        if self._awaited is not None and may_cancel:
            self._awaited.cancel()

    def connectionLost(self, reason: Failure = protocol.connectionDone) -> None:
        """The client is gone."""
        self._open = False
        self._let_go()
        self._ended(self)

    def pauseProducing(self) -> None:
        """The transport's buffer is full of replies that the client does not read."""
        self._full = True
        self._throttle()

    def resumeProducing(self) -> None:
        """They have left."""
        self._full = False
        self._throttle()
        if self._awaited is None and not self._pumping and self._open:
            self._pump()

    def stopProducing(self) -> None:
        """ConnectionLost follows."""

    def handshakeCompleted(self) -> None:
        """Of TLS, by STARTTLS or from the start."""
        self._handshaking = False
        self._moved = True
        transport: Any = self.transport
        connection = transport.getHandle()
        self._dialogue.secured(f"{connection.get_protocol_version_name()} {connection.get_cipher_name()}")

    def sweep(self, now: Seconds) -> None:
        """Cut the client if it has exceeded a deadline. *now* is of a clock that does not jump."""
        stage = self._stage()
        moved, self._moved = self._moved, False
        reply = self._watch.look(now, stage, self._dialogue.receiving(), moved=moved)
        if reply is None:
            return
        if stage.deaf:
            self.abort()
        else:
            self._cut(reply)

    def _stage(self) -> Stage:
        if not self._open:
            return Stage.END
        if self._handshaking:
            return Stage.HANDSHAKE
        if self._full:
            return Stage.READER
        if self._awaited is not None:
            return Stage.ANSWER
        return Stage.COMMAND if self._dialogue.receiving() is None else Stage.BODY


def _nowhere(_: bytes) -> None:
    """Before there is a transport."""
