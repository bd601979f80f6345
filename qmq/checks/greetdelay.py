"""
Who can't wait for the banner has come to pour out spam.

The banner is held back for GREETDELAY seconds (SPAMCONTROL 2.3, rblsmtpd -W);
RFC 5321 4.3.1 has the client wait for it, up to five minutes (4.5.3.2.1). One
that spoke before is told so, and hung up on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import implementer

from qmq.interfaces import ICheckerFactory, IConnectionChecker, ISelective
from qmq.mail import Reply, Seconds
from qmq.rules import options as said
from qmq.session import Environment, Session, Verdict

# All the patience that RFC 5321 4.5.3.2.1 asks of a client.
_LONGEST: Seconds = 300

_EARLY = Verdict(
    reply=Reply(554, "5.5.1", "SMTP protocol violation: you spoke before my greeting"),
    reason="Reject::SNDR::Early_Talker",
    now=True,
    close=True,
)


@implementer(IConnectionChecker, ISelective)
class GreetDelay:
    """
    Holds the banner back for as long as the client's GREETDELAY says, else for *delay* seconds.

    As with rblsmtpd a client with RBLSMTPD set is not held up, and a relay
    client is, unless not *relay*. While *waiting* sessions wait another one
    does not: many at once shall not fill the house.
    """

    limit = _LONGEST + 10

    def __init__(self, clock: IReactorTime, delay: Seconds, waiting: int, relay: bool) -> None:
        self._clock = clock
        self._delay = delay
        self._most_waiting = waiting
        self._relay = relay
        self._waiting = 0

    def concerns(self, environment: Environment, phase: str) -> bool:
        """Clients who are to wait."""
        return self._wanted(environment) > 0

    def connection(self, session: Session) -> Verdict | Awaitable[Verdict | None] | None:
        """A refusal of who was early; None at once if there is nothing to wait for."""
        delay = self._wanted(session.environment)
        if not delay or (session.relay and not self._relay):
            return None
        if self._waiting >= self._most_waiting:
            return _judge(session)
        return self._wait(session, min(delay, _LONGEST))

    def _wanted(self, environment: Environment) -> Seconds:
        """How long clients with these settings are to wait; 0: not at all."""
        if environment.rblsmtpd is not None:
            return 0
        return environment.greetdelay or (0 if "GREETDELAY" in environment.variables else self._delay)

    async def _wait(self, session: Session, delay: Seconds) -> Verdict | None:
        self._waiting += 1
        try:
            await deferLater(self._clock, delay, lambda: None)
        finally:  # the client may have gone
            self._waiting -= 1
        return _judge(session)


def _judge(session: Session) -> Verdict | None:
    return _EARLY if session.conduct.early else None


@implementer(ICheckerFactory)
class Factory:
    """Makes GreetDelay."""

    name = "greetdelay"
    help = "holds the banner back for GREETDELAY, and refuses who speaks before it"
    options: Mapping[str, str] = {
        "delay": "how long, for clients without GREETDELAY (none)",
        "waiting": "most sessions held up at once; one more is not (1000)",
        "relay": "yes: relay clients are held up too (as rblsmtpd does), or no",
    }

    def make(self, context: Any, options: Mapping[str, str]) -> GreetDelay:
        """Options as above."""
        said.known(self.name, options, self.options)
        delay = said.seconds(self.name, options, "delay", 0)
        if delay > _LONGEST:
            raise ValueError(f"greetdelay: delay = {options['delay']!r} is more than clients wait; say 5m or less")
        waiting = said.count(self.name, options, "waiting", 1000, 1)
        relay = said.choice(self.name, options, "relay", ("yes", "no")) == "yes"
        return GreetDelay(context.clock, delay, waiting, relay)
