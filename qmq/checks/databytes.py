"""
How long a message may be.

By what the client says at MAIL (SIZE, RFC 1870), and by what has come at the
end of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IMessageChecker, ISenderChecker
from qmq.mail import Message, Octets, Reply
from qmq.session import Session, Transaction, Verdict

_TOO_BIG = Verdict(
    reply=Reply(552, "5.3.4", "sorry, that message is bigger than I take"), reason="Reject::DATA::Invalid_Size"
)
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@implementer(ISenderChecker, IMessageChecker)
class DataBytes:
    """Refuses what is longer than *limit* octets; 0: nothing."""

    def __init__(self, limit: Octets) -> None:
        self._limit = limit

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """By SIZE=."""
        return _TOO_BIG if 0 < self._limit < transaction.size else None

    def message(self, session: Session, transaction: Transaction, message: Message) -> Verdict | None:
        """By what came; our own fields do not count."""
        return _TOO_BIG if 0 < self._limit < message.body.size else None


@implementer(ICheckerFactory)
class Factory:
    """Makes DataBytes."""

    name = "databytes"
    help = "refuses messages above a size: limit = 20M (else the listener's own)"

    def make(self, context: Any, options: Mapping[str, str]) -> DataBytes:
        """Option `limit`: octets, or with K, M or G; without it the listener's databytes."""
        if unknown := sorted(set(options) - {"limit"}):
            raise ValueError(f"databytes takes the option limit, but has: {', '.join(unknown)}")
        return DataBytes(_octets(options["limit"]) if "limit" in options else context.databytes)


def _octets(text: str) -> Octets:
    number, unit = text.strip(), 1
    if number and number[-1].lower() in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1].lower()]
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"databytes: limit = {text!r} is no size; say 20M, 500K or 1048576")
    return int(number) * unit
