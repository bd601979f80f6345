"""
Which senders clients may use that may relay (SPAMCONTROL 2.12): LOCALMFCHECK.

Asked of clients that may relay, if the variable is set for them. The null sender
is everybody's. LOCALMFCHECK may be

- nothing: the sender's domain must be one that we take mail for;
- a domain: that one, or one that we take mail for. The original's documents
  say now the one, now the other; a site that names a domain of its own more
  than rcpthosts has must be able to use both;
- ``!``: the sender must be the client's by control/mailfromrules (else
  mailfromrules.cdb, the same compiled by qmail-mfrules); without either as nothing;
- ``=``: the sender must be whom the client has authenticated as (or TCPREMOTEINFO);
- ``?``: the sender must be the e-mail address of the client's certificate. We ask
  clients for none, so nobody's sender is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IRecipientChecker, ISelective, ISenderChecker
from qmq.mail import NULL_SENDER, Address, Reply
from qmq.receive.context import Context
from qmq.rules.cdb import CDB
from qmq.rules.hosts import Hosts
from qmq.rules.mailfrom import MailFromRules, allows, read_mailfromrules
from qmq.rules.watched import Watched
from qmq.session import Environment, Session, Transaction, Verdict

_REFUSED = Reply(553, "5.7.1", "sorry, invalid sender address specified")
_VERIFIED = Verdict(reason="Accept::ORIG::Local_Sender", protocol=b"M")
_VERIFIED_RECIPIENT = Verdict(reason="Accept::ORIG::Local_Sender")

Rules = Watched[MailFromRules | CDB | None]


@implementer(ISenderChecker, IRecipientChecker, ISelective)
class LocalMFCheck:
    """
    Verifies a sender at MAIL, and says so at each RCPT.

    *hosts* are the domains that we take mail for; *rules* are mailfromrules as
    text and compiled, the first that is there counts.
    """

    def __init__(self, hosts: Hosts, rules: tuple[Rules, Rules]) -> None:
        self._hosts = hosts
        self._rules = rules

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients for whom LOCALMFCHECK is set."""
        return environment.localmfcheck is not None

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """A refusal, or the letter M; raises OSError if a cdb file is damaged: nothing is taken."""
        mode = session.environment.localmfcheck
        if mode is None or not session.relay or transaction.sender == NULL_SENDER:
            return None
        if self._allows(session, transaction.sender, mode):
            return _VERIFIED
        return Verdict(
            reply=session.environment.worded(_REFUSED, "REPLY_SENDERINVALID"),
            reason="Reject::ORIG::Invalid_Mailfrom",
        )

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """What the log says of an accepted recipient."""
        if session.environment.localmfcheck is None or not session.relay or transaction.sender == NULL_SENDER:
            return None
        return _VERIFIED_RECIPIENT

    def _allows(self, session: Session, sender: Address, mode: str) -> bool:
        account = session.user or session.environment.info
        match mode:
            case "?":
                return False
            case "=":
                return bool(account) and account.lower() == bytes(sender).lower()
            case "!" if (rules := self._rules[0].now() or self._rules[1].now()) is not None:
                return allows(rules, session.client, session.host, account, sender)
        return self._ours(sender.domain, mode.lower().encode())

    def _ours(self, domain: bytes, named: bytes) -> bool:
        if not domain:
            return False
        return domain == named or self._hosts.has(domain)


@implementer(ICheckerFactory)
class Factory:
    """Makes LocalMFCheck."""

    name = "localmfcheck"
    help = "verifies the senders of clients that may relay, as LOCALMFCHECK says"
    options: Mapping[str, str] = {"file": "the rules, compiled if it ends in .cdb; else control/mailfromrules(.cdb)"}

    def make(self, context: Context, options: Mapping[str, str]) -> Any:
        """Option `file`."""

        def watch(name: str) -> Rules:
            return context.watch(context.path(name, options), read_mailfromrules, None)

        hosts = Hosts(context.knows, context.says, context.control, context.files)
        return LocalMFCheck(hosts, (watch("mailfromrules"), watch("mailfromrules.cdb")))
