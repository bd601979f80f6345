"""While a queue is paused, what is on its way to another queue goes there all the same: that is why many are paused."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from qmq.interfaces import ISpool
from qmq.mail import Entry, Seconds

# Entries taken in hand at once.
_PIECE = 100
_SOON: Seconds = 0.02
# Between rounds; longer while nothing is taken over there.
_LATER: Seconds = 1.0
_LONGEST: Seconds = 60.0
_MOVING = {"state": "moving"}


class Moves:
    """Takes what moves in hand, and gives it to *take_up* with the time; only while *wanted*, as there is *room*."""

    def __init__(
        self,
        spool: ISpool,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        wanted: Callable[[], bool],
        room: Callable[[], int],
        take_up: Callable[[Entry, Seconds], bool],
        warn: Callable[[str], None],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._wall = wall
        self._wanted = wanted
        self._room = room
        self._take_up = take_up
        self._warn = warn
        self._running = False

    def begin(self) -> None:
        """Go on until nothing moves any more, or it is not wanted."""
        if not self._running and self._wanted():
            self._running = True
            Deferred.fromCoroutine(self._run()).addBoth(self._over)

    async def _run(self) -> None:
        pause = _LATER
        while self._wanted():
            before = self._spool.messages
            if not await self._round():
                return
            # What was refused over there is found again by the next round.
            pause = _LATER if self._spool.messages < before else min(2 * pause, _LONGEST)
            await deferLater(self._clock, pause)

    async def _round(self) -> int:
        """Give out all that moves, as there is room; how many there were."""
        after: int | None = 0
        moved = 0
        while after is not None and self._wanted():
            room = min(_PIECE, self._room())
            if room > 0:
                entries, after = await self._spool.seize(_MOVING, after, room)
                moved += len(entries)
                now = self._wall()
                for entry in entries:
                    self._take_up(entry, now)
            await deferLater(self._clock, _SOON)
        return moved

    def _over(self, result: object) -> None:
        self._running = False
        if result is not None:
            self._warn(f"moves: {result}")
