"""
May this client send mail of this sender's domain (SPF, RFC 7208)?

Levels as SPAMCONTROL 2.14: 1 notes the result in a Received-SPF field; 2 also
puts off on trouble with DNS; 3 also refuses fail, 4 softfail, 5 neutral, 6 the
rest: none and broken records. A recipient's instance may have a level of its
own; the client's counts for the others. Named clients are not asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zope.interface import implementer

from qmq.interfaces import Answer, ICheckerFactory, IMessageChecker, IRecipientChecker, ISelective
from qmq.mail import Address, Message, Reply, path
from qmq.receive.context import Context, Owner, Some, perhaps
from qmq.rules.options import count, seconds
from qmq.rules.watched import BadLine, lines
from qmq.session import Environment, Session, Transaction, Verdict
from qmq.spf.evaluate import Limits
from qmq.spf.field import handed_in, received_spf
from qmq.spf.finding import EXPLAINING, EXPLANATION, SPF, TIMEOUT, Finding, printable
from qmq.spf.macro import BadMacro, Template, template
from qmq.spf.record import BadRecord, Mechanism, Result, mechanisms

# From which level on a result is refused.
_REFUSED = {
    Result.TEMPERROR: 2,
    Result.FAIL: 3,
    Result.SOFTFAIL: 4,
    Result.NEUTRAL: 5,
    Result.NONE: 6,
    Result.PERMERROR: 6,
}
_SAID = {
    Result.FAIL: "SPF: this host may not send mail of {domain}",
    Result.SOFTFAIL: "SPF: this host should not send mail of {domain}",
    Result.NEUTRAL: "SPF: {domain} does not say that this host may send its mail",
    Result.NONE: "SPF: {domain} has no SPF record, and mail without is not taken here",
    Result.PERMERROR: "SPF: the record of {domain} is broken",
}
_COMMENT = {
    Result.PASS: "designates {client} as permitted sender",
    Result.FAIL: "does not designate {client} as permitted sender",
    Result.SOFTFAIL: "does not designate {client} as permitted sender",
    Result.NEUTRAL: "neither permits nor denies {client}",
    Result.NONE: "does not say who may send",
    Result.TEMPERROR: "could not be asked",
    Result.PERMERROR: "has a broken record",
}
_PASSED = Verdict(reason="Accept::SPF::")
_TROUBLE = Verdict(reply=Reply(451, "4.4.3", "SPF: trouble with DNS, try again later"), reason="Reject::SPF::Temperror")
_NOTE = "spf"


@implementer(IRecipientChecker, IMessageChecker, ISelective)
class SPFCheck:
    """
    Asks *spf* once a transaction, at the first recipient whose level wants it.

    What it found is remembered for the transaction in the session's notes.
    *limit* is how long an answer may take.
    """

    def __init__(
        self,
        spf: SPF,
        owner: Callable[[bytes], Owner | None],
        me: str,
        limit: float,
        some: Some = perhaps,
    ) -> None:
        self.limit = limit
        self._check = spf.check
        self._owner = owner
        self._me = me
        self._some = some

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Who may not relay, if it or an instance has a level; and whom a wrapper has something to say of."""
        if environment.relayclient is None and (environment.spf > 0 or self._some(_has_a_level)):
            return True
        return phase == "message" and bool(environment.variables.get("SPFINFO"))

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Answer:
        """A refusal, or the word that SPF was passed, as the recipient's level wants."""
        if session.relay:
            return None
        owner = self._owner(recipient.domain)
        level = session.environment.spf if owner is None or owner.spf is None else owner.spf
        if level <= 0:
            return None
        found = _remembered(session, transaction)
        return self._asked(session, transaction, level) if found is None else _verdict(found, level)

    async def _asked(self, session: Session, transaction: Transaction, level: int) -> Verdict | None:
        found = await self._check(session.client, transaction.sender, session.helo)
        session.conduct.notes[_NOTE] = transaction.id, found
        return _verdict(found, level)

    def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict | None:
        """The Received-SPF field: of our own finding, else of what a wrapper said in SPFINFO (SPAMCONTROL 2.19)."""
        found = _remembered(session, transaction)
        info = session.environment.variables.get("SPFINFO")
        if found is None and not info:
            return None
        helo, sender = session.helo.decode("latin-1"), path(transaction.sender).decode("latin-1")
        if found is None:
            field = handed_in(info or "", session.client, helo, sender)
            return Verdict(fields=field) if field else None
        domain = found.domain or "the sender"
        comment = f"{self._me}: {domain} {_COMMENT[found.result].format(client=session.client)}"
        pairs = [
            ("receiver", self._me),
            ("client-ip", session.client),
            ("helo", helo),
            ("envelope-from", sender),
            ("identity", found.identity),
            ("mechanism", found.mechanism),
            ("problem", found.problem),
        ]
        return Verdict(fields=received_spf(found.result.value, comment, pairs))


