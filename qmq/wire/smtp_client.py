"""
Mail transactions as an SMTP or LMTP client speaks them, from EHLO's answer on.

No Twisted, no clock. What was asked and not answered yet stands in a queue, in
the order of asking, each with what is to be done with its reply; a reply that
answers nothing asked before its bytes came is a breach of protocol (an early
250 must not count as the message's).

One message at a time. With PIPELINING its envelope is one write, with BDAT a
short text too. RFC 2920 3.1 would let the next envelope ride behind the final
dot. It does not: the 250 to its MAIL, out of order, would count as the text's,
and a message refused a moment later would be lost; and it would wait with the
text in front of it for as long as the server likes.

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

Finished = list[tuple[Message, list[Reply]]]


class SMTPClientWire:
    """
    Messages in, commands and text out; replies in, finished messages out.

    *mta* names the server in replies, *tls* what they came over.
    """

    __slots__ = (
        "_awaited", "_chunking", "_current", "_finished", "_lmtp", "_long", "_offered", "_out", "_parser", "_reset",
        "_usual", "answered", "mta", "trouble",
    )  # fmt: skip

    # Texts in files, and any that is longer, wait for the answers to RCPT; shorter ones follow BDAT at once (RFC 3030).
    AT_ONCE: Octets = 65536

    def __init__(
        self, offered: Extensions, mta: str, *, lmtp: bool = False, chunking: bool = True, tls: str = ""
    ) -> None:
        self.mta = mta
        self.trouble: Reply | None = None  # why the connection must be cut
        self.answered = 0  # replies so far; that a time-out is measured by
        self._offered = offered
        self._lmtp = lmtp
        # How many replies a BDAT LAST has in LMTP depends on RCPTs that are not answered yet: DATA is clear.
        self._chunking = chunking and offered.chunking and not lmtp
        self._parser = ReplyParser(mta, tls=tls)
        self._awaited: deque[Callable[[SMTPClientWire, Reply], None]] = deque()
        self._out: list[bytes] = []
        self._current: Transaction | None = None
        self._finished: Finished = []
        self._reset = False  # RSET must come before the next MAIL
        self._long: LongText | None = None  # what has not left of it
        self._usual: bytes | None = None  # how it last took an envelope of one recipient; most say the same each time

    # What the connection calls.

    def receive(self, data: bytes) -> Finished:
        """
        The message finished by these bytes, if one is: with a reply for each recipient.

        With *trouble* set afterwards nothing is outstanding any more, and the connection is of no use.
        """
        parser, awaited = self._parser, self._awaited
        # Only what left before these bytes came can be answered by them.
        expected = len(awaited)
        if expected == 1 and awaited[0] in _ENDS and (reply := parser.alone(data)) is not None and reply.ok:
            self.answered += 1
            awaited.popleft()(self, reply)
            return self.finished()
        single = expected == _SINGLE and awaited[0] is _mail and awaited[2] is _data and not parser.held
        if single and data == self._usual:
            self._taken_as_usual(known(self._current))
            return []
        parser.receive(data)
        try:
            while self.trouble is None and (reply := parser.next_reply()) is not None:
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
        elif single and self.in_doubt and not parser.held and len(data) <= _USUAL_OCTETS:
            self._usual = data
        return self.finished()

    def _taken_as_usual(self, transaction: Transaction) -> None:
        """Yes to MAIL, to its one RCPT and to DATA, known without being read."""
        self._awaited.clear()
        self.answered += _SINGLE
        transaction.answered = 1
        transaction.taken.append(0)
        self._text(transaction)

    def finished(self) -> Finished:
        """What was finished and not told yet."""
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
        text, transaction = known(self._long), known(self._current)
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
            self._text_left(transaction)
        else:
            transaction.sent = True
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
        transaction = self._current
        if transaction is None:
            return
        if transaction.refusal is not None:
            reason = transaction.refusal
        elif transaction.sent and not reason.mta:
            reason = Reply(reason.code, reason.status, reason.text + "; the message had left, its fate is unknown")
        self._finish(transaction, reason)

    @property
    def idle(self) -> bool:
        """Whether nothing is outstanding."""
        return self._current is None

    @property
    def in_doubt(self) -> bool:
        """Whether a text has left, end and all, and is not answered: the server may have it, or not."""
        return self._current is not None and self._current.sent

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

    def send(self, message: Message) -> Reply | None:
        """Begin; only while idle. Not begun is what this server can't take: the answer says why."""
        offered = self._offered
        by_chunk = self._by_chunk(message)
        said: bytes | Reply
        try:
            said = envelope_commands(message, offered, self.mta, binary=by_chunk and offered.binarymime)
        except OSError as error:
            said = Reply(451, "4.3.0", f"cannot read the message's text: {error.strerror}")
        if isinstance(said, Reply):
            return said
        transaction = self._current = Transaction(message)
        reset, self._reset = self._reset, False
        if reset:
            said = b"RSET\r\n" + said
        if not offered.pipelining:
            transaction.commands = iter(said.splitlines(keepends=True))
            self._say(next(transaction.commands))
            return None
        awaited = self._awaited
        if reset:
            awaited.append(_reset)
        awaited.append(_mail)
        for _ in transaction.replies:
            awaited.append(_rcpt)
        if not by_chunk:
            self._out.append(said + b"DATA\r\n")
            awaited.append(_data)
            return None
        self._out.append(said)
        if message.body.data is not None and message.size <= self.AT_ONCE:
            self._chunk(transaction)
        return None

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
        self._go_on(known(self._current))

    def _mail_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if reply.ok:
            self._go_on(transaction)
            return
        transaction.refusal = refusal(reply, "MAIL")
        if not self._offered.pipelining:
            self._finish(transaction, transaction.refusal)

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

    def _end_answered(self, reply: Reply) -> None:
        """The final dot's answer: of all recipients, or with LMTP (RFC 2033 4.2) of the next that was accepted."""
        transaction = known(self._current)
        if not reply.ok:
            reply = refusal(reply, "the end of the data")
        if self._lmtp and not transaction.end_answered(reply):
            return
        self._finish(transaction, reply)

    def _chunk_answered(self, reply: Reply) -> None:
        transaction = known(self._current)
        if not reply.ok:
            reply = refusal(reply, "BDAT")
            self._reset = True  # RFC 3030 2: after a failed BDAT the state is anybody's guess
        self._finish(transaction, reply)

    def _unasked(self, reply: Reply) -> None:
        if self._long is None or reply.code < 400:
            raise ProtocolError(f"a reply that nothing was asked for: {reply.code} {reply.text[:80]}")
        # Refused in the middle of the text: the refusal counts, but a text can't be broken off.
        self._finish(known(self._current), reply)
        self.trouble = Reply(451, "4.5.0", f"{self.mta} refused a message in the middle of its text")

    # The text.

    def _text(self, transaction: Transaction) -> None:
        """DATA was answered with 354."""
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

    # A transaction's end.

    def _finish(self, transaction: Transaction, rest: Reply | None) -> None:
        """Report it; *rest* is said of the recipients without a reply of their own."""
        self._finished.append((transaction.message, transaction.outcome(rest)))
        self._current = None


# An envelope of one recipient awaits so many answers: to MAIL, RCPT, DATA. Longer ones are not remembered.
_SINGLE = 3
_USUAL_OCTETS: Octets = 512

_reset = SMTPClientWire._reset_answered
_mail = SMTPClientWire._mail_answered
_rcpt = SMTPClientWire._rcpt_answered
_data = SMTPClientWire._data_answered
_data_end = SMTPClientWire._end_answered
_chunk_end = SMTPClientWire._chunk_answered
_ENDS = (_data_end, _chunk_end)  # a yes to the whole text is well understood, whatever came before
_ALONE = {b"MA": _mail, b"RC": _rcpt, b"RS": _reset, b"DA": _data}
_STAGES: dict[Callable[[SMTPClientWire, Reply], None], Stage] = {
    _data: Stage.INITIATION,
    _data_end: Stage.END,
    _chunk_end: Stage.END,
}
