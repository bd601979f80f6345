"""
What an attempt, or an operator, has made of an entry: who is done, who waits, who failed.

Pure: an entry, the replies and the times in; the entry changed, and what
happened for the log out. A delivered recipient leaves. A deferred one stays
with its latest reply. A failed one (5yz, or 4yz from an attempt after the
lifetime) moves to *bouncing* until its bounce has been taken over. What a null
sender means for a bounce is the bouncer's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from qmq.mail import HELD, QUEUE, Address, Entry, Envelope, Message, Reply, Seconds, value
from qmq.queue.schedule import Schedule, expired

Outcomes = tuple[tuple[Address, Reply], ...]


@value
class Settled:
    """What an attempt or an order has made of each recipient, for the log."""

    delivered: Outcomes = ()
    deferred: Outcomes = ()
    failed: Outcomes = ()
    deleted: tuple[Address, ...] = ()


# What senders are told of mail that an operator returns, if he says nothing else.
RETURNED = Reply(554, "5.7.1", "returned by the operator of this gateway")


@value
class Order:
    """What an operator wants done with an entry: *word* is hold, release, delete, bounce or move."""

    word: str
    site: bytes = b""  # move: where to
    reply: Reply = RETURNED  # bounce: what senders are told


# The hop owes a reply for each recipient; one that it did not give must not count as delivered.
_NO_REPLY = Reply(451, "4.3.0", "no reply for this recipient")


def settle(
    entry: Entry,
    replies: Sequence[Reply],
    started: Seconds,
    now: Seconds,
    schedule: Schedule,
    lifetime: Seconds,
    jitter: float = 0.0,
) -> Settled:
    """
    Change *entry* by the *replies* to an attempt that *started* then and is over *now* (wall clock).

    Afterwards its due is None if no recipient is left. One generation of
    bounces at a time: while an earlier one waits to be taken over, a recipient
    that fails stays, and its next attempt decides; else two bounces under two
    tokens would tell of the same recipient.
    """
    envelope = entry.message.envelope
    recipients = envelope.recipients
    entry.attempts += 1
    final = expired(entry.born, started, lifetime)
    may_fail = not entry.bouncing
    taken: list[tuple[Address, Reply]] = []
    deferred: list[tuple[Address, Reply]] = []
    failed: list[tuple[Address, Reply]] = []
    for i, recipient in enumerate(recipients):
        reply = replies[i] if i < len(replies) else _NO_REPLY
        if reply.ok:
            taken.append((recipient, reply))
        elif may_fail and reply.permanent:
            failed.append((recipient, reply))
        elif may_fail and final:
            failed.append((recipient, _given_up(reply, now - entry.born)))
        else:
            deferred.append((recipient, reply))
    _keep_only(entry, tuple(deferred))
    if deferred:
        # As qmail: counted from the start of the attempt, so that a slow host does not slow the schedule.
        due = schedule.next_attempt(entry.born, started, entry.attempts - 1, jitter)
        entry.due = max(due, now + 1)
    if failed:
        entry.bouncing = tuple(failed)
        entry.generation += 1
    return Settled(tuple(taken), tuple(deferred), tuple(failed))


def stays(reply: Reply) -> Reply:
    """
    The reply of another of our queues to what is moved there.

    Its refusal fails nobody: the message is ours, it waits for a better day or
    the operator, who reads there what was said.
    """
    if not reply.permanent:
        return reply
    return Reply(451, "4.3.0", f"refused there: {reply.code} {reply.status} {reply.text}", reply.mta, reply.tls)


def may(order: Order, entry: Entry) -> bool:
    """
    Whether the order can be carried out on *entry*.

    No second bounce is made while one waits to be taken over (see `settle`). Of
    what is on its way to another queue and has been offered there, nobody knows
    whether it was taken: it may not go to a third. `last`, which a move empties,
    says so; a crash within the very first offer leaves no trace, so that a
    second move after it may double that message.
    """
    match order.word:
        case "bounce":
            return bool(entry.message.envelope.recipients) and not entry.bouncing
        case "move":
            in_doubt = entry.site.startswith(QUEUE) and entry.last and entry.site != order.site
            return bool(entry.message.envelope.recipients) and not in_doubt
        case _:
            return True


def obey(order: Order, entry: Entry, now: Seconds) -> Settled:
    """Change *entry* as it `may` be; afterwards its due is None if no attempt is to be made any more."""
    recipients = entry.message.envelope.recipients
    entry.due = now
    match order.word:
        case "hold":
            entry.due = HELD if recipients or entry.bouncing else None
        case "delete":
            deleted = (*recipients, *(one for one, _ in entry.bouncing))
            _keep_only(entry, ())
            entry.bouncing = ()
            return Settled(deleted=deleted)
        case "bounce":
            failed = tuple([(one, order.reply) for one in recipients])
            _keep_only(entry, ())
            entry.bouncing = failed
            entry.generation += 1
            return Settled(failed=failed)
        case "move" if entry.site != order.site:
            entry.site = order.site
            entry.last = {}  # nothing was said there yet
    return Settled()


def _keep_only(entry: Entry, deferred: Outcomes) -> None:
    """Leave these in the entry, to be tried again, with their latest replies."""
    message = entry.message
    envelope = message.envelope
    if len(deferred) != len(envelope.recipients):
        left = Envelope(
            envelope.token,
            envelope.sender,
            tuple([recipient for recipient, _ in deferred]),
            envelope.origin,
            envelope.body_type,
            envelope.smtputf8,
        )
        entry.message = Message(left, message.fields, message.body)
    entry.last = dict(deferred)
    entry.due = None


def _given_up(reply: Reply, age: Seconds) -> Reply:
    """The last word of a next hop with ours behind it (RFC 3463: X.4.7, delivery time expired)."""
    text = f"{reply.text}\nstill not delivered after {span(age)}, giving up"
    return Reply(554, "5.4.7", text, reply.mta)


def span(seconds: Seconds) -> str:
    """A time for people: ``25 hours``, ``7 days``."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} seconds"
