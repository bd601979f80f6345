"""
Spam by SpamAssassin's score, from a threshold on that the recipient's domain has.

What qmail-queue.scan did with spamc and control/spamdomains (SPAMCONTROL 2.2,
2.13), by asking spamd itself. At the end of the data SMTP has one answer for
all recipients, so those of one transaction must have one threshold: the first
recipient fixes it, and others are asked to come in another message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.logger import Logger
from zope.interface import implementer

from qmq.interfaces import Answer, ICheckerFactory, IMessageChecker, IRecipientChecker, ISelective
from qmq.mail import Address, Message, Octets, Reply, Seconds
from qmq.receive.context import Context, Owner
from qmq.rules.filters import deferred, refused
from qmq.rules.options import choice, count, known, seconds
from qmq.rules.spamdomains import Thresholds, read_thresholds
from qmq.session import Environment, Session, Transaction, Verdict
from qmq.spamd import Spamd, SpamdTrouble, endpoint

_log = Logger()
_ANOTHER = Verdict(
    reply=Reply(452, "4.5.3", "send that recipient in another message"),
    reason="Reject::RCPT::Toomany_Rcptto",
    info="spam",
)
_OPTIONS = {
    "spamd": "where SpamAssassin's spamd listens, 127.0.0.1:783 or a socket's path; without it nothing is scanned",
    "file": "domain:threshold lines; else spamdomains in the control folder",
    "threshold": "of domains that no line matches; -1: not scanned (-1)",
    "largest": "longer messages are not scanned, in octets (524288)",
    "time": "so long an answer may take, the wait for its turn included (30s)",
    "at-once": "messages that spamd is asked about at the same time (5)",
    "waiting": "messages that may wait for their turn (50)",
    "fail": "without an answer: open (the message is taken) or closed (451)",
    "relay": "yes: mail of relay clients is scanned too (no)",
    "header": "yes: the score goes into an X-Spam-Score field (no)",
    "user": "whose preferences count to spamd",
}


@implementer(IRecipientChecker, IMessageChecker, ISelective)
class SpamDomains:
    """
    Refuses messages whose score reaches the recipients' threshold.

    An instance's own threshold counts before *thresholds*, and those before
    *default*; below 0 is not scanned.
    """

    def __init__(
        self, spamd: Spamd | None, thresholds: Callable[[], Thresholds], owner: Callable[[bytes], Owner | None], *,
        default: float = -1, largest: Octets = 524_288, time: Seconds = 30, closed: bool = False, relay: bool = False,
        header: bool = False,
    ) -> None:  # fmt: skip
        self._spamd = spamd
        self._thresholds = thresholds
        self._owner = owner
        self._default = default
        self._largest = largest
        self._time = time
        self._closed = closed
        self._relay = relay
        self._header = header
        self.limit = time + 5

    def concerns(self, environment: Environment, phase: str) -> bool:
        """All, if there is a spamd."""
        return self._spamd is not None

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """452 for whom another threshold counts than for those accepted before."""
        if self._spamd is None or not transaction.recipients or (session.relay and not self._relay):
            return None
        domain, first = recipient.domain, transaction.recipients[0].domain
        return None if domain == first or self._threshold(domain) == self._threshold(first) else _ANOTHER

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """554 for spam, or the field with the score."""
        if self._spamd is None or (session.relay and not self._relay) or message.size > self._largest:
            return None
        recipients = message.envelope.recipients
        threshold = self._threshold(recipients[0].domain) if recipients else None
        return None if threshold is None else self._ask(self._spamd, session, message, threshold)

    def _threshold(self, domain: bytes) -> float | None:
        """None: not scanned."""
        owner = self._owner(domain)
        found = owner.spam_threshold if owner is not None else None
        if found is None:
            found = self._thresholds().of(domain)
        if found is None:
            found = self._default
        return found if found >= 0 else None

    async def _ask(self, spamd: Spamd, session: Session, message: Message, threshold: float) -> Verdict | None:
        try:
            score = await spamd.score(message, self._time)
        except (SpamdTrouble, OSError) as trouble:
            _log.warn(
                "no score by spamd, {done}: {trouble}",
                done="deferred" if self._closed else "not scanned", trouble=str(trouble),
            )  # fmt: skip
            return deferred("Spamd_Trouble", "spamd") if self._closed else None
        if score >= threshold:
            return refused(session, "Spam_Message", "spam")
        return Verdict(fields=b"X-Spam-Score: %.1f\r\n" % score) if self._header else None


@implementer(ICheckerFactory)
class Factory:
    """Makes SpamDomains."""

    name = "spamdomains"
    help = "refuses spam by SpamAssassin's score (spamd), with a threshold for each recipient domain"
    options = _OPTIONS

    def make(self, context: Context, options: Mapping[str, str]) -> SpamDomains:
        """Raises ValueError and BadLine."""
        name = self.name
        known(name, options, _OPTIONS)
        spamd = None
        if "spamd" in options:
            try:
                where = endpoint(options["spamd"], context.reactor)
            except ValueError as error:
                raise ValueError(f"{name}: spamd = {error}") from None
            user = options.get("user", "")
            if not user.isprintable():
                raise ValueError(f"{name}: user = {user!r} is no name; say the name of a user")
            spamd = Spamd(
                where,
                context.clock,
                at_once=count(name, options, "at-once", 5, 1),
                waiting=count(name, options, "waiting", 50),
                user=user,
            )
        return SpamDomains(
            spamd,
            context.watch(context.path(name, options), read_thresholds, Thresholds()).now,
            context.owner,
            default=_threshold(options),
            largest=count(name, options, "largest", 524_288, 1),
            time=seconds(name, options, "time", 30),
            closed=choice(name, options, "fail", ("open", "closed")) == "closed",
            relay=choice(name, options, "relay", ("no", "yes")) == "yes",
            header=choice(name, options, "header", ("no", "yes")) == "yes",
        )


def _threshold(options: Mapping[str, str]) -> float:
    text = options.get("threshold", "-1")
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not -1000 <= found <= 1000:
        raise ValueError(f"spamdomains: threshold = {text!r} is no score; say one such as 7.5, or -1 for none")
    return found
