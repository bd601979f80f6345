"""
Asking the checkers.

Checkers are sorted by phase once, at the start. A phase asks its checkers in
the configured order until one refuses or stops. A checker that answers at once
costs a call; only one that must wait costs a coroutine, and a time limit. One
that raises, is late or answers nonsense gives a 451 and a line in the log: only
its own session feels it.

A refusal comes with the place of its checker in `checks`, so that what was held
since the connection, HELO or MAIL is spoken at RCPT in that order (SPAMCONTROL
2.5), after whatever a checker before it has to say of the recipient.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from qmq.interfaces import (
    IConnectionChecker,
    IDataChecker,
    IHeloChecker,
    IMessageChecker,
    IRecipientChecker,
    ISenderChecker,
)
from qmq.mail import Address, Message, Seconds, value
from qmq.receive.replies import TRY_LATER
from qmq.session import Session, Transaction, Verdict

_log = Logger()

_PHASES: Sequence[tuple[type[Interface], str]] = (
    (IConnectionChecker, "connection"),
    (IHeloChecker, "helo"),
    (ISenderChecker, "sender"),
    (IRecipientChecker, "recipient"),
    (IDataChecker, "data"),
    (IMessageChecker, "message"),
)


@value
class Refusal:
    """A Verdict with a reply, and where its checker stands in `checks`."""

    place: int
    verdict: Verdict


Opinion = Verdict | Refusal | None
Answer = Opinion | Deferred[Opinion]


class Check:
    """One method of a checker: what is asked in one phase."""

    __slots__ = ("ask", "limit", "name", "place")

    def __init__(self, ask: Callable[..., Any], name: str, place: int, limit: Seconds) -> None:
        self.ask = ask
        self.name = name
        self.place = place
        self.limit = limit  # of what it must wait for


class Policy:
    """
    The checkers of a listener, in order, each under the name it has in conf-qmq.

    An answer that takes longer than the checker's own *limit*, or else than the
    one given here, is a failure. What a phase gives is the first Refusal, or one
    Verdict: a stop, or what all of them add up to; None if nobody had anything
    to say.
    """

    def __init__(self, checkers: Sequence[tuple[str, object]], clock: IReactorTime, limit: Seconds = 30) -> None:
        self._clock = clock
        phases = {method: _phase(interface, method, checkers, limit) for interface, method in _PHASES}
        used = {check.name for checks in phases.values() for check in checks}
        if idle := [name for name, _ in checkers if name not in used]:
            raise ValueError(f"these checkers check nothing (no I...Checker is provided): {', '.join(idle)}")
        self._connection = phases["connection"]
        self._helo = phases["helo"]
        self._sender = phases["sender"]
        self._recipient = phases["recipient"]
        self._data = phases["data"]
        self._message = phases["message"]
        self._before = [tuple(c for c in self._recipient if c.place < place) for place in range(len(checkers))]

    def connection(self, session: Session) -> Answer:
        """Before the banner."""
        return self._ask(self._connection, (session,)) if self._connection else None

    def helo(self, session: Session) -> Answer:
        """At HELO and EHLO."""
        return self._ask(self._helo, (session,))

    def sender(self, session: Session, transaction: Transaction) -> Answer:
        """At MAIL."""
        return self._ask(self._sender, (session, transaction))

    def recipient(
        self, session: Session, transaction: Transaction, recipient: Address, held: Refusal | None = None
    ) -> Answer:
        """
        At RCPT; no Verdict with *vouch* in it means that nobody vouched.

        *held* is the first refusal of an earlier phase: it counts unless a
        checker before it refuses or stops.
        """
        if held is None:
            return self._ask(self._recipient, (session, transaction, recipient))
        answer = self._ask(self._before[held.place], (session, transaction, recipient))
        if isinstance(answer, Deferred):
            return answer.addCallback(_or_held, held)
        return _or_held(answer, held)

    def data(self, session: Session, transaction: Transaction) -> Answer:
        """At DATA or the first BDAT."""
        return self._ask(self._data, (session, transaction)) if self._data else None

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """At the end of the data."""
        return self._ask(self._message, (session, transaction, message))

    def _ask(self, checks: tuple[Check, ...], of: tuple[object, ...]) -> Answer:
        sum_: Verdict | None = None
        for check in (rest := iter(checks)):
            try:
                verdict = check.ask(*of)
            except Exception:  # noqa: BLE001 - a stranger's code
                return _failed(check, Failure())
            if verdict is None:
                continue
            if type(verdict) is not Verdict:
                return Deferred.fromCoroutine(self._wait(verdict, check, rest, of, sum_))
            if verdict.reply is not None:
                return _refusal(verdict, sum_, check)
            sum_ = verdict if sum_ is None else _add(sum_, verdict)
            if verdict.stop:
                break
        return sum_

    async def _wait(
        self,
        first: Awaitable[object],
        check: Check,
        rest: Iterator[Check],
        of: tuple[object, ...],
        sum_: Verdict | None,
    ) -> Opinion:
        """Go on where the iterator stands."""
        answer: object = first
        while True:
            verdict = await self._limited(answer, check) if not isinstance(answer, Verdict | None) else answer
            if isinstance(verdict, Refusal):
                return verdict
            if verdict is not None:
                if verdict.reply is not None:
                    return _refusal(verdict, sum_, check)
                sum_ = verdict if sum_ is None else _add(sum_, verdict)
                if verdict.stop:
                    return sum_
            following = next(rest, None)
            if following is None:
                return sum_
            check = following
            try:
                answer = check.ask(*of)
            except Exception:  # noqa: BLE001 - a stranger's code
                return _failed(check, Failure())

    def _limited(self, answer: object, check: Check) -> Deferred[Opinion]:
        """
        What an awaitable comes to within the limit; fails only if it is cancelled itself.

        A checker that does not listen to its cancelling is left to itself.
        """
        awaited = answer if isinstance(answer, Deferred) else Deferred.fromCoroutine(_awaiting(answer))

        def gone(_: object) -> None:
            timer.cancel()
            awaited.cancel()

        def late() -> None:
            result.callback(_failed(check, Failure(TimeoutError(f"no answer within {check.limit:g} s"))))
            awaited.cancel()

        def answered(verdict: object) -> None:
            if not timer.active():
                return  # late, or the client is gone
            timer.cancel()
            if isinstance(verdict, Verdict | None):
                result.callback(verdict)
            else:
                failure = verdict if isinstance(verdict, Failure) else Failure(TypeError(f"no Verdict: {verdict!r}"))
                result.callback(_failed(check, failure))

        result: Deferred[Opinion] = Deferred(gone)
        timer = self._clock.callLater(check.limit, late)
        awaited.addBoth(answered)
        return result


async def _awaiting(answer: Any) -> object:
    return await answer


def _or_held(answer: Opinion, held: Refusal) -> Opinion:
    """What was held, unless a checker that stands before it has refused or stopped."""
    if isinstance(answer, Refusal) or (answer is not None and answer.stop):
        return answer
    return held


def _add(sum_: Verdict, verdict: Verdict) -> Verdict:
    return Verdict(
        reply=verdict.reply,
        stop=verdict.stop,
        vouch=sum_.vouch or verdict.vouch,
        delay=sum_.delay + verdict.delay,
        fields=sum_.fields + verdict.fields,
        reason=_reason(sum_.reason, verdict.reason),
        info=verdict.info or sum_.info,
        now=verdict.now,
        close=verdict.close,
        protocol=sum_.protocol + verdict.protocol,
    )


def _reason(so_far: str, further: str) -> str:
    """The last one counts; ``Accept::SPF::`` wants the condition of the one before."""
    if further.endswith("::"):
        return further + so_far.rpartition("::")[2]
    return further or so_far


def _refusal(verdict: Verdict, sum_: Verdict | None, check: Check) -> Refusal:
    """Only a 4yz or 5yz can refuse."""
    reply = verdict.reply
    if reply is None or not 400 <= reply.code < 600:
        return _failed(check, Failure(ValueError(f"refuses with {reply and reply.code}")))
    return Refusal(check.place, verdict if sum_ is None else _add(sum_, verdict))


def _failed(check: Check, failure: Failure) -> Refusal:
    _log.failure("checker {name} failed", failure, name=check.name)
    return Refusal(check.place, Verdict(reply=TRY_LATER, reason="Reject::CHECK::Failed", info=check.name))


def _phase(
    interface: type[Interface], method: str, checkers: Sequence[tuple[str, object]], limit: Seconds
) -> tuple[Check, ...]:
    checks = []
    for place, (name, checker) in enumerate(checkers):
        if interface.providedBy(checker):
            try:
                verifyObject(interface, checker)
            except Invalid as error:
                raise ValueError(f"checker {name}: {error}") from error
            # By name, for it is the interface that says what the method is called.
            checks.append(Check(getattr(checker, method), name, place, getattr(checker, "limit", limit)))
    return tuple(checks)
