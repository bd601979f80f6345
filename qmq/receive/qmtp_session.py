"""
Mail taken in by QMTP.

A session takes packages one behind the other, up to a window, without waiting
for what becomes of them, so that the queue may commit them together; the
answers leave in the packages' order. Nothing is answered K that the next hop
has not: a connection that breaks off in a package takes that package with it,
and what was handed on already is finished, answered or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from twisted.internet import unix
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Address, Envelope, MemoryBody, Message, Octets, Origin, Replies, Reply, Seconds
from qmq.receive.draft import Draft
from qmq.receive.replies import HEADER_TOO_BIG, LOOP, NO_SPACE, TRY_LATER
from qmq.receive.trace import hops, loops
from qmq.sends import fast_writer
from qmq.session import Session
from qmq.wire.netstring import ProtocolError
from qmq.wire.qmtp import BodyPart, Mail, Package, QMTPServerWire

if TYPE_CHECKING:
    from qmq.receive.qmtp import QMTPFactory

# At once; and after one that was full. A long one is memory to be mapped and unmapped, which short ones need not pay.
_READ: Octets = 1 << 16
_LONG_READ: Octets = 1 << 18


@implementer(IPushProducer)
class QMTPServer(Protocol):
    """One session. As a producer of answers it is paused by its transport while the client does not read them."""

    _log = Logger()

    def __init__(self, factory: QMTPFactory, wire: QMTPServerWire, client: str, port: int, *, trusted: bool) -> None:
        self._factory = factory
        self._wire = wire
        self._trusted = trusted
        self._name = client or "unix socket"
        self._origin = Origin(protocol=b"QMTP", client=client.encode("ascii", "replace"), port=port)
        self._opening = factory.trace.opening(Session(client, port, "", 0)) + b"QMTP id "
        self._draft: Draft | None = None
        self._octets: Octets = 0  # of messages that the next hop has in hand
        self._open = False
        self._ending = False
        self._closing = False
        self._pumping = False
        self._flushing = False
        self._reading = True
        self._choked = False  # the client does not read its answers
        self._taken: Octets = 0  # received since _mark

    def connectionMade(self) -> None:
        """Begin; QMTP has no greeting."""
        self._open = True
        self._transport = cast("Any", self.transport)  # its interface has no registerProducer, no abortConnection
        self._factory.opened(self)
        self._born = self._mark = self._busy = self._factory.now
        self._transport.registerProducer(self, streaming=True)
        self._write = fast_writer(self._transport)
        if isinstance(self._transport, unix.Server):
            self._wire.looked_at = self._trusted and self._factory.kin(self._transport.getHandle())

    def dataReceived(self, data: bytes) -> None:
        """Packages, or pieces of them."""
        if self._ending:
            return
        size = len(data)
        self._taken += size
        self._transport.bufferSize = _LONG_READ if size >= _READ else _READ
        self._wire.receive(data)
        self._pump()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """What is half here goes; what the next hop has in hand is finished there, under its token."""
        self._open = False
        self._ending = True
        self._abandon()
        self._factory.closed(self)

    def end(self) -> None:
        """Take nothing further; close as soon as what was taken is answered."""
        self._ending = True
        self._mark = self._factory.now
        self._abandon()
        self._flush()

    def sweep(self, now: Seconds) -> None:
        """Once a second: end what takes too long."""
        factory = self._factory
        late = now - self._mark >= factory.stall_seconds
        if self._ending and self._wire.outstanding:
            self._mark = now
            return
        if self._choked or self._ending:
            if late:
                self._abort("answers are not read")
            return
        coming = self._reading and self._wire.within
        if coming and late and self._taken < factory.least:
            self._abort("a package does not come on")
            return
        if self._taken or self._wire.within or self._wire.outstanding:
            self._busy = now
        if late or not coming:
            self._mark, self._taken = now, 0
        if not self._trusted and now >= min(self._born + factory.session_seconds, self._busy + factory.idle_seconds):
            self.end()

    def pauseProducing(self) -> None:
        """The client does not read its answers: take no more of its packages."""
        self._choked = True
        self._mark = self._factory.now
        self._regulate()

    def resumeProducing(self) -> None:
        """The client has read its answers."""
        self._choked = False
        self._mark, self._taken = self._factory.now, 0
        self._pump()

    def stopProducing(self) -> None:
        """The connection is going; connectionLost follows."""

    def _pump(self) -> None:
        if self._pumping or self._ending:
            return
        self._pumping = True
        try:
            while not self._stuck() and (event := self._wire.next_event()) is not None:
                match event:
                    case Mail():
                        self._mail(event)
                    case BodyPart():
                        assert self._draft is not None
                        self._draft.write(event.data)
                    case Package():
                        self._draft = self._factory.drafts.begin()
        except ProtocolError as error:
            self._log.info("ended QMTP session of {client}: {error}", client=self._name, error=error)
            self.end()
        finally:
            self._pumping = False
        self._flush()

    def _mail(self, mail: Mail) -> None:
        """Hand a complete package on, for those recipients that nothing speaks against."""
        draft, self._draft = self._draft, None
        fault = mail.fault or self._fault(mail, draft)
        extension = mail.extension
        accept, vouched = self._factory.accept, extension is not None
        replies: list[Reply | None] = []
        accepted = []
        for recipient in mail.recipients:
            if isinstance(recipient, Reply):
                replies.append(recipient)
                continue
            refusal = accept(recipient, vouched) or fault
            replies.append(refusal)
            if refusal is None:
                accepted.append(recipient)
        message = self._message(mail, tuple(accepted), draft) if accepted else None
        if message is None:
            if draft is not None:
                draft.discard()
            self._wire.reply(mail.slot, [reply or NO_SPACE for reply in replies])
            return
        self._octets += message.body.size
        hop = self._factory.hop
        sent = hop.send(message) if extension is None else hop.send_in_doubt(message, extension.low)
        taken = mail.slot, replies, draft, message
        sent.addCallbacks(self._answered, self._failed, taken, errbackArgs=taken)

    def _fault(self, mail: Mail, draft: Draft | None) -> Reply | None:
        """What speaks against the message for all recipients."""
        most = self._factory.max_hops
        if (text := mail.text) is not None:
            return LOOP if loops(text, most) else None
        if draft is None or draft.trouble is not None:
            return NO_SPACE
        header = draft.header()
        if header is None:
            return HEADER_TOO_BIG
        return LOOP if hops(header) >= most else None

    def _message(self, mail: Mail, recipients: tuple[Address, ...], draft: Draft | None) -> Message | None:
        """What is handed on; None if the draft's file is in trouble."""
        extension = mail.extension
        if extension is not None:
            envelope = Envelope(
                extension.token, mail.sender, recipients, extension.origin, extension.body_type, extension.smtputf8
            )
        else:
            # QMTP carries eight bits and UTF-8 without a word; the next SMTP hop must be asked for them.
            ascii_only = all(bytes(one).isascii() for one in (mail.sender, *recipients))
            body_type = b"8BITMIME" if mail.eight_bit else b"7BIT"
            envelope = Envelope(
                self._factory.next_token(), mail.sender, recipients, self._origin, body_type, not ascii_only
            )
        fields = b"%b%b;\r\n\t%b\r\n" % (self._opening, envelope.token.id, self._factory.trace.date())
        if mail.text is not None:
            return Message(envelope, fields, MemoryBody(mail.text))
        assert draft is not None
        try:
            return Message(envelope, fields, draft.close())
        except OSError:
            return None

    def _answered(
        self, given: Replies, slot: int, replies: list[Reply | None], draft: Draft | None, message: Message
    ) -> None:
        """The next hop's word of a package that it had in hand; it is to stand where *replies* has None."""
        if draft is not None:
            draft.discard()
        self._octets -= message.body.size
        # Of one recipient, the usual case, there is no other reply.
        self._wire.reply(slot, given if len(replies) == 1 == len(given) else _filled(replies, given))
        if self._pumping or not self._open:
            return
        if not self._reading and not self._ending:
            self._pump()
        elif self._wire.outstanding == 0:
            self._flush()
        elif not self._flushing:
            # A commit answers many at once: their answers leave together, in the loop's next turn.
            self._flushing = True
            self._factory.clock.callLater(0, self._flush)

    def _failed(
        self, failure: Failure, slot: int, replies: list[Reply | None], draft: Draft | None, message: Message
    ) -> None:
        envelope = message.envelope
        self._log.failure("next hop failed with {id}", failure, id=envelope.token.id)
        self._answered((TRY_LATER,) * len(envelope.recipients), slot, replies, draft, message)

    def _flush(self) -> None:
        self._flushing = False
        if not self._open:
            return
        if out := self._wire.to_send():
            self._write(out)
        self._regulate()
        if self._ending and not self._wire.outstanding and not self._closing:
            self._closing = True
            self._transport.unregisterProducer()
            self._transport.loseConnection()

    def _regulate(self) -> None:
        """Read only while there is room for what comes."""
        reading = not (self._ending or self._wire.full or self._stuck())
        if reading != self._reading and self._open:
            self._reading = reading
            if reading:
                self._transport.resumeProducing()
            else:
                self._transport.pauseProducing()

    def _stuck(self) -> bool:
        return self._choked or self._octets >= self._factory.held

    def _abandon(self) -> None:
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    def _abort(self, why: str) -> None:
        self._log.info("cut QMTP session of {client}: {why}", client=self._name, why=why)
        self._ending = True
        self._abandon()
        self._transport.abortConnection()


def _filled(replies: Sequence[Reply | None], given: Replies) -> list[Reply]:
    """The *replies*, with those that are *given* where there is none."""
    rest = iter(given)
    return [reply or next(rest, TRY_LATER) for reply in replies]
