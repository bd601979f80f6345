"""
ESMTP, as we speak it: events in, replies out.

RFC 5321's order of commands, asked of the policy at each step, with the
extensions of RFC 1870 (SIZE), 2034, 2920, 3030 (CHUNKING), 3207 (STARTTLS),
6152 and 6531. Knows policy, drafts and the next hop; no socket and no wire.

A transaction is one object, the letter. It dies at every end, whatever the end
was: no recipient, chunk or sender outlives it.
"""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from qmq.conversation import After, Spoken
from qmq.mail import Address, Message, Octets, Replies, Reply, Seconds
from qmq.receive import replies as say
from qmq.receive.letter import Letter
from qmq.receive.reception import Reception
from qmq.session import Session, Verdict
from qmq.wire.smtp_events import (
    BodyPart,
    Chunk,
    DataStart,
    Event,
    Hello,
    Help,
    MailFrom,
    Malformed,
    Noop,
    Quit,
    RcptTo,
    Reset,
    StartTLS,
    Verify,
)
from qmq.wire.text import LineCheck

Said = Spoken | Deferred[Spoken]


class Dialogue:
    """
    One client's session; qmq.conversation asks it.

    Beyond its limits a client gets 421 and the end.
    """

    def __init__(self, session: Session, reception: Reception) -> None:
        self.after: After | None = None
        self._session = session
        self._at = reception
        self._policy = reception.policy
        self._limits = reception.limits
        self._letter: Letter | None = None  # open: takes commands
        self._taking: Letter | None = None  # its text is coming, or is being judged
        self._unwanted: Reply = say.MAIL_FIRST  # what a chunk gets that belongs to no letter
        self._committing = False
        self._errors = 0
        self._talk = 0
        self._opening = b""  # of our Received fields
        self._fields = b""  # that the connection's checkers want in front of each message
        self._helo_fields = b""

    def greet(self) -> Said:
        """The banner; or a refusal, and the end."""
        verdict = self._policy.connection(self._session)
        if isinstance(verdict, Deferred):
            return verdict.addCallback(self._connection_judged)
        return self._connection_judged(verdict)

    def _connection_judged(self, verdict: Verdict | None) -> Said:
        banner = self._at.banner
        if verdict is None:
            return banner
        if verdict.reply is not None:
            # RFC 5321 3.1, 3.8: before the banner there are but 554 and 421.
            said = verdict.reply
            banner = Reply(554 if said.permanent else 421, said.status, said.text)
            self._at.log.refused(self._session, None, None, banner, verdict.reason)
            self.after = After.CLOSE
        self._fields = verdict.fields
        return self._later(banner, verdict.delay)

    def answer(self, event: Event) -> Said | None:
        """The answer to an event of the wire; None where none is awaited."""
        match event:
            case RcptTo():
                return self._recipient(event.recipient)
            case BodyPart():
                return self._part(event)
            case MailFrom():
                return self._mail(event)
            case DataStart():
                return self._data()
            case Chunk():
                self._chunk(event)
                return None
            case Hello():
                return self._hello(event)
            case Quit():
                self.after = After.CLOSE
                return say.BYE
            case Reset():
                self._forget()
                return self._talked(say.OK)
            case Noop():
                return self._talked(say.OK)
            case Verify():
                # RFC 5321 7.3: whom we know is not told to whoever asks.
                return self._talked(say.CANNOT_VERIFY)
            case Help():
                return self._talked(say.HELP)
            case StartTLS():
                return self._start_tls()
            case Malformed():
                if event.close:
                    self._end()
                    return event.reply
                return self._refuse(event.reply)

    def _hello(self, event: Hello) -> Said:
        self._forget()
        if self._talked(say.OK) is not say.OK:
            return say.TOO_MUCH_TALK
        session = replace(self._session, helo=event.name, esmtp=event.extended)
        self._session = replace(session, helo=b"")  # until it is taken
        verdict = self._policy.helo(session)
        if isinstance(verdict, Deferred):
            return verdict.addCallback(self._hello_judged, session)
        return self._hello_judged(verdict, session)

    def _hello_judged(self, verdict: Verdict | None, session: Session) -> Said:
        delay: Seconds = 0
        self._helo_fields = b""
        if verdict is not None:
            if verdict.reply is not None:
                self._at.log.refused(session, None, None, verdict.reply, verdict.reason)
                return self._later(self._refuse(verdict.reply), verdict.delay)
            self._helo_fields = verdict.fields
            delay = verdict.delay
        self._session = session
        self._opening = self._at.trace.opening(session)
        if not session.esmtp:
            return self._later(self._at.helo, delay)
        return self._later(self._at.ehlo_in_tls if session.tls else self._at.ehlo, delay)

    def _start_tls(self) -> Reply:
        if self._session.tls:
            return self._refuse(say.TLS_ALREADY)
        if not self._at.starttls:
            return self._refuse(say.NO_TLS)
        # RFC 3207 4.2: whatever was said in the clear may have been said by another.
        self._forget()
        self._session = replace(self._session, helo=b"", esmtp=False, user=b"")
        self._helo_fields = b""
        self.after = After.SECURE
        return say.READY_FOR_TLS

    def secured(self, tls: str) -> None:
        """The handshake is done."""
        self._session = replace(self._session, tls=tls)

    def _mail(self, mail: MailFrom) -> Said:
        if not self._session.helo:
            return self._refuse(say.HELO_FIRST)
        if self._letter is not None:
            return self._refuse(say.NESTED_MAIL)
        if 0 < self._limits.databytes < mail.size:
            self._at.log.refused(self._session, mail.sender, None, say.TOO_BIG, "size said")
            return self._refuse(say.TOO_BIG)
        letter = Letter(self._at.next_token(), mail, self._helo_fields + self._fields)
        verdict = self._policy.sender(self._session, letter.seen())
        if verdict is None:
            self._letter = letter
            return say.SENDER_OK
        if isinstance(verdict, Deferred):
            return verdict.addCallback(self._sender_judged, letter)
        return self._sender_judged(verdict, letter)

    def _sender_judged(self, verdict: Verdict | None, letter: Letter) -> Said:
        delay: Seconds = 0
        if verdict is not None:
            if verdict.reply is not None:
                return self._refused(verdict, verdict.reply, letter)
            letter.fields = verdict.fields + letter.fields
            delay = verdict.delay
        self._letter = letter
        return self._later(say.SENDER_OK, delay)

    def _recipient(self, recipient: Address) -> Said:
        letter = self._letter
        if letter is None:
            return self._refuse(say.MAIL_FIRST)
        if letter.draft is not None:
            return self._refuse(say.BDAT_BEGUN)
        if recipient in letter.recipients:
            return say.RECIPIENT_OK
        if len(letter.recipients) >= self._limits.recipients:
            return say.TOO_MANY_RECIPIENTS
        verdict = self._policy.recipient(self._session, letter.seen(), recipient)
        if isinstance(verdict, Deferred):
            return verdict.addCallback(self._recipient_judged, letter, recipient)
        return self._recipient_judged(verdict, letter, recipient)

    def _recipient_judged(self, verdict: Verdict | None, letter: Letter, recipient: Address) -> Said:
        if verdict is None:
            verdict = Verdict()
        if verdict.reply is not None or not verdict.vouch:
            letter.refused = True
            return self._refused(verdict, verdict.reply or say.NOBODY_VOUCHED, letter, recipient)
        letter.add(recipient, verdict.fields)
        return self._later(say.RECIPIENT_OK, verdict.delay)

    def _data(self) -> Reply:
        letter = self._letter
        if letter is None:
            return self._refuse(say.MAIL_FIRST)
        if letter.draft is not None:
            return self._refuse(say.BDAT_BEGUN)
        if not letter.recipients:
            return self._refuse(self._without_recipients(letter))
        if letter.mail.body_type == b"BINARYMIME":
            return self._refuse(say.NEEDS_BDAT)  # RFC 3030 3
        letter.begin(self._at.drafts.begin(self._limits.databytes), None)
        self._taking = letter
        return say.GO_AHEAD

    def _chunk(self, chunk: Chunk) -> None:
        """RFC 3030 2: its octets are taken whatever we think of them; what we think is said behind them."""
        letter = self._letter
        if not chunk.size:
            self._talk += 1
        if letter is None:
            self._unwanted = say.MAIL_FIRST
        elif not letter.recipients:
            self._unwanted = self._without_recipients(letter)
            self._forget()
        else:
            if letter.draft is None:
                lines = None if letter.mail.body_type == b"BINARYMIME" else LineCheck(self._limits.line)
                letter.begin(self._at.drafts.begin(self._limits.databytes), lines)
            self._taking = letter

    def _without_recipients(self, letter: Letter) -> Reply:
        if not letter.refused:
            return say.RCPT_FIRST
        self._forget()
        return say.NO_RECIPIENTS

    def _part(self, part: BodyPart) -> Said | None:
        letter = self._taking
        if letter is None:
            return self._refuse(self._unwanted) if part.end else None
        if data := part.data:
            letter.take(data)
        if not part.end:
            return None
        fault = letter.fault(complete=part.last, most_hops=self._limits.hops)
        if part.fault is not None:
            fault = part.fault, "text"
        if fault is not None:
            return self._turned_down(letter, *fault)
        if part.last:
            return self._complete(letter)
        self._taking = None
        return self._talked(say.OK, 0)

    def _complete(self, letter: Letter) -> Said:
        self._letter = None
        try:
            message = letter.message(self._session, self._at.trace, self._opening)
        except OSError as error:
            return self._turned_down(letter, say.NO_SPACE, str(error))
        verdict = self._policy.message(self._session, letter.seen(), message)
        if verdict is None:
            return self._hand_over(message)
        if isinstance(verdict, Deferred):
            return verdict.addCallback(self._message_judged, letter, message)
        return self._message_judged(verdict, letter, message)

    def _message_judged(self, verdict: Verdict | None, letter: Letter, message: Message) -> Said:
        if verdict is None:
            return self._hand_over(message)
        if verdict.reply is not None:
            self._forget()
            return self._refused(verdict, verdict.reply, letter)
        if verdict.fields:
            message = Message(message.envelope, verdict.fields + message.fields, message.body)
        if verdict.delay:
            # Held back before it is handed over: a client that hangs up meanwhile will send it again.
            return self._sleep(verdict.delay).addCallback(lambda _: self._hand_over(message))
        return self._hand_over(message)

    def _hand_over(self, message: Message) -> Deferred[Spoken]:
        self._committing = True
        return self._at.hop.send(message).addBoth(self._handed_over, message)

    def _handed_over(self, replies: Replies | Failure, message: Message) -> Spoken | Failure:
        self._committing = False
        self._forget()
        if isinstance(replies, Failure):
            return replies
        envelope = message.envelope
        queue_id = envelope.token.id
        taken = []
        for recipient, reply in zip(envelope.recipients, replies, strict=True):
            if reply.ok:
                taken.append(recipient)
            else:
                self._at.log.refused(self._session, envelope.sender, recipient, reply, "next hop")
        if not taken:
            return self._refuse(_joint(replies))
        self._at.log.accepted(queue_id, self._session, envelope.sender, taken, message.size)
        self._errors = self._talk = 0
        return b"250 2.0.0 ok %s\r\n" % queue_id

    def _forget(self) -> None:
        """End the transaction, whatever its state."""
        for letter in (self._letter, self._taking):
            if letter is not None:
                letter.discard()
                self._at.forget_token(letter.token)
        self._letter = self._taking = None

    def _end(self) -> None:
        self._forget()
        self.after = After.CLOSE

    def _turned_down(self, letter: Letter, reply: Reply, reason: str) -> Reply:
        """The letter's text is not to our liking."""
        self._forget()
        self._at.log.refused(self._session, letter.mail.sender, None, reply, reason)
        return self._refuse(reply)

    def _refused(self, verdict: Verdict, reply: Reply, letter: Letter, recipient: Address | None = None) -> Said:
        self._at.log.refused(self._session, letter.mail.sender, recipient, reply, verdict.reason)
        return self._later(self._refuse(reply), verdict.delay)

    def _refuse(self, reply: Reply) -> Reply:
        """*reply*, unless there were too many like it."""
        if reply.permanent:
            self._errors += 1
            if self._errors > self._limits.errors:
                self._end()
                return say.TOO_MANY_ERRORS
        elif reply.code == 421:
            self._end()  # RFC 5321 3.8: whoever says 421 closes
        return reply

    def _talked(self, reply: Reply, commands: int = 1) -> Reply:
        """*reply*, unless there was too much talk without mail."""
        self._talk += commands
        if self._talk > self._limits.talk:
            self._end()
            return say.TOO_MUCH_TALK
        return reply

    def _later(self, reply: Reply, delay: Seconds) -> Said:
        return self._sleep(delay).addCallback(lambda _: reply) if delay else reply

    def _sleep(self, delay: Seconds) -> Deferred[None]:
        return deferLater(self._at.clock, min(delay, self._limits.delay), lambda: None)

    def trouble(self) -> Reply:
        """Something broke: the client is to try again."""
        self._committing = False
        self._forget()
        return say.TRY_LATER

    def receiving(self) -> tuple[object, Octets] | None:
        """The text that is coming, and how much of it."""
        return None if self._taking is None else self._taking.receiving()

    def lost(self) -> bool:
        """The client is gone: nothing is kept, unless the next hop has it in hand."""
        if self._committing:
            return False
        self._forget()
        return True


def _joint(replies: Replies) -> Reply:
    """One reply for recipients of whom none was taken: a 4yz if there is one, for then it is worth another try."""
    reply = next((reply for reply in replies if reply.temporary), None) or next(iter(replies), say.TRY_LATER)
    if not 400 <= reply.code < 600:
        return say.TRY_LATER
    differ = any(other != reply for other in replies)
    text = f"{reply.text} (recipients differ; this is the answer for one)" if differ else reply.text
    # 421 would say that we hang up.
    return Reply(451 if reply.code == 421 else reply.code, reply.status, text)
