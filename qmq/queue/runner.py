"""
The queue of one instance: takes mail over, has it delivered, sees it to its end.

A message is kept (one sync for a whole batch), answered, and at the same moment
handed from memory to its destination. What could not be delivered rests in the
spool until it is due; then a window of due entries at a time is claimed, so that
nothing here grows with the depth of the queue. Refilling is driven by what is
delivered, not by what comes in: a flood of new mail holds up no delivery.

An entry in hand is in exactly one place: at its destination, on its way there
with its body being read, or with the bouncer. Every way out ends in the spool's
settle or release.

Times are of two kinds: what is stored is wall clock, what is waited for is the
injected clock's, at most a nap at once, so that a jump of the wall clock heals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import random
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.destinations import UNTRIED, Destinations
from qmq.interfaces import INextHop, ISpool
from qmq.mail import NULL_SENDER, Address, Body, Entry, Message, Octets, Reply, Seconds
from qmq.queue.ledger import Bouncer, Ledger, QueueLog
from qmq.queue.schedule import Schedule
from qmq.queue.settle import settle

# qmail waits as long after trouble with the disk.
_TROUBLE: Seconds = 10
# A wall clock that moves so much against the monotonic one has been set.
_JUMP: Seconds = 5
# Entries claimed at once.
_BATCH = 100
# Sites of domains remembered.
_SITES = 10000
# Mail for which there is no room comes back after this, and up to as much again.
_NO_ROOM: Seconds = 30
# A bounce that nobody took over is offered again after this, and up to as much again.
_BOUNCE_AGAIN: Seconds = 60


@implementer(INextHop)
class Queue(MultiService):
    """
    One queue.

    *site_of* gives the next-hop site of a recipient, and may look at its domain
    alone. *wall* is the wall clock, *clock* runs on monotonic time.
    *limit_messages* and *limit_octets* bound what is taken in, *window* what is
    in hand when more is claimed, *bounces* how many are with the bouncer at
    once. *notice*: the age at which the sender is told of a delay; None: never.
    *nap* is the longest time without a look at the spool.

    *bouncer* may be set until the service starts.
    """

    def __init__(
        self,
        name: str,
        spool: ISpool,
        destinations: Destinations,
        site_of: Callable[[Address], bytes],
        schedule: Schedule,
        lifetime: Seconds,
        bounce_lifetime: Seconds,
        bouncer: Bouncer | None,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        log: QueueLog,
        limit_messages: int = 1_000_000,
        limit_octets: Octets = 100 << 30,
        window: int = 1000,
        bounces: int = 100,
        jitter: Callable[[], float] = random,
        stop_seconds: Seconds = 10,
        notice: Seconds | None = None,
        nap: Seconds = 30,
    ) -> None:
        super().__init__()
        self.setName(name)
        self.spool = spool
        self.destinations = destinations
        self.bouncer = bouncer
        self.paused = False
        self.refusing = False
        self._site_of = site_of
        self._sites: dict[bytes, bytes] = {}
        self._schedule = schedule
        self._lifetime = lifetime
        self._bounce_lifetime = bounce_lifetime
        self._clock = clock
        self._wall = wall
        self._log = log
        self._limit_messages = limit_messages
        self._limit_octets = limit_octets
        self._window = window
        self._bounces = bounces
        self._jitter = jitter
        self._stop_seconds = stop_seconds
        self._notice = notice
        self._nap = nap
        self._mta = name
        self._refused = Reply(452, "4.3.2", "this queue takes no mail now, try again later", name)
        self._full = Reply(452, "4.3.1", "this queue is full, try again later", name)
        self._trouble = Reply(452, "4.3.1", "try again later", name)
        self._ledger = Ledger()
        self._open = False  # the spool is
        self._in_hand: dict[int, tuple[Entry, Seconds]] = {}  # at destinations: by id() of the message; when it started
        self._reading = 0  # on their way there
        self._keeping = 0
        self._with_bouncer: dict[int, Entry] = {}  # by number
        self._claiming = False
        self._more = False  # the spool has more that is due
        self._ahead: Seconds = 0  # of the wall clock before the monotonic one
        self._timer: IDelayedCall | None = None
        self._wake: Seconds = 0  # wall time for which the timer is set
        self._opened: Deferred[None] = succeed(None)
        self._quiet: Deferred[None] | None = None  # stopping: fires when nothing is under way
        destinations.alive = self._alive
        destinations.room = self._room

    # The joint

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """Keep; 250 for all when it is durable. Nothing is said of other tokens: no tombstone goes by it."""
        return self.send_in_doubt(message, 0)

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Sequence[Reply]]:
        """As `send`; below *low* nothing of the token's peer is in doubt any more."""
        envelope = message.envelope
        recipients = envelope.recipients
        spool = self.spool
        if self.refusing or not self._open:
            return succeed([self._refused] * len(recipients))
        if spool.messages >= self._limit_messages or spool.octets + message.body.size > self._limit_octets:
            return succeed([self._full] * len(recipients))
        sites = self._sites
        try:
            where = [sites[recipient.domain] for recipient in recipients]
        except KeyError:
            where = [self._site(recipient) for recipient in recipients]
        self._keeping += 1
        kept: Deferred[Any] = spool.keep(message, where, low)
        return kept.addCallbacks(self._kept, self._not_kept, (message,), None, (message,))

    def _site(self, recipient: Address) -> bytes:
        site = self._sites.get(recipient.domain)
        if site is None:
            if len(self._sites) >= _SITES:
                self._sites.clear()
            site = self._sites[recipient.domain] = self._site_of(recipient)
        return site

    def _kept(self, entries: Sequence[Entry], message: Message) -> Sequence[Reply]:
        self._keeping -= 1
        self._ledger.accepted += 1
        now = self._wall()
        for entry in entries:
            if entry.message.body.path is None:
                self._deliver(entry, now)
            else:
                self._read(entry, now, self._deliver)  # the draft goes when we have answered: the spool's own
        envelope = message.envelope
        reply = Reply(250, "2.0.0", "ok " + envelope.token.id.decode("ascii", "replace"), self._mta)
        if self._quiet is not None:
            self._check_quiet()
        return [reply] * len(envelope.recipients)

    def _not_kept(self, failure: Failure, message: Message) -> Sequence[Reply]:
        self._keeping -= 1
        self._log.trouble(self._mta, "keep", failure)
        self._check_quiet()
        return [self._trouble] * len(message.envelope.recipients)

    # Out to the destinations and back

    def _deliver(self, entry: Entry, started: Seconds) -> None:
        """An entry with its body: to its destination."""
        if self.paused or self._quiet is not None or not self.destinations.concurrency:
            self.spool.release(entry, started)
            self._more = True
            return
        message = entry.message
        self._in_hand[id(message)] = (entry, started)
        self.destinations.add(message, self._done, entry.site)

    def _done(self, message: Message, replies: Sequence[Reply]) -> None:
        """What became of an entry at its destination."""
        entry, started = self._in_hand.pop(id(message))
        if replies[0] is UNTRIED or (self._quiet is not None and _cut(replies)):
            self._give_back(entry)
        else:
            self._attempted(entry, replies, started, read=True)
        if self._more and len(self._in_hand) <= self._window >> 1:
            self._claim()

    def _give_back(self, entry: Entry) -> None:
        """Not tried: now is soon enough if its site says when there is room, else in a while."""
        now = self._wall()
        if self.paused or self._quiet is not None or self.destinations.full(entry.site):
            self._more = self._more or self.paused
            self.spool.release(entry, now)
        else:
            self._rest(entry, now + _NO_ROOM * (1 + self._jitter()))

    def _attempted(self, entry: Entry, replies: Sequence[Reply], started: Seconds, read: bool) -> None:
        now = self._wall()
        lifetime = self._bounce_lifetime if entry.message.envelope.sender == NULL_SENDER else self._lifetime
        settled = settle(entry, replies, started, now, self._schedule, lifetime, self._jitter())
        self._ledger.enter(settled, now - entry.born)
        self._log.attempted(self._mta, entry, settled)
        if settled.failed or entry.bouncing:
            self._tell(entry, started, read, self._bounce)
        elif settled.deferred:
            if self._notice is not None and not entry.delayed and now - entry.born >= self._notice:
                self._tell(entry, started, read, self._delay)
            else:
                self._settle(entry)
        else:
            self.spool.settle(entry)

    def _settle(self, entry: Entry) -> None:
        """Write it; if it is to be tried again, wake up for it."""
        self.spool.settle(entry)
        if entry.due is not None and entry.due < self._wake - 1:
            self._set_timer(entry.due)

    def _rest(self, entry: Entry, due: Seconds) -> None:
        self.spool.release(entry, due)
        if due < self._wake - 1:
            self._set_timer(due)

    # Bounces and notices of delay

    def _tell(self, entry: Entry, started: Seconds, read: bool, how: Callable[[Entry, Seconds], None]) -> None:
        """The sender is to be told; what is known is written first, in hand, and rides with the next commit."""
        if self.bouncer is None or self._quiet is not None or len(self._with_bouncer) >= self._bounces:
            self._later(entry)
            return
        due, entry.due = entry.due, None
        self.spool.settle(entry)
        entry.due = due
        self._with_bouncer[entry.number] = entry
        if read:
            how(entry, started)
        else:
            self._read(entry, started, how)

    def _later(self, entry: Entry) -> None:
        """Tell another time: with the next attempt, or by itself if there is none."""
        if entry.due is None:
            entry.due = self._wall() + _BOUNCE_AGAIN * (1 + self._jitter())
        self._settle(entry)

    def _bounce(self, entry: Entry, started: Seconds) -> None:
        told = maybeDeferred(self.bouncer.bounce, entry)  # type: ignore[union-attr]  # `_tell` has looked
        told.addBoth(self._bounced, entry, started)

    def _bounced(self, taken: object, entry: Entry, started: Seconds) -> None:
        del self._with_bouncer[entry.number]
        if taken is True:
            self._ledger.bounced += len(entry.bouncing)
            entry.bouncing = ()
        elif isinstance(taken, Failure):
            self._log.trouble(self._mta, "bounce", taken)
        again = entry.message.envelope.recipients and entry.due is None
        if again and self._quiet is None:
            self._deliver(entry, started)  # claimed with an old bounce, which came first
        elif taken is True:
            self._settle(entry)
        else:
            self._later(entry)
        self._check_quiet()

    def _delay(self, entry: Entry, started: Seconds) -> None:
        told = maybeDeferred(self.bouncer.delayed, entry)  # type: ignore[union-attr]  # `_tell` has looked
        told.addBoth(self._delay_told, entry)

    def _delay_told(self, taken: object, entry: Entry) -> None:
        del self._with_bouncer[entry.number]
        entry.delayed = taken is True
        if isinstance(taken, Failure):
            self._log.trouble(self._mta, "delay notice", taken)
        self._settle(entry)
        self._check_quiet()

    # In from the spool

    def _claim(self) -> None:
        """Take the next window of what is due in hand, if there is room."""
        limit = min(_BATCH, self._window - len(self._in_hand) - self._reading, self.destinations.space())
        if self._claiming or not self._open or self._idle_by_order() or self._quiet is not None:
            return
        self._mind_the_clock()
        if limit <= 0:
            self._more = True  # taken up when something is done
            self._set_timer(self._wall() + self._nap)
            return
        self._claiming = True
        self._more = False
        now = self._wall()
        claimed = maybeDeferred(self.spool.claim, now, limit, self.destinations.busy())
        claimed.addCallback(self._claimed, now, limit)
        claimed.addErrback(self._claim_failed, "claim")

    def _claimed(self, entries: Sequence[Entry], now: Seconds, limit: int) -> None:
        self._claiming = False
        for entry in entries:
            self._take_up(entry, now)
        if self._quiet is not None:
            self._check_quiet()
        elif len(entries) >= limit:
            self._more = True
            self._set_timer(self._wall() + self._nap)
            if len(self._in_hand) <= self._window >> 1:
                # After the reactor's other business, and in no recursion.
                self._clock.callLater(0, self._claim)
        else:
            self._look_ahead()

    def _take_up(self, entry: Entry, started: Seconds) -> None:
        if self._quiet is not None or self._idle_by_order():
            self.spool.release(entry, started)
        elif entry.bouncing:
            entry.due = None
            self._tell(entry, started, False, self._bounce)
        elif (reply := self.destinations.refusal(entry.site)) is not None:
            # No use to read the body for this.
            replies = [reply] * len(entry.message.envelope.recipients)
            self._attempted(entry, replies, started, read=False)
        else:
            self._read(entry, started, self._deliver)

    def _read(self, entry: Entry, started: Seconds, then: Callable[[Entry, Seconds], None]) -> None:
        """Go on with the entry and its body."""
        self._reading += 1
        try:
            body = self.spool.body(entry)
        except Exception:  # noqa: BLE001 - whatever store: one unreadable entry must not stop the others
            self._unread(Failure(), entry)
            return
        if isinstance(body, Deferred):
            body.addCallbacks(self._with_body, self._unread, (entry, started, then), None, (entry,))
        else:
            self._with_body(body, entry, started, then)

    def _with_body(
        self, body: Body, entry: Entry, started: Seconds, then: Callable[[Entry, Seconds], None]
    ) -> None:
        self._reading -= 1
        message = entry.message
        if message.body is not body:
            entry.message = Message(message.envelope, message.fields, body)
        then(entry, started)
        self._check_quiet()

    def _unread(self, failure: Failure, entry: Entry) -> None:
        self._reading -= 1
        self._with_bouncer.pop(entry.number, None)
        self._log.trouble(self._mta, "body", failure)
        entry.due = None
        self._rest(entry, self._wall() + _NO_ROOM * (1 + self._jitter()))
        self._check_quiet()

    def _look_ahead(self) -> None:
        """Sleep until the next entry falls due."""
        found = maybeDeferred(self.spool.next_due, self.destinations.busy())
        found.addCallbacks(self._sleep, self._claim_failed, None, None, ("next_due",))

    def _sleep(self, due: Seconds | None) -> None:
        self._set_timer(self._wall() + self._nap if due is None else due)

    def _claim_failed(self, failure: Failure, what: str) -> None:
        self._claiming = False
        self._log.trouble(self._mta, what, failure)
        self._set_timer(self._wall() + _TROUBLE)
        self._check_quiet()

    def _set_timer(self, due: Seconds) -> None:
        """Claim at *due*, not before a second has passed and not after a nap."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
        if self._quiet is not None or not self._open:
            return
        now = self._wall()
        delay = min(max(1, due - now), self._nap)
        self._wake = now + delay
        self._timer = self._clock.callLater(delay, self._claim)

    def _mind_the_clock(self) -> None:
        """
        After a jump of the wall clock try all there is afresh.

        Backwards: what is due would not be for as long as the jump. Forwards:
        what is expired must not be given up on the word of a dead site from
        before. Either way dead sites are tried at once.
        """
        ahead = self._wall() - self._clock.seconds()
        jump, self._ahead = ahead - self._ahead, ahead
        if abs(jump) > _JUMP:
            self._log.clock_jumped(self._mta, jump)
            self.destinations.awaken()
            if jump < 0:
                self.due_now({})

    # What operators and the configuration say

    def pause(self) -> None:
        """Deliver nothing; what is on its way goes on. Intake goes on."""
        self.paused = True
        self.destinations.withdraw()

    def resume(self) -> None:
        """Deliver again."""
        self.paused = False
        self._claim()

    def refuse(self) -> None:
        """Take nothing in; delivery goes on."""
        self.refusing = True

    def accept(self) -> None:
        """Take mail in again."""
        self.refusing = False

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """Try what matches at once, dead sites too; how many entries."""
        self.destinations.awaken()
        return maybeDeferred(self.spool.due_now, query).addCallback(self._now_due)

    def _now_due(self, number: int) -> int:
        if number:
            self._more = True
            self._claim()
        return number

    def _idle_by_order(self) -> bool:
        return self.paused or not self.destinations.concurrency
