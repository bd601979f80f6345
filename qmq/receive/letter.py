"""
A mail transaction under way: from MAIL to the end of its text.

One object, so that nothing of it can outlive it.
"""

from __future__ import annotations

from qmq.mail import Address, Envelope, Message, Octets, Reply, Token, value
from qmq.receive.draft import Draft
from qmq.receive.policy import Refusal
from qmq.receive.replies import HEADER_TOO_BIG, LOOP, NO_SPACE, NOT_LINES, TOO_BIG
from qmq.receive.trace import Arrival, Trace, hops
from qmq.session import Transaction, Verdict
from qmq.wire.smtp_events import MailFrom
from qmq.wire.text import LineCheck


@value
class Fault:
    """What is wrong with a text: the reply, and the log's words."""

    reply: Reply
    reason: str
    info: str = ""


class Letter:
    """
    What a client has said of one message so far.

    *fields* are those that checkers want in front of it. *recipients* are the
    accepted ones, in order, each once; *refused*: there were others. *held* is
    the refusal that each recipient will hear; *commands* counts its RCPTs.
    """

    __slots__ = (
        "_lines", "_seen", "_spoilt", "asked", "commands", "draft", "fields", "held", "id", "mail", "protocol",
        "recipients", "refused", "token",
    )  # fmt: skip

    def __init__(self, token: Token, mail: MailFrom, fields: bytes, held: Refusal | None = None) -> None:
        self.token = token
        self.id = token.id
        self.mail = mail
        self.fields = fields
        self.held = held
        self.protocol = b""
        self.commands = 0
        self.recipients: dict[Address, None] = {}
        self.refused = False
        self.asked = True  # DATA's checkers were, or will be before any text comes
        self.draft: Draft | None = None  # once the text has begun
        self._lines: LineCheck | None = None
        self._seen: Transaction | None = None  # as long as nothing changes
        self._spoilt = False

    def seen(self) -> Transaction:
        """As checkers see it now."""
        seen = self._seen
        if seen is None:
            mail = self.mail
            seen = self._seen = Transaction(
                self.id, mail.sender, mail.size, mail.smtputf8, tuple(self.recipients), self.commands, self.protocol
            )
        return seen

    def called(self) -> None:
        """One more RCPT was said."""
        self.commands += 1
        self._seen = None

    def add(self, recipient: Address) -> bool:
        """A recipient was accepted; false if it was before: that is no second copy."""
        so_far = len(self.recipients)
        self.recipients[recipient] = None
        self._seen = None
        return len(self.recipients) > so_far

    @property
    def only(self) -> Address | None:
        """The recipient, if there is but one."""
        return next(iter(self.recipients)) if len(self.recipients) == 1 else None

    def judged(self, verdict: Verdict) -> None:
        """What a verdict that lets it pass adds to it."""
        if verdict.fields:
            self.fields = verdict.fields + self.fields
        if verdict.protocol and verdict.protocol not in self.protocol:
            self._seen = None
            self.protocol += verdict.protocol  # once, however often it is said (SPAMCONTROL 2.20 #9)

    def begin(self, draft: Draft, lines: LineCheck | None) -> None:
        """The text is coming. *lines*: nobody has looked yet whether it is made of lines."""
        self.draft = draft
        self._lines = lines

    def take(self, data: bytes) -> None:
        """A piece of the text."""
        assert self.draft is not None
        self.draft.write(data)
        if self._lines is not None and not self._lines.feed(data):
            self._spoilt = True

    def fault(self, *, complete: bool, most_hops: int) -> Fault | None:
        """What is wrong with the text as far as it has come."""
        draft = self.draft
        assert draft is not None
        if self._spoilt or (complete and self._lines is not None and not self._lines.end()):
            return Fault(NOT_LINES, "Reject::DATA::Bad_Line", NOT_LINES.text)
        over = draft.over
        if over and not complete:
            return Fault(TOO_BIG, "Reject::DATA::Invalid_Size")
        if draft.trouble is not None:
            return Fault(NO_SPACE, "Reject::DATA::No_Space", str(draft.trouble))
        if not complete:
            return None
        header = draft.header()
        # A loop first, as in SPAMCONTROL 2.5: each turn makes the message longer.
        # Each hop has a line of its own: few lines, as most headers have, are few hops.
        if header is not None and header.count(b"\n") >= most_hops - 1 and hops(header) >= most_hops:
            return Fault(LOOP, "Reject::SMTP::Toomany_Hops")
        if over:
            return Fault(TOO_BIG, "Reject::DATA::Invalid_Size")
        return Fault(HEADER_TOO_BIG, "Reject::DATA::Big_Header") if header is None else None

    def message(self, arrival: Arrival, trace: Trace) -> Message:
        """The whole of it. Raises OSError."""
        assert self.draft is not None
        body = self.draft.close()
        mail, recipients = self.mail, self.seen().recipients
        begun, origin = arrival.of(self.protocol, mail.smtputf8)
        received = trace.received(begun, self.id, recipients[0] if len(recipients) == 1 else None)
        envelope = Envelope(self.token, mail.sender, recipients, origin, mail.body_type, mail.smtputf8)
        # RFC 7208 9.1: what checkers found stands above the Received field of the same hop.
        return Message(envelope, self.fields + received, body)

    def receiving(self) -> tuple[object, Octets] | None:
        """Which text is coming, and how much of it."""
        return None if self.draft is None else (self.draft, self.draft.size)

    def discard(self) -> None:
        """Forget the text."""
        if self.draft is not None:
            self.draft.discard()
