"""
How long a message may be.

By what the client says at MAIL (SIZE, RFC 1870), and by what has come at the
end of the data. The least of all limits counts: the listener's, the client's
(DATABYTES) and, for its own recipients, an instance's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IMessageChecker, IRecipientChecker, ISelective, ISenderChecker
from qmq.mail import Address, Message, Octets, Reply
from qmq.receive.context import Owner, Some, perhaps
from qmq.session import Environment, Session, Transaction, Verdict

_REPLY = Reply(552, "5.3.4", "sorry, that message is bigger than I take")
_TOO_BIG = Verdict(reply=_REPLY, reason="Reject::DATA::Invalid_Size")
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@implementer(ISenderChecker, IRecipientChecker, IMessageChecker, ISelective)
class DataBytes:
    """Refuses what is longer than *limit* octets, or than *owner* of a recipient takes; 0: nothing."""

    def __init__(self, limit: Octets, owner: Callable[[bytes], Any], some: Some = perhaps) -> None:
        self._limit = limit
        self._owner = owner
        self._some = some

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Everybody; at RCPT, if an instance has a limit."""
        return phase != "recipient" or self._some(_has_a_limit)

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """By SIZE=; said at each RCPT (SPAMCONTROL 2.4)."""
        return self._judge(session, transaction.size) if transaction.size else None

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """By SIZE= too, for this recipient alone."""
        if transaction.size and self._exceeds(transaction.size, recipient):
            return _too_big(session.environment)
        return None

    def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict | None:
        """By what came, for all of its recipients; our own fields do not count."""
        size = message.body.size
        for recipient in transaction.recipients:
            if self._exceeds(size, recipient):
                return _too_big(session.environment)
        return self._judge(session, size)

    def _judge(self, session: Session, size: Octets) -> Verdict | None:
        environment = session.environment
        if 0 < self._limit < size or (environment.databytes and environment.databytes < size):
            return _too_big(environment)
        return None

    def _exceeds(self, size: Octets, recipient: Address) -> bool:
        owner = self._owner(recipient.domain)
        return owner is not None and 0 < owner.databytes < size


def _has_a_limit(owner: Owner) -> bool:
    return owner.databytes > 0


def _too_big(environment: Environment) -> Verdict:
    if not environment.replies:
        return _TOO_BIG
    return Verdict(reply=environment.worded(_REPLY, "REPLY_MAXSIZE"), reason=_TOO_BIG.reason)


@implementer(ICheckerFactory)
class Factory:
    """Makes DataBytes."""

    name = "databytes"
    help = "refuses messages above a size: limit = 20M (else the listener's own), DATABYTES, the instance's"
    options = {"limit": "octets, or with K, M or G (else the listener's databytes)"}  # noqa: RUF012 - read only

    def make(self, context: Any, options: Mapping[str, str]) -> DataBytes:
        """Option `limit`: octets, or with K, M or G; without it the listener's databytes."""
        if unknown := sorted(set(options) - {"limit"}):
            raise ValueError(f"databytes takes the option limit, but has: {', '.join(unknown)}")
        limit = _octets(options["limit"]) if "limit" in options else context.databytes
        return DataBytes(limit, context.owner, context.some)


def _octets(text: str) -> Octets:
    number, unit = text.strip(), 1
    if number and number[-1].lower() in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1].lower()]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"databytes: limit = {text!r} is no size; say 20M, 500K or 1048576")
    return int(number) * unit
