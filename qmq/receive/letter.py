"""
A mail transaction under way: from MAIL to the end of its text.

One object, so that nothing of it can outlive it.
"""

from __future__ import annotations

from qmq.mail import Address, Envelope, Message, Octets, Origin, Reply, Token
from qmq.receive.draft import Draft
from qmq.receive.replies import HEADER_TOO_BIG, LOOP, NO_SPACE, NOT_LINES, TOO_BIG
from qmq.receive.trace import Trace, hops, protocol
from qmq.session import Session, Transaction
from qmq.wire.smtp_events import MailFrom
from qmq.wire.text import LineCheck


class Letter:
    """
    What a client has said of one message so far.

    *fields* are those that checkers want in front of it. *recipients* are the
    accepted ones, in order, each once; *refused*: there were others.
    """

    __slots__ = ("_lines", "_seen", "_spoilt", "draft", "fields", "id", "mail", "recipients", "refused", "token")

    def __init__(self, token: Token, mail: MailFrom, fields: bytes) -> None:
        self.token = token
        self.id = token.id
        self.mail = mail
        self.fields = fields
        self.recipients: dict[Address, None] = {}
        self.refused = False
        self.draft: Draft | None = None  # once the text has begun
        self._lines: LineCheck | None = None
        self._spoilt = False
        self._seen: Transaction | None = None

    def seen(self) -> Transaction:
        """As checkers see it."""
        if self._seen is None:
            mail = self.mail
            self._seen = Transaction(self.id, mail.sender, mail.size, mail.smtputf8, tuple(self.recipients))
        return self._seen

    def add(self, recipient: Address, fields: bytes) -> None:
        """One more accepted recipient."""
        self.recipients[recipient] = None
        self._seen = None
        if fields:
            self.fields = fields + self.fields

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

    def fault(self, *, complete: bool, most_hops: int) -> tuple[Reply, str] | None:
        """What is wrong with the text as far as it has come: the reply, and a reason for the log."""
        draft = self.draft
        assert draft is not None
        if self._spoilt or (complete and self._lines is not None and not self._lines.end()):
            return NOT_LINES, "bare CR or LF, or long line"
        if draft.over:
            return TOO_BIG, "size"
        if draft.trouble is not None:
            return NO_SPACE, str(draft.trouble)
        if not complete:
            return None
        header = draft.header()
        if header is None:
            return HEADER_TOO_BIG, "header"
        if hops(header) >= most_hops:
            return LOOP, "hops"
        return None

    def message(self, session: Session, trace: Trace, opening: bytes) -> Message:
        """The whole of it. Raises OSError."""
        assert self.draft is not None
        body = self.draft.close()
        mail, recipients = self.mail, tuple(self.recipients)
        only = recipients[0] if len(recipients) == 1 else None
        received = trace.received(opening, session, self.id, only, smtputf8=mail.smtputf8)
        client = session.client.encode("ascii", "replace")
        word = protocol(session, smtputf8=mail.smtputf8)
        origin = Origin(word, client, session.port, session.helo, session.user)
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
