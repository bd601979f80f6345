"""
What an operator orders done with the messages that match a query.

Those that rest are seized piece by piece: deliveries, intake and claims go on
in between, and the reactor is held up for some milliseconds at a time however
many there are. Those in hand are stopped where they wait for a connection; for
one that is really on its way the order is carried out when its attempt is over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from qmq.deliver.destinations import Destinations
from qmq.interfaces import ISpool, SpoolTrouble
from qmq.mail import QUEUE, Entry, Message, Reply, Seconds, value
from qmq.queue.hand import Hand
from qmq.queue.settle import RETURNED, Order, may
from qmq.spool.query import parse

WORDS = ("hold", "release", "now", "delete", "bounce", "move")

# Entries seized at once, one sync for all, and how many of them are acted on in one turn of the reactor.
_PIECE = 500
_TURN = 100


@value
class Acted:
    """How many were acted on; how many more will be *later*, when their attempt is over and if anything is left."""

    done: int
    later: int


class _Round:
    """One order on its way through the queue."""

    def __init__(
        self, order: Order, words: Mapping[str, str], now: Seconds, told: Callable[[int], None]
    ) -> None:  # fmt: skip
        self.order = order
        # What can be released is held: nobody has to say so. In hand nothing is.
        self.words = {**words, "state": "held"} if order.word == "release" else words
        self.matches = parse(words, now).matches
        self.told = told
        self.done = 0
        self.later = 0
        self.stopped = False
        self._counted: set[int] = set()

    def count(self, entry: Entry) -> bool:
        """Whether it is the first time; what was met in hand may be seized when it rests."""
        fresh = entry.number not in self._counted
        self._counted.add(entry.number)
        return fresh

    def seized(self, entry: Entry) -> None:
        """As count, for the last time: numbers only grow."""
        if entry.number in self._counted:
            self._counted.discard(entry.number)
        else:
            self.done += 1


class Orders:
    """Carries orders out on the queue *name*; *movable*: whether its mail may go to another queue."""

    def __init__(
        self,
        name: str,
        spool: ISpool,
        destinations: Destinations,
        hand: Hand,
        clock: IReactorTime,
        wall: Callable[[], Seconds],
        *,
        movable: bool,
    ) -> None:
        self._name = name
        self._spool = spool
        self._destinations = destinations
        self._hand = hand
        self._clock = clock
        self._wall = wall
        self._movable = movable

    def act(
        self, word: str, query: Mapping[str, str], told: Callable[[int], None], to: str, reason: str
    ) -> Deferred[Acted]:
        """As Queue.act."""
        answer: Deferred[Acted]
        try:
            round_ = _Round(self._order(word, query, to, reason), query, self._wall(), told)
        except ValueError as error:
            answer = Deferred()
            answer.errback(error)
            return answer

        def stop(_: Deferred[Acted]) -> None:
            round_.stopped = True  # after the piece that is under way: what was seized must not be left so

        def tell(outcome: Acted | Failure) -> None:
            if not answer.called:  # else nobody waits any more
                answer.callback(outcome)  # a Failure is an errback

        answer = Deferred(stop)
        carry = self._make_due(round_) if word == "now" else self._carry(round_)
        Deferred.fromCoroutine(carry).addBoth(tell)
        return answer

    def _order(self, word: str, query: Mapping[str, str], to: str, reason: str) -> Order:
        """Raises ValueError with a text for who asked."""
        if word not in WORDS:
            raise ValueError(f"{word!r} is no order; say {', '.join(WORDS)}")
        if word == "release" and query.get("state", "held") != "held":
            raise ValueError("only what is held can be released")
        if word == "move" and to in {"", self._name}:
            raise ValueError(f"say which queue it is to go to, another than {self._name}")
        site = QUEUE + to.encode() if word == "move" else b""
        return Order(word, site, Reply(RETURNED.code, RETURNED.status, reason) if reason else RETURNED)

    async def _make_due(self, round_: _Round) -> Acted:
        self._destinations.awaken()
        done = await self._hand.claims.due_now(round_.words)
        round_.told(done)
        return Acted(done, 0)

    async def _carry(self, round_: _Round) -> Acted:
        if round_.order.word == "move" and not self._movable:
            return Acted(0, 0)
        meets = self._hand.meets

        def meet(entry: Entry) -> bool:
            return self._meet(round_, entry)

        if round_.order.word != "release":  # what is held is not claimed
            meets.append(meet)
        try:
            await self._stop_those_in_hand(round_)
            await self._seize(round_)
        finally:
            if meet in meets:
                meets.remove(meet)
        return Acted(round_.done, round_.later)

    def _meet(self, round_: _Round, entry: Entry) -> bool:
        """An entry was claimed behind the back of the order, or before it came to it."""
        if not may(round_.order, entry) or entry.site == round_.order.site or not round_.matches(entry):
            return False
        round_.done += round_.count(entry)
        self._hand.carry_out(round_.order, entry)
        return True

    async def _stop_those_in_hand(self, round_: _Round) -> None:
        entries = self._hand.entries()
        for start in range(0, len(entries), _TURN):
            if start:
                await self._breathe()
            self._stop(round_, entries[start : start + _TURN])
            round_.told(round_.done)

    def _stop(self, round_: _Round, entries: list[Entry]) -> None:
        hand, order = self._hand, round_.order
        waiting: dict[bytes, list[Message]] = defaultdict(list)
        stopped = []
        for entry in entries:
            if not hand.has(entry) or not round_.matches(entry):
                continue
            if order.word != "release":
                hand.intents[entry.number] = order
                waiting[entry.site].append(entry.message)
                stopped.append(entry)
            elif (intent := hand.intents.get(entry.number)) is not None and intent.word == "hold":
                del hand.intents[entry.number]
                round_.done += round_.count(entry)
        for site, messages in waiting.items():
            self._destinations.withdraw(site, messages)
        for entry in stopped:
            if round_.count(entry):
                round_.later += entry.number in hand.intents
                round_.done += entry.number not in hand.intents

    async def _seize(self, round_: _Round) -> None:
        after: int | None = 0
        while after is not None and not round_.stopped:
            entries, after = await self._spool.seize(round_.words, after, _PIECE)
            for start in range(0, len(entries), _TURN):
                if start:
                    await self._breathe()
                if self._hand.stopping:
                    raise SpoolTrouble(f"{self._name} is stopping")  # the next start finds them as they were
                for entry in entries[start : start + _TURN]:
                    if self._hand.carry_out(round_.order, entry):
                        round_.seized(entry)
            round_.told(round_.done)

    def _breathe(self) -> Deferred[None]:
        return deferLater(self._clock, 0)
