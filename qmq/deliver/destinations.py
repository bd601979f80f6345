"""
Who may have which connection: the ready mail of one instance, by destination.

Each site has a ready queue, and slots that grow while its host takes mail and
shrink when it refuses connections. A site whose host can't be reached is dead
for a while that doubles: its mail is deferred at once with the last reply, and
one connection tries at the end of each while.

What one site suffers, another must not feel:
- the first connection of a site goes before the second of another; sites that
  wait for one get it in turn, and a site whose turn is over gives one up;
- sites whose host has not answered yet share three quarters of the connections,
  and an eighth is kept for sites that have none: hosts that hang can't take all;
- a ready queue is short until its host answers, and again once it has not for
  a while; the last half of the room in memory is for those that do answer.

Plain calls throughout. A message that could not even be tried is answered with
UNTRIED, told by identity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import random
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.deliver.site import BREAKS, Done, Site
from qmq.interfaces import IDialler
from qmq.mail import DeliveryFailure, Message, Reply, Seconds, value

# No room, or going home: the message was not tried, and this is no attempt.
UNTRIED = Reply(451, "4.3.2", "not tried yet, try again later")
_INTERNAL = Reply(451, "4.3.0", "internal trouble while connecting")

# A turn of deficit round robin, in messages: enough to be worth a connection, which costs as much as three.
_TURN = 20
# A host that has answered nothing for so long while mail waits is no longer thought to be working.
_PATIENCE: Seconds = 10
# After a connection was refused beside others that work, no further one for so long.
_CROWDED: Seconds = 30
# A dead site is tried so long after its last mail was seen; longer than qmail's schedule ever waits in a week.
_INTEREST: Seconds = 12 * 3600
# Dials at once to dead sites for which no mail is in hand.
_PROBES = 10


@value
class SiteStatus:
    """A site, for people."""

    name: bytes
    ready: int
    connections: int
    dialling: int
    slots: int
    dead_for: Seconds  # until the next try; 0: alive
    reply: Reply | None


class Destinations:
    """
    The deliveries of one instance.

    *concurrency*: connections in all, 0 for none. *slots* a new site has,
    *slots_max* it may come to. *ready*: messages that may wait for a site whose
    host has not answered yet. *window*: messages added and not done, in all;
    twice that for sites that work. *back_off*: a dead site's first and longest
    while. *remembered*: sites known while nothing is to be done for them; five
    times that if they are dead.
    """

    def __init__(
        self,
        dialler: IDialler,
        clock: IReactorTime,
        concurrency: int = 120,
        slots: int = 2,
        slots_max: int = 20,
        ready: int = 20,
        window: int = 1000,
        back_off: tuple[Seconds, Seconds] = (30, 600),
        remembered: int = 2000,
        jitter: Callable[[], float] = random,
        log: Logger | None = None,
    ) -> None:
        self._dialler = dialler
        self._clock = clock
        self.now: Callable[[], Seconds] = clock.seconds
        self._first_slots = slots
        self._first_ready = ready
        self._window = window
        self._first_wait, self._longest_wait = back_off
        self._remembered = remembered
        self._jitter = jitter
        self._log = log or Logger()
        self.count = 0
        self.pressure = 0
        self.connections = 0  # open and being dialled
        self.alive: Callable[[bytes], None] = _ignore  # a dead site is back: its mail may come
        self.room: Callable[[bytes], None] = _ignore  # a full site can take more
        self._unproven = 0  # of these, of sites whose host has not answered
        self._sites: dict[bytes, Site] = {}
        self._full: dict[bytes, None] = {}
        self._parked: dict[Any, Site] = {}  # idle connections, the longest idle first
        self._closing: set[Any] = set()  # asked to close
        self._hungry: deque[Site] = deque()  # proven sites without a connection and with mail
        self._unknown: deque[Site] = deque()  # likewise unproven ones
        self._dials: set[Deferred[Any]] = set()
        self._probes: list[tuple[Seconds, int, Site]] = []  # heap
        self._probing: set[Site] = set()
        self._order = 0
        self._timer: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None
        self.reconfigure(concurrency, slots_max)

    def reconfigure(self, concurrency: int, slots_max: int = 20) -> None:
        """More at once, or fewer: what is too much is closed when it has nothing outstanding."""
        self.concurrency = concurrency
        self._most = max(1, min(slots_max, concurrency // 2))
        self.slots_max = self._most
        self._share = max(1, concurrency * 3 // 4)
        self._reserve = concurrency // 8
        for site in self._sites.values():
            site.slots = min(site.slots, self._most)
        self._feed()

    # What the queue asks

    def add(self, message: Message, done: Done, site: bytes) -> None:
        """Deliver; *done* is called once, maybe at once, with a reply for each recipient."""
        place = self._sites.get(site)
        if place is None:
            place = self._meet(site)
        parked = place.parked
        if parked:
            connection = parked.pop()
            del self._parked[connection]
            place.dones[id(message)] = done
            self.count += 1
            place.credit -= 1 + (message.body.size >> 16)
            connection.send(message)
            return
        refusal = self._line_up(place, message, done)
        if refusal is not None:
            done(message, [refusal] * len(message.envelope.recipients))

    def refusal(self, site: bytes) -> Reply | None:
        """
        The reply with which mail for a dead site is deferred untried, or None: add it.

        It counts as an attempt, as in qmail: the word is that of a true one at
        most a back-off old, and mail for a dead site must grow old as well.
        """
        place = self._sites.get(site)
        if place is None or not place.down:
            return None
        place.touched = now = self.now()
        return place.reply if now < place.until and not place.held else None

    def busy(self) -> list[bytes]:
        """Sites whose ready queue is at its bound."""
        return list(self._full)

    def space(self) -> int:
        """How many messages may be added before only sites that work get room."""
        return max(0, self._window - self.count)

    @property
    def ready(self) -> int:
        """Messages waiting for a connection; asked seldom."""
        return sum(len(site.ready) for site in self._sites.values())

    def sites(self, limit: int = 1000) -> list[SiteStatus]:
        """The sites with mail, connections or trouble, for people."""
        now = self.now()
        found = [s for s in self._sites.values() if s.dones or s.held or s.down]
        return [
            SiteStatus(
                s.name, len(s.ready), len(s.open), s.dialling, s.slots,
                max(0, s.until - now) if s.down else 0, s.reply if s.down else None,
            )
            for s in found[:limit]
        ]  # fmt: skip

    def awaken(self) -> None:
        """Try dead sites afresh with the next message: an operator said so, or the clock jumped."""
        now = self.now()
        for site in self._sites.values():
            if site.down:
                site.until = now
                self._probe_later(site, now)

    def withdraw(self) -> None:
        """Answer all that has not begun with UNTRIED; what is on its way goes on."""
        for site in list(self._sites.values()):
            self._answer_all(site, UNTRIED)

    def stop(self, seconds: Seconds) -> Deferred[None]:
        """Begin nothing more; fires when all connections are gone, cut after *seconds* if need be."""
        self._stopped = stopped = Deferred()
        self._set_timer(None)
        for dial in list(self._dials):
            dial.cancel()
        self.withdraw()
        for site in list(self._sites.values()):
            site.parked.clear()
            for connection in list(site.open):
                connection.close()
        self._parked.clear()
        if self.connections:
            self._timer = self._clock.callLater(seconds, self._cut)
        else:
            stopped.callback(None)
        return stopped

    # What the sites ask

    def want(self, site: Site) -> None:
        """Open connections for what is ready, as far as the site may have more."""
        while len(site.ready) > site.dialling and self._may(site):
            self._dial(site)
        if site.ready and not site.held and not site.hungry:
            site.hungry = True
            (self._hungry if site.proven else self._unknown).append(site)
            self._press()

    def well(self, site: Site) -> None:
        """The host has answered: forget what was held against the site."""
        self._prove(site)
        site.is_well = True
        site.failures = site.breaks = 0
        if site.down:
            self._revive(site)

    def drained(self, site: Site) -> None:
        """There is room again in a ready queue that was full."""
        self._full.pop(site.name, None)
        self.room(site.name)

    def park(self, site: Site, connection: Any) -> None:
        """Keep an idle connection, or close it for a site that has none."""
        if self._stopped is not None:
            return  # it closes
        if self.pressure > 0 or self.connections - len(self._closing) > self.concurrency:
            self._close(connection)
            return
        site.parked.append(connection)
        self._parked[connection] = site

    def gone(self, site: Site, connection: Any, reason: Reply | None) -> None:
        """A connection is no more; one that was cut with mail on it speaks against its site."""
        site.open.discard(connection)
        idle = self._parked.pop(connection, None) is not None
        if idle:
            site.parked.remove(connection)
        closed = connection in self._closing
        self._closing.discard(connection)
        self._free(site)
        if self._stopped is not None:
            return
        if reason is not None and not idle and not closed:
            self._shrink(site)
            site.breaks += 1
            if site.breaks >= BREAKS and not site.open:
                self._bury(site, reason, broken=True)
        self.want(site)
        self._feed()

    # Sharing out

    def _line_up(self, site: Site, message: Message, done: Done) -> Reply | None:
        """Put it into the ready queue; else say why not."""
        if self._stopped is not None:
            return UNTRIED
        now = self.now()
        if site.down:
            site.touched = now
            if now < site.until and not site.held:
                return site.reply
        waiting = len(site.ready)
        if waiting == 0:
            site.progress = now
        works = site.proven and now - site.progress < _PATIENCE
        bound = max(self._first_ready, self._window // 2) if works else self._first_ready
        if waiting >= bound:
            return self._fill(site, waiting)
        if self.count >= (2 * self._window if works else self._window):
            return UNTRIED
        site.ready.append(message)
        site.dones[id(message)] = done
        self.count += 1
        if waiting + 1 == bound:
            self._fill(site, bound)
        self.want(site)
        return None

    def _fill(self, site: Site, waiting: int) -> Reply:
        if not site.full:
            site.full = True
            site.low = waiting // 2
            self._full[site.name] = None
        return UNTRIED

    def _may(self, site: Site) -> bool:
        """Whether the site may have one more connection."""
        held = site.held
        return (
            self._stopped is None
            and held < min(site.slots, self._most)
            and self.connections < (self.concurrency - self._reserve if held else self.concurrency)
            and (site.proven or self._unproven < self._share)
            and (not held or self.now() >= site.crowded)
        )

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

    def _feed(self) -> None:
        """Give free connections to the sites that wait for their first, in turn."""
        while self.connections < self.concurrency:
            fed = self._next(self._hungry)
            if self._unproven < self._share:
                fed = self._next(self._unknown) or fed
            if not fed:
                break
        self._press()

    def _next(self, ring: deque[Site]) -> bool:
        """Dial for the first site of the ring that still has mail and no connection."""
        while ring and self.connections < self.concurrency:
            site = ring.popleft()
            site.hungry = False
            if site.ready and not site.held:
                self.want(site)
                return True
        return False

    # Connections

    def _dial(self, site: Site) -> None:
        site.dialling += 1
        site.held += 1
        site.credit = max(0, site.credit) + _TURN
        self.connections += 1
        if not site.proven:
            self._unproven += 1
        dial: Deferred[Any] = maybeDeferred(self._dialler.dial, site.name, site)
        self._dials.add(dial)
        dial.addBoth(self._dialled, dial, site)

    def _dialled(self, outcome: Any, dial: Deferred[Any], site: Site) -> None:
        self._dials.discard(dial)
        self._probing.discard(site)
        site.dialling -= 1
        if isinstance(outcome, Failure):
            self._free(site)
            if self._stopped is None:
                self._unreachable(site, outcome)
                self._feed()
            return
        site.open.add(outcome)
        if self._stopped is not None:
            outcome.close()
            return
        if site.down and not site.broken:
            self._revive(site)
        site.idle(outcome)

    def _free(self, site: Site) -> None:
        site.held -= 1
        self.connections -= 1
        if not site.proven:
            self._unproven -= 1
        if self._stopped is not None and not self.connections and not self._stopped.called:
            self._set_timer(None)
            self._stopped.callback(None)

    def _unreachable(self, site: Site, failure: Failure) -> None:
        if failure.check(DeliveryFailure):
            reply = failure.value.reply
        else:
            self._log.failure("dialling {site!r} failed", failure, site=site.name)
            reply = _INTERNAL
        if site.open:
            self._shrink(site)  # what is open will do
        elif reply.permanent:
            # The name says so, not the host: it costs nothing to ask again with the next message.
            site.down = False
            self._answer_all(site, reply)
        else:
            self._bury(site, reply, broken=False)

    def _set_timer(self, timer: IDelayedCall | None) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = timer

    def _cut(self) -> None:
        """The time for an orderly end is over."""
        for site in list(self._sites.values()):
            for connection in list(site.open):
                connection.abort()
        stopped = self._stopped
        assert stopped is not None
        if not stopped.called:
            # A connection that does not even report its end is not waited for.
            self._timer = self._clock.callLater(1, lambda: stopped.called or stopped.callback(None))

    # Health

    def _prove(self, site: Site) -> None:
        if not site.proven:
            site.proven = True
            self._unproven -= site.held

    def _shrink(self, site: Site) -> None:
        """A connection was refused or cut: half the slots, no new one for a while, and to be proven again."""
        site.is_well = False
        if site.proven:
            site.proven = False
            self._unproven += site.held
        site.slots = max(1, site.slots // 2)
        site.crowded = self.now() + _CROWDED

    def _bury(self, site: Site, reply: Reply, broken: bool) -> None:
        """The site is dead for a while; what waits for it is deferred."""
        now = self.now()
        self._shrink(site)
        site.reply = reply
        if not site.down or now >= site.until:  # of several dials under way only the first counts
            site.down = True
            site.broken = broken
            site.slots = 1
            site.breaks = 0
            wait = min(self._longest_wait, self._first_wait * 2 ** min(site.failures, 30))
            site.failures += 1
            site.until = now + wait * (1 + self._jitter() / 5)
            site.touched = max(site.touched, now) if site.ready else site.touched
            self._probe_later(site, site.until)
        self._answer_all(site, reply)

    def _revive(self, site: Site) -> None:
        site.down = site.broken = False
        site.slots = max(site.slots, min(self._first_slots, self._most))
        site.crowded = self.now()
        self.alive(site.name)

    def _answer_all(self, site: Site, reply: Reply) -> None:
        """Done with everything that is ready: *reply* for each."""
        waiting = list(site.ready)
        site.ready.clear()
        if site.full:
            site.full = False
            self._full.pop(site.name, None)
        for message in waiting:
            done = site.dones.pop(id(message))
            self.count -= 1
            done(message, [reply] * len(message.envelope.recipients))
        if waiting and reply is not UNTRIED:
            self.room(site.name)

    def _probe_later(self, site: Site, when: Seconds) -> None:
        """
        Try a dead site by itself at the end of its while.

        Not a broken one: it takes connections, only mail can tell.
        """
        if site.broken:
            return
        self._order += 1
        heappush(self._probes, (when, self._order, site))
        if self._probes[0][2] is site:
            self._set_timer(self._clock.callLater(max(0, when - self.now()), self._probe))

    def _probe(self) -> None:
        now = self.now()
        self._timer = None
        while self._probes and self._probes[0][0] <= now:
            site = heappop(self._probes)[2]
            if not site.down or site.held or now < site.until or self._sites.get(site.name) is not site:
                continue
            if now - site.touched > _INTEREST:
                del self._sites[site.name]
            elif len(self._probing) >= _PROBES or not self._may(site):
                self._order += 1
                heappush(self._probes, (now + 5, self._order, site))
            else:
                self._probing.add(site)
                self._dial(site)
        if self._probes and self._timer is None and self._stopped is None:
            self._set_timer(self._clock.callLater(max(0, self._probes[0][0] - now), self._probe))

    def _meet(self, name: bytes) -> Site:
        """A site seen for the first time; some that nothing is to be done for are forgotten for it."""
        sites = self._sites
        if len(sites) >= self._remembered:
            for old in list(_first(sites, 10)):
                del sites[old.name]
                if old.dones or old.held or (old.down and len(sites) < 5 * self._remembered):
                    sites[old.name] = old  # to the end: looked at again when its turn comes
        site = sites[name] = Site(self, name, min(self._first_slots, self._most), self.now())
        return site


def _first(sites: dict[bytes, Site], number: int) -> list[Site]:
    return [site for site, _ in zip(sites.values(), range(number), strict=False)]


def _ignore(site: bytes) -> None:
    """Nobody listens yet."""
