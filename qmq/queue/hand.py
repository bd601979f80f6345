"""
The entries in hand: what becomes of each, until it is settled or rests in the spool again.

An entry in hand is in exactly one place: at its destination, on its way there
while its body is read, or with the bouncer. Every way out ends in the spool's
settle or release. An operator's order for an entry that can't be stopped any
more is an intent: carried out when the entry is back, if anything is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from qmq.deliver.destinations import UNTRIED, Destinations
from qmq.interfaces import ISpool
from qmq.mail import HELD, QUEUE, Body, Entry, Message, Reply, Seconds
from qmq.queue.claims import Claims
from qmq.queue.ledger import Ledger
from qmq.queue.schedule import parse_schedule
from qmq.queue.settle import Order, may, obey, settle, stays
from qmq.queue.telling import Telling
from qmq.queue.terms import Terms

# Mail whose text could not be read is tried again after this, and up to as much again.
_UNREAD: Seconds = 30
# What is not taken over by another queue of ours: its worker may be back soon, whatever hosts need.
_MOVES = parse_schedule("1s 2s 5s 10s*6 30s*10 1m*60 5m")


class Hand:
    """
    Takes entries up and sees each to its end.

    *window*: how many are in hand when more is claimed; *bounces*: how many are
    with the bouncer at once; *nap*: the longest time without a look at the
    spool. *warn* hears what went wrong, *ended* when something is over.
    *given_up* (an attribute) is told of an entry for which no attempt is made
    any more though not all were delivered.
    """

    def __init__(
        self,
        spool: ISpool,
        destinations: Destinations,
        terms: Terms,
        ledger: Ledger,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        warn: Callable[[str], None],
        ended: Callable[[], None],
        *,
        window: int,
        bounces: int,
        nap: Seconds,
        jitter: Callable[[], float],
    ) -> None:
        self.terms = terms
        self.paused = False
        self.stopping = False
        self.given_up: Callable[[Entry], None] = _ignore
        self.intents: dict[int, Order] = {}  # by number, of entries in hand
        self.meets: list[Callable[[Entry], bool]] = []  # orders under way, asked of what is claimed meanwhile
        self.claims = Claims(spool, destinations, clock, wall, nap, self.room, self.take_up, warn, ended)
        self.telling = Telling(spool, ledger, bounces, wall, jitter, self.rest, self.go_on, self.read, warn)
        self._spool = spool
        self._destinations = destinations
        self._ledger = ledger
        self._wall = wall
        self._warn = warn
        self._ended = ended
        self._window = window
        self._jitter = jitter
        self._at: dict[int, tuple[Entry, Seconds]] = {}  # at destinations: by id() of the message; when it started
        self._reading: dict[int, Entry] = {}  # by number
        destinations.alive = self.claims.alive
        destinations.room = lambda _: self.claims.soon()

    def __len__(self) -> int:
        return len(self._at) + len(self._reading) + len(self.telling)

    @property
    def quiet(self) -> bool:
        """Whether neither the spool nor the bouncer owes us anything; destinations say so themselves."""
        return not (self._reading or self.claims.claiming or len(self.telling))

    def holds(self, site: bytes = b"") -> bool:
        """Whether nothing is to be delivered (there) now; a pause is not for moves to another queue."""
        if self.stopping or not self._destinations.concurrency:
            return True
        return self.paused and not site.startswith(QUEUE)

    def room(self) -> int:
        """How many more may come in hand."""
        return min(self._window - len(self._at) - len(self._reading), self._destinations.space())

    # Out to the destinations and back

    def deliver(self, entry: Entry, started: Seconds) -> None:
        """An entry with its body: to its destination."""
        if self.holds(entry.site):
            self.claims.more = True
            self._spool.release(entry, started)
            self._ended()
            return
        message = entry.message
        self._at[id(message)] = (entry, started)
        self._destinations.add(message, self._done, entry.site)

    def go_on(self, entry: Entry, started: Seconds) -> None:
        """As deliver, for what was in hand for a while."""
        if (order := self._order(entry)) is None:
            self.deliver(entry, started)
        else:
            self.carry_out(order, entry)
            self._ended()

    def _done(self, message: Message, replies: Sequence[Reply]) -> None:
        """What became of an entry at its destination."""
        found = self._at.pop(id(message), None)
        if found is None:
            return  # let go, and answered after all
        entry, started = found
        if replies[0] is UNTRIED or (self.stopping and _nobodys_word(replies)):
            self._give_back(entry)
        else:
            self._attempted(entry, replies, started)
        if self.claims.more and len(self._at) <= self._window >> 1:
            self.claims.soon()

    def _give_back(self, entry: Entry) -> None:
        """Not tried: it is claimed again when there is room, at its site or at all."""
        if (order := self._order(entry)) is not None:
            self.carry_out(order, entry)
            return
        if self.holds(entry.site) or not self._destinations.full(entry.site):
            self.claims.more = True  # a site that is full says itself when it has room
        self._spool.release(entry, self._wall())

    def _attempted(self, entry: Entry, replies: Sequence[Reply], started: Seconds, read: bool = True) -> None:
        now = self._wall()
        recipients = entry.message.envelope.recipients
        if len(recipients) == 1 and replies[0].ok and not (self.intents or entry.bouncing):
            self._ledger.taken(entry, ((recipients[0], replies[0]),), now - entry.born)
            self._spool.done(entry)
            return
        terms = self.terms
        schedule, lifetime = terms.schedule, terms.lifetime_of(entry.message.envelope.sender)
        if entry.site.startswith(QUEUE):
            # It may have been taken there: that is no failure, and is not to be told as one. It ages there.
            replies, schedule, lifetime = [stays(reply) for reply in replies], _MOVES, inf
        order = self._order(entry)
        if order is not None and order.word == "bounce":
            replies = [order.reply if reply.temporary else reply for reply in replies]
        settled = settle(entry, replies, started, now, schedule, lifetime, self._jitter())
        self._ledger.enter(entry, settled, now - entry.born)
        if order is not None and (entry.due is not None or order.word == "delete"):
            self._obey(order, entry, now)
        elif entry.due is None and settled.failed:
            self.given_up(entry)
        if entry.bouncing:
            if order is not None and order.word == "bounce" and entry.due is not None:
                self.intents[entry.number] = order  # an earlier bounce is in the way: when it is taken over
            self.telling.bounce(entry, None, read)
        elif entry.due is None:
            self._spool.settle(entry)
        elif terms.notice is not None and not entry.delayed and terms.notice <= now - entry.born and entry.due < HELD:
            self.telling.delay(entry, read)
        else:
            self.rest(entry)

    def rest(self, entry: Entry) -> None:
        """Write it, with its due; if it is to be tried again, wake up for it."""
        if (order := self._order(entry)) is not None and may(order, entry):
            self._obey(order, entry, self._wall())
            if order.word == "bounce":
                self.telling.bounce(entry, None, read=False)
                return
        self._spool.settle(entry)
        if entry.due is not None:
            self.claims.wake(entry.due)
        self._ended()

    # In from the spool

    def take_up(self, entry: Entry, started: Seconds) -> bool:
        """An entry that was claimed, without its body; False: its host is dead, and it was put off untried."""
        if self.meets and any(meet(entry) for meet in self.meets):
            return True
        if self.holds(entry.site):
            self._spool.release(entry, started)
        elif entry.bouncing:
            self.telling.bounce(entry, started, read=False)
        elif (reply := self._destinations.refusal(entry.site)) is not None:
            # No use to read the body for this.
            self._attempted(entry, [reply] * len(entry.message.envelope.recipients), started, read=False)
            return False
        else:
            self.read(entry, partial(self.go_on, entry, started))
        return True

    def read(self, entry: Entry, then: Callable[[], None]) -> None:
        """Go on when the entry has its body, of the spool's own; at once if it is in memory."""
        self._reading[entry.number] = entry
        try:
            body = self._spool.body(entry)
        except Exception:  # noqa: BLE001 - whatever store: one unreadable entry must not stop the others
            self._unread(Failure(), entry)
            return
        if isinstance(body, Deferred):
            body.addCallbacks(self._read, self._unread, (entry, then), {}, (entry,))
        else:
            self._read(body, entry, then)

    def _read(self, body: Body, entry: Entry, then: Callable[[], None]) -> None:
        del self._reading[entry.number]
        message = entry.message
        if message.body is not body:
            entry.message = Message(message.envelope, message.fields, body)
        then()
        self._ended()

    def _unread(self, failure: Failure, entry: Entry) -> None:
        del self._reading[entry.number]
        self.telling.forget(entry)
        self._warn(f"body of entry {entry.number}: {failure.getErrorMessage()}")
        if (order := self._order(entry)) is not None and order.word != "bounce":
            self.carry_out(order, entry)
        else:
            self._spool.release(entry, self._wall() + _UNREAD * (1 + self._jitter()))
        self._ended()

    # What operators say

    def entries(self) -> list[Entry]:
        """All that are in hand."""
        return [*(entry for entry, _ in self._at.values()), *self._reading.values(), *self.telling.entries()]

    def has(self, entry: Entry) -> bool:
        """Whether it is still in hand."""
        number = entry.number
        return self.entry(entry.message) is entry or number in self._reading or self.telling.has(number)

    def entry(self, message: Message) -> Entry | None:
        """The entry at its destination that a message is of."""
        found = self._at.get(id(message))
        return None if found is None else found[0]

    def carry_out(self, order: Order, entry: Entry) -> bool:
        """Do what was ordered with an entry that is in hand and nowhere else; False: it is left alone, due now."""
        now = self._wall()
        word = order.word
        if not may(order, entry):
            first = word == "bounce" and bool(entry.message.envelope.recipients)
            if first:
                # When its earlier bounce is taken over; if it is not, the order is as good as not given.
                self.intents[entry.number] = order
                entry.due = now
                self.telling.bounce(entry, None, read=False)
            else:
                self._spool.release(entry, now)
                self.claims.soon()
            return first
        if word in {"hold", "release"}:
            self._spool.release(entry, HELD if word == "hold" else now)
        else:
            self._obey(order, entry, now)
            if word == "bounce":
                self.telling.bounce(entry, None, read=False)
            else:
                self._spool.settle(entry)
        if word in {"release", "move"}:
            self.claims.soon()
        return True

    def _order(self, entry: Entry) -> Order | None:
        return self.intents.pop(entry.number, None) if self.intents else None

    def _obey(self, order: Order, entry: Entry, now: Seconds) -> None:
        if may(order, entry):
            self._ledger.enter(entry, obey(order, entry, now), now - entry.born)
            if entry.due is None:
                self.given_up(entry)

    def let_go(self) -> None:
        """Give back all that is waited for no longer."""
        now = self._wall()
        for entry in [*(entry for entry, _ in self._at.values()), *self.telling.give_up()]:
            self._spool.release(entry, now)
        self._at.clear()
        self.intents.clear()


def _nobodys_word(replies: Sequence[Reply]) -> bool:
    """Whether these are no host's answers but a connection's that was cut."""
    return all(reply.temporary and not reply.mta for reply in replies)


def _ignore(_: Any) -> None:
    """Nobody listens."""
