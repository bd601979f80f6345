"""
Long computations in slices, so that no session waits for another's message.

What is short is answered at once, as by a plain call. What is not is gone on
with in later turns of the loop, in which others are served.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from time import perf_counter
from typing import TypeVar

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from qmq.mail import Seconds

T = TypeVar("T")

# As long the loop may stand still; a step should take much less.
HOLD: Seconds = 0.002


def sliced(
    steps: Generator[None, None, T], clock: IReactorTime, now: Callable[[], Seconds] = perf_counter
) -> T | Awaitable[T]:
    """
    What *steps* returns at its end: itself if it gets there within HOLD, else an awaitable of it.

    *steps* yields after each step; it is closed if the awaitable is cancelled.
    *now* is time as it passes for the processor, not the loop's.
    """
    ended, result = _some(steps, now)
    return result[0] if ended else _rest(steps, clock, now)


def _some(steps: Generator[None, None, T], now: Callable[[], Seconds]) -> tuple[bool, list[T]]:
    until = now() + HOLD
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return True, [end.value]
        if now() >= until:
            return False, []


async def _rest(steps: Generator[None, None, T], clock: IReactorTime, now: Callable[[], Seconds]) -> T:
    try:
        while True:
            await deferLater(clock, 0)
            ended, result = _some(steps, now)
            if ended:
                return result[0]
    finally:
        steps.close()
