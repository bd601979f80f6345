"""
Who names too many mailboxes that do not exist is slowed down, or shut out (SPAMCONTROL 2.10).

By TARPITCOUNT n and TARPITDELAY s: after n unknown recipients in a session all
further ones are deferred. Below 999 s, from the n-th RCPT of a transaction on
each answer is held back for s seconds. At exactly 999 nobody is slowed down;
instead, who was deferred is notorious, and is cut off at its next DATA. Relay
clients go free. Stands before `recipients` in `checks`, so that a client in the
pit learns nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IDataChecker, IRecipientChecker, ISelective
from qmq.mail import Address, Reply
from qmq.rules import options as said
from qmq.session import Environment, Session, Transaction, Verdict

_TOO_MANY = Verdict(
    reply=Reply(452, "4.5.3", "sorry, too many recipients that do not exist"), reason="Reject::RCPT::Toomany_Rcptto"
)
_NOTORIOUS = Verdict(
    reply=Reply(503, "5.5.1", "sorry, not after so many recipients that do not exist, closing"),
    close=True,
    reason="Reject::SNDR::Notorious",
)
# TARPITDELAY's mark; a delay is less, and above it is neither (SPAMCONTROL).
_MARK = 999


@implementer(IRecipientChecker, IDataChecker, ISelective)
class Tarpit:
    """
    Holds back the answers of at most *sleepers* sessions at once; if the pit is full others are answered at once.

    So the pit can't be made a weapon against the gateway; what is deferred
    stays deferred, full or not.
    """

    def __init__(self, clock: IReactorTime, sleepers: int) -> None:
        self._clock = clock
        self._most = sleepers
        self.sleepers = 0

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom TARPITCOUNT is set: of others nobody is notorious."""
        return environment.tarpitcount > 0

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """A refusal, or a delay."""
        environment = session.environment
        count = environment.tarpitcount
        if not count or session.relay:
            return None
        delay, conduct = environment.tarpitdelay, session.conduct
        if conduct.failed_recipients >= count:
            if delay == _MARK:
                conduct.notorious = True
            return _TOO_MANY
        if not 0 < delay < _MARK or transaction.commands < count or self.sleepers >= self._most:
            return None
        self.sleepers += 1
        self._clock.callLater(delay, self._awake)
        return Verdict(delay=delay)

    def data(self, session: Session, transaction: Transaction) -> Verdict | None:
        """The end, for the notorious."""
        return _NOTORIOUS if session.conduct.notorious and not session.relay else None

    def _awake(self) -> None:
        self.sleepers -= 1


@implementer(ICheckerFactory)
class Factory:
    """Makes Tarpit."""

    name = "tarpit"
    help = "slows down or defers who names unknown mailboxes: TARPITCOUNT, TARPITDELAY"
    options = {"sleepers": "how many sessions may be slowed down at once (200)"}  # noqa: RUF012 - read only

    def make(self, context: Any, options: Mapping[str, str]) -> Tarpit:
        """Raises ValueError."""
        said.known(self.name, options, self.options)
        return Tarpit(context.clock, said.count(self.name, options, "sleepers", 200))
