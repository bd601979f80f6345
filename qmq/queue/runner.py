"""
The queue of one instance: takes mail over, has it delivered, sees it to its end.

A message is kept (one sync for a whole batch), answered, and at the same moment
handed from memory to its destination. What could not be delivered rests in the
spool until it is due. Refilling is driven by what is delivered, not by what
comes in: a flood of new mail holds up no delivery.

An entry in hand is in exactly one place: at its destination, on its way there
while its body is read, or with the bouncer. Every way out ends in the spool's
settle or release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.destinations import UNTRIED, Destinations
from qmq.interfaces import INextHop, ISpool
from qmq.mail import NULL_SENDER, Address, Entry, Message, Octets, Reply, Seconds
from qmq.queue.claims import Claims
from qmq.queue.ledger import Bouncer, Ledger, QueueLog
from qmq.queue.schedule import Schedule
from qmq.queue.settle import settle
from qmq.queue.telling import Telling

# Sites of domains remembered.
_SITES = 10000
# Mail for which there is no room comes back after this, and up to as much again.
_NO_ROOM: Seconds = 30

log = Logger()


@implementer(INextHop)
class Queue(MultiService):
    """
    One queue.

    *site_of* gives the next-hop site of a recipient, and looks at its domain
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
        self._mta = name
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
        self._jitter = jitter
        self._stop_seconds = stop_seconds
        self._notice = notice
        self._refused = Reply(452, "4.3.2", "this queue takes no mail now, try again later", name)
        self._full = Reply(452, "4.3.1", "this queue is full, try again later", name)
        self._trouble = Reply(452, "4.3.1", "try again later", name)
        self._ledger = Ledger(name, log)
        self._in_hand: dict[int, tuple[Entry, Seconds]] = {}  # at destinations: by id() of the message; when it started
        self._keeping = 0
        self._open = False  # takes and delivers
        self._quiet: Deferred[None] | None = None  # stopping: fires when nothing is under way
        self._opened: bool | Failure = False
        self._watchers: list[Deferred[None]] = []
        claims = Claims(spool, destinations, clock, wall, nap, self._room, self._take_up, self._warn, self._check_quiet)
        self._claims = claims
        self._telling = Telling(
            spool, self._ledger, bounces, wall, jitter, self._settle, self._deliver, self._read, self._warn
        )
        destinations.alive = claims.alive
        destinations.room = lambda _: claims.soon()

    # The joint

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """
        Keep; 250 for all when it is durable.

        A token of our own store comes once, so it leaves no tombstone; of other peers' nothing is said.
        """
        token = message.envelope.token
        return self.send_in_doubt(message, token.seq + 1 if token.peer == self.spool.tag else 0)

    def send_in_doubt(self, message: Message, low: int) -> Deferred[Sequence[Reply]]:
        """As `send`; below *low* nothing of the token's peer is in doubt any more."""
        recipients = message.envelope.recipients
        spool = self.spool
        if self.refusing or not self._open:
            return succeed([self._refused] * len(recipients))
        if spool.messages >= self._limit_messages or spool.octets + message.body.size > self._limit_octets:
            return succeed([self._full] * len(recipients))
        try:
            where = [self._sites[recipient.domain] for recipient in recipients]
        except KeyError:
            where = [self._site(recipient) for recipient in recipients]
        self._keeping += 1
        kept: Deferred[Any] = spool.keep(message, where, low)
        return kept.addCallbacks(self._kept, self._not_kept, (message,), {}, (message,))

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
        try:
            now = self._wall()
            for entry in entries:
                if entry.message.body.path is None:
                    self._deliver(entry, now)
                else:
                    self._read(entry, partial(self._deliver, entry, now))  # the draft goes when we have answered
        except Exception:  # noqa: BLE001 - a fault of ours, told; the message is safe, and that is the answer
            log.failure("could not begin to deliver {id}", id=message.envelope.token.id)
        envelope = message.envelope
        reply = Reply(250, "2.0.0", "ok " + envelope.token.id.decode("ascii", "replace"), self._mta)
        self._check_quiet()
        return [reply] * len(envelope.recipients)

    def _not_kept(self, failure: Failure, message: Message) -> Sequence[Reply]:
        self._keeping -= 1
        self._warn(f"keep: {failure.getErrorMessage()}")
        self._check_quiet()
        return [self._trouble] * len(message.envelope.recipients)

    # Out to the destinations and back

    def _deliver(self, entry: Entry, started: Seconds) -> None:
        """An entry with its body: to its destination."""
        if self._holds():
            self._claims.more = True
            self.spool.release(entry, started)
            self._check_quiet()
            return
        message = entry.message
        self._in_hand[id(message)] = (entry, started)
        self.destinations.add(message, self._done, entry.site)

    def _done(self, message: Message, replies: Sequence[Reply]) -> None:
        """What became of an entry at its destination."""
        entry, started = self._in_hand.pop(id(message))
        if replies[0] is UNTRIED or (self._quiet is not None and _nobodys_word(replies)):
            self._give_back(entry)
        else:
            self._attempted(entry, replies, started)
        if self._claims.more and len(self._in_hand) <= self._window >> 1:
            self._claims.soon()

    def _give_back(self, entry: Entry) -> None:
        """Not tried: now is soon enough if its site says when it has room; else in a while."""
        now = self._wall()
        if self._holds():
            self._claims.more = True
        elif not self.destinations.full(entry.site):
            now += _NO_ROOM * (1 + self._jitter())
            self._claims.wake(now)
        self.spool.release(entry, now)

    def _attempted(self, entry: Entry, replies: Sequence[Reply], started: Seconds, read: bool = True) -> None:
        now = self._wall()
        lifetime = self._bounce_lifetime if entry.message.envelope.sender == NULL_SENDER else self._lifetime
        settled = settle(entry, replies, started, now, self._schedule, lifetime, self._jitter())
        self._ledger.enter(entry, settled, now - entry.born)
        if entry.bouncing:
            self._telling.bounce(entry, None, read)
        elif entry.due is None:
            self.spool.settle(entry)
        elif self._notice is not None and not entry.delayed and now - entry.born >= self._notice:
            self._telling.delay(entry, read)
        else:
            self._settle(entry)

    def _settle(self, entry: Entry) -> None:
        """Write it; if it is to be tried again, wake up for it."""
        self.spool.settle(entry)
        if entry.due is not None:
            self._claims.wake(entry.due)
        self._check_quiet()

    # In from the spool

    def _take_up(self, entry: Entry, started: Seconds) -> None:
        """An entry that was claimed, without its body."""
        if self._holds():
            self.spool.release(entry, started)
        elif entry.bouncing:
            self._telling.bounce(entry, started, read=False)
        elif (reply := self.destinations.refusal(entry.site)) is not None:
            # No use to read the body for this.
            self._attempted(entry, [reply] * len(entry.message.envelope.recipients), started, read=False)
        else:
            self._read(entry, partial(self._deliver, entry, started))

    def _read(self, entry: Entry, then: Callable[[], None]) -> None:
        self._claims.read(entry, then, partial(self._unread, entry))

    def _unread(self, entry: Entry, failure: Failure) -> None:
        self._telling.forget(entry)
        self._warn(f"body of entry {entry.number}: {failure.getErrorMessage()}")
        self.spool.release(entry, self._wall() + _NO_ROOM * (1 + self._jitter()))

    def _room(self) -> int:
        return min(self._window - len(self._in_hand) - self._claims.reading, self.destinations.space())

    def _holds(self) -> bool:
        """Whether nothing is to be delivered now."""
        return self.paused or self._quiet is not None or not self.destinations.concurrency

    def _warn(self, text: str) -> None:
        self._log.warning(f"{self._mta}: {text}")

    # What operators and the configuration say

    def pause(self) -> None:
        """Deliver nothing; what is on its way goes on. Intake goes on."""
        self.paused = True
        self._claims.halt()
        self.destinations.withdraw()

    def resume(self) -> None:
        """Deliver again."""
        self.paused = False
        if self._open and not self._holds():
            self._claims.run()

    def refuse(self) -> None:
        """Take nothing in; delivery goes on."""
        self.refusing = True

    def accept(self) -> None:
        """Take mail in again."""
        self.refusing = False

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """Try what matches at once, dead sites too; fires with how many entries."""
        self.destinations.awaken()
        return self._claims.due_now(query)

    def reconfigure(
        self,
        site_of: Callable[[Address], bytes],
        schedule: Schedule,
        lifetime: Seconds,
        bounce_lifetime: Seconds,
        concurrency: int,
        slots_max: int,
        limit_messages: int,
        limit_octets: Octets,
        notice: Seconds | None,
    ) -> None:
        """Take over what may change while it runs; mail that waits keeps its site and its next time."""
        self._site_of = site_of
        self._sites.clear()
        self._schedule = schedule
        self._lifetime = lifetime
        self._bounce_lifetime = bounce_lifetime
        self._limit_messages = limit_messages
        self._limit_octets = limit_octets
        self._notice = notice
        self.destinations.reconfigure(concurrency, slots_max)
        if self._holds():
            self._claims.halt()
            self.destinations.withdraw()
        elif self._open:
            self._claims.run()

    def status(self) -> dict[str, float]:
        """Plain numbers: recipients for what was done, messages for what is there, seconds for times."""
        return {
            "queued": self.spool.messages,
            "octets": self.spool.octets,
            "tombstones": self.spool.tombstones,
            "oldest": self.spool.oldest,
            "in_hand": len(self._in_hand) + self._claims.reading + len(self._telling),
            "ready": self.destinations.ready,
            "connections": self.destinations.connections,
            "bouncing": len(self._telling),
            "paused": self.paused,
            "refusing": self.refusing,
            **self._ledger.numbers(),
        }

    # The service

    def startService(self) -> None:
        """Open the spool, then go on where the last process left off."""
        super().startService()
        self._telling.bouncer = self.bouncer
        maybeDeferred(self.spool.start).addCallbacks(self._begin, self._not_begun)

    def started(self) -> Deferred[None]:
        """Fires when the spool is open, fails as its start does."""
        self._watchers.append(watcher := Deferred[None]())
        if self._opened:
            self._tell_watchers()
        return watcher

    def _begin(self, _: object) -> None:
        self._opened = True
        self._open = self._quiet is None
        if not self._holds():
            self._claims.run()
        self._tell_watchers()

    def _not_begun(self, failure: Failure) -> None:
        self._opened = failure
        self._warn(f"start: {failure.getErrorMessage()}")
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        while self._watchers:
            self._watchers.pop().callback(None if self._opened is True else self._opened)  # type: ignore[arg-type]  # or Failure

    def stopService(self) -> Deferred[None]:
        """Start nothing new, wait for what is on its way, cut it at last; then give the rest back and close."""
        opened, self._open = self._open, False
        self._quiet = quiet = Deferred[None]()
        self._telling.stopping = True
        self._claims.halt()
        ended = self.destinations.stop(self._stop_seconds) if opened else succeed(None)
        late = self._clock.callLater(self._stop_seconds + 2, self._give_up)
        self._check_quiet()
        ended.addCallback(lambda _: quiet)

        def close(_: object) -> Deferred[None]:
            if late.active():
                late.cancel()
            now = self._wall()
            for entry in [*(entry for entry, _ in self._in_hand.values()), *self._telling.give_up()]:
                self.spool.release(entry, now)
            self._in_hand.clear()
            return maybeDeferred(MultiService.stopService, self).addCallback(lambda _: self.spool.stop())

        return ended.addCallback(close)

    def _check_quiet(self) -> None:
        """While stopping: whether the spool owes us nothing any more, nor the bouncer."""
        quiet = self._quiet
        if quiet is None or quiet.called:
            return
        if not (self._keeping or self._claims.reading or self._claims.claiming or len(self._telling)):
            quiet.callback(None)

    def _give_up(self) -> None:
        if self._quiet is not None and not self._quiet.called:
            self._quiet.callback(None)


def _nobodys_word(replies: Sequence[Reply]) -> bool:
    """Whether these are no host's answers but a connection's that was cut."""
    return all(reply.temporary and not reply.mta for reply in replies)
