"""What is known of the instances now: what they say of themselves, and what waits for them here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qmq.mail import Octets, Reply, Seconds
from qmq.session import Verdict

# Older than this, what was last said of an instance counts for nothing: unknown means accept.
_FRESH: Seconds = 5.0

_REFUSING = Verdict(Reply(452, "4.3.2", "that domain's queue takes no mail now, try again later"))
_FULL = Verdict(Reply(452, "4.3.1", "that domain's queue is full, try again later"))


class States:
    """
    The states of all instances: refusing, full, away (its worker is not running).

    A dead downstream host is never a reason to refuse: that is what queues are
    for. *back* is called with the name of an instance that was away and is
    there again.
    """

    def __init__(self, seconds: Callable[[], Seconds]) -> None:
        self._seconds = seconds
        self._told: dict[str, tuple[Verdict | None, bool, Seconds]] = {}
        self.back: list[Callable[[str], None]] = []

    def tell(self, instance: str, state: Mapping[str, Any]) -> None:
        """What is said of the instance now: ``refusing``, ``full`` (why, or nothing), ``away``."""
        verdict = _REFUSING if state.get("refusing") else _FULL if state.get("full") else None
        away = bool(state.get("away"))
        before = self._told.get(instance)
        self._told[instance] = (verdict, away, self._seconds())
        if before is not None and before[1] and not away:
            for call in self.back:
                call(instance)

    def verdict(self, instance: str) -> Verdict | None:
        """452 if it said that it takes nothing; older than 5 s it counts for nothing."""
        told = self._told.get(instance)
        return None if told is None or self._seconds() - told[2] >= _FRESH else told[0]

    def away(self, instance: str) -> bool:
        """Whether a hand-over would only wait: nobody is at the other end."""
        told = self._told.get(instance)
        return told is not None and told[1] and self._seconds() - told[2] < _FRESH


class Waiting:
    """What the primary's own queue holds for one instance, within its budget."""

    __slots__ = ("_born", "_entries", "_octets")

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[Octets, Seconds]] = {}  # oldest first
        self._octets = 0

    def add(self, queue_id: bytes, size: Octets, born: Seconds) -> None:
        """One message more."""
        if queue_id not in self._entries:
            self._entries[queue_id] = (size, born)
            self._octets += size

    def remove(self, queue_id: bytes) -> None:
        """It has been handed over, or has failed."""
        size, _ = self._entries.pop(queue_id, (0, 0.0))
        self._octets -= size

    def past(self, messages: int, octets: Octets, age: Seconds, now: Seconds) -> bool:
        """Whether the budget is spent."""
        if not self._entries:
            return False
        if len(self._entries) >= messages or self._octets >= octets:
            return True
        return now - next(iter(self._entries.values()))[1] > age

    def __len__(self) -> int:
        return len(self._entries)