def _has_a_level(owner: Owner) -> bool:
    return owner.spf is not None and owner.spf > 0


def _remembered(session: Session, transaction: Transaction) -> Finding | None:
    note: tuple[bytes, Finding] | None = session.conduct.notes.get(_NOTE)
    return note[1] if note is not None and note[0] == transaction.id else None


def _verdict(found: Finding, level: int) -> Verdict | None:
    result = found.result
    if result is Result.PASS:
        return _PASSED
    if level < _REFUSED[result]:
        return None
    if result is Result.TEMPERROR:
        return _TROUBLE
    text = _SAID[result].format(domain=printable(found.domain or "this sender"))
    if found.theirs:
        # RFC 7208 6.2: nobody shall take a stranger's words for ours.
        text = f"{text}, and {found.domain} explains:\n{found.explanation}"
    elif found.explanation:
        text = found.explanation
    return Verdict(reply=Reply(550, "5.7.1", text), reason="Reject::SPF::Fail", info=result.value)


@implementer(ICheckerFactory)
class Factory:
    """Makes SPFCheck."""

    name = "spf"
    help = "asks the sender's domain whether the client may send its mail (SPF), to the level of SPF ="
    options: Mapping[str, str] = {
        "time": f"how long a result may take (20 s or more, by RFC 7208); else {TIMEOUT:g}s",
        "voids": "how many terms of a record may find nothing in DNS; else 2",
    }

    def make(self, context: Context, options: Mapping[str, str]) -> SPFCheck:
        """With the control files spfexplain and spflocalrules; raises ValueError, BadLine."""
        timeout = seconds(self.name, options, "time", TIMEOUT)
        explanation = context.watch(context.path("spfexplain", {}), _explanation, EXPLANATION)
        rules: Any = context.watch(context.path("spflocalrules", {}), _rules, ())
        spf = SPF(
            context.resolver,
            context.clock,
            context.me,
            rules=rules.now,
            explanation=explanation.now,
            timeout=timeout,
            limits=Limits(voids=count(self.name, options, "voids", 2)),
        )
        return SPFCheck(spf, context.owner, context.me, timeout + EXPLAINING + 5, context.some)


def _line(path: str, remedy: str) -> tuple[int, bytes] | None:
    """The only line there is."""
    found = lines(path)
    if len(found) > 1:
        raise BadLine(path, found[1][0], "one line only is read", remedy)
    return found[0] if found else None


def _explanation(path: str) -> Template:
    remedy = "write one line of US-ASCII with the macros of RFC 7208 7, as: %{i} may not send mail of %{d}"
    found = _line(path, remedy)
    if found is None:
        return EXPLANATION
    try:
        return template(found[1].decode("ascii"), explanation=True)
    except (BadMacro, UnicodeDecodeError) as error:
        raise BadLine(path, found[0], str(error), remedy) from error


def _rules(path: str) -> Sequence[Mechanism]:
    remedy = "write mechanisms of RFC 7208 5 on one line, as: ip4:192.0.2.0/24 include:spf.example.org"
    found = _line(path, remedy)
    if found is None:
        return ()
    try:
        return mechanisms(found[1])
    except BadRecord as error:
        raise BadLine(path, found[0], str(error), remedy) from error
