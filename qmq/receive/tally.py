"""
What the checkers did, for `qmq stat --checks`; and what they may take from everybody else.

A tally belongs to a name in `checks`, not to an object: it goes on counting
after a reload.
"""

from __future__ import annotations

from typing import Any

from qmq.mail import Seconds

# A checker's name is in the log at each failure's first, then once in so long, with how many there were.
TELL_AGAIN: Seconds = 60


class Tally:
    """
    The counts of one checker in one phase.

    *refused* are its 5yz, *deferred* its 4yz; *failed*: it raised, or answered
    nonsense; *late*: it was awaited for longer than it may take; *stuck*: it was
    interrupted, or its thread given up; *turned_away*: no thread was free.
    *seconds* and *longest* are of all answers, waiting included.
    """

    __slots__ = (
        "_told", "_untold", "asked", "awaited", "deferred", "failed", "late", "longest", "refused", "seconds", "stuck",
        "threads", "turned_away",
    )  # fmt: skip

    def __init__(self) -> None:
        self.asked = self.awaited = self.refused = self.deferred = 0
        self.failed = self.late = self.stuck = self.turned_away = 0
        self.seconds: Seconds = 0.0
        self.longest: Seconds = 0.0
        self.threads: dict[str, int] | None = None  # of one that blocks: busy, idle, lost
        self._told: Seconds | None = None
        self._untold = 0

    def waited(self, seconds: Seconds) -> None:
        """An awaited answer came after this time."""
        self.awaited += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)

    def usual(self) -> Seconds:
        """How long a plain call takes on average; 0 if that is not known."""
        return 0 if self.awaited or not self.asked else self.seconds / self.asked

    def tell(self, now: Seconds) -> int | None:
        """Whether to tell of a failure *now*: how many were not told since the last; None: not now."""
        if self._told is not None and now - self._told < TELL_AGAIN:
            self._untold += 1
            return None
        self._told = now
        untold, self._untold = self._untold, 0
        return untold


_COUNTS = ("asked", "refused", "deferred", "failed", "late", "stuck", "turned_away")


class Tallies:
    """The tallies of a process, by the checkers' names and phases; they outlive a Policy."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Tally]] = {}

    def of(self, name: str, phase: str = "") -> Tally:
        """That checker's in that phase; "": of what belongs to none."""
        return self._of.setdefault(name, {}).setdefault(phase, Tally())

    def facts(self) -> dict[str, dict[str, Any]]:
        """All that were asked for so far, in that order, over all phases, as JSON can say it."""
        return {name: _sum(list(phases.values())) for name, phases in self._of.items()}


def _sum(tallies: list[Tally]) -> dict[str, Any]:
    # The words above, no other.
    facts: dict[str, Any] = {count: sum(getattr(tally, count) for tally in tallies) for count in _COUNTS}
    seconds = sum(tally.seconds for tally in tallies)
    facts["mean"] = seconds / facts["asked"] if facts["asked"] else 0.0
    facts["longest"] = max(tally.longest for tally in tallies)
    for tally in tallies:
        if tally.threads is not None:
            facts["threads"] = dict(tally.threads)
    return facts


class Credit:
    """
    How much of something scarce one checker may still take: *most* at once, and *share* of the time in the long run.

    So that one that is slow once is forgiven, and one that hangs again and again
    takes less and less.
    """

    __slots__ = ("_at", "_left", "most", "share")

    def __init__(self, most: Seconds, share: float) -> None:
        self.most = most
        self.share = share
        self._left = most
        self._at: Seconds = 0

    def left(self, now: Seconds) -> Seconds:
        """What it may take now."""
        if self._left < self.most:
            self._left = min(self.most, self._left + (now - self._at) * self.share)
            self._at = now
        return self._left

    def spend(self, now: Seconds, seconds: Seconds) -> None:
        """It took this much; below nothing there is nothing."""
        self._left = max(0.0, self.left(now) - seconds)
        self._at = now
