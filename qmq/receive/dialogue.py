"""
ESMTP, as we speak it: events in, replies out.

RFC 5321's order of commands, asked of the policy at each step, with the
extensions of RFC 1870 (SIZE), 2034, 2920, 3030 (CHUNKING), 3207 (STARTTLS),
6152 and 6531. Knows policy, drafts and the next hop; no socket and no wire.

What checkers refuse before RCPT is held until RCPT (SPAMCONTROL 2.4): the log
then has sender and recipient, and a client hears of it in one place.

A transaction is one object, the letter. It dies at every end, whatever the end
was: no recipient, chunk or sender outlives it. Its text is qmq.receive.taking's.
"""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from qmq.conversation import After, Spoken
from qmq.mail import Address, Octets, Reply, Seconds, address
from qmq.receive import replies as say
from qmq.receive.clients import Deny
from qmq.receive.letter import Letter
from qmq.receive.patience import Patience
from qmq.receive.policy import Opinion, Refusal
from qmq.receive.reception import Reception
from qmq.receive.taking import Taking
from qmq.receive.trace import Arrival
from qmq.session import Session, Transaction, Verdict
from qmq.wire.smtp_commands import HELO_SYNTAX
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

Said = Spoken | Deferred[Spoken]
_NOTHING = Verdict()
_NOBODY_VOUCHED = Refusal(0, Verdict(say.NOBODY_VOUCHED, reason="Reject::SNDR::Invalid_Relay"))


