"""
When to try a deferred message again.

Pure: takes times, gives times; the clock is the caller's. Two forms: qmail's,
by which attempt n falls (skip*n)**2 seconds after birth, so that a young
message is tried often and an old one seldom (SPAMCONTROL 4.1); and a list of
waits, the last of which repeats.
"""

from __future__ import annotations

import re
from math import isqrt
from typing import Protocol

from qmq.mail import Seconds, value

# Long enough for any mail, short enough that no arithmetic overflows.
LONGEST: Seconds = 30 * 86400
# A list for people; 5m*288 is a day.
MOST_INTERVALS = 1000

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# Whatever the schedule says, a message rests this long between two attempts.
_REST: Seconds = 1


class Schedule(Protocol):
    """Says when a message that could not be delivered is tried again."""

    def next_attempt(self, born: Seconds, now: Seconds, attempts: int, jitter: float) -> Seconds:
        """
        The time of the attempt after the one that starts *now*.

        *attempts* were made before it. *jitter* in [0, 1) makes the wait longer
        by that part of the schedule's spread; 0 gives the plain time. Never
        earlier than a second from *now*.
        """


@value
class Quadratic:
    """qmail-send's schedule; skip 20 is its remote channel, 10 its local one."""

    skip: int = 20
    spread: float = 0.1

    def next_attempt(self, born: Seconds, now: Seconds, attempts: int, jitter: float) -> Seconds:
        """As Schedule; *attempts* plays no part: qmail looks at the age alone."""
        # A birth in the future is a clock that was set back: the message counts as new, and does
        # not wait until the clock has come to its birth again.
        age = max(0, int(now - born))
        return _later(now, (isqrt(age) + self.skip) ** 2 - age, self.spread * jitter)


@value
class Intervals:
    """A wait after each attempt, in order; the last repeats."""

    waits: tuple[Seconds, ...]
    spread: float = 0.1

    def next_attempt(self, born: Seconds, now: Seconds, attempts: int, jitter: float) -> Seconds:
        """As Schedule."""
        wait = self.waits[min(attempts, len(self.waits) - 1)]
        return _later(now, wait, self.spread * jitter)


def expired(born: Seconds, started: Seconds, lifetime: Seconds) -> bool:
    """
    Whether an attempt that *started* then was the last, should it fail for now.

    qmail's rule: the start counts, so each message has one attempt after its
    lifetime is over, however long the queue or the machine stood still.
    """
    return started > born + lifetime


def parse_schedule(text: str) -> Schedule:
    """The schedule of ``quadratic 20``, ``quadratic`` or ``1m 5m*3 1h*6 4h``; ValueError says what is wrong."""
    words = text.split()
    if not words:
        raise ValueError("an empty schedule; say `quadratic 20`, or waits such as `1m 5m*3 1h*6 4h`")
    if words[0] == "quadratic":
        return _quadratic(words[1:])
    waits: list[Seconds] = []
    for word in words:
        wait, times = _interval(word)
        if len(waits) + times > MOST_INTERVALS:
            raise ValueError(f"more than {MOST_INTERVALS} waits; the last one repeats by itself")
        waits += [wait] * times
    return Intervals(tuple(waits))


def _quadratic(words: list[str]) -> Quadratic:
    if not words:
        return Quadratic()
    if len(words) > 1 or not re.fullmatch("[0-9]{1,4}", words[0]) or int(words[0]) == 0:
        raise ValueError(f"quadratic {' '.join(words)!r}: say one whole number from 1 to 9999; qmail's is 20")
    return Quadratic(int(words[0]))


def _interval(word: str) -> tuple[Seconds, int]:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])(?:\*([0-9]{1,4}))?", word)
    if match is None:
        raise ValueError(f"{word!r} is no wait; say 90s, 5m, 2h or 1d, or 5m*3 for three of them")
    wait = int(match[1]) * UNITS[match[2]]
    times = int(match[3] or 1)
    if not 0 < wait <= LONGEST:
        raise ValueError(f"{word!r}: a wait is from 1s to 30d")
    if times == 0:
        raise ValueError(f"{word!r}: none of them? leave it out")
    return wait, times


def _later(now: Seconds, wait: Seconds, spread: float) -> Seconds:
    return now + max(_REST, wait * (1 + spread))
