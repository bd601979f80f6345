"""A store under test on a clock of the test's, and what makes mail for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from qmq.mail import Address, Entry, Envelope, MemoryBody, Message, Reply, Token
from qmq.spool import journal
from qmq.spool.ring import Done, Piece
from qmq.spool.store import Store
from qmq.spool.writer import Writers

ANN = Address(b"ann", b"example.org")
BOB = Address(b"bob", b"example.org")
CYD = Address(b"cyd", b"example.com")
SENDER = Address(b"sender", b"example.net")
ORG, COM = b"example.org", b"example.com"
TEXT = b"Subject: x\r\n\r\nHello.\r\n"
LATER = Reply(451, "4.4.1", "no answer\nfrom it", "mail.example.org (192.0.2.1)")
NEVER = Reply(550, "5.1.1", "no such user", "mail.example.org (192.0.2.1)")
EPOCH = 1_700_000_000.0  # wall clock at the start of each test


def message(
    token: Token, *recipients: Address, body: Any = None, fields: bytes = b"Received: here\r\n", **more: Any
) -> Message:
    return Message(Envelope(token, SENDER, recipients, **more), fields, body or MemoryBody(TEXT))


def without(entry: Entry, *gone: Address) -> Entry:
    """The entry, these recipients done with."""
    envelope = entry.message.envelope
    left = tuple(one for one in envelope.recipients if one not in gone)
    entry.message = Message(
        Envelope(envelope.token, envelope.sender, left, envelope.origin, envelope.body_type, envelope.smtputf8),
        entry.message.fields,
        entry.message.body,
    )
    return entry


class Kernel:
    """
    In the place of a Ring: all is written at once, with the troubles that a test makes for journal.write.

    *wrote* is called for each write. *troubles* says what becomes of the next one, and so on: "" done, "lost" not
    written, "short" written by half, "unsynced" written, and then the disk failed.
    """

    def __init__(self, wrote: Callable[[], None] = lambda: None, troubles: Iterable[str] = ()) -> None:
        self.written = 0
        self.troubles = iter(troubles)
        self._wrote = wrote

    def write(self, piece: Piece, done: Done) -> bool:
        self.written += 1
        self._wrote()
        fd, octets, at = piece
        trouble = next(self.troubles, "")
        if trouble == "short":
            octets = octets[: len(octets) // 2]
        try:
            count = -errno.ECANCELED if trouble == "lost" else journal.write(fd, octets, at)
        except OSError as error:
            count = -(error.errno or errno.EIO)
        done(-errno.EIO if trouble == "unsynced" else count)
        return True

    def close(self) -> None:
        """There is nothing."""


class House:
    """Mixed into a SynchronousTestCase by each provider, with the five methods below."""

    def make(self, **settings: Any) -> Store:
        """A store over what is there, not started."""
        raise NotImplementedError

    def crashed(self, store: Store, **settings: Any) -> Store:
        """A store over what a kill -9 of this one's process would leave now."""
        raise NotImplementedError

    def damage(self, number: int) -> None:
        """Change an octet of this entry's record, of a stopped store."""
        raise NotImplementedError

    def break_disk(self, failing: bool) -> None:
        """From now on the disk has I/O errors, or no more."""
        raise NotImplementedError

    def fill(self, full: bool) -> None:
        """From now on the disk is full, or no more."""
        raise NotImplementedError

    def setUp(self) -> None:
        self.clock = Clock()
        self.jobs = 0
        self.writers = Writers(call_from_thread=lambda f, *a: f(*a), in_thread=self._job, ring=self.ring())
        self.folder = self.mktemp()
        os.makedirs(self.folder)

    def ring(self) -> Any:
        """What writes without a thread, if anything does."""
        return None

    def _job(self, call: Any, *arguments: Any) -> None:
        self.jobs += 1
        call(*arguments)

    def wall(self) -> float:
        return EPOCH + self.clock.seconds()

    def opened(self, **settings: Any) -> Store:
        store = self.make(**settings)
        self.successResultOf(store.start())
        return store

    def again(self, store: Store, **settings: Any) -> Store:
        """Stopped and started anew."""
        self.successResultOf(store.stop())
        return self.opened(**settings)

    def now(self, deferred: Deferred[Any]) -> Any:
        """The result, after the loop has turned."""
        for _ in range(5):
            self.clock.advance(0)
        if not deferred.called:
            self.clock.advance(0.002)  # it waited for company
        return self.successResultOf(deferred)

    def settled(self, store: Store, *entries: Entry) -> None:
        for entry in entries:
            store.settle(entry)
        self.clock.advance(0.1)

    def kept(self, store: Store, *recipients: Address, token: Token | None = None, low: int = 0, **more: Any) -> Any:
        """The entries of a message to these, each recipient's domain its site."""
        whole = message(token or store.next_token(), *recipients, **more)
        return self.now(store.keep(whole, [one.domain for one in recipients], low))

    def claimed(self, store: Store, limit: int = 100, busy: Sequence[bytes] = (), now: float | None = None) -> Any:
        return self.now(store.claim(self.wall() if now is None else now, limit, busy))

    def waiting(self, store: Store, due: float, site: bytes = ORG, token: Token | None = None) -> Entry:
        """An entry due then, out of hand."""
        one = Address(b"ann", site)
        (entry,) = self.kept(store, one, token=token)
        entry.due = due
        self.settled(store, entry)
        return entry
