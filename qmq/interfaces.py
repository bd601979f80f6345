"""
The plug points: what the stages see of each other, and what a stranger may provide.

Stages join at INextHop alone. Checkers are found by twisted.plugin: a module
in twisted/plugins with an ICheckerFactory in it is all that is needed.
"""

# Interfaces are written without self, as zope.interface wants them.
# ruff: noqa: N805
from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.plugin import IPlugin
from zope.interface import Attribute, Interface

from qmq.mail import Address, Body, Entry, Message, Octets, Reply, Seconds, Token
from qmq.session import Environment, Session, Transaction, Verdict

Answer = Verdict | None | Awaitable[Verdict | None]


class INextHop(Interface):
    """The one joint: a queue, the router, an SMTP, LMTP or QMTP hop."""

    def send(message: Message) -> Deferred[Sequence[Reply]]:
        """
        What became of each recipient, in order; 2yz: safe on disk at the next hop.

        The body's file must stay until the Deferred fires. Never fails: trouble
        is a 4yz with an empty ``mta``.
        """


class IWork(Interface):
    """What a connection sees of the site it delivers for: more work, and where to report."""

    def take() -> Message | None:
        """The next message ready for this site, or None; asked when the connection can begin with it at once."""

    def finished(message: Message, replies: Sequence[Reply]) -> None:
        """What became of each recipient of a message that was taken."""

    def idle(connection: Any) -> None:
        """The connection has nothing outstanding; it stays open until its idle time is over."""

    def lost(connection: Any, reason: Reply | None) -> None:
        """The connection is gone; what was outstanding on it was reported as finished before. None: in order."""


class IConnection(Interface):
    """One open connection to a site's host, past EHLO or ready for QMTP."""

    def send(message: Message) -> None:
        """Begin with this message; only while idle. Those after it are asked of IWork.take."""

    def close() -> None:
        """End in order (QUIT) if idle, else after what is outstanding; as abort if nothing of that can be in doubt."""

    def abort() -> None:
        """Cut now; what is outstanding is reported with 4yz."""


class IDialler(Interface):
    """Opens connections to a site."""

    def dial(site: bytes, work: Any) -> Deferred[Any]:
        """An IConnection for *work* (IWork); fails with DeliveryFailure. Cancelling gives up."""


class ISpool(Interface):
    """
    A queue's durable store (SQLite, memory; PostgreSQL later): one conformance suite over all.

    Whoever has an entry in hand holds its lease (owner: this process's epoch,
    ``Entry.fence``); a settle under a lost lease changes nothing.
    """

    tag: bytes = Attribute("names this store for ever: the peer of its tokens")
    messages: int = Attribute("entries stored; kept, not counted")
    octets: int = Attribute("octets stored")
    tombstones: int = Attribute("tokens remembered after delivery")
    lowest: int = Attribute("lowest token seq stored whose peer is this store's tag; 2**62 if none")
    oldest: int = Attribute("lowest entry number stored; 2**62 if none")
    birth: Seconds = Attribute("when the entry of that number was born, wall clock; inf if none")
    full: str = Attribute("which bound of its disk is reached, so that nothing is kept; empty: none")

    def start() -> Deferred[None]:
        """Open, take the lock (waits 10 s, then fails naming the holder's pid), free what was in hand."""

    def stop() -> Deferred[None]:
        """Commit what waits, close."""

    def next_token() -> Token:
        """A token of this store, higher than any before, across restarts; costs no write."""

    def keep(message: Message, sites: Sequence[bytes], low: int) -> Deferred[Sequence[Entry]]:
        """
        Durable, once per (token, recipient); sites has one site per recipient.

        Fires after the sync with the new entries, in hand, one per distinct
        site: empty if the token was known for all recipients. *low* is the
        lowest seq of the token's peer that is still in doubt there: tombstones
        below may go. Fails with SpoolTrouble: nothing was kept.
        """

    def settle(entry: Entry) -> None:
        """
        Write what the entry now says, with the next commit.

        No recipient and none bouncing: it goes, with its body, and a tombstone
        stays while its token may be in doubt. Else due, attempts, recipients,
        last replies, bouncing are written; with due set it is out of hand.
        Losing this write means a second delivery, never a loss.
        """

    def done(entry: Entry) -> None:
        """As settle, when nothing is left to do, whatever the entry says."""

    def release(entry: Entry, due: Seconds) -> None:
        """Give back untried (no slot, shutting down): only due changes."""

    def claim(now: Seconds, limit: int, busy: Sequence[bytes]) -> Deferred[Sequence[Entry]]:
        """Entries due by *now* and not in hand, oldest due first, none of a site in *busy*; now in hand."""

    def next_due(busy: Sequence[bytes]) -> Deferred[Seconds | None]:
        """When the next entry not in hand falls due."""

    def body(entry: Entry) -> Body | Deferred[Body]:
        """The body of an entry that was claimed (those of keep have theirs)."""

    def due_now(query: Mapping[str, str]) -> Deferred[int]:
        """
        Make everything that matches due at once; how many entries. What is held stays held.

        What a query may say is told in qmq.spool.query; other words fail with ValueError.
        """

    def find(query: Mapping[str, str], after: int, limit: int) -> Deferred[Sequence[Entry]]:
        """Entries that match, in order of number above *after*, without bodies; for people who look in."""

    def survey(query: Mapping[str, str], after: int) -> Deferred[tuple[int, Octets, int | None]]:
        """How many entries match in the next piece above *after*, their octets, where to go on; None: that was all."""

    def seize(query: Mapping[str, str], after: int, limit: int) -> Deferred[tuple[Sequence[Entry], int | None]]:
        """
        Take in hand what matches above *after*, in order of number, due or not, held or not; where to go on.

        As claim, but for what is in hand already, which is passed over. None: that was all.
        """

    def peek(number: int) -> Deferred[Entry | None]:
        """That entry, in hand or not, with its body: for whoever shows it. A long body's file may go at any time."""


