"""
Which recipients we take mail for at all.

The gate against open relaying: SPAMCONTROL's rcpthosts, except that nothing
listed means nothing taken. Without this checker (or another that vouches)
every recipient is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address, Reply
from qmq.session import VOUCH, Session, Transaction, Verdict

_DENIED = Verdict(reply=Reply(553, "5.7.1", "relaying denied"), reason="Reject::SNDR::Invalid_Relay")


@implementer(IRecipientChecker)
class RcptHosts:
    """Vouches for domains that *knows* knows, for bare <postmaster>, and for whatever a relay client names."""

    def __init__(self, knows: Callable[[bytes], bool]) -> None:
        self._knows = knows

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict:
        """VOUCH, or a refusal."""
        domain = recipient.domain
        if session.relay:
            return VOUCH
        if not domain:
            # RFC 5321 4.5.1: <postmaster> without a domain must be taken.
            return VOUCH if recipient.local.lower() == b"postmaster" else _DENIED
        return VOUCH if self._knows(domain) else _DENIED


@implementer(ICheckerFactory)
class Factory:
    """Makes RcptHosts."""

    name = "rcpthosts"
    help = "takes only recipients in domains of ours; any for relay clients"

    def make(self, context: Any, options: Mapping[str, str]) -> RcptHosts:
        """No options."""
        if options:
            raise ValueError(f"rcpthosts takes no options, but has: {', '.join(sorted(options))}")
        return RcptHosts(context.knows)
