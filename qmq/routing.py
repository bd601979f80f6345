"""
From the primary to the instances: who gets what, and nothing lost on the way.

In the usual case nothing is stored here: all recipients belong to one
instance, and the client's reply waits for that instance's. What is uncertain
(no answer, several instances, some taken and some not) is committed to the
primary's own queue first, under the token it was handed over with, so that the
instance can tell a repetition from news.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from twisted.internet.defer import Deferred, gatherResults, succeed
from zope.interface import implementer

from qmq.interfaces import IConnection, IDialler, INextHop
from qmq.mail import Address, Envelope, Message, Octets, Replies, Reply, Seconds, Token
from qmq.session import Session, Transaction, Verdict

# Older than this, what an instance last said of itself counts for nothing: unknown means accept.
_FRESH: Seconds = 5.0

_NOWHERE = Reply(550, "5.1.2", "no queue here takes mail for that domain")
# It was somebody's at RCPT; when the client tries again it is refused there, alone.
_MOVED = Reply(451, "4.3.5", "a recipient's domain has just been taken from its queue, try again")
_NOBODYS = Verdict(_NOWHERE)
_SHARE = Verdict(Reply(452, "4.3.2", "too many sessions wait for that domain's queue, try again later"))
_BUDGET = Verdict(Reply(452, "4.3.1", "too much mail waits for that domain's queue, try again later"))
_REFUSING = Verdict(Reply(452, "4.3.2", "that domain's queue takes no mail now, try again later"))
_FULL = Verdict(Reply(452, "4.3.1", "that domain's queue is full, try again later"))
_DISK = Verdict(Reply(452, "4.3.1", "insufficient system storage"), now=True)


class HandOvers(Protocol):
    """What the primary's own queue is to the router."""

    def send(self, message: Message) -> Deferred[Replies]:
        """Durable here, to be handed over later."""


class OpenTokens:
    """
    The tokens of this process whose fate is open: given at MAIL, closed when their transaction is.

    The lowest of them, or of those stored, travels with each hand-over: below
    it an instance may forget what it has taken.
    """

    def __init__(self, next_token: Callable[[], Token], lowest_stored: Callable[[], int]) -> None:
        self._next = next_token
        self._stored = lowest_stored
        self._open: dict[int, None] = {}  # in order: numbers only grow

    def begin(self) -> Token:
        """A new token, open until `end`."""
        token = self._next()
        self._open[token.seq] = None
        return token

    def end(self, token: Token) -> None:
        """Its transaction is over: answered, stored or given up."""
        self._open.pop(token.seq, None)

    def lowest(self) -> int:
        """The lowest number in doubt."""
        stored = self._stored()
        for seq in self._open:
            return min(seq, stored)
        return stored


class Waiting:
    """What the primary's own queue holds for one instance, within its budget."""

    __slots__ = ("_born", "_entries", "_octets")

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[Octets, Seconds]] = {}  # oldest first
        self._octets = 0

    def add(self, queue_id: bytes, size: Octets, born: Seconds) -> None:
        """One message more."""
        if queue_id not in self._entries:
            self._entries[queue_id] = (size, born)
            self._octets += size

    def remove(self, queue_id: bytes) -> None:
        """It has been handed over, or has failed."""
        size, _ = self._entries.pop(queue_id, (0, 0.0))
        self._octets -= size

    def past(self, messages: int, octets: Octets, age: Seconds, now: Seconds) -> bool:
        """Whether the budget is spent."""
        if not self._entries:
            return False
        if len(self._entries) >= messages or self._octets >= octets:
            return True
        return now - next(iter(self._entries.values()))[1] > age

    def __len__(self) -> int:
        return len(self._entries)


