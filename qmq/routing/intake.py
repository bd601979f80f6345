"""Which instances take mail now, and which takes it in another's place."""

from __future__ import annotations

from collections.abc import Callable

from qmq.mail import Address, Octets, Reply, Seconds
from qmq.routing.states import States, Waiting
from qmq.session import Session, Transaction, Verdict

_NOBODYS = Verdict(Reply(550, "5.1.2", "no queue here takes mail for that domain"))
_SHARE = Verdict(Reply(452, "4.3.2", "too many sessions wait for that domain's queue, try again later"))
_BUDGET = Verdict(Reply(452, "4.3.1", "too much mail waits for that domain's queue, try again later"))
_DISK = Verdict(Reply(452, "4.3.1", "insufficient system storage"), now=True)


class Intake:
    """
    A checker of the primary, asked last (DESIGN: rules 7 and 8).

    *instance_of* gives the instance that a recipient belongs to, *overflow* the
    one that gets its mail while it takes none itself ("": there is none). At
    most *share* of the *sessions* may wait for one instance; *budget* bounds
    what the primary's own store holds for one (*waiting*): messages, octets, age.
    """

    def __init__(
        self,
        instance_of: Callable[[Address], str | None],
        overflow: Callable[[str], str],
        states: States,
        wall: Callable[[], Seconds],
        free: Callable[[], bool],
        waiting: dict[str, Waiting],
        *,
        sessions: int,
        share: float,
        budget: tuple[int, Octets, Seconds],
    ) -> None:
        self._instance_of = instance_of
        self._overflow = overflow
        self._states = states
        self._wall = wall
        self._free = free
        self.under_way: dict[str, int] = {}
        self.waiting = waiting
        self.configure(sessions, share, budget)

    def configure(self, sessions: int, share: float, budget: tuple[int, Octets, Seconds]) -> None:
        """New bounds, from now on."""
        self._at_most = max(1, int(sessions * share))
        self._budget = budget

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """No disk space in reserve: nothing is taken at all, as any hand-over may have to be kept here."""
        return None if self._free() else _DISK

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """452 for this recipient only, if neither its instance nor that one's overflow takes mail now."""
        name = self._instance_of(recipient)
        if name is None:
            return _NOBODYS
        verdict = self._verdict(name)
        return None if verdict is None or self.instead_of(name) else verdict

    def instance(self, recipient: Address) -> str | None:
        """Who gets the recipient's mail now: its own instance, or the overflow of one that takes none."""
        name = self._instance_of(recipient)
        if name is None or not self._overflow(name) or self._verdict(name) is None:
            return name
        return self.instead_of(name) or name

    def instead_of(self, name: str) -> str:
        """The overflow of an instance, if it has one that takes mail now; else nothing."""
        other = self._overflow(name)
        return other if other and self._verdict(other) is None else ""

    def _verdict(self, name: str) -> Verdict | None:
        if self.under_way.get(name, 0) >= self._at_most:
            return _SHARE
        if (said := self._states.verdict(name)) is not None:
            return said
        waiting = self.waiting.get(name)
        if waiting is not None and waiting.past(*self._budget, self._wall()):
            return _BUDGET
        return None
