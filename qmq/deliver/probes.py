"""
Dead sites are tried by themselves, each at the end of its while, a few at once.

Without this, mail for a host that is back would wait until the schedule next
names one of its messages: minutes at first, hours for old ones.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from qmq.deliver.site import Site
from qmq.mail import Seconds

# Dials at once to dead sites for which no mail is in hand.
_AT_ONCE = 10
# A dead site that can't be tried at its time, because others are, waits so much longer.
_WAIT: Seconds = 5
# A dead site is tried so long after its last mail was seen; longer than qmail's schedule ever waits in a week.
_INTEREST: Seconds = 12 * 3600


class Probes:
    """
    The dead sites by the time of their next try.

    *dial* opens a connection if the site may have one, and says whether it did;
    *forget* is told of a site that no mail has asked for in long.
    """

    def __init__(self, clock: IReactorTime, dial: Callable[[Site], bool], forget: Callable[[Site], None]) -> None:
        self._clock = clock
        self._dial = dial
        self._forget = forget
        self._heap: list[tuple[Seconds, int, Site]] = []
        self._order = 0
        self._under_way: set[Site] = set()
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def at(self, when: Seconds, site: Site) -> None:
        """Try the site then, if it is still dead and nothing else has been tried."""
        self._order += 1
        heappush(self._heap, (when, self._order, site))
        if self._heap[0][2] is site:
            self._set_timer()

    def over(self, site: Site) -> None:
        """A dial of the site has ended, of whatever kind."""
        self._under_way.discard(site)

    def stop(self) -> None:
        """No more of them."""
        self._stopped = True
        self._heap.clear()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._heap and not self._stopped:
            delay = max(0, self._heap[0][0] - self._clock.seconds())
            self._timer = self._clock.callLater(delay, self._try)

    def _try(self) -> None:
        now = self._clock.seconds()
        while self._heap and self._heap[0][0] <= now:
            site = heappop(self._heap)[2]
            if not site.down or site.held or now < site.until:
                continue  # tried by mail meanwhile; if it is dead again, it stands in the heap again
            if now - site.touched > _INTEREST:
                self._forget(site)
                continue
            self._under_way.add(site)
            if len(self._under_way) > _AT_ONCE or not self._dial(site):
                self._under_way.discard(site)
                self.at(now + _WAIT, site)
        self._set_timer()
