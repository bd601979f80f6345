"""How many recipients a message may have: MAXRECIPIENTS, for everyone (SPAMCONTROL 2.10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISelective
from qmq.mail import Address, Reply
from qmq.rules import options as said
from qmq.session import Environment, Session, Transaction, Verdict

# RFC 5321 4.5.3.1.10: the client sends the message to those accepted, and comes again for the others.
_TOO_MANY = Verdict(
    reply=Reply(452, "4.5.3", "sorry, too many recipients"), reason="Reject::RCPT::Toomany_Rcptto"
)  # fmt: skip


@implementer(IRecipientChecker, ISelective)
class MaxRecipients:
    """Defers recipients behind so many RCPT commands of a transaction, refused ones counted too."""

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom MAXRECIPIENTS is set."""
        return environment.maxrecipients > 0

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """By the client's MAXRECIPIENTS; 0: any number."""
        return _TOO_MANY if 0 < session.environment.maxrecipients < transaction.commands else None


@implementer(ICheckerFactory)
class Factory:
    """Makes MaxRecipients."""

    name = "maxrecipients"
    help = "defers recipients above a number: MAXRECIPIENTS"

    def make(self, context: Any, options: Mapping[str, str]) -> MaxRecipients:
        """No options."""
        said.known(self.name, options, ())
        return MaxRecipients()
