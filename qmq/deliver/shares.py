"""
Who may have which of an instance's connections.

The first connection of a site goes before the second of another: sites that
wait for their first get it in turn, and while they wait idle connections are
closed, and a site whose turn is over gives one up (deficit round robin). Hosts
that hang can't take all: sites whose host has not answered share three quarters,
and an eighth is kept for sites that have none. No site has more than half.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from qmq.deliver.site import Site
from qmq.mail import Seconds

# A turn, in messages: enough to be worth a connection, which costs as much as three.
_TURN = 20


class Shares:
    """Counts connections, open and being dialled; *want* is called for a site that may have its first."""

    def __init__(self, want: Callable[[Site], None], now: Callable[[], Seconds]) -> None:
        self.connections = 0
        self.concurrency = 0
        self.most = 1  # of one site
        self.pressure = 0  # sites that wait for a connection which others could give up
        self.halted = False
        self._feeding = False
        self._known_first = False
        self._want = want
        self._now = now
        self._share = 1  # of the unproven
        self._reserve = 0  # for those that have none
        self._unproven = 0
        self._hungry: deque[Site] = deque()  # proven sites with mail and without a connection
        self._unknown: deque[Site] = deque()  # likewise unproven ones
        self._parked: dict[Any, Site] = {}  # idle connections, the longest idle first
        self._closing: set[Any] = set()  # asked to close

    def configure(self, concurrency: int, slots_max: int) -> None:
        """More at once, or fewer: what is too much is closed when it has nothing outstanding."""
        self.concurrency = concurrency
        self.most = max(1, min(slots_max, concurrency // 2))
        self._share = max(1, concurrency * 3 // 4)
        self._reserve = concurrency // 8
        self.feed()

    def may(self, site: Site) -> bool:
        """Whether the site may have one more connection."""
        held = site.held
        return (
            not self.halted
            and held < min(site.slots, self.most)
            and self.connections < (self.concurrency - self._reserve if held else self.concurrency)
            and (site.proven or self._unproven < self._share)
            and (not held or self._now() >= site.crowded)
        )

    def take(self, site: Site) -> None:
        """One more for this site, and a turn with it."""
        site.held += 1
        site.credit = max(0, site.credit) + _TURN
        self.connections += 1
        if not site.proven:
            self._unproven += 1

    def free(self, site: Site) -> None:
        """One less; `feed` is to follow."""
        site.held -= 1
        self.connections -= 1
        if not site.proven:
            self._unproven -= 1

    def prove(self, site: Site, proven: bool) -> None:
        """The site's host has answered, or must do so again to be trusted with more."""
        if site.proven != proven:
            site.proven = proven
            self._unproven += -site.held if proven else site.held

    def wait(self, site: Site) -> None:
        """The site has mail and no connection."""
        if not site.hungry:
            site.hungry = True
            (self._hungry if site.proven else self._unknown).append(site)
            self._press()

    def feed(self) -> None:
        """Give free connections to the sites that wait for their first, in turn."""
        if self._feeding or self.halted:
            return  # a dial that failed at once: the loop below us goes on
        self._feeding = True
        while self.connections < self.concurrency and self._feed_one():
            pass
        self._feeding = False
        self._press()

    def park(self, site: Site, connection: Any) -> None:
        """Keep an idle connection, or close it for a site that has none."""
        if self.halted:
            return  # it closes
        if self.pressure > 0 or self.connections - len(self._closing) > self.concurrency:
            self._close(connection)
            return
        site.parked.append(connection)
        self._parked[connection] = site

    def unpark(self, site: Site) -> Any:
        """The site's connection that was used last: the others come to the end of their idle time."""
        connection = site.parked.pop()
        del self._parked[connection]
        return connection

    def forget(self, site: Site, connection: Any) -> bool:
        """A connection is gone; whether that was in order: it was idle, or we asked it to close."""
        idle = self._parked.pop(connection, None) is not None
        if idle:
            site.parked.remove(connection)
        closed = connection in self._closing
        self._closing.discard(connection)
        return idle or closed

    def halt(self) -> None:
        """Give out no more."""
        self.halted = True
        for site in self._parked.values():
            site.parked.clear()
        self._parked.clear()

    def _press(self) -> None:
        """Count who waits for what others hold, and close idle connections for them."""
        waiting = len(self._hungry)
        if self._unproven < self._share:
            waiting += len(self._unknown)
        self.pressure = waiting - len(self._closing)
        while self.pressure > 0 and self._parked:
            connection, site = next(iter(self._parked.items()))
            del self._parked[connection]
            site.parked.remove(connection)
            self._close(connection)

    def _close(self, connection: Any) -> None:
        self._closing.add(connection)
        self.pressure -= 1
        connection.close()

    def _feed_one(self) -> bool:
        """One site of either kind, by turns."""
        self._known_first = not self._known_first
        if self._known_first and self._next(self._hungry):
            return True
        if self._unproven < self._share and self._next(self._unknown):
            return True
        return self._next(self._hungry)

    def _next(self, ring: deque[Site]) -> bool:
        """Let the first site of the ring dial that still has mail and no connection."""
        while ring and self.connections < self.concurrency:
            site = ring.popleft()
            site.hungry = False
            if site.ready and not site.held:
                self._want(site)
                return True
        return False
