"""
Which recipients we take mail for at all.

The gate against open relaying: SPAMCONTROL's rcpthosts and morercpthosts,
except that nothing listed means nothing taken. Without this checker (or another
that vouches) every recipient is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address, Reply
from qmq.receive.context import Context
from qmq.rules.hosts import Hosts
from qmq.session import Session, Transaction, Verdict

_DENIED = Reply(553, "5.7.1", "relaying denied")
_OURS = Verdict(vouch=True, reason="Accept::RCPT::Rcpthosts_Rcptto")
_RELAYED = Verdict(vouch=True, reason="Accept::SNDR::Relay_Client")


@implementer(IRecipientChecker)
class RcptHosts:
    """
    Vouches for domains among *hosts*, for bare <postmaster>, and for whatever a relay client names.

    That one of them has no site to go to is for a later stage to say.
    """

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict:
        """A vouching, or a refusal; raises OSError if morercpthosts.cdb is damaged: nothing is taken."""
        domain = recipient.domain
        if session.relay:
            return _RELAYED
        if domain:
            if self._hosts.has(domain):
                return _OURS
        # RFC 5321 4.5.1: <postmaster> without a domain must be taken.
        elif recipient.local.lower() == b"postmaster":
            return _OURS
        reply = session.environment.worded(_DENIED, "REPLY_NOGATEWAY")
        return Verdict(reply=reply, reason="Reject::SNDR::Invalid_Relay")


@implementer(ICheckerFactory)
class Factory:
    """Makes RcptHosts."""

    name = "rcpthosts"
    help = "takes only recipients in domains of ours; any for relay clients"
    options: Mapping[str, str] = {}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """No options."""
        return RcptHosts(Hosts(context.knows, context.says, context.control, context.files))
