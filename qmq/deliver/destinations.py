"""
The ready mail of one instance, by destination, and the health of each.

Each site has a ready queue, and slots that grow while its host takes mail and
shrink when it refuses connections. A site whose host can't be reached is dead
for a while that doubles: its mail is deferred at once with the last reply, and
one connection tries at the end of each while.

What one site suffers, another must not feel: `qmq.deliver.shares` divides the
connections; and a ready queue is short until its host answers, and again once
it has not for a while: the last half of the room in memory is for sites that
work.

Plain calls throughout. A message that could not even be tried is answered with
UNTRIED, told by identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from random import random
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.deliver.probes import Probes
from qmq.deliver.shares import Shares
from qmq.deliver.site import BREAKS, Done, Site, SiteStatus
from qmq.interfaces import IDialler
from qmq.mail import QUEUE, DeliveryFailure, Message, Reply, Seconds

# No room, or going home: the message was not tried, and this is no attempt.
UNTRIED = Reply(451, "4.3.2", "not tried yet, try again later")
_INTERNAL = Reply(451, "4.3.0", "internal trouble while connecting")
# The back_off of another queue of this gateway: a worker that ended is there again within seconds.
_NEAR: tuple[Seconds, Seconds] = (0.5, 5)

log = Logger()


class Destinations:
    """
    The deliveries of one instance.

    *concurrency*: connections in all, 0 for none. *slots* a new site has,
    *slots_max* it may come to. *ready*: messages that may wait for a site whose
    host has not answered yet; three times that while there are no more in all.
    *window*: messages added and not done, in all; twice that for sites that work,
    each of which always has room for *ready*. *back_off*: a dead site's first and
    longest while. *remembered*: idle sites known; five times that if they are
    dead.
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
    ) -> None:
        self.dialler = dialler  # another one is asked from the next connection on
        self._clock = clock
        self.now: Callable[[], Seconds] = clock.seconds
        self._first_slots = slots
        self._first_ready = ready
        self._window = window
        self._first_wait, self._longest_wait = back_off
        self._remembered = remembered
        self._jitter = jitter
        self.count = 0
        self.alive: Callable[[bytes], None] = _ignore  # a dead site is back: its mail may come
        self.room: Callable[[bytes], None] = _ignore  # a full site can take more
        self.shares = Shares(self.want, self.now)
        self._sites: dict[bytes, Site] = {}
        self._full: dict[bytes, None] = {}
        self._dials: set[Deferred[Any]] = set()
        self._probes = Probes(clock, self._probe, self._forget)
        self._timer: IDelayedCall | None = None  # stopping: then what is left is cut
        self._stopped: Deferred[None] | None = None
        self.reconfigure(concurrency, slots_max)

    def reconfigure(self, concurrency: int, slots_max: int = 20) -> None:
        """More at once, or fewer: what is too much is closed when it has nothing outstanding."""
        self.concurrency = concurrency
        self.shares.configure(concurrency, slots_max)
        self.slots_max = most = self.shares.most
        for site in self._sites.values():
            site.slots = min(site.slots, most)

    @property
    def connections(self) -> int:
        """Open and being dialled."""
        return self.shares.connections

    # What the queue asks

    def add(self, message: Message, done: Done, site: bytes) -> None:
        """Deliver; *done* is called once, maybe at once, with a reply for each recipient."""
        place = self._sites.get(site) or self._meet(site)
        if place.parked:
            connection = self.shares.unpark(place)
            place.dones[id(message)] = done
            self.count += 1
            place.credit -= 1 + (message.body.size >> 16)
            connection.send(message)
            return
        if (refusal := self._line_up(place, message, done)) is not None:
            done(message, [refusal] * len(message.envelope.recipients))

    def refusal(self, site: bytes) -> Reply | None:
        """
        The reply with which mail for a dead site is deferred untried, or None: add it.

        It counts as an attempt, as in qmail: the word is that of a true one at
        most a back-off old, and mail for a dead site must grow old as well.
        """
        return None if (place := self._sites.get(site)) is None else place.refusal(self.now())

    def busy(self) -> list[bytes]:
        """Sites whose ready queue is at its bound."""
        return list(self._full)

    def full(self, site: bytes) -> bool:
        """Whether `room` will be called for the site."""
        return site in self._full

    def space(self) -> int:
        """How many messages may be added before only sites that work get room."""
        return max(0, self._window - self.count)

    @property
    def ready(self) -> int:
        """Messages waiting for a connection; asked seldom."""
        return sum(len(site.ready) for site in self._sites.values())

    def sites(self, limit: int = 1000) -> list[SiteStatus]:
        """The sites with mail, connections or trouble, for people."""
        found = (site.status(self.now()) for site in self._sites.values() if site.dones or site.held or site.down)
        return list(islice(found, limit))

    def awaken(self) -> None:
        """Try dead sites afresh with the next message: an operator said so, or the clock jumped."""
        now = self.now()
        for site in self._sites.values():
            if site.down:
                site.until = now
                if not site.broken:
                    self._probes.at(now, site)

    def withdraw_all(self) -> None:
        """Answer all that has not begun with UNTRIED; what is on its way goes on."""
        for site in list(self._sites.values()):
            self._answer_all(site, UNTRIED)

    def withdraw(self, name: bytes, messages: Sequence[Message]) -> None:
        """Likewise those of *messages*, of one site, that have not begun."""
        if (site := self._sites.get(name)) is not None:
            for message in site.withdraw(messages):
                self._answer(site, message, UNTRIED)

    def stop(self, seconds: Seconds) -> Deferred[None]:
        """Begin nothing more; fires when all connections are gone, cut after *seconds* if need be."""
        self._stopped = stopped = Deferred[None]()
        self._probes.stop()
        self.shares.halt()
        for dial in list(self._dials):
            dial.cancel()
        self.withdraw_all()
        for site in list(self._sites.values()):
            for connection in list(site.open):
                connection.close()
        if self.connections:
            self._timer = self._clock.callLater(seconds, self._cut)
        elif not stopped.called:
            stopped.callback(None)
        return stopped

    # What the sites ask

    def want(self, site: Site) -> None:
        """Open connections for what is ready, as far as the site may have more."""
        while len(site.ready) > site.dialling and self.shares.may(site):
            self._dial(site)
        if site.ready and not site.held:
            self.shares.wait(site)

    def again(self, site: Site, message: Message) -> None:
        """The kept connection was no more: over another, before all else."""
        site.ready.appendleft(message)
        if self._stopped is None:
            self.want(site)
        else:
            self._answer_all(site, UNTRIED)

    def well(self, site: Site) -> None:
        """The host has answered: forget what was held against the site."""
        self.shares.prove(site, proven=True)
        site.is_well = True
        site.failures = site.breaks = 0
        self.shares.feed()
        if site.down:
            self._revive(site)

    def drained(self, site: Site) -> None:
        """There is room again in a ready queue that was full."""
        self._full.pop(site.name, None)
        self.room(site.name)

    def gone(self, site: Site, connection: Any, reason: Reply | None) -> None:
        """A connection is no more; one that was cut with mail on it speaks against its site."""
        site.open.discard(connection)
        in_order = self.shares.forget(site, connection)
        self._free(site)
        if self._stopped is not None:
            return
        if reason is not None and not in_order:
            self._shrink(site)
            site.breaks += 1
            if site.breaks >= BREAKS and not site.open:
                self._bury(site, reason, broken=True)
        self.shares.feed()  # first the others: it may have given way to them
        self.want(site)

    def _line_up(self, site: Site, message: Message, done: Done) -> Reply | None:
        """Put it into the ready queue; else say why not."""
        if self._stopped is not None:
            return UNTRIED
        now = self.now()
        if site.down and (refusal := site.refusal(now)) is not None:
            return refusal
        waiting = len(site.ready)
        if waiting == 0:
            site.progress = now
        works = site.works(now)
        bound = self._first_ready
        if works:
            bound = max(bound, self._window // 2)
        elif self.count < 3 * bound:
            bound *= 3  # a burst that is alone need not be put aside, and fetched, until its host has answered
        if waiting >= bound:
            return self._fill(site, waiting)
        if self.count >= (2 * self._window if works else self._window) and not (works and waiting < self._first_ready):
            return UNTRIED
        site.ready.append(message)
        site.dones[id(message)] = done
        self.count += 1
        if waiting + 1 == bound:
            self._fill(site, bound)
        if site.held < site.slots:
            self.want(site)
        return None

    def _fill(self, site: Site, waiting: int) -> Reply:
        if not site.full:
            site.full = True
            site.low = waiting // 2
            self._full[site.name] = None
        return UNTRIED

    # Connections

    def _dial(self, site: Site) -> None:
        site.dialling += 1
        self.shares.take(site)
        dial: Deferred[Any] = maybeDeferred(self.dialler.dial, site.name, site)
        self._dials.add(dial)
        dial.addBoth(self._dialled, dial, site)
        dial.addErrback(self._fault, site)

    def _fault(self, failure: Failure, site: Site) -> None:
        log.failure("beginning to deliver to {site!r} failed", failure, site=site.name)

    def _dialled(self, outcome: Any, dial: Deferred[Any], site: Site) -> None:
        self._dials.discard(dial)
        self._probes.over(site)
        site.dialling -= 1
        if isinstance(outcome, Failure):
            self._free(site)
            if self._stopped is None:
                self._unreachable(site, outcome)
                self.shares.feed()
            return
        site.open.add(outcome)
        if self._stopped is not None:
            outcome.close()
            return
        if site.down and not site.broken:
            self._revive(site)
        site.idle(outcome)

    def _free(self, site: Site) -> None:
        self.shares.free(site)
        if self._stopped is not None and not self.connections and not self._stopped.called:
            if self._timer is not None and self._timer.active():
                self._timer.cancel()
            self._stopped.callback(None)

    def _unreachable(self, site: Site, failure: Failure) -> None:
        trouble = failure.value
        if isinstance(trouble, DeliveryFailure):
            reply = trouble.reply
        else:
            log.failure("dialling {site!r} failed", failure, site=site.name)
            reply = _INTERNAL
        if site.open:
            self._shrink(site)  # what is open will do for a while
            site.crowded = self.now() + self._first_wait
        elif reply.permanent:
            # The name says so, not the host: it costs nothing to ask again with the next message.
            site.down = False
            self._answer_all(site, reply)
        else:
            self._bury(site, reply, broken=False)

    def _cut(self) -> None:
        """The time for an orderly end is over."""
        for site in list(self._sites.values()):
            for connection in list(site.open):
                connection.abort()
        stopped = self._stopped
        assert stopped is not None
        if not stopped.called:
            # A connection that does not even report its end is not waited for.
            self._timer = self._clock.callLater(1, stopped.callback, None)

    # Health

    def _shrink(self, site: Site) -> None:
        """A connection was refused or cut: half the slots, and to be proven again."""
        site.is_well = False
        self.shares.prove(site, proven=False)
        site.slots = max(1, site.slots // 2)

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
            first, longest = _NEAR if site.name.startswith(QUEUE) else (self._first_wait, self._longest_wait)
            wait = min(longest, first * 2 ** min(site.failures, 30))
            site.failures += 1
            site.until = now + wait * (1 + self._jitter() / 5)
            site.touched = now if site.ready else site.touched
            if not broken:  # else it takes connections, and only mail can tell
                self._probes.at(site.until, site)
        self._answer_all(site, reply)

    def _revive(self, site: Site) -> None:
        site.down = site.broken = False
        site.slots = max(site.slots, min(self._first_slots, self.slots_max))
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
            self._answer(site, message, reply)
        if waiting and reply is not UNTRIED:
            self.room(site.name)

    def _answer(self, site: Site, message: Message, reply: Reply) -> None:
        done = site.dones.pop(id(message))
        self.count -= 1
        done(message, [reply] * len(message.envelope.recipients))

    def _probe(self, site: Site) -> bool:
        if may := self.shares.may(site):
            self._dial(site)
        return may

    def _forget(self, site: Site) -> None:
        self._sites.pop(site.name)

    def _meet(self, name: bytes) -> Site:
        """A site seen for the first time; some that nothing is to be done for are forgotten for it."""
        sites = self._sites
        if len(sites) >= self._remembered:
            for old in list(islice(sites.values(), 10)):
                del sites[old.name]
                if old.dones or old.held or (old.down and len(sites) < 5 * self._remembered):
                    sites[old.name] = old  # to the end: looked at again when its turn comes
                else:
                    old.down = False  # no more probes
        site = sites[name] = Site(self, name, min(self._first_slots, self.slots_max), self.now())
        return site


def _ignore(site: bytes) -> None:
    """Nobody listens yet."""
