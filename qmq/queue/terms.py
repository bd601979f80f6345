"""What a queue goes by: when it tries again, for how long, how much it takes in. A reload replaces it as a whole."""

from __future__ import annotations

from collections.abc import Callable

from qmq.interfaces import ISpool
from qmq.mail import NULL_SENDER, Address, Octets, Seconds, value
from qmq.queue.schedule import Schedule


@value
class Terms:
    """
    A queue's schedule, lifetimes and limits.

    *limit_messages* and *limit_octets* bound what is taken in; so does
    *limit_age*, the age of the oldest message, one that is held too; None: no
    bound. *notice*: the age at which the sender is told of a delay; None: never.
    """

    schedule: Schedule
    lifetime: Seconds
    bounce_lifetime: Seconds
    limit_messages: int = 1_000_000
    limit_octets: Octets = 100 << 30
    limit_age: Seconds | None = None
    notice: Seconds | None = None

    def full(self, spool: ISpool, size: Octets, wall: Callable[[], Seconds]) -> str:
        """Why no message of *size* is taken: the setting that is reached, or the spool's word; empty: it is taken."""
        if spool.messages >= self.limit_messages:
            return "limit-messages"
        if spool.octets + size > self.limit_octets:
            return "limit-bytes"
        if self.limit_age is not None and wall() - spool.birth > self.limit_age:
            return "limit-age"
        return spool.full

    def lifetime_of(self, sender: Address) -> Seconds:
        """How long a message from there is tried."""
        return self.bounce_lifetime if sender == NULL_SENDER else self.lifetime
