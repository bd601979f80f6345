"""
SPF for those who want a result: settings in, findings out.

Whatever a domain does, there is a finding within *timeout* seconds for the
result, and some more for the explanation.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as Late
from twisted.internet.interfaces import IReactorTime

from qmq.mail import Address, Clock, Octets, Seconds, value
from qmq.spf.client import BadClient, Client, client
from qmq.spf.evaluate import Check, Limits, Outcome
from qmq.spf.macro import Template, template
from qmq.spf.record import Mechanism, Result

# RFC 7208 4.6.4: at least 20.
TIMEOUT: Seconds = 20
# Words to a client are not worth more; a fail is known by then.
EXPLAINING: Seconds = 5
EXPLANATION = template("%{c} may not send mail of %{d}, says its SPF record", explanation=True)

_LONGEST_EXPLANATION: Octets = 400
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@value
class Finding:
    """What a check came to; all text is printable US-ASCII, whoever it comes from."""

    result: Result
    identity: str = ""  # mailfrom or helo
    domain: str = ""  # that was asked for
    mechanism: str = ""
    problem: str = ""
    explanation: str = ""  # of a fail
    theirs: bool = False  # the explanation is the domain's own, not ours


class SPF:
    """
    Asks *resolver* (qmq.dns.Resolver) in the name of *me*.

    *rules* and *explanation* are asked for at each check: they may change.
    *wall* is what %{t} means.
    """

    def __init__(
        self,
        resolver: Any,
        clock: IReactorTime,
        me: str,
        *,
        rules: Callable[[], Sequence[Mechanism]] = tuple,
        explanation: Callable[[], Template] = lambda: EXPLANATION,
        timeout: Seconds = TIMEOUT,
        limits: Limits = Limits(),  # noqa: B008 - a value
        wall: Clock = time.time,
    ) -> None:
        self._resolver = resolver
        self._clock = clock
        self._me = me
        self._rules = rules
        self._explanation = explanation
        self._timeout = timeout
        self._limits = limits
        self._wall = wall

    async def check(self, ip: str, sender: Address, helo: bytes) -> Finding:
        """The finding of a client that says HELO and MAIL; never fails but by being cancelled."""
        try:
            asked = client(ip, sender, helo, self._me)
        except BadClient as error:
            return Finding(Result.NONE, problem=printable(str(error)))
        check = Check(self._resolver, asked, self._limits, self._rules(), str(int(self._wall())))
        try:
            outcome = await Deferred.fromCoroutine(check.outcome()).addTimeout(self._timeout, self._clock)
        except Late:
            outcome = Outcome(Result.TEMPERROR, problem=f"no result within {self._timeout:g} s")
        words, theirs = "", False
        if outcome.result is Result.FAIL:
            words, theirs = await self._explained(check, outcome, asked)
        return Finding(
            outcome.result,
            asked.identity,
            asked.domain,
            printable(outcome.mechanism),
            printable(outcome.problem),
            printable(words),
            theirs,
        )

    async def _explained(self, check: Check, outcome: Outcome, asked: Client) -> tuple[str, bool]:
        """The domain's words, else ours; "" if neither can be had in time."""
        explaining = self._words(check, outcome, asked)
        try:
            return await Deferred.fromCoroutine(explaining).addTimeout(EXPLAINING, self._clock)
        except Late:
            return "", False

    async def _words(self, check: Check, outcome: Outcome, asked: Client) -> tuple[str, bool]:
        if words := await check.explanation(outcome):
            return words, True
        return await check.expanded(self._explanation(), outcome.domain or asked.domain), False


def printable(text: str) -> str:
    """On one line, in US-ASCII, and not too long."""
    return _UNPRINTABLE.sub("?", text[:_LONGEST_EXPLANATION])
