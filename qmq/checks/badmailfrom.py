"""
Senders whom we take nothing from (SPAMCONTROL 2.8); the rules are qmq.rules.badmailfrom's.

Asked of everybody, clients that may relay too. An instance may have a file of
its own beside the primary's: it counts for that instance's recipients alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISelective, ISenderChecker
from qmq.mail import Address, Reply
from qmq.receive.context import Context, Owner, Some, perhaps
from qmq.rules.badmailfrom import NOBODY, BadMailFrom, read_badmailfrom
from qmq.rules.watched import Watched
from qmq.session import Environment, Session, Transaction, Verdict

_REFUSED = Reply(553, "5.7.1", "sorry, your envelope sender is in my badmailfrom list")


@implementer(ISenderChecker, IRecipientChecker, ISelective)
class BadMailFromCheck:
    """Asks the primary's *rules* at MAIL, and those of a recipient's owner, if it has any, at RCPT."""

    def __init__(
        self,
        rules: Watched[BadMailFrom],
        owner: Callable[[bytes], Owner | None],
        watch: Callable[[str], Watched[BadMailFrom]],
        some: Some = perhaps,
    ) -> None:
        self._rules = rules
        self._owner = owner
        self._watch = watch
        self._some = some

    def concerns(self, environment: Environment, phase: str) -> bool:
        """At MAIL everybody, if there is a file; at RCPT, if an instance has one of its own."""
        return not self._rules.absent() if phase == "sender" else self._some(_has_its_own)

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """A refusal, with the condition for the log."""
        return _verdict(self._rules.now(), session, transaction.sender)

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """A refusal by the file of whoever the recipient belongs to; raises BadLine for a bad one, nothing is taken."""
        owner = self._owner(recipient.domain)
        if owner is None or not owner.badmailfrom:
            return None
        return _verdict(self._watch(owner.badmailfrom).now(), session, transaction.sender)


def _has_its_own(owner: Owner) -> bool:
    return bool(owner.badmailfrom)


def _verdict(rules: BadMailFrom, session: Session, sender: Address) -> Verdict | None:
    condition = rules.condition(sender, session.host, session.relay)
    if not condition:
        return None
    return Verdict(
        reply=session.environment.worded(_REFUSED, "REPLY_BADMAILFROM"),
        reason="Reject::ORIG::Bad_Mailfrom",
        info=condition,
    )


@implementer(ICheckerFactory)
class Factory:
    """Makes BadMailFromCheck."""

    name = "badmailfrom"
    help = "refuses senders in control/badmailfrom, and an instance's own for its recipients"
    options: Mapping[str, str] = {"file": "the list; else control/badmailfrom"}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """Option `file`."""

        def watch(path: str) -> Watched[BadMailFrom]:
            return context.watch(path, read_badmailfrom, NOBODY)

        return BadMailFromCheck(watch(context.path(self.name, options)), context.owner, watch, context.some)
