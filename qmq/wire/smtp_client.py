"""
Mail transactions as an SMTP or LMTP client speaks them, from EHLO's answer on.

No Twisted, no clock. What was asked and not answered yet stands in a queue, in
the order of asking, each with what is to be done with its reply; a reply that
answers nothing asked before its bytes came is a breach of protocol (an early
250 must not count as the message's). With PIPELINING an envelope is one write,
and the next message's rides behind the final dot of the one before (RFC 2920
3.1 allows just that group), so that a message costs one round trip.

What a recipient's reply says is true of that recipient: an accepted one is
unknown until the end of the data is answered; what is still unknown when the
connection ends is a 4yz without ``mta``.
"""

# The queue of awaited replies holds this class's own methods, unbound.
# ruff: noqa: SLF001
from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qmq.mail import Message, Octets, Reply
from qmq.wire.replies import ProtocolError, ReplyParser
from qmq.wire.smtp_envelope import Extensions, envelope_commands
from qmq.wire.smtp_transaction import Stage, Transaction, known, refusal
from qmq.wire.text import BrokenText, LongText, stuffed

More = Callable[[], Message | None]
Finished = list[tuple[Message, list[Reply]]]


class SMTPClientWire:
    """
    Messages in, commands and text out; replies in, finished messages out.

    *mta* names the server in replies, *tls* what they came over. *more* is asked once for each message that was sent,
    for the next: when the text has left if the next envelope can go with it, else when the message is answered.
    """

    __slots__ = (
        "_awaited", "_chunking", "_current", "_ending", "_finished", "_lmtp", "_long", "_more", "_offered", "_out",
        "_parser", "_reset", "_usual", "answered", "mta", "trouble",
    )  # fmt: skip

    # Texts in files, and any that is longer, wait for the answers to RCPT; shorter ones follow BDAT at once (RFC 3030).
    AT_ONCE: Octets = 65536

    def __init__(
        self, offered: Extensions, mta: str, more: More, *, lmtp: bool = False, chunking: bool = True, tls: str = ""
    ) -> None:
        self.mta = mta
        self.trouble: Reply | None = None  # why the connection must be cut
        self.answered = 0  # replies so far; that a time-out is measured by
        self._offered = offered
        self._more = more
        self._lmtp = lmtp
        # How many replies a BDAT LAST has in LMTP depends on RCPTs that are not answered yet: DATA is clear.
        self._chunking = chunking and offered.chunking and not lmtp
        self._parser = ReplyParser(mta, tls=tls)
        self._awaited: deque[Callable[[SMTPClientWire, Reply], None]] = deque()
        self._out: list[bytes] = []
        self._current: Transaction | None = None  # its envelope is being answered
        self._ending: Transaction | None = None  # its text is on the way
        self._finished: Finished = []
        self._reset = False  # RSET must come before the next MAIL
        self._long: LongText | None = None  # what has not left of it
        self._usual: bytes | None = None  # how it last took an envelope of one recipient; most say the same each time

    # What the connection calls.

    def receive(self, data: bytes) -> Finished:
        """
        The messages finished by these bytes, oldest first, one reply per recipient.

        With *trouble* set afterwards nothing is outstanding any more, and the connection is of no use.
        """
        parser, awaited = self._parser, self._awaited
        # Only what left before these bytes came can be answered by them.
        expected = len(awaited)
        said = b""  # of an envelope
        parser.receive(data)
        try:
            while self.trouble is None:
                if expected == _SINGLE and awaited[0] is _mail and awaited[2] is _data:
                    said = parser.unread
                    if said == self._usual:
                        parser.skip()
                        self._taken_as_usual(known(self._current))
                        return self.finished()
                if (reply := parser.next_reply()) is None:
                    break
                self.answered += 1
                if reply.code == 421:  # RFC 5321 3.8: the server closes the connection, whatever was asked
                    self.trouble = reply
                elif expected:
                    expected -= 1
                    awaited.popleft()(self, reply)
                else:
                    self._unasked(reply)
        except ProtocolError as error:
            self.trouble = Reply(451, "4.5.0", f"{self.mta} broke the protocol: {error}")
        if self.trouble is not None:
            self.abandon(self.trouble)
        if said and len(said) <= _USUAL_OCTETS and not parser.held and self._ending and self._ending.taken:
            self._usual = said
        return self.finished()

    def _taken_as_usual(self, transaction: Transaction) -> None:
        """Yes to MAIL, to its one RCPT and to DATA, known without being read."""
        self._awaited.clear()
        self.answered += _SINGLE
        transaction.answered = 1
        transaction.taken.append(0)
        self._text(transaction)

    def finished(self) -> Finished:
        """The messages finished since the last call."""
        finished = self._finished
        if finished:
            self._finished = []
        return finished

    def to_send(self) -> bytes:
        """What is to go out now: one write."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    def next_chunk(self) -> bytes:
        """The next piece of a long text, to be written before anything else; call while *streaming*."""
        text = known(self._long)
        try:
            piece = text.next_piece()
        except BrokenText as error:
            # Without its end the server must not keep what it has (RFC 5321 4.1.1.4).
            self.trouble = Reply(451, "4.3.0", str(error))
            self.abandon(self.trouble)
            return b""
        if not text.over:
            return piece
        self._out.append(piece)
        self._long = None
        if text.stuffed:
            self._text_left(known(self._ending))
        else:
            known(self._current).sent = True
            self._awaited.append(_chunk_end)
        return self.to_send()

    def abandon(self, reason: Reply) -> None:
        """
        The connection is over: finish what is outstanding.

        Recipients that were answered keep their reply, the others get *reason*;
        it says so where the text had left and the truth may be otherwise.
        """
        self._long = None
        self._awaited.clear()
        self._out.clear()
        for transaction in (self._ending, self._current):
            if transaction is None:
                continue
            reply = reason
            if transaction.sent and not reason.mta:
                reply = Reply(reason.code, reason.status, reason.text + "; the message had left, its fate is unknown")
            if transaction.refusal is not None:
                reply = transaction.refusal
            self._finish(transaction, reply)

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return self._current is None and self._ending is None

    @property
    def in_doubt(self) -> bool:
        """Whether a text has left, end and all, and is not answered: the server may have it, or not."""
        return any(one is not None and one.sent for one in (self._ending, self._current))

    @property
    def streaming(self) -> bool:
        """Whether a long text waits to be taken by next_chunk."""
        return self._long is not None

    @property
    def stage(self) -> Stage:
        """What is waited for now."""
        if self._long is not None:
            return Stage.TEXT
        if not self._awaited:
            return Stage.IDLE
        return _STAGES.get(self._awaited[0], Stage.COMMAND)

    # A transaction's beginning.

    def send(self, message: Message) -> None:
        """Begin; only while idle. A message that this server can't take is finished at once (see finished)."""
        offered = self._offered
        by_chunk = self._by_chunk(message)
        said: bytes | Reply
        try:
            said = envelope_commands(message, offered, self.mta, binary=by_chunk and offered.binarymime)
        except OSError as error:
            said = Reply(451, "4.3.0", f"cannot read the message's text: {error.strerror}")
        if isinstance(said, Reply):
            self._finished.append((message, [said] * len(message.envelope.recipients)))
            return
        transaction = self._current = Transaction(message, behind=self._ending is not None)
        if not offered.pipelining:
            commands = said.splitlines(keepends=True)
            if self._reset:
                commands.insert(0, b"RSET\r\n")
            transaction.commands = iter(commands)
            self._say(next(transaction.commands))
            return
        awaited = self._awaited
        if self._reset:
            self._reset = False
            self._out.append(b"RSET\r\n")
            awaited.append(_reset)
        awaited.append(_mail)
        for _ in transaction.replies:
            awaited.append(_rcpt)
        if not by_chunk:
            self._out.append(said + b"DATA\r\n")
            awaited.append(_data)
            return
        self._out.append(said)
        if message.body.data is not None and message.size <= self.AT_ONCE:
            self._chunk(transaction)

    def _by_chunk(self, message: Message) -> bool:
        # BINARYMIME is sent by BDAT even where BDAT is not wanted otherwise.
        binary = message.envelope.body_type == b"BINARYMIME"
        return self._chunking or (binary and self._offered.binarymime and not self._lmtp)

    def _say(self, command: bytes) -> None:
        """One command, alone: without PIPELINING."""
        self._out.append(command)
        self._awaited.append(_ALONE[command[:2]])

    def _go_on(self, transaction: Transaction) -> None:
        """Without PIPELINING: the next command of the envelope."""
        if not self._offered.pipelining and (command := next(transaction.commands, b"")):
            self._say(command)

    # The replies, in the order in which they are asked for.

    def _reset_answered(self, reply: Reply) -> None:
        if not reply.ok:
            raise ProtocolError("RSET was refused")
        self._reset = False
        if self._current is not None:
            self._go_on(self._current)

    def _mail_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if reply.ok:
            self._go_on(transaction)
            return
        transaction.refusal = reply = refusal(reply, "MAIL")
        if reply.code == 503 and transaction.behind:
            # The server lost count after the message in front, which is no fault of this one.
            transaction.refusal = Reply(451, "4.5.1", reply.text, reply.mta)
            self._reset = True
        if not self._offered.pipelining:
            self._finish(transaction, transaction.refusal)
            self._next()

    def _rcpt_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if not transaction.recipient_answered(reply):
            self._go_on(transaction)
        elif not self._awaited:
            self._envelope_answered(transaction)

    def _envelope_answered(self, transaction: Transaction) -> None:
        """All recipients are answered, and nothing is said beyond them yet."""
        if not transaction.taken:
            # The server still has a sender: only RSET makes it forget (RFC 5321 4.1.4).
            self._reset = self._reset or transaction.refusal is None or transaction.lost_way
            self._finish(transaction, None)
            self._next()
        elif self._by_chunk(transaction.message):
            self._chunk(transaction)
        else:
            self._say(b"DATA\r\n")

    def _data_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if reply.code == 354:
            self._text(transaction)
            return
        reply = refusal(reply, "DATA")
        # A refused DATA ends no transaction, unless there was none.
        self._reset = self._reset or transaction.refusal is None or transaction.lost_way
        self._finish(transaction, reply)
        self._next()

    def _end_answered(self, reply: Reply) -> None:
        """The final dot's answer: of all recipients, or with LMTP (RFC 2033 4.2) of the next that was accepted."""
        transaction = known(self._ending)
        if not reply.ok:
            reply = refusal(reply, "the end of the data")
        if self._lmtp and not transaction.end_answered(reply):
            return
        self._finish(transaction, reply)
        if not self._offered.pipelining or not transaction.taken:
            self._next()

    def _chunk_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if not reply.ok:
            reply = refusal(reply, "BDAT")
            self._reset = True  # RFC 3030 2: after a failed BDAT the state is anybody's guess
        self._finish(transaction, reply)
        self._next()

    def _unasked(self, reply: Reply) -> None:
        transaction = self._ending or self._current
        if self._long is None or transaction is None or reply.code < 400:
            raise ProtocolError(f"a reply that nothing was asked for: {reply.code} {reply.text[:80]}")
        # Refused in the middle of the text: the refusal counts, but a text can't be broken off.
        self._finish(transaction, reply)
        self.trouble = Reply(451, "4.5.0", f"{self.mta} refused a message in the middle of its text")

    # The text.

    def _text(self, transaction: Transaction) -> None:
        """DATA was answered with 354."""
        self._current, self._ending = None, transaction
        if not transaction.taken:
            if self._lmtp or transaction.lost_way:
                self._finish(transaction, None)
                raise ProtocolError("354 though no recipient was accepted")
            # RFC 2920 3.1: the server goes on for nobody; end it.
            self._out.append(b".\r\n")
            self._awaited.append(_data_end)
            return
        message = transaction.message
        data = message.body.data
        if data is None:
            self._long = LongText(message.chunks())
            return
        self._out.append(stuffed(message.fields, data))
        self._text_left(transaction)

    def _chunk(self, transaction: Transaction) -> None:
        """BDAT, and the text behind it without waiting for an answer (RFC 3030 2)."""
        message = transaction.message
        self._out.append(b"BDAT %d LAST\r\n" % message.size)
        data = message.body.data
        if data is None:
            self._long = LongText(message.chunks(), message.size)
            return
        self._out += (message.fields, data)
        transaction.sent = True
        self._awaited.append(_chunk_end)

    def _text_left(self, transaction: Transaction) -> None:
        transaction.sent = True
        awaited = self._awaited
        awaited.append(_data_end)
        if self._lmtp:
            awaited.extend([_data_end] * (len(transaction.taken) - 1))
        if self._offered.pipelining:
            self._next()

    # A transaction's end.

    def _finish(self, transaction: Transaction, rest: Reply | None) -> None:
        """Report it; *rest* is said of the recipients without a reply of their own."""
        self._finished.append((transaction.message, transaction.outcome(rest)))
        if transaction is self._current:
            self._current = None
        else:
            self._ending = None

    def _next(self) -> None:
        while self.trouble is None and self._current is None and (message := self._more()) is not None:
            self.send(message)


# An envelope of one recipient awaits so many answers: to MAIL, RCPT, DATA. Longer ones are not remembered.
_SINGLE = 3
_USUAL_OCTETS: Octets = 512

_reset = SMTPClientWire._reset_answered
_mail = SMTPClientWire._mail_answered
_rcpt = SMTPClientWire._rcpt_answered
_data = SMTPClientWire._data_answered
_data_end = SMTPClientWire._end_answered
_chunk_end = SMTPClientWire._chunk_answered
_ALONE = {b"MA": _mail, b"RC": _rcpt, b"RS": _reset, b"DA": _data}
_STAGES: dict[Callable[[SMTPClientWire, Reply], None], Stage] = {
    _data: Stage.INITIATION,
    _data_end: Stage.END,
    _chunk_end: Stage.END,
}