class Intake:
    """
    Which instances take mail now: a checker of the primary, asked last (DESIGN: rules 7 and 8).

    A dead downstream host is never a reason to refuse: that is what queues are for.
    """

    def __init__(
        self,
        instance_of: Callable[[Address], str | None],
        seconds: Callable[[], Seconds],
        wall: Callable[[], Seconds],
        free: Callable[[], bool],
        *,
        sessions: int,
        share: float,
        budget: tuple[int, Octets, Seconds],
    ) -> None:
        self._instance_of = instance_of
        self._seconds = seconds
        self._wall = wall
        self._free = free
        self._at_most = max(1, int(sessions * share))
        self._budget = budget
        self._states: dict[str, tuple[Verdict | None, Seconds]] = {}
        self.under_way: dict[str, int] = {}
        self.waiting: dict[str, Waiting] = {}

    def tell(self, instance: str, state: Mapping[str, Any]) -> None:
        """What the instance says of itself: refusing, full."""
        verdict = _REFUSING if state.get("refusing") else _FULL if state.get("full") else None
        self._states[instance] = (verdict, self._seconds())

    def sender(self, session: Session, transaction: Transaction) -> Verdict | None:
        """No disk space in reserve: nothing is taken at all, as any hand-over may have to be kept here."""
        return None if self._free() else _DISK

    def recipient(self, session: Session, transaction: Transaction, recipient: Address) -> Verdict | None:
        """452 for this recipient only, if its instance takes nothing now."""
        name = self._instance_of(recipient)
        if name is None:
            return _NOBODYS
        if self.under_way.get(name, 0) >= self._at_most:
            return _SHARE
        state = self._states.get(name)
        if state is not None and state[0] is not None and self._seconds() - state[1] < _FRESH:
            return state[0]
        waiting = self.waiting.get(name)
        if waiting is not None and waiting.past(*self._budget, self._wall()):
            return _BUDGET
        return None


@implementer(INextHop)
class Router:
    """
    Recipient to instance to hand-over.

    *hops* gives each instance's INextHop, *own* is the primary's own queue
    (whose deliveries go through HandOverDialler back to the same hops).
    """

    def __init__(
        self,
        instance_of: Callable[[Address], str | None],
        hops: Mapping[str, Any],
        own: HandOvers,
        intake: Intake,
        log: Any,
        wall: Callable[[], Seconds],
    ) -> None:
        self._instance_of = instance_of
        self._hops = hops
        self._own = own
        self._intake = intake
        self._log = log
        self._wall = wall

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """
        Hand over, or keep: what is 2yz in the answer is safe on some disk.

        A client has one answer for all its recipients: where some were taken,
        the others are 2yz too, or, if they can't be kept, none is.
        """
        recipients = message.envelope.recipients
        name = self._instance_of(recipients[0])
        if len(recipients) > 1:
            names = [self._instance_of(r) for r in recipients]
            if any(n != name for n in names):
                return self._several(message, names)
        if name is None:
            return succeed([_NOWHERE] * len(recipients))
        under_way = self._intake.under_way
        under_way[name] = under_way.get(name, 0) + 1

        def answered(replies: Replies) -> Replies | Deferred[Replies]:
            under_way[name] -= 1
            if len(replies) == 1 and replies[0].code == 250:
                return replies
            return self._judge(message, name, replies)

        sent: Deferred[Replies] = self._hops[name].send(message)
        return sent.addCallback(answered)

    def _judge(self, message: Message, name: str, replies: Replies) -> Replies | Deferred[Replies]:
        """All taken, or none and the instance said so: the client's to know. Else the rest is ours to keep."""
        if all(r.ok for r in replies):
            return replies
        uncertain = any(not r.ok and not r.mta for r in replies)
        if not uncertain and not any(r.ok for r in replies):
            return replies
        # A refused one is kept as well: the next hand-over is refused again,
        # and then bounced by the ordinary way, durably.
        rest = [i for i, r in enumerate(replies) if not r.ok]
        return self._keep(message, name, rest).addCallback(_merge, rest, replies)

    def _several(self, message: Message, names: Sequence[str | None]) -> Deferred[Replies]:
        """More than one instance: ours first, then theirs."""
        if None in names:
            return succeed([_MOVED] * len(names))
        size = message.size

        def kept(ours: Replies) -> Replies:
            if all(r.ok for r in ours):
                for name in dict.fromkeys(names):
                    self._note(str(name), message, size)
            return ours

        return self._own.send(message).addCallback(kept)

    def _keep(self, message: Message, name: str, rest: Sequence[int]) -> Deferred[Replies]:
        part = _part(message, rest)

        def kept(ours: Replies) -> Replies:
            if all(r.ok for r in ours):
                self._note(name, message, part.size)
            return ours

        return self._own.send(part).addCallback(kept)

    def _note(self, name: str, message: Message, size: Octets) -> None:
        queue_id = message.envelope.token.id
        self._intake.waiting.setdefault(name, Waiting()).add(queue_id, size, self._wall())
        self._log.kept(queue_id, name)


