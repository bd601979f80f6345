"""
Whether the host behind us knows a mailbox, asked before the client's mail for it is taken.

For recipients of instances that want it: ``callout = open`` (if the host does
not tell, the mail is taken) or ``closed`` (the client shall try again). Asked of
outsiders only. The host must let us ask: it sees MAIL FROM:<>, RCPT, and no
message, so its own limits for that must not hold for this gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from zope.interface import implementer

from qmq.deliver.callout import Callouts
from qmq.deliver.callout_line import NoAnswer
from qmq.interfaces import Answer, ICheckerFactory, IRecipientChecker, ISelective
from qmq.mail import Address, Reply, Seconds
from qmq.receive.context import Owner, Some, perhaps
from qmq.rules import options as said
from qmq.rules.recipients import unknown
from qmq.session import Environment, Session, Transaction, Verdict

_EXISTS = Verdict(reason="Accept::RCPT::Recipients_Callout")
_LATER = Verdict(
    reply=Reply(450, "4.2.1", "cannot ask for that mailbox for now, try again later"),
    reason="Reject::RCPT::Failed_Rcptto",
)


@implementer(IRecipientChecker, ISelective)
class Callout:
    """
    Refuses what the host of a recipient's instance does not know.

    *ask* (site, recipient): as Callouts.ask.
    """

    def __init__(
        self,
        owner: Callable[[bytes], Any],
        site: Callable[[Address], bytes],
        ask: Callable[[bytes, Address], bool | Deferred[bool]],
        limit: Seconds = 30,
        some: Some = perhaps,
    ) -> None:
        self._owner = owner
        self._site = site
        self._ask = ask
        self._some = some
        self.limit = limit

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients that may not relay, if an instance wants it."""
        return environment.relayclient is None and self._some(_wants_it)

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Answer:
        """At once if the answer is remembered; None if nobody is to be asked."""
        if session.relay or not recipient.domain:
            return None
        owner = self._owner(recipient.domain)
        if owner is None or not _wants_it(owner):
            return None
        answer = self._ask(self._site(recipient), recipient)
        if isinstance(answer, Deferred):
            return self._wait(session, answer, None if owner.callout == "open" else _LATER)
        return _EXISTS if answer else unknown(session)

    async def _wait(self, session: Session, answer: Deferred[bool], trouble: Verdict | None) -> Verdict | None:
        try:
            exists = await answer
        except NoAnswer:
            return trouble
        return _EXISTS if exists else unknown(session)


def _wants_it(owner: Owner) -> bool:
    return owner.callout in {"open", "closed"}


@implementer(ICheckerFactory)
class Factory:
    """Makes Callout."""

    name = "callout"
    help = "asks the host behind an instance whether a mailbox exists, if the instance says callout = open or closed"
    options = {  # noqa: RUF012 - read only, as interfaces say
        "time": "within which a host must have answered (10s)",
        "connections": "to one site at once, at most (5)",
        "waiting": "how many questions may wait for one site (100)",
        "exists": "how long it is remembered that a mailbox exists (1h)",
        "unknown": "how long it is remembered that one does not (10m)",
        "entries": "how many answers are remembered (50000)",
    }

    def make(self, context: Any, options: Mapping[str, str]) -> Callout:
        """Raises ValueError."""
        said.known(self.name, options, self.options)
        seconds = said.seconds(self.name, options, "time", 10)
        callouts = Callouts(
            context.reactor,
            context.mx,
            context.me.encode(),
            connections=said.count(self.name, options, "connections", 5, 1),
            waiting=said.count(self.name, options, "waiting", 100, 1),
            seconds=seconds,
            exists=said.seconds(self.name, options, "exists", 3600),
            unknown=said.seconds(self.name, options, "unknown", 600),
            entries=said.count(self.name, options, "entries", 50_000, 2),
        )
        return Callout(context.owner, context.site, callouts.ask, limit=seconds + 5, some=context.some)
