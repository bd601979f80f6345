"""Queues whose sites are instances: what the primary kept, and what an operator moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from qmq.interfaces import IConnection, IDialler
from qmq.mail import QUEUE, DeliveryFailure, Entry, Message, Replies, Reply, Token
from qmq.routing.states import Waiting

_AWAY = Reply(451, "4.3.2", "that queue's process is not running, try again later")
_NO_QUEUE = Reply(451, "4.3.5", "there is no queue of that name")


@implementer(IDialler)
class HandOverDialler:
    """
    Delivers the primary's own queue: a site is an instance's name, a connection its hop.

    *waiting* is told what is no longer kept for whom; nobody is dialled who is *away*.
    """

    def __init__(self, hops: Mapping[str, Any], waiting: dict[str, Waiting], away: Callable[[str], bool]) -> None:
        self._hops = hops
        self._waiting = waiting
        self._away = away

    def dial(self, site: bytes, work: Any) -> Deferred[Any]:
        """At once: the hop connects by itself, and says so if it can't."""
        name = site.decode()
        hop = self._hops.get(name)
        if hop is None or self._away(name):
            return fail(DeliveryFailure(_NO_QUEUE if hop is None else _AWAY))
        waiting = self._waiting.setdefault(name, Waiting())
        return succeed(_HandOver(hop, work, _as_it_is, lambda message: waiting.remove(message.envelope.token.id)))


@implementer(IDialler)
class MoveDialler:
    """
    Sites ``queue:NAME`` of an instance's own queue: a durable move to another instance; all others are *others*'.

    *hop* gives the INextHop of a name, or None; *entry* the entry that a
    message in hand is of. The other queue hears the move under a token made of
    *tag* and the entry's number, and when the message was born: repeated after
    a crash it is known there, and a message that comes back is news.
    """

    def __init__(
        self,
        others: Any,
        hop: Callable[[str], Any],
        entry: Callable[[Message], Entry | None],
        tag: Callable[[], bytes],
    ) -> None:
        self._others = others
        self._hop = hop
        self._entry = entry
        self._tag = tag

    def dial(self, site: bytes, work: Any) -> Deferred[Any]:
        """As others dial; a queue that is not there now may be so later."""
        if not site.startswith(QUEUE):
            dialled: Deferred[Any] = self._others.dial(site, work)
            return dialled
        hop = self._hop(site.removeprefix(QUEUE).decode())
        if hop is None:
            return fail(DeliveryFailure(_NO_QUEUE))
        return succeed(_HandOver(hop, work, self._dress, _nothing))

    def _dress(self, message: Message) -> Message:
        entry = self._entry(message)
        assert entry is not None  # whoever gives it to a connection has it in hand
        envelope = message.envelope
        moved = replace(
            envelope,
            token=Token(self._tag() + b".m", entry.number),
            origin=replace(envelope.origin, born=entry.born),
        )
        return Message(moved, message.fields, message.body)


def _as_it_is(message: Message) -> Message:
    return message


def _nothing(message: Message) -> None:
    """Nobody counts it."""


@implementer(IConnection)
class _HandOver:
    """One slot for hand-overs to an instance: *dress* makes of a message what is sent, *over* hears what is settled."""

    def __init__(
        self, hop: Any, work: Any, dress: Callable[[Message], Message], over: Callable[[Message], None]
    ) -> None:
        self._hop = hop
        self._work = work
        self._dress = dress
        self._over = over
        self._busy = False
        self._closing = False
        self._gone = False

    def send(self, message: Message) -> None:
        """Hand over; then ask for the next."""
        self._busy = True
        self._hop.send(self._dress(message)).addCallback(self._answered, message)

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
            self._over(message)
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
