"""
The queue of one instance: takes mail over, has it delivered, sees it to its end.

A message is kept (one sync for a whole batch), answered, and at the same moment
handed from memory to its destination. What could not be delivered rests in the
spool until it is due. Refilling is driven by what is delivered, not by what
comes in: a flood of new mail holds up no delivery.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import random
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.deliver.destinations import Destinations
from qmq.interfaces import INextHop, ISpool
from qmq.mail import QUEUE, Address, Entry, Message, Reply, Seconds
from qmq.queue.hand import Hand
from qmq.queue.ledger import Bouncer, Ledger, QueueLog
from qmq.queue.marks import PAUSED, REFUSING, Marks
from qmq.queue.moves import Moves
from qmq.queue.orders import Acted, Orders
from qmq.queue.terms import Terms

__all__ = ["Acted", "Queue", "Terms"]

# Sites of domains remembered.
_SITES = 10000
# A spool that cannot be opened is tried again after this.
_AGAIN: Seconds = 10

log = Logger()


@implementer(INextHop)
class Queue(MultiService):
    """
    One queue.

    *site_of* gives the next-hop site of a recipient, and looks at its domain
    alone. *wall* is the wall clock, *clock* runs on monotonic time. *window*
    bounds what is in hand when more is claimed, *bounces* how many are with the
    bouncer at once. *nap* is the longest time without a look at the spool.
    *marks* keep `pause` and `refuse` over a crash; they are read at the start.
    Unless *movable* nothing is moved to another queue by an operator: what
    waits may have been taken already where it is handed over to.

    *given_up* (an attribute) is told of an entry that leaves though not all of
    it was delivered: failed, expired, deleted, returned.
    """

    def __init__(
        self,
        name: str,
        spool: ISpool,
        destinations: Destinations,
        site_of: Callable[[Address], bytes],
        terms: Terms,
        bouncer: Bouncer | None,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        log: QueueLog,
        *,
        marks: Marks | None = None,
        movable: bool = True,
        window: int = 1000,
        bounces: int = 100,
        jitter: Callable[[], float] = random,
        stop_seconds: Seconds = 10,
        nap: Seconds = 30,
    ) -> None:
        super().__init__()
        self.setName(name)
        self.spool = spool
        self.destinations = destinations
        self.refusing = False
        self._mta = name
        self._site_of = site_of
        self._sites: dict[bytes, bytes] = {}
        self._terms = terms
        self._clock = clock
        self._wall = wall
        self._log = log
        self._marks = Marks(None) if marks is None else marks
        self._stop_seconds = stop_seconds
        self._taken = Reply(250, "2.0.0", "ok", name)  # to a peer, who knows the queue id: it is its own
        self._refused = Reply(452, "4.3.2", "this queue takes no mail now, try again later", name)
        self._full = Reply(452, "4.3.1", "this queue is full, try again later", name)
        self._trouble = Reply(452, "4.3.1", "try again later", name)
        self._ledger = Ledger(name, log)
        self._keeping = 0
        self._open = False  # takes and delivers
        self._quiet: Deferred[None] | None = None  # stopping: fires when nothing is under way
        self._opened: bool | Failure = False
        self._again: IDelayedCall | None = None  # the next attempt to open the spool
        self._watchers: list[Deferred[None]] = []
        self._hand = hand = Hand(
            spool, destinations, terms, self._ledger, clock, wall, self._warn, self._check_quiet,
            window=window, bounces=bounces, nap=nap, jitter=jitter,
        )  # fmt: skip
        self._orders = Orders(name, spool, destinations, hand, clock, wall, movable=movable)
        self._moves = Moves(spool, clock, wall, self._moves_alone, hand.room, hand.take_up, self._warn)
        self.bouncer = bouncer

    @property
    def bouncer(self) -> Bouncer | None:
        """Who tells senders; None: bounces wait."""
        return self._hand.telling.bouncer

    @bouncer.setter
    def bouncer(self, bouncer: Bouncer | None) -> None:
        self._hand.telling.bouncer = bouncer

    @property
    def given_up(self) -> Callable[[Entry], None]:
        """Told of entries that leave undelivered."""
        return self._hand.given_up

    @given_up.setter
    def given_up(self, told: Callable[[Entry], None]) -> None:
        self._hand.given_up = told

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
        if len(recipients) == 1 and (site := self._sites.get(recipients[0].domain)) is not None:
            return self.take(message, (site,), low)
        return self.take(message, [self._site(recipient) for recipient in recipients], low)

    def take(self, message: Message, sites: Sequence[bytes], low: int) -> Deferred[Sequence[Reply]]:
        """As `send_in_doubt`; each recipient has its site, whatever *site_of* would say."""
        spool = self.spool
        if self.refusing or not self._open:
            return succeed([self._refused] * len(sites))
        if self._terms.full(spool, message.body.size, self._wall):
            return succeed([self._full] * len(sites))
        self._keeping += 1
        kept: Deferred[Any] = spool.keep(message, sites, low)
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
            hand = self._hand
            for entry in entries:
                if entry.message.body.path is None:
                    hand.deliver(entry, now)
                else:
                    hand.read(entry, partial(hand.go_on, entry, now))  # the draft goes when we have answered
        except Exception:  # noqa: BLE001 - a fault of ours, told; the message is safe, and that is the answer
            log.failure("could not begin to deliver {id}", id=message.envelope.token.id)
        envelope = message.envelope
        token = envelope.token
        reply = self._taken
        if token.peer == self.spool.tag:
            reply = Reply(250, "2.0.0", "ok " + token.id.decode("ascii", "replace"), self._mta)
        if self._quiet is not None:
            self._check_quiet()
        return [reply] * len(envelope.recipients)

    def _not_kept(self, failure: Failure, message: Message) -> Sequence[Reply]:
        self._keeping -= 1
        self._warn(f"keep: {failure.getErrorMessage()}")
        self._check_quiet()
        return [self._trouble] * len(message.envelope.recipients)

    # What operators and the configuration say

    @property
    def paused(self) -> bool:
        """Whether nothing is delivered."""
        return self._hand.paused

    @property
    def full(self) -> str:
        """Why nothing more is taken in now: the setting that is reached, or the spool's word; empty: it is."""
        return self._terms.full(self.spool, 1, self._wall)

    def entry(self, message: Message) -> Entry | None:
        """The entry that a message at its destination is of."""
        return self._hand.entry(message)

    def act(
        self, order: str, query: Mapping[str, str], told: Callable[[int], None], to: str = "", reason: str = ""
    ) -> Deferred[Acted]:
        """
        Have done what an operator *order*s with all that match (qmq.spool.query); *told* hears how many so far.

        hold: it waits for release, however long; an age limit counts it.
        release: what is held is due now. now: what is not held is due now, dead
        sites too. delete: it goes, and nobody is told. bounce: it fails with
        *reason*, and its sender is told. move: it goes to the queue *to*, as a
        hand-over; left alone, but due now, is what may have been taken
        elsewhere already (`qmq.queue.settle.may`).

        Cancelled it ends after the piece that is under way. Fails with
        ValueError, with a text for who asked, or SpoolTrouble.
        """
        acted = self._orders.act(order, query, told, to, reason)
        return acted.addBoth(self._go_on_moving) if order == "move" else acted

    def _go_on_moving(self, acted: Acted | Failure) -> Acted | Failure:
        self._moves.begin()
        return acted

    def pause(self) -> Deferred[None]:
        """Deliver nothing; what is on its way goes on, and so does intake. Fires when it would survive a crash."""
        self._hold_still()
        return self._mark(PAUSED, True)

    def resume(self) -> Deferred[None]:
        """Deliver again; as `pause`."""
        self._hand.paused = False
        if self._open and not self._hand.holds():
            self._hand.claims.run()
        return self._mark(PAUSED, False)

    def refuse(self) -> Deferred[None]:
        """Take nothing in; delivery goes on. Fires when it would survive a crash."""
        self.refusing = True
        return self._mark(REFUSING, True)

    def accept(self) -> Deferred[None]:
        """Take mail in again; as `refuse`."""
        self.refusing = False
        return self._mark(REFUSING, False)

    def _moves_alone(self) -> bool:
        """Whether nothing goes but moves to other queues."""
        return self._open and self.paused and not self._hand.holds(QUEUE)

    def _hold_still(self) -> None:
        self._hand.paused = True
        self._hand.claims.halt()
        self.destinations.withdraw_all()
        self._moves.begin()

    def _mark(self, word: str, on: bool) -> Deferred[None]:
        return self._marks.set(word, on).addErrback(self._not_marked)

    def _not_marked(self, failure: Failure) -> Failure:
        self._warn(f"it is so until the next start only: {failure.getErrorMessage()}")
        return failure

    def due_now(self, query: Mapping[str, str]) -> Deferred[int]:
        """Try what matches at once, dead sites too; fires with how many entries."""
        self.destinations.awaken()
        return self._hand.claims.due_now(query)

    def reconfigure(self, site_of: Callable[[Address], bytes], terms: Terms, bouncer: Bouncer | None) -> None:
        """
        Take over what may change while it runs; mail that waits keeps its site and its next time.

        *destinations* are reconfigured before, by whoever made them.
        """
        self._site_of = site_of
        self._sites.clear()
        self._terms = self._hand.terms = terms
        self.bouncer = bouncer
        if self._hand.holds():
            self._hand.claims.halt()
            self.destinations.withdraw_all()
        elif self._open:
            self._hand.claims.run()

    def status(self) -> dict[str, Any]:
        """Numbers: recipients for what was done, messages for what is there, seconds for times; *full* is `full`."""
        spool = self.spool
        return {
            "queued": spool.messages,
            "octets": spool.octets,
            "tombstones": spool.tombstones,
            "oldest": max(0.0, self._wall() - spool.birth),
            "in_hand": len(self._hand),
            "ready": self.destinations.ready,
            "connections": self.destinations.connections,
            "bouncing": len(self._hand.telling),
            "paused": self.paused,
            "refusing": self.refusing,
            "full": self.full,
            **self._ledger.numbers(),
        }

    # The service

    def startService(self) -> None:
        """Open the spool, then go on where the last process left off."""
        super().startService()
        self._start_spool()

    def started(self) -> Deferred[None]:
        """
        Fires when the spool is open, fails as its start does.

        A start that failed is tried again every 10 s, and may be waited for anew.
        """
        self._watchers.append(watcher := Deferred[None]())
        if self._opened is True:
            self._tell_watchers()
        return watcher

    def _start_spool(self) -> None:
        self._again = None
        if self._quiet is None and self._opened is not True:
            maybeDeferred(self.spool.start).addCallbacks(self._begin, self._not_begun)

    def _begin(self, _: object) -> None:
        marks = self._marks.read()
        self._hand.paused = self.paused or PAUSED in marks
        self.refusing = self.refusing or REFUSING in marks
        self._opened = True
        self._open = self._quiet is None
        if not self._hand.holds():
            self._hand.claims.run()
        self._moves.begin()
        self._tell_watchers()

    def _not_begun(self, failure: Failure) -> None:
        self._opened = failure
        self._warn(f"start: {failure.getErrorMessage()}")
        if self._quiet is None:
            self._again = self._clock.callLater(_AGAIN, self._start_spool)
        self._tell_watchers()

    def _tell_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []  # who is told may wait anew, for the next attempt
        for watcher in watchers:
            watcher.callback(None if self._opened is True else self._opened)  # type: ignore[arg-type]  # or Failure

    def stopService(self) -> Deferred[None]:
        """Start nothing new, wait for what is on its way, cut it at last; then give the rest back and close."""
        opened, self._open = self._open, False
        self._quiet = quiet = Deferred[None]()
        hand = self._hand
        hand.stopping = hand.telling.stopping = True
        hand.claims.halt()
        if self._again is not None and self._again.active():
            self._again.cancel()
        ended = self.destinations.stop(self._stop_seconds) if opened else succeed(None)
        late = self._clock.callLater(self._stop_seconds + 2, self._give_up)
        self._check_quiet()
        ended.addCallback(lambda _: quiet)

        def close(_: object) -> Deferred[None]:
            if late.active():
                late.cancel()
            hand.let_go()
            return maybeDeferred(MultiService.stopService, self).addCallback(lambda _: self.spool.stop())

        return ended.addCallback(close)

    def _check_quiet(self) -> None:
        """While stopping: whether the spool owes us nothing any more, nor the bouncer."""
        if self._quiet is not None and not self._keeping and self._hand.quiet:
            self._give_up()

    def _give_up(self) -> None:
        if self._quiet is not None and not self._quiet.called:
            self._quiet.callback(None)

    def _warn(self, text: str) -> None:
        self._log.warning(f"{self._mta}: {text}")
