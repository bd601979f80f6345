"""
Asking the checkers.

Checkers are sorted by phase once, at the start, and for each set of settings that
clients may have (qmq.receive.panel). A phase asks its checkers in the configured
order until one refuses or stops. A checker that answers at once
costs a call; only one that must wait costs a coroutine, and a time limit; one
that blocks is called in threads of its own. One that raises, is late, does not
come back or answers nonsense gives a 451 and a line in the log: only its own
session feels it.

A refusal comes with the place of its checker in `checks`, so that what was held
since the connection, HELO or MAIL is spoken at RCPT in that order (SPAMCONTROL
2.5), after whatever a checker before it has to say of the recipient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import iscoroutinefunction
from time import perf_counter
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from qmq.interfaces import (
    IBlocking,
    IConnectionChecker,
    IDataChecker,
    IHeloChecker,
    IMessageChecker,
    IRecipientChecker,
    ISelective,
    ISenderChecker,
)
from qmq.mail import Address, Message, Seconds, value
from qmq.receive.check import Check, Terms, awaiting
from qmq.receive.guard import Guard, Stuck
from qmq.receive.panel import Panels
from qmq.receive.replies import TRY_LATER
from qmq.receive.tally import Tallies
from qmq.receive.threads import NoThread, Threads
from qmq.rules.watched import Files
from qmq.session import Session, Transaction, Verdict
from qmq.wire.text import has_bare

_log = Logger()

# Seconds that whoever made a checker hang waits for its 451.
_AGAIN: Seconds = 1
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


class Policy:
    """
    The checkers of a listener, in order, each under the name it has in conf-qmq.

    An answer that takes longer than the checker's own *limit*, or else than the
    one given here, is a failure; *terms* say otherwise for some. What a phase
    gives is the first Refusal, or one Verdict: a stop, or what all of them add up
    to; None if nobody had anything to say.

    *guard* and *tallies* are the process's, and outlive a Policy. Checkers that
    block have threads if there is *call_from_thread*, the reactor's; without it
    they are called like any other. *present* gives the configuration of the moment,
    another object when it has changed: then checkers are asked anew whom they concern; so
    they are when one of their *files* has come that was absent.
    """

    def __init__(
        self,
        checkers: Sequence[tuple[str, object]],
        clock: IReactorTime,
        limit: Seconds = 30,
        *,
        terms: Mapping[str, Terms] | None = None,
        guard: Guard | None = None,
        tallies: Tallies | None = None,
        call_from_thread: Callable[..., object] | None = None,
        present: Callable[[], object] = lambda: None,
        files: Files | None = None,
    ) -> None:
        self._clock = clock
        self._guard = guard or Guard(on=False)
        self._tallies = tallies or Tallies()
        self._call_from_thread = call_from_thread
        phases: dict[str, list[Check]] = {method: [] for _, method in _PHASES}
        for place, (name, checker) in enumerate(checkers):
            checks = self._checks(name, checker, place, limit, (terms or {}).get(name, Terms()))
            if not checks:
                raise ValueError(f"the checker {name} checks nothing (no I...Checker is provided)")
            for method, check in checks.items():
                phases[method].append(check)
        self._panels = Panels(phases, self._broken, present, files or Files())

    def _checks(self, name: str, checker: object, place: int, limit: Seconds, terms: Terms) -> dict[str, Check]:
        """By phase."""
        own = getattr(checker, "limit", limit) if terms.timeout is None else terms.timeout
        threads = None
        if self._call_from_thread is not None and IBlocking.providedBy(checker):
            threads = Threads(
                name, self._clock, self._call_from_thread, self._guard, self._tallies.of(name),
                most=terms.threads, limit=own, cpu=terms.cpu,
            )  # fmt: skip
        concerns = checker.concerns if ISelective.providedBy(checker) else None
        checks = {}
        for interface, called in _PHASES:
            if interface.providedBy(checker):
                try:
                    verifyObject(interface, checker)
                except Invalid as error:
                    raise ValueError(f"checker {name}: {error}") from error
                # By name, for it is the interface that says what the method is called.
                method = getattr(checker, called)
                if threads is not None and not iscoroutinefunction(method):
                    method = partial(threads.call, method)
                checks[called] = Check(
                    method, name, place, own,
                    guard=self._guard, tally=self._tallies.of(name, called), module=type(checker).__module__,
                    concerns=concerns,
                )  # fmt: skip
        return checks

    def tallies(self) -> dict[str, dict[str, Any]]:
        """What the checkers did so far, by name, for `qmq stat --checks`."""
        return self._tallies.facts()

    def connection(self, session: Session) -> Answer:
        """Before the banner."""
        checks = self._panels.of(session.environment).connection
        return self._ask(iter(checks), (session,)) if checks else None

    def helo(self, session: Session) -> Answer:
        """At HELO and EHLO."""
        checks = self._panels.of(session.environment).helo
        return self._ask(iter(checks), (session,)) if checks else None

    def sender(self, session: Session, transaction: Transaction) -> Answer:
        """At MAIL."""
        return self._ask(iter(self._panels.of(session.environment).sender), (session, transaction))

    def recipient(
        self, session: Session, transaction: Transaction, recipient: Address, held: Refusal | None = None
    ) -> Answer:
        """
        At RCPT; no Verdict with *vouch* in it means that nobody vouched.

        *held* is the first refusal of an earlier phase: it counts unless a
        checker before it refuses or stops.
        """
        checks = self._panels.of(session.environment).recipient
        if held is None:
            return self._ask(iter(checks), (session, transaction, recipient))
        before = [check for check in checks if check.place < held.place]
        answer = self._ask(iter(before), (session, transaction, recipient))
        if isinstance(answer, Deferred):
            return answer.addCallback(_or_held, held)
        return _or_held(answer, held)

    def data(self, session: Session, transaction: Transaction) -> Answer:
        """At DATA or the first BDAT."""
        checks = self._panels.of(session.environment).data
        return self._ask(iter(checks), (session, transaction)) if checks else None

    def message(self, session: Session, transaction: Transaction, message: Message) -> Answer:
        """At the end of the data."""
        checks = self._panels.of(session.environment).message
        return self._ask(iter(checks), (session, transaction, message)) if checks else None

    def _ask(self, rest: Iterator[Check], of: tuple[object, ...], sum_: Verdict | None = None) -> Answer:
        """Ask the rest; *sum_* is what those before them add up to."""
        guard = self._guard
        if not guard.armed:
            guard.arm()
        guard.serial += 1
        outer = guard.running  # a checker may by its answer bring another session on
        then = perf_counter()
        for check in rest:
            try:
                guard.running = check
                verdict = check.ask(*of)
                guard.running = outer
            except BaseException as error:  # noqa: BLE001 - a stranger's code; not even its SystemExit is for us
                guard.running = outer
                check.tally.asked += 1
                return self._broken(check, error)
            now = perf_counter()
            tally = check.tally
            tally.asked += 1
            tally.seconds += (took := now - then)
            if took > tally.longest:  # noqa: PLR1730 - max() costs as much as all the rest
                tally.longest = took
            then = now
            if verdict is None:
                continue
            if not isinstance(verdict, Verdict):
                return Deferred.fromCoroutine(self._wait(verdict, check, rest, of, sum_))
            if verdict.reply is not None or (verdict.fields and has_bare(verdict.fields)):
                return self._refusal(verdict, sum_, check)
            sum_ = verdict if sum_ is None else _add(sum_, verdict)
            if verdict.stop:
                break
        return sum_

    async def _wait(
        self, first: object, check: Check, rest: Iterator[Check], of: tuple[object, ...], sum_: Verdict | None
    ) -> Opinion:
        """Go on where the iterator stands."""
        verdict = await self._limited(first, check)
        if isinstance(verdict, Refusal):
            return verdict
        if verdict is not None:
            if verdict.reply is not None or (verdict.fields and has_bare(verdict.fields)):
                return self._refusal(verdict, sum_, check)
            sum_ = verdict if sum_ is None else _add(sum_, verdict)
            if verdict.stop:
                return sum_
        further = self._ask(rest, of, sum_)
        return await further if isinstance(further, Deferred) else further

    def _limited(self, answer: object, check: Check) -> Deferred[Opinion]:
        """
        What an awaitable comes to within the limit; fails only if it is cancelled itself.

        A checker that does not listen to its cancelling is left to itself.
        """
        guard = self._guard
        began = self._clock.seconds()

        def gone(_: object) -> None:
            timer.cancel()
            guard.awaited(check)
            awaited.cancel()

        def late() -> None:
            guard.awaited(check)
            check.tally.late += 1
            result.callback(self._failed(check, Failure(TimeoutError(f"no answer within {check.limit:g} s"))))
            awaited.cancel()

        def answered(verdict: object) -> None:
            if not timer.active():
                return  # late, or the client is gone
            timer.cancel()
            guard.awaited(check)
            if isinstance(verdict, Failure):
                result.callback(self._broken(check, verdict))
                return
            check.tally.waited(self._clock.seconds() - began)
            if isinstance(verdict, Verdict | None):
                result.callback(verdict)
            else:
                result.callback(self._broken(check, TypeError(f"no Verdict but {type(verdict).__name__}")))

        result: Deferred[Opinion] = Deferred(gone)
        timer = self._clock.callLater(check.limit, late)
        guard.await_(check)
        awaited = answer if isinstance(answer, Deferred) else Deferred.fromCoroutine(awaiting(answer, check))
        awaited.addBoth(answered)
        return result

    def _refusal(self, verdict: Verdict, sum_: Verdict | None, check: Check) -> Refusal:
        """Only a 4yz or 5yz can refuse; fields that are no whole lines break the check."""
        reply = verdict.reply
        if reply is None:
            return self._broken(check, ValueError("a header field with a bare CR or LF"))
        if not 400 <= reply.code < 600:
            return self._broken(check, ValueError(f"refuses with {reply.code}"))
        if reply.permanent:
            check.tally.refused += 1
        else:
            check.tally.deferred += 1
        if not verdict.reason:
            verdict = replace(verdict, reason="Reject::CHECK::Refused", info=verdict.info or check.name)
        return Refusal(check.place, verdict if sum_ is None else _add(sum_, verdict))

    def _broken(self, check: Check, error: BaseException | Failure) -> Refusal:
        """It raised, was interrupted, or made no sense."""
        failure = error if isinstance(error, Failure) else Failure(error)
        if isinstance(stuck := failure.value, Stuck):
            check.tally.stuck += 1
            if stuck.took:
                check.stuck(stuck.took)
            # That it can't be had again at once by the same client, which may mean harm.
            refusal = self._failed(check, failure)
            return Refusal(refusal.place, replace(refusal.verdict, delay=_AGAIN))
        if failure.check(NoThread):
            check.tally.turned_away += 1
        else:
            check.tally.failed += 1
        return self._failed(check, failure)

    def _failed(self, check: Check, failure: Failure) -> Refusal:
        if (untold := check.tally.tell(self._clock.seconds())) is not None:
            more = f" (and {untold} times more since the last such line)" if untold else ""
            _log.failure("checker {name} failed{more}", failure, name=check.name, more=more)
        return Refusal(check.place, Verdict(reply=TRY_LATER, reason="Reject::CHECK::Failed", info=check.name))


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
