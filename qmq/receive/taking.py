"""
Taking a letter's text, by DATA or BDAT, judging it, and handing it over.

RFC 3030 2: a chunk's octets are taken whatever we think of them; what we think
is said behind them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from qmq.conversation import Spoken
from qmq.mail import Message, Octets, Replies, Reply
from qmq.receive import replies as say
from qmq.receive.draft import Draft
from qmq.receive.letter import Fault, Letter
from qmq.receive.policy import Opinion, Refusal
from qmq.wire.smtp_events import BodyPart, Chunk
from qmq.wire.text import LineCheck

if TYPE_CHECKING:
    from qmq.receive.dialogue import Dialogue, Said


class Taking:
    """The texts of one dialogue. *committing*: the next hop has one in hand."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.committing = False
        self._dialogue = dialogue
        self._at = dialogue.at
        self._limits = dialogue.at.limits
        self._letter: Letter | None = None  # its text is coming, or is being judged
        self._unwanted: Reply = say.MAIL_FIRST  # what a chunk gets that belongs to no letter

    def forget(self) -> None:
        """End it, whatever its state."""
        if (letter := self._letter) is not None:
            self._letter = None
            letter.discard()
            self._at.forget_token(letter.token)

    def receiving(self) -> tuple[object, Octets] | None:
        """The text that is coming, and how much of it."""
        return None if self._letter is None else self._letter.receiving()

    def data(self) -> Said:
        """DATA: 354, or why not."""
        dialogue = self._dialogue
        letter = dialogue.letter
        if letter is None:
            return dialogue.refuse(say.MAIL_FIRST)
        if letter.draft is not None:
            return dialogue.refuse(say.BDAT_BEGUN)
        if not letter.recipients:
            return dialogue.refuse(self._without_recipients(letter))
        if letter.mail.body_type == b"BINARYMIME":
            return dialogue.refuse(say.NEEDS_BDAT)  # RFC 3030 3
        answer = self._at.policy.data(dialogue.session, letter.seen())
        if answer is not None and isinstance(answer, Deferred):
            return answer.addCallback(self._data_judged, letter)
        return self._data_judged(answer, letter)

    def _data_judged(self, opinion: Opinion, letter: Letter) -> Said:
        if isinstance(opinion, Refusal):
            self._dialogue.forget()
            return self._dialogue.refused(opinion, letter)
        letter.begin(self._draft(), None)
        self._letter = letter
        return say.GO_AHEAD

    def chunk(self, chunk: Chunk) -> None:
        """BDAT: its octets follow."""
        letter = self._dialogue.letter
        if letter is None:
            self._unwanted = say.MAIL_FIRST
        elif not letter.recipients:
            self._unwanted = self._without_recipients(letter)
            self._dialogue.forget()
        else:
            if letter.draft is None:
                lines = None if letter.mail.body_type == b"BINARYMIME" else LineCheck(self._limits.line)
                letter.begin(self._draft(), lines)
                letter.asked = False
            self._letter = letter

    def _draft(self) -> Draft:
        return self._at.drafts.begin(self._at.databytes(self._dialogue.session.environment))

    def _without_recipients(self, letter: Letter) -> Reply:
        if not letter.refused:
            return say.RCPT_FIRST
        self._dialogue.forget()
        return say.NO_RECIPIENTS

    def part(self, part: BodyPart) -> Said | None:
        """The next piece of the text."""
        letter = self._letter
        if letter is None:
            return self._dialogue.refuse(self._unwanted) if part.end else None
        if data := part.data:
            letter.take(data)
        if not part.end:
            return None
        if not letter.asked:  # the first chunk's end is where DATA's checkers can be heard
            letter.asked = True
            answer = self._at.policy.data(self._dialogue.session, letter.seen())
            if isinstance(answer, Deferred):
                return answer.addCallback(self._chunk_judged, letter, part)
            return self._chunk_judged(answer, letter, part)
        return self._ended(letter, part)

    def _chunk_judged(self, opinion: Opinion, letter: Letter, part: BodyPart) -> Said:
        if isinstance(opinion, Refusal):
            self._dialogue.forget()
            return self._dialogue.refused(opinion, letter)
        return self._ended(letter, part)

    def _ended(self, letter: Letter, part: BodyPart) -> Said:
        """The text, or a chunk of it, is here."""
        fault = letter.fault(complete=part.last, most_hops=self._limits.hops)
        if part.fault is not None:
            fault = Fault(part.fault, "Reject::DATA::Bad_Line", part.fault.text)
        if fault is not None:
            return self._turned_down(letter, fault)
        if part.last:
            return self._complete(letter)
        self._letter = None
        return self._dialogue.talked(say.OK, 0)

    def _turned_down(self, letter: Letter, fault: Fault) -> Reply:
        """The letter's text is not to our liking."""
        dialogue, reply = self._dialogue, fault.reply
        if reply is say.TOO_BIG:
            reply = dialogue.session.environment.worded(reply, "REPLY_MAXSIZE")
        self._at.log.refused(dialogue.session, letter.seen(), letter.only, reply, fault.reason, fault.info)
        dialogue.forget()
        return dialogue.refuse(reply)

    def _complete(self, letter: Letter) -> Said:
        dialogue = self._dialogue
        dialogue.letter = None
        try:
            message = letter.message(dialogue.arrival, self._at.trace)
        except OSError as error:
            return self._turned_down(letter, Fault(say.NO_SPACE, "Reject::DATA::No_Space", str(error)))
        answer = self._at.policy.message(dialogue.session, letter.seen(), message)
        if answer is None:
            return self._hand_over(message, letter)
        if isinstance(answer, Deferred):
            return answer.addCallback(self._message_judged, letter, message)
        return self._message_judged(answer, letter, message)

    def _message_judged(self, opinion: Opinion, letter: Letter, message: Message) -> Said:
        if opinion is None:
            return self._hand_over(message, letter)
        dialogue = self._dialogue
        if isinstance(opinion, Refusal):
            dialogue.forget()
            return dialogue.refused(opinion, letter, letter.only)
        if opinion.fields:
            message = Message(message.envelope, opinion.fields + message.fields, message.body)
        if opinion.delay:
            # Held back before it is handed over: a client that hangs up meanwhile will send it again.
            return dialogue.sleep(opinion.delay).addCallback(lambda _: self._hand_over(message, letter))
        return self._hand_over(message, letter)

    def _hand_over(self, message: Message, letter: Letter) -> Deferred[Spoken]:
        self.committing = True
        return self._at.hop.send(message).addBoth(self._handed_over, message, letter)

    def _handed_over(self, replies: Replies | Failure, message: Message, letter: Letter) -> Spoken | Failure:
        dialogue, log = self._dialogue, self._at.log
        self.committing = False
        dialogue.forget()
        if isinstance(replies, Failure):
            return replies
        envelope = message.envelope
        taken = [recipient for recipient, reply in zip(envelope.recipients, replies, strict=True) if reply.code < 300]
        if len(taken) < len(replies):
            for recipient, reply in zip(envelope.recipients, replies, strict=True):
                if not reply.ok:
                    log.refused(dialogue.session, letter.seen(), recipient, reply, "Reject::DATA::Next_Hop", reply.text)
            if not taken:
                return dialogue.refuse(_joint(replies))
        log.accepted(letter.id, dialogue.session, envelope.sender, taken, message.size)
        dialogue.rewarded()
        return self._at.taken(letter.id)


def _joint(replies: Replies) -> Reply:
    """One reply for recipients of whom none was taken: a 4yz if there is one, for then it is worth another try."""
    reply = next((reply for reply in replies if reply.temporary), None) or next(iter(replies), say.TRY_LATER)
    if not 400 <= reply.code < 600:
        return say.TRY_LATER
    differ = any(other != reply for other in replies)
    text = f"{reply.text} (recipients differ; this is the answer for one)" if differ else reply.text
    # 421 would say that we hang up.
    return Reply(451 if reply.code == 421 else reply.code, reply.status, text)