@implementer(INextHop)
class ByDomain:
    """
    To whoever has the recipient's domain, or nowhere: the primary's bounces, where no instance is for bounces.

    Nothing is kept on the way, as the router would: their maker still has what they are made of.
    """

    def __init__(self, instance_of: Callable[[Address], str | None], hops: Mapping[str, Any]) -> None:
        self._instance_of = instance_of
        self._hops = hops

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """For a message with one recipient."""
        (recipient,) = message.envelope.recipients
        name = self._instance_of(recipient)
        if name is None:
            return succeed([_NOWHERE])
        sent: Deferred[Sequence[Reply]] = self._hops[name].send(message)
        return sent


def _part(message: Message, which: Sequence[int]) -> Message:
    """The same message, for some of its recipients."""
    envelope = message.envelope
    if len(which) == len(envelope.recipients):
        return message
    recipients = tuple(envelope.recipients[i] for i in which)
    part = Envelope(envelope.token, envelope.sender, recipients, envelope.origin, envelope.body_type, envelope.smtputf8)
    return Message(part, message.fields, message.body)


def _merge(ours: Replies, which: Sequence[int], replies: Replies) -> Replies:
    if not all(r.ok for r in ours):
        return [ours[0]] * len(replies)
    merged = list(replies)
    for i, reply in zip(which, ours, strict=True):
        merged[i] = reply
    return merged


@implementer(IDialler)
class HandOverDialler:
    """
    Delivers the primary's own queue: a site is an instance's name, a connection its hop.

    *waiting* is told what is no longer kept for whom.
    """

    def __init__(self, hops: Mapping[str, Any], waiting: dict[str, Waiting]) -> None:
        self._hops = hops
        self._waiting = waiting

    def dial(self, site: bytes, work: Any) -> Deferred[Any]:
        """Always succeeds: the hop connects by itself, and says so if it can't."""
        name = site.decode()
        connection = _HandOver(self._hops[name], self._waiting.setdefault(name, Waiting()), work)
        return succeed(connection)


@implementer(IConnection)
class _HandOver:
    """One slot for hand-overs to an instance."""

    def __init__(self, hop: Any, waiting: Waiting, work: Any) -> None:
        self._hop = hop
        self._waiting = waiting
        self._work = work
        self._busy = False
        self._closing = False
        self._gone = False

    def send(self, message: Message) -> None:
        """Hand over; then ask for the next."""
        self._busy = True
        self._hop.send(message).addCallback(self._answered, message)

    def close(self) -> None:
        """After what is outstanding."""
        self._closing = True
        if not self._busy:
            self._lost(None)

    def abort(self) -> None:
        """Its answer is waited for no longer; the hand-over's own time limit ends it."""
        self.close()

    def _answered(self, replies: Replies, message: Message) -> None:
        self._busy = False
        if all(r.ok or r.permanent for r in replies):
            self._waiting.remove(message.envelope.token.id)
        self._work.finished(message, replies)
        if not self._gone:
            unreachable = next((r for r in replies if r.temporary and not r.mta), None)
            if unreachable is not None or self._closing:
                self._lost(unreachable)
                return
            following = self._work.take()
            if following is not None:
                self.send(following)
            else:
                self._work.idle(self)

    def _lost(self, reason: Reply | None) -> None:
        if not self._gone:
            self._gone = True
            self._work.lost(self, reason)


@implementer(INextHop)
class InProcess:
    """Hand-over as a call: the instance's queue is in this process."""

    def __init__(self, queue: Any, lowest: Callable[[], int]) -> None:
        self._queue = queue
        self._lowest = lowest

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """As the queue says."""
        replies: Deferred[Sequence[Reply]] = self._queue.send_in_doubt(message, self._lowest())
        return replies


@implementer(INextHop)
class ByDestination:
    """Hand-over by SMTP or LMTP: a site like any other, delivered to while the client waits."""

    def __init__(self, destinations: Any, site: bytes, mta: str) -> None:
        self._destinations = destinations
        self._site = site
        self._mta = mta

    def send(self, message: Message) -> Deferred[Sequence[Reply]]:
        """What the host says of each recipient."""
        fate: Deferred[Sequence[Reply]] = Deferred()
        self._destinations.add(message, lambda _, replies: fate.callback(replies), self._site)
        return fate


def stop_all(hops: Mapping[str, Any]) -> Deferred[Any]:
    """Close the hand-over connections."""
    return gatherResults([hop.stop() for hop in hops.values() if hasattr(hop, "stop")])
