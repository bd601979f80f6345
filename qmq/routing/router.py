"""
Recipient to instance to hand-over.

In the usual case nothing is stored here: all recipients belong to one
instance, and the client's reply waits for that instance's. What is uncertain
(no answer, several instances, some taken and some not) is committed to the
primary's own queue first, under the token it was handed over with, so that the
instance can tell a repetition from news.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from qmq.interfaces import INextHop
from qmq.mail import Address, Envelope, Message, Octets, Replies, Reply, Seconds
from qmq.routing.intake import Intake
from qmq.routing.states import Waiting

_FULL = 452
_NOWHERE = Reply(550, "5.1.2", "no queue here takes mail for that domain")
# It was somebody's at RCPT; when the client tries again it is refused there, alone.
_MOVED = Reply(451, "4.3.5", "a recipient's domain has just been taken from its queue, try again")


class HandOvers(Protocol):
    """What the primary's own queue is to the router."""

    def take(self, message: Message, names: Sequence[str]) -> Deferred[Replies]:
        """Durable here, to be handed over later: for each recipient to the instance of that name."""


@implementer(INextHop)
class Router:
    """
    Recipient to instance to hand-over.

    *instance_of* says who gets a recipient's mail now, *hops* gives each
    instance's INextHop, *own* is the primary's own queue (whose deliveries go
    through HandOverDialler back to the same hops). What is for an instance that
    is away is kept there at once: its clients need not wait for its return.
    """

    def __init__(
        self,
        instance_of: Callable[[Address], str | None],
        hops: Mapping[str, Any],
        own: HandOvers,
        intake: Intake,
        away: Callable[[str], bool],
        log: Any,
        wall: Callable[[], Seconds],
    ) -> None:
        self._instance_of = instance_of
        self._hops = hops
        self._own = own
        self._intake = intake
        self._away = away
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
        return self._hand_over(message, name)

    def _hand_over(self, message: Message, name: str) -> Deferred[Replies]:
        if self._away(name):
            return self._keep(message, name, range(len(message.envelope.recipients)))
        under_way = self._intake.under_way
        under_way[name] = under_way.get(name, 0) + 1
        sent: Deferred[Replies] = self._hops[name].send(message)
        return sent.addCallback(self._answered, message, name)

    def _answered(self, replies: Replies, message: Message, name: str) -> Replies | Deferred[Replies]:
        self._intake.under_way[name] -= 1
        if len(replies) == 1 and replies[0].code == 250:
            return replies
        return self._judge(message, name, replies)

    def _judge(self, message: Message, name: str, replies: Replies) -> Replies | Deferred[Replies]:
        """All taken, or none and the instance said so: the client's to know. Else the rest is ours to keep."""
        if all(r.ok for r in replies):
            return replies
        uncertain = any(not r.ok and not r.mta for r in replies)
        if not uncertain and not any(r.ok for r in replies):
            # It may have become full, or been told to refuse, since it last said so.
            if all(r.code == _FULL for r in replies) and (other := self._intake.instead_of(name)):
                return self._hand_over(message, other)
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

        return self._own.take(_born(message, self._wall()), [str(name) for name in names]).addCallback(kept)

    def _keep(self, message: Message, name: str, rest: Sequence[int]) -> Deferred[Replies]:
        part = _born(_part(message, rest), self._wall())

        def kept(ours: Replies) -> Replies:
            if all(r.ok for r in ours):
                self._note(name, message, part.size)
            return ours

        # In doubt nothing is re-routed, whatever its instance or the configuration says by now.
        return self._own.take(part, [name] * len(part.envelope.recipients)).addCallback(kept)

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


def _born(message: Message, now: Seconds) -> Message:
    """What is kept here for a while grows old meanwhile, and its instance shall know."""
    envelope = message.envelope
    origin = envelope.origin
    if origin.born:
        return message
    return Message(replace(envelope, origin=replace(origin, born=now)), message.fields, message.body)
