"""
Senders whose domain does not exist (SPAMCONTROL 2.5 row 8): MFDNSCHECK.

Asked of clients that may not relay, if the variable is set for them. A domain
exists if mail can be sent to it: it has an MX or an address, and no null MX
(RFC 7505). Exempt are the null sender, address literals, and whatever
badmailfrom has behind a question mark.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.dns.existence import takes_mail
from qmq.dns.query import DNSTrouble
from qmq.interfaces import Answer, ICheckerFactory, ISelective, ISenderChecker
from qmq.mail import Reply
from qmq.receive.context import Context
from qmq.rules.badmailfrom import NOBODY, BadMailFrom, read_badmailfrom
from qmq.rules.watched import Watched
from qmq.session import Environment, Session, Transaction, Verdict

_REFUSED = Reply(553, "5.7.1", "sorry, your envelope sender domain must exist")
_REASON = "Reject::ORIG::DNS_MF"
# One reply to one MAIL, and no more than a delay: defect 6 of SPAMCONTROL 2.20 was a second one.
_UNKNOWN = Verdict(
    reply=Reply(451, "4.3.0", "DNS has no answer for your envelope sender domain now, try again later"),
    reason=_REASON,
    info="temporary",
)


@implementer(ISenderChecker, ISelective)
class MFDNSCheck:
    """Asks *resolver* (qmq.dns.resolver.Resolver) at MAIL; *rules* exempt."""

    def __init__(self, resolver: Any, rules: Watched[BadMailFrom]) -> None:
        self._resolver = resolver
        self._rules = rules

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom MFDNSCHECK is set."""
        return environment.mfdnscheck

    def sender(self, session: Session, transaction: Transaction) -> Answer:
        """A refusal, or a deferral while DNS has no answer."""
        sender = transaction.sender
        if not session.environment.mfdnscheck or session.relay or not sender.domain:
            return None
        return None if self._rules.now().exempts(sender) else self._asked(session, sender.domain)

    async def _asked(self, session: Session, domain: bytes) -> Verdict | None:
        try:
            exists = await takes_mail(self._resolver, domain)
        except DNSTrouble:
            return _UNKNOWN
        if exists:
            return None
        return Verdict(reply=session.environment.worded(_REFUSED, "REPLY_SENDEREXIST"), reason=_REASON)


@implementer(ICheckerFactory)
class Factory:
    """Makes MFDNSCheck."""

    name = "mfdnscheck"
    help = "refuses senders whose domain is not in DNS, where MFDNSCHECK is set"
    options: Mapping[str, str] = {"badmailfrom": "the list whose ?address lines exempt; else control/badmailfrom"}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """Option `badmailfrom`."""
        path = context.path("badmailfrom", options, "badmailfrom")
        return MFDNSCheck(context.resolver, context.watch(path, read_badmailfrom, NOBODY))