class Dialogue:
    """
    One client's session; qmq.conversation asks it.

    *session* is what is known of the client at first, *who* what is found out
    about it. Beyond its limits a client gets 421 and the end.
    """

    def __init__(self, session: Session, who: Session | Deny | Deferred[Session | Deny], reception: Reception) -> None:
        self.after: After | None = None
        self.session = session
        self.at = reception
        self.arrival = Arrival(reception.trace, session)
        self.letter: Letter | None = None  # open: takes commands
        self._who = who
        self._policy = reception.policy
        self._limits = reception.limits
        self._patience = Patience(reception.limits.errors, reception.limits.talk)
        self._taking = Taking(self)
        self._fields = b""  # that the connection's checkers want in front of each message
        self._helo_fields = b""
        self._held: Refusal | None = None  # since the connection
        self._helo_held: Refusal | None = None

    def greet(self) -> Said:
        """The banner; or a refusal, and the end."""
        who = self._who
        return self._known(who) if isinstance(who, Session | Deny) else who.addCallback(self._known)

    def early(self) -> None:
        """The client speaks before it was greeted."""
        self.session.conduct.early = True

    def _is(self, session: Session) -> None:
        """From now on this is what is known of the client."""
        self.session = session
        self.arrival = Arrival(self.at.trace, session)

    def _known(self, session: Session | Deny) -> Said:
        if isinstance(session, Deny):
            self._is(replace(self.session, host=session.host))
            self.at.log.refused(self.session, None, None, session.reply, "Reject::SNDR::Denied")
            return self.end(session.reply)
        session.conduct.early = session.conduct.early or self.session.conduct.early
        self._is(session)
        answer = self._policy.connection(session)
        if answer is not None and isinstance(answer, Deferred):
            return answer.addCallback(self._connection_judged)
        return self._connection_judged(answer)

    def _connection_judged(self, opinion: Opinion) -> Said:
        if isinstance(opinion, Refusal):
            verdict = opinion.verdict
            if self._at_once(verdict):
                # RFC 5321 3.1, 3.8: before the banner there are but 554 and 421.
                said = verdict.reply or say.TRY_LATER
                reply = Reply(554 if said.permanent else 421, said.status, said.text)
                self.at.log.refused(self.session, None, None, reply, verdict.reason, verdict.info)
                return self.later(self.end(reply), verdict.delay)
            self._held = opinion
            verdict = replace(verdict, delay=0)  # it is held back when it is spoken
        else:
            verdict = self._noted(opinion)
        self._fields = verdict.fields
        return self.later(self.at.banner, verdict.delay)

    def answer(self, event: Event) -> Said | None:
        """The answer to an event of the wire; None where none is awaited."""
        match event:
            case RcptTo():
                return self._recipient(event.recipient)
            case BodyPart():
                return self._taking.part(event)
            case MailFrom():
                return self._mail(event)
            case DataStart():
                return self._taking.data()
            case Chunk():
                if not event.size:
                    self._patience.talked(say.OK)
                self._taking.chunk(event)
                return None
            case Hello():
                return self._hello(event)
            case Quit():
                self.after = After.CLOSE
                return say.BYE
            case Reset():
                self.forget()
                return self.talked(say.OK)
            case Noop():
                return self.talked(say.OK)
            case Verify():
                # RFC 5321 7.3: whom we know is not told to whoever asks.
                return self.talked(say.CANNOT_VERIFY)
            case Help():
                return self.talked(say.HELP)
            case StartTLS():
                return self._start_tls()
            case Malformed():
                return self._malformed(event)

    def _noted(self, opinion: Verdict | None) -> Verdict:
        """What lets the client go on; if it has something to tell the operator, that is told."""
        verdict = opinion or _NOTHING
        if verdict.reason.startswith("Info::"):
            self.at.log.noted(self.session, self._seen(), None, verdict.reason, verdict.info)
        return verdict

    def _malformed(self, event: Malformed) -> Said:
        self.at.log.refused(self.session, self._seen(), None, event.reply, "Reject::SMTP::Syntax_Error")
        return self.end(event.reply) if event.close else self.refuse(event.reply)

    def _at_once(self, verdict: Verdict) -> bool:
        """Whether a refusal before RCPT is spoken when it is made. A 421 cannot wait: it ends the session."""
        return verdict.now or not self._limits.held or (verdict.reply is not None and verdict.reply.code == 421)

    def _seen(self) -> Transaction | None:
        return None if self.letter is None else self.letter.seen()

    def _hello(self, event: Hello) -> Said:
        if not event.name and self.session.environment.helocheck is None:
            return self._malformed(HELO_SYNTAX)
        self.forget()
        if (said := self.talked(say.OK)) is not say.OK:
            return said
        session = self.session.named(event.name, esmtp=event.extended)
        answer = self._policy.helo(session)
        if answer is not None:
            self._is(session.named(b"", esmtp=event.extended))  # until it is taken
            if isinstance(answer, Deferred):
                return answer.addCallback(self._hello_judged, session)
        return self._hello_judged(answer, session)

    def _hello_judged(self, opinion: Opinion, session: Session) -> Said:
        self._helo_held = None
        self._helo_fields = b""
        if isinstance(opinion, Refusal):
            verdict = opinion.verdict
            if self._at_once(verdict):
                return self.refused(opinion)
            self._helo_held = opinion
            verdict = replace(verdict, delay=0)  # it is held back when it is spoken
        else:
            verdict = self._noted(opinion)
        self._helo_fields = verdict.fields
        self._is(session)
        return self.later(self.at.ehlo(session) if session.esmtp else self.at.helo, verdict.delay)

    def _start_tls(self) -> Reply:
        if self.session.tls:
            return self.refuse(say.TLS_ALREADY)
        if not self.at.starttls:
            return self.refuse(say.NO_TLS)
        # RFC 3207 4.2: whatever was said in the clear may have been said by another.
        self.forget()
        self._is(replace(self.session, helo=b"", esmtp=False, user=self.session.environment.info))
        self._helo_fields = b""
        self._helo_held = None
        self.after = After.SECURE
        return say.READY_FOR_TLS

    def secured(self, tls: str) -> None:
        """The handshake is done."""
        self._is(replace(self.session, tls=tls))

    def _mail(self, mail: MailFrom) -> Said:
        if self._limits.helo and not self.session.helo:
            return self.refuse(say.HELO_FIRST)
        if self.letter is not None:
            return self.refuse(say.NESTED_MAIL)
        held = _first(self._held, self._helo_held)
        self.letter = letter = Letter(self.at.next_token(), mail, self._helo_fields + self._fields, held)
        answer = self._policy.sender(self.session, letter.seen())
        if answer is None:
            return say.SENDER_OK
        if isinstance(answer, Deferred):
            return answer.addCallback(self._sender_judged, letter)
        return self._sender_judged(answer, letter)

    def _sender_judged(self, opinion: Opinion, letter: Letter) -> Said:
        if isinstance(opinion, Refusal):
            verdict = opinion.verdict
            if self._at_once(verdict):
                self.forget()
                return self.refused(opinion, letter)
            letter.held = _first(letter.held, opinion)
            verdict = replace(verdict, delay=0)  # it is held back when it is spoken
        else:
            verdict = self._noted(opinion)
        letter.judged(verdict)
        return self.later(say.SENDER_OK, verdict.delay)

    def _recipient(self, recipient: Address) -> Said:
        letter = self.letter
        if letter is None:
            return self.refuse(say.MAIL_FIRST)
        if letter.draft is not None:
            return self.refuse(say.BDAT_BEGUN)
        letter.called()
        if recipient.domain[:1] == b"[":
            recipient = self.at.at_home(recipient, self.session.server)
        if suffix := self.session.environment.relayclient:
            recipient = address(bytes(recipient) + suffix)
        if len(letter.recipients) >= self._limits.recipients and recipient not in letter.recipients:
            reply, reason = say.TOO_MANY_RECIPIENTS, "Reject::RCPT::Toomany_Rcptto"
            self.at.log.refused(self.session, letter.seen(), recipient, reply, reason)
            return reply
        answer = self._policy.recipient(self.session, letter.seen(), recipient, letter.held)
        if type(answer) is not Verdict and isinstance(answer, Deferred):
            return answer.addCallback(self._recipient_judged, letter, recipient)
        return self._recipient_judged(answer, letter, recipient)

    def _recipient_judged(self, opinion: Opinion, letter: Letter, recipient: Address) -> Said:
        if isinstance(opinion, Refusal):
            letter.refused = True
            return self.refused(opinion, letter, recipient)
        if opinion is None or not opinion.vouch:
            letter.refused = True
            return self.refused(_NOBODY_VOUCHED, letter, recipient)
        self.at.log.passed(self.session, letter.seen(), recipient, opinion.reason, opinion.info)
        if letter.add(recipient):  # a second time is a command like any other
            letter.judged(opinion)
        return self.later(say.RECIPIENT_OK, opinion.delay) if opinion.delay else say.RECIPIENT_OK

    def forget(self) -> None:
        """End the transaction, whatever its state."""
        self._taking.forget()
        if (letter := self.letter) is not None:
            self.letter = None
            letter.discard()
            self.at.forget_token(letter.token)

    def end(self, reply: Reply) -> Reply:
        """*reply*, and hang up."""
        self.forget()
        self.after = After.CLOSE
        return reply

    def refused(self, refusal: Refusal, letter: Letter | None = None, recipient: Address | None = None) -> Said:
        """A checker said no: log it and say it."""
        verdict = refusal.verdict
        reply = verdict.reply or say.TRY_LATER
        seen = None if letter is None else letter.seen()
        self.at.log.refused(self.session, seen, recipient, reply, verdict.reason, verdict.info)
        return self.later(self.end(reply) if verdict.close else self.refuse(reply), verdict.delay)

    def refuse(self, reply: Reply) -> Reply:
        """*reply*, unless there were too many like it."""
        said = self._patience.refuse(reply)
        if said is not reply:
            self.at.log.refused(self.session, self._seen(), None, said, "Reject::SNDR::Toomany_Errors")
        # RFC 5321 3.8: whoever says 421 closes.
        return self.end(said) if said.code == 421 else said

    def talked(self, reply: Reply, commands: int = 1) -> Reply:
        """*reply*, unless there was too much talk without mail."""
        said = self._patience.talked(reply, commands)
        if said is not reply:
            self.at.log.refused(self.session, self._seen(), None, said, "Reject::SNDR::Toomany_Commands")
            self.end(said)
        return said

    def rewarded(self) -> None:
        """A message was taken: the client's errors are forgotten."""
        self._patience.rewarded()

    def later(self, reply: Reply, delay: Seconds) -> Said:
        """*reply*, after *delay* if there is one."""
        if not delay:
            return reply
        self.at.log.noted(self.session, self._seen(), None, "Info::SNDR::Delayed", f"{delay:g}")
        return self.sleep(delay).addCallback(lambda _: reply)

    def sleep(self, delay: Seconds) -> Deferred[None]:
        """Fires after *delay*, within the limits."""
        return deferLater(self.at.clock, min(delay, self._limits.delay), lambda: None)

    def trouble(self) -> Reply:
        """Something broke: the client is to try again."""
        self._taking.committing = False
        self.forget()
        return say.TRY_LATER

    def receiving(self) -> tuple[object, Octets] | None:
        """The text that is coming, and how much of it."""
        return self._taking.receiving()

    def cut(self, reply: Reply) -> None:
        """The conversation ends the session with a word of its own: the log shall know."""
        self.at.log.refused(self.session, self._seen(), None, reply, "Reject::SNDR::Cut_Off", reply.text)

    def lost(self) -> bool:
        """The client is gone: nothing is kept, unless the next hop has it in hand."""
        if self._taking.committing:
            return False
        self.forget()
        return True


def _first(one: Refusal | None, other: Refusal | None) -> Refusal | None:
    """The one whose checker stands first in `checks`."""
    if one is None or other is None:
        return one or other
    return one if one.place <= other.place else other
