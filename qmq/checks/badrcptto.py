"""
Recipients whom nobody may send to, clients that may relay neither (SPAMCONTROL 2.9).

An address, or ``@domain``, in any case; or a walk over patterns (qmq.rules.wildmat),
of which ``!`` lines exempt, as in ``*`` with ``!user@example.org`` below. An
exemption does not outweigh an address or domain that is listed as such.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISelective
from qmq.mail import Address, Reply
from qmq.receive.context import Context
from qmq.rules.watched import Watched, lines
from qmq.rules.wildmat import Rules, Walk
from qmq.session import Environment, Session, Transaction, Verdict

_REFUSED = Reply(553, "5.7.1", "sorry, your envelope recipient is in my badrcptto list")


class BadRcptTo:
    """The rules of one file; *path* is for complaints. Raises BadLine."""

    __slots__ = ("_listed", "_walk", "empty")

    def __init__(self, rules: Rules, path: str) -> None:
        rules = tuple(rules)
        self.empty = not rules  # nobody is refused
        self._listed = frozenset(line.lower() for _, line in rules if not line.startswith(b"!"))
        self._walk = Walk(rules, path)

    def refuses(self, recipient: Address) -> bool:
        """Whether nobody may send to it."""
        domain = recipient.domain
        raw = recipient.local + b"@" + domain if domain else recipient.local
        return raw.lower() in self._listed or b"@" + domain in self._listed or self._walk.refuses(raw)


def read_badrcptto(path: str) -> BadRcptTo:
    """The rules in the file at *path*; raises OSError and BadLine. To be given to Context.watch."""
    return BadRcptTo(lines(path), path)


@implementer(IRecipientChecker, ISelective)
class BadRcptToCheck:
    """Asks the *rules* at RCPT."""

    def __init__(self, rules: Watched[BadRcptTo]) -> None:
        self._rules = rules

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Everybody, if there is a file."""
        return not self._rules.absent()

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """A refusal."""
        rules = self._rules.now()
        if rules.empty or not rules.refuses(recipient):
            return None
        return Verdict(reply=session.environment.worded(_REFUSED, "REPLY_BADRCPTTO"), reason="Reject::RCPT::Bad_Rcptto")


@implementer(ICheckerFactory)
class Factory:
    """Makes BadRcptToCheck."""

    name = "badrcptto"
    help = "refuses recipients in control/badrcptto, from everybody"
    options: Mapping[str, str] = {"file": "the list; else control/badrcptto"}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """Option `file`."""
        return BadRcptToCheck(context.watch(context.path(self.name, options), read_badrcptto, BadRcptTo((), "")))
