"""Who may hand mail to an instance by SMTP: a checker that is no plug-in, for it is not a matter of taste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address

from zope.interface import implementer

from qmq.interfaces import IConnectionChecker, IRecipientChecker
from qmq.mail import Address, Reply
from qmq.session import VOUCH, Session, Transaction, Verdict

_NO_PEER = Verdict(Reply(554, "5.7.1", "this is no public mail server"), now=True)


@implementer(IConnectionChecker, IRecipientChecker)
class HandOverOnly:
    """Only *peers* are let in, and only to recipients that *accept* has nothing against."""

    def __init__(
        self, peers: Sequence[IPv4Network | IPv6Network], accept: Callable[[Address, bool], Reply | None]
    ) -> None:
        self._peers = peers
        self._accept = accept

    def connection(self, session: Session) -> Verdict | None:
        """554 to strangers."""
        client = ip_address(session.client) if session.client else None
        known = client is None or any(client in net for net in self._peers if net.version == client.version)
        return None if known else _NO_PEER

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict:
        """Vouches for our recipients."""
        refusal = self._accept(recipient, False)
        return VOUCH if refusal is None else Verdict(refusal)
