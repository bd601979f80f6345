"""
Asking the checkers.

Checkers are sorted by phase once, at the start. A phase asks its checkers in
the configured order until one refuses or stops. A checker that answers at once
costs a call; only one that must wait costs a coroutine, and a time limit. One
that raises, is late or answers nonsense gives a 451 and a line in the log: only
its own session feels it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from zope.interface import Interface
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from qmq.interfaces import (
    ICheckerFactory,
    IConnectionChecker,
    IHeloChecker,
    IMessageChecker,
    IRecipientChecker,
    ISenderChecker,
)
from qmq.mail import Address, Message, Seconds
from qmq.receive.context import Context
from qmq.receive.replies import TRY_LATER
from qmq.session import Session, Transaction, Verdict

_log = Logger()

Check = tuple[Callable[..., Any], str]  # a bound method, and its checker's name
Opinion = Verdict | None


class Policy:
    """
    The checkers of a listener, in order, each under the name it has in conf-qmq.

    An answer that takes longer than *limit* is a failure. What a phase gives is
    one Verdict: the first refusal or stop, or what all the others add up to;
    None if nobody had anything to say.
    """

    def __init__(self, checkers: Sequence[tuple[str, object]], clock: IReactorTime, limit: Seconds = 30) -> None:
        self._clock = clock
        self._limit = limit
        self._connection = _phase(IConnectionChecker, "connection", checkers)
        self._helo = _phase(IHeloChecker, "helo", checkers)
        self._sender = _phase(ISenderChecker, "sender", checkers)
        self._recipient = _phase(IRecipientChecker, "recipient", checkers)
        self._message = _phase(IMessageChecker, "message", checkers)
        used = {name for phase in self._phases() for _, name in phase}
        if idle := [name for name, _ in checkers if name not in used]:
            raise ValueError(f"these checkers check nothing (no I...Checker is provided): {', '.join(idle)}")

    def _phases(self) -> tuple[tuple[Check, ...], ...]:
        return self._connection, self._helo, self._sender, self._recipient, self._message

    def connection(self, session: Session) -> Opinion | Deferred[Opinion]:
        """Before the banner."""
        return self._ask(self._connection, (session,))

    def helo(self, session: Session) -> Opinion | Deferred[Opinion]:
        """At HELO and EHLO."""
        return self._ask(self._helo, (session,))

    def sender(self, session: Session, transaction: Transaction) -> Opinion | Deferred[Opinion]:
        """At MAIL."""
        return self._ask(self._sender, (session, transaction))

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Opinion | Deferred[Opinion]:
        """At RCPT. No Verdict with *vouch* in it means that nobody vouched."""
        return self._ask(self._recipient, (session, transaction, recipient))

    def message(self, session: Session, transaction: Transaction, message: Message) -> Opinion | Deferred[Opinion]:
        """At the end of the data."""
        return self._ask(self._message, (session, transaction, message))

    def _ask(self, checks: tuple[Check, ...], of: tuple[object, ...]) -> Opinion | Deferred[Opinion]:
        sum_: Opinion = None
        for check, name in (rest := iter(checks)):
            try:
                verdict = check(*of)
            except Exception:  # noqa: BLE001 - a stranger's code
                return _failed(name, Failure())
            if verdict is None:
                continue
            if type(verdict) is not Verdict:
                return Deferred.fromCoroutine(self._wait(verdict, name, rest, of, sum_))
            sum_ = verdict if sum_ is None else _add(sum_, verdict)
            if verdict.reply is not None or verdict.stop:
                return _sane(sum_, name)
        return sum_

    async def _wait(
        self, first: Awaitable[object], name: str, rest: Iterator[Check], of: tuple[object, ...], sum_: Opinion
    ) -> Opinion:
        """Go on where the iterator stands."""
        answer: object = first
        while True:
            verdict = await self._limited(answer, name) if not isinstance(answer, Verdict | None) else answer
            if verdict is not None:
                sum_ = verdict if sum_ is None else _add(sum_, verdict)
                if verdict.reply is not None or verdict.stop:
                    return _sane(sum_, name)
            following = next(rest, None)
            if following is None:
                return sum_
            check, name = following
            try:
                answer = check(*of)
            except Exception:  # noqa: BLE001 - a stranger's code
                return _failed(name, Failure())

    def _limited(self, answer: object, name: str) -> Deferred[Opinion]:
        """
        What an awaitable comes to within the limit; fails only if it is cancelled itself.

        A checker that does not listen to its cancelling is left to itself.
        """
        awaited = answer if isinstance(answer, Deferred) else Deferred.fromCoroutine(_awaiting(answer))

        def gone(_: object) -> None:
            timer.cancel()
            awaited.cancel()

        def late() -> None:
            result.callback(_failed(name, Failure(TimeoutError(f"no answer within {self._limit:g} s"))))
            awaited.cancel()

        def answered(verdict: object) -> None:
            if not timer.active():
                return  # late, or the client is gone
            timer.cancel()
            if isinstance(verdict, Verdict | None):
                result.callback(verdict)
            else:
                failure = verdict if isinstance(verdict, Failure) else Failure(TypeError(f"no Verdict: {verdict!r}"))
                result.callback(_failed(name, failure))

        result: Deferred[Opinion] = Deferred(gone)
        timer = self._clock.callLater(self._limit, late)
        awaited.addBoth(answered)
        return result


async def _awaiting(answer: Any) -> object:
    return await answer


def _add(sum_: Verdict, verdict: Verdict) -> Verdict:
    return Verdict(
        reply=verdict.reply,
        stop=verdict.stop,
        vouch=sum_.vouch or verdict.vouch,
        delay=sum_.delay + verdict.delay,
        fields=sum_.fields + verdict.fields,
        reason=verdict.reason or sum_.reason,
    )


def _sane(verdict: Verdict, name: str) -> Verdict:
    """Only a 4yz or 5yz can refuse."""
    reply = verdict.reply
    if reply is not None and not 400 <= reply.code < 600:
        return _failed(name, Failure(ValueError(f"refuses with {reply.code}")))
    return verdict


def _failed(name: str, failure: Failure) -> Verdict:
    _log.failure("checker {name} failed", failure, name=name)
    return Verdict(reply=TRY_LATER, reason=f"failed:{name}")


def _phase(interface: type[Interface], method: str, checkers: Sequence[tuple[str, object]]) -> tuple[Check, ...]:
    checks = []
    for name, checker in checkers:
        if interface.providedBy(checker):
            try:
                verifyObject(interface, checker)
            except Invalid as error:
                raise ValueError(f"checker {name}: {error}") from error
            # By name, for it is the interface that says what the method is called.
            checks.append((getattr(checker, method), name))
    return tuple(checks)


def installed() -> dict[str, Any]:
    """The factories (ICheckerFactory) of all checkers there are, by name; bad ones are left out with a log line."""
    found: dict[str, Any] = {}
    for factory in getPlugins(ICheckerFactory):
        try:
            verifyObject(ICheckerFactory, factory)
        except Invalid as error:
            _log.error("a checker's plug-in is left out: {error}", error=str(error))
            continue
        if factory.name in found:
            _log.error("a second checker named {name} is left out", name=factory.name)
            continue
        found[factory.name] = factory
    return found


def make_checkers(
    names: Sequence[str],
    context: Context,
    options: Mapping[str, Mapping[str, str]] | None = None,
    factories: Mapping[str, Any] | None = None,
) -> list[tuple[str, object]]:
    """
    The checkers of `checks =`, in order, each with the options under its name.

    *factories* are by default all that are installed. Raises ValueError, with a
    text for the operator, for a name that nobody provides or an option that its
    checker does not take.
    """
    known = installed() if factories is None else factories
    made = []
    for name in names:
        if name not in known:
            raise ValueError(f"there is no checker named {name!r}; known are: {', '.join(sorted(known))}")
        made.append((name, known[name].make(context, (options or {}).get(name, {}))))
    return made