class SpoolTrouble(Exception):
    """The store could not keep it: disk full, I/O error, closed. The text is for the log."""


class IConnectionChecker(Interface):
    """
    Asked before the banner.

    Of this and the other checkers: *Answer* is a Verdict, None (no opinion) or
    an awaitable of either. A plain method must answer at once; one that must
    wait is ``async def``; one that cannot help blocking provides IBlocking too.
    An attribute *limit* is how many seconds its answer may take (else 30).
    """

    def connection(session: Session) -> Answer:
        """What it thinks of the client."""


class IHeloChecker(Interface):
    """Asked at HELO and EHLO."""

    def helo(session: Session) -> Answer:
        """As above; session.helo is what was said."""


class ISenderChecker(Interface):
    """Asked at MAIL."""

    def sender(session: Session, transaction: Transaction) -> Answer:
        """As above."""


class IRecipientChecker(Interface):
    """Asked at RCPT. A recipient that no checker vouches for is refused."""

    def recipient(session: Session, transaction: Transaction, recipient: Address) -> Answer:
        """As above."""


class IDataChecker(Interface):
    """Asked at DATA, or at the first BDAT, of a transaction that has recipients."""

    def data(session: Session, transaction: Transaction) -> Answer:
        """As above."""


class IMessageChecker(Interface):
    """Asked at the end of the data, before anything is handed over."""

    def message(session: Session, transaction: Transaction, message: Message) -> Answer:
        """As above; the body's file, if it has one, is there until the answer."""


class IBlocking(Interface):
    """A mark: the checker's plain methods may block. They are called in threads of its own, never in the reactor's."""


class ISelective(Interface):
    """
    What a checker may provide beside: which clients it has nothing to say of.

    It is not asked of those, then, nor counted for them. Without it, it is asked of all.
    """

    def concerns(environment: Environment, phase: str) -> bool:
        """
        Whether it may have anything to say of clients with these settings, in the *phase* whose method is so called.

        Asked now and then for all whom the same rule covers, and remembered until
        conf-qmq changes, or a file comes that was `absent` (Context.watch): so nothing but
        *environment*, these, the instances that there are (Context.some), and what never changes, may decide it.
        """


class ICheckerFactory(IPlugin):
    """
    A checker that can be named in conf-qmq; found with twisted.plugin.getPlugins.

    It may have *options* too: what `[check NAME]` may say, a mapping of the word
    to its help. With it other words are refused before `make` is asked.
    """

    name: str = Attribute("the word in `checks =`")
    help: str = Attribute("one line for `qmq checkers`")

    def make(context: Any, options: Mapping[str, str]) -> Any:
        """
        A checker (one or more of the I*Checker), from a qmq.receive.context.Context; starts nothing.

        Raises ValueError, of a file qmq.rules.watched.BadLine, with a text for the operator.
        """
