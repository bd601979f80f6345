"""One question to one checker: the method of a phase, what it may take, and how it is watched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from time import monotonic
from typing import Any

from qmq.mail import Seconds, value
from qmq.receive.guard import SHARE, Guard
from qmq.receive.tally import Credit, Tally
from qmq.session import Environment


@value
class Terms:
    """What one checker may take; None: what the checker itself says, or else the policy's."""

    timeout: Seconds | None = None  # for an answer that must be waited for
    threads: int = 32  # of one that blocks
    cpu: Seconds = 0.5  # that one call of it may compute


class Check:
    """One method of a checker: what is asked in one phase."""

    __slots__ = ("_guard", "ask", "concerns", "credit", "limit", "method", "module", "name", "place", "tally")

    def __init__(
        self,
        method: Callable[..., Any],
        name: str,
        place: int,
        limit: Seconds,
        *,
        guard: Guard,
        tally: Tally,
        module: str = "",
        concerns: Callable[[Environment, str], bool] | None = None,
    ) -> None:
        self.ask = self.method = method
        self.name = name
        self.place = place
        self.limit = limit  # of what it must wait for
        self.tally = tally
        self.module = module  # of the checker
        self.concerns = concerns  # whose clients: ISelective; None: all
        self.credit = Credit(guard.patience, SHARE)
        self._guard = guard

    def usual(self) -> Seconds:
        """As Tally.usual."""
        return self.tally.usual()

    def stuck(self, took: Seconds) -> None:
        """It held up everybody for so long; from now on each call is watched."""
        self._guard.caught()
        self.credit.spend(monotonic(), took)
        if self.ask == self.method:
            self.ask = self._watched

    def watch(self) -> None:
        """A call, or a step of a coroutine, begins: have it watched if that is needed."""
        if self.credit.left(monotonic()) < self.credit.most:
            self._guard.watch(self)
        elif self.ask == self._watched:
            self.ask = self.method

    def _watched(self, *of: object) -> Any:
        self.watch()
        return self.method(*of)

    def guarded(self, step: Callable[..., Any], *of: object) -> Any:
        """*step* of what the checker has, called under the guard; raises what it raises, or Stuck."""
        guard = self._guard
        if not guard.armed:
            guard.arm()
        guard.serial += 1
        outer = guard.running
        try:
            guard.running = self
            self.watch()
            result = step(*of)
            guard.running = outer
        except BaseException:  # StopIteration is how a coroutine ends
            guard.running = outer
            raise
        return result


class _Steps(Generator[Any, Any, Any]):
    """A coroutine whose every step is guarded as a plain call is."""

    __slots__ = ("_check", "_of")

    def __init__(self, of: Any, check: Check) -> None:
        self._of = of
        self._check = check

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def send(self, value: object) -> Any:
        """As a coroutine's."""
        return self._check.guarded(self._of.send, value)

    def throw(self, *error: Any) -> Any:
        """As a coroutine's."""
        return self._check.guarded(self._of.throw, *error)

    def close(self) -> None:
        """As a coroutine's."""
        self._of.close()


async def awaiting(answer: Any, check: Check) -> object:
    """What an awaitable comes to, each of its steps guarded."""
    if not isinstance(answer, Awaitable):
        raise TypeError(f"no Verdict but {type(answer).__name__}")
    return await _Steps(answer.__await__(), check)
