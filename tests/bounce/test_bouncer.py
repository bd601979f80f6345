import email
import tempfile
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.bounce.bouncer import Bouncer, header_of, is_bulk, return_path
from qmq.interfaces import INextHop, SpoolTrouble
from qmq.log import EventLog
from qmq.mail import (
    DOUBLE_BOUNCE_SENDER,
    NULL_SENDER,
    Address,
    Entry,
    Envelope,
    FileBody,
    MemoryBody,
    Message,
    Reply,
    Token,
    wire_sender,
)

SENDER = Address(b"joe", b"example.org")
RECIPIENT = Address(b"ann", b"example.net")
POSTMASTER = Address(b"postmaster", b"mx.example.com")
NO_USER = Reply(550, "5.1.1", "no such user", "mail.example.net")
TAKEN = Reply(250, "2.0.0", "ok")
BUSY = Reply(451, "4.3.0", "busy")
REFUSED = Reply(554, "5.7.1", "no")
BODY = b"From: <joe@example.org>\r\nSubject: hello\r\n\r\nwhat follows\r\n"


@implementer(INextHop)
class FakeHop:
    """Gives *replies* in turn, the last one for ever; keeps what it took."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.asked: list[Message] = []
        self.taken: list[Message] = []

    def send(self, message: Message) -> Deferred[list[Reply]]:
        """One reply for the one recipient."""
        (_,) = message.envelope.recipients
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        self.asked.append(message)
        if reply.ok:
            self.taken.append(message)
        return succeed([reply])


class FakeSpool:
    """A store's name and its oldest entry."""

    tag = b"q7"
    oldest = 3


class BouncerTests(SynchronousTestCase):
    def bouncer(self, *replies: Reply, **options: Any) -> Bouncer:
        self.hop = FakeHop(*(replies or (TAKEN,)))
        self.lines: list[bytes] = []
        self.now = 1795457222.0
        self.event_log = EventLog(self.lines.append, Clock(), lambda: self.now, lines=1)
        options.setdefault("read_body", lambda entry: entry.message.body)
        return Bouncer(
            self.hop,
            FakeSpool(),
            me="mx.example.com",
            log=self.event_log,
            wall=lambda: self.now,
            queue="alpha",
            **options,
        )

    def entry(
        self, sender: Address = SENDER, body: Any = None, fields: bytes = b"Received: by us\r\n", **more: Any
    ) -> Entry:
        envelope = Envelope(Token(b"p", 1), sender, (RECIPIENT,), **more)
        entry = Entry(5, Message(envelope, fields, body or MemoryBody(BODY)), b"example.net", self.now - 400)
        entry.bouncing = ((RECIPIENT, NO_USER),)
        entry.last = {RECIPIENT: BUSY}
        return entry

    def test_fake(self) -> None:
        """The fake hop is one by the interface."""
        verifyObject(INextHop, FakeHop(TAKEN))

    def test_bounce(self) -> None:
        """The sender of a failed message is told with a notice from the null sender, made here, with our token."""
        bouncer = self.bouncer()

        done = self.successResultOf(bouncer.bounce(self.entry()))

        self.assertTrue(done)
        (message,) = self.hop.taken
        self.assertEqual(message.envelope.sender, NULL_SENDER)
        self.assertEqual(message.envelope.recipients, (SENDER,))
        self.assertEqual(message.envelope.token, Token(b"q7.b", 5 * 256))
        self.assertTrue(message.envelope.origin.made_here)
        notice = email.message_from_bytes(message.body.data or b"")
        self.assertEqual(notice["From"], "<MAILER-DAEMON@mx.example.com>")
        self.assertEqual(notice["To"], "<joe@example.org>")
        self.assertIn(b"Return-Path: <joe@example.org>\r\nReceived: by us\r\n" + BODY, message.body.data or b"")
        self.assertIn(b" bounced id=p-1 bounce=q7.b-500 queue=alpha to=<joe@example.org>\n", self.lines[0])

    def test_again(self) -> None:
        """A bounce that can't be handed over now is handed over later with the same token and the same text."""
        bouncer = self.bouncer(BUSY, TAKEN)
        entry = self.entry()

        self.assertFalse(self.successResultOf(bouncer.bounce(entry)))
        self.assertTrue(self.successResultOf(bouncer.bounce(entry)))

        first, second = self.hop.asked
        self.assertEqual(first.envelope, second.envelope)
        self.assertEqual(first.body.data, second.body.data)

    def test_tokens(self) -> None:
        """Each bounce of an entry has a token of its own, however many there are; none is below the lowest in doubt."""
        bouncer = self.bouncer()
        entry = self.entry()

        for entry.generation in range(600):
            self.successResultOf(bouncer.bounce(entry))
        self.successResultOf(bouncer.delayed(entry))

        tokens = [message.envelope.token for message in self.hop.taken]
        self.assertEqual(len(set(tokens)), 601)
        self.assertTrue(all(token.seq >= bouncer.low for token in tokens))
        self.assertEqual(bouncer.low, 3 * 256)

    def test_low_of_empty_store(self) -> None:
        """With nothing in the store no number is in doubt."""
        bouncer = self.bouncer()
        bouncer._spool.oldest = 2**62

        self.assertEqual(bouncer.low, 2**62)

    def test_double_bounce(self) -> None:
        """A bounce that failed is told to the postmaster, marked by its sender."""
        bouncer = self.bouncer()

        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry(NULL_SENDER))))

        (message,) = self.hop.taken
        self.assertEqual(message.envelope.sender, DOUBLE_BOUNCE_SENDER)
        self.assertEqual(message.envelope.recipients, (POSTMASTER,))

    def test_doublebounceto(self) -> None:
        """The postmaster may be elsewhere; empty or with @ in front, double bounces are dropped with a log line."""
        bouncer = self.bouncer(doublebounceto="admin@Example.COM")
        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry(NULL_SENDER))))
        self.assertEqual(self.hop.taken[0].envelope.recipients, (Address(b"admin", b"example.com"),))

        for nobody in ("", "@example.com"):
            bouncer = self.bouncer(doublebounceto=nobody)
            self.assertTrue(self.successResultOf(bouncer.bounce(self.entry(NULL_SENDER))))
            self.assertEqual(self.hop.asked, [])
            self.assertIn(b"dropped-bounce id=p-1 queue=alpha why=", self.lines[0])

    def test_triple_bounce(self) -> None:
        """A double bounce that failed is dropped with a log line; nobody is told."""
        bouncer = self.bouncer()

        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry(DOUBLE_BOUNCE_SENDER))))

        self.assertEqual(self.hop.asked, [])
        self.assertIn(b'dropped-bounce id=p-1 queue=alpha why="triple bounce"\n', self.lines[0])

    def test_refused(self) -> None:
        """A bounce refused for good becomes a double bounce; if that is refused too it ends there."""
        bouncer = self.bouncer(REFUSED, TAKEN)
        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry())))
        self.assertEqual([message.envelope.recipients for message in self.hop.taken], [(POSTMASTER,)])
        self.assertEqual(self.hop.taken[0].envelope.sender, DOUBLE_BOUNCE_SENDER)

        bouncer = self.bouncer(REFUSED)
        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry())))
        self.assertEqual(len(self.hop.asked), 2)
        self.assertIn(b"dropped-bounce", self.lines[-1])

    def test_double_bounces_bounded(self) -> None:
        """Double bounces beyond the number for the hour are dropped with a log line; those not taken do not count."""
        bouncer = self.bouncer(BUSY, BUSY, BUSY, TAKEN, doubles_an_hour=2)

        done = [self.successResultOf(bouncer.bounce(self.entry(NULL_SENDER))) for _ in range(6)]

        self.assertEqual(done, [False, False, False, True, True, True])
        self.assertEqual(len(self.hop.taken), 2)
        self.assertIn(b"more than 2 in this hour", self.lines[-1])
        self.now += 3600
        self.successResultOf(bouncer.bounce(self.entry(NULL_SENDER)))
        self.assertEqual(len(self.hop.taken), 3)
        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry())))
        self.assertEqual(len(self.hop.taken), 4, "bounces to senders are not bounded by this")

    def test_nothing_failed(self) -> None:
        """Without failed recipients there is nothing to tell."""
        bouncer = self.bouncer()
        entry = self.entry()
        entry.bouncing = ()

        self.assertTrue(self.successResultOf(bouncer.bounce(entry)))
        self.assertEqual(self.hop.asked, [])

    def test_size(self) -> None:
        """A message over bouncemaxbytes, or in binary, goes back without its body."""
        for most, more, whole in [
            (1000, {}, True),
            (50, {}, False),
            (0, {}, True),
            (0, {"body_type": b"BINARYMIME"}, False),
        ]:
            bouncer = self.bouncer(bouncemaxbytes=most)
            self.successResultOf(bouncer.bounce(self.entry(**more)))
            text = self.hop.taken[0].body.data or b""
            self.assertEqual(b"what follows" in text, whole)
            self.assertIn(b"Subject: hello\r\n", text)

    def test_body_in_file(self) -> None:
        """Of a long message in a file only the beginning is read."""
        bouncer = self.bouncer()
        with tempfile.NamedTemporaryFile() as file:
            file.write(BODY + b"x\r\n" * 100_000)
            file.flush()

            self.successResultOf(bouncer.bounce(self.entry(body=FileBody(file.name, 300_000))))

        self.assertIn(b"Subject: hello\r\n", self.hop.taken[0].body.data or b"")
        self.assertLess(self.hop.taken[0].size, 3000)

    def test_body_later(self) -> None:
        """A body that the store must fetch is waited for; one that is lost does not keep the sender waiting."""
        waiting: Deferred[MemoryBody] = Deferred()
        bouncer = self.bouncer(read_body=lambda _: waiting)
        done = bouncer.bounce(self.entry())
        self.assertNoResult(done)
        waiting.callback(MemoryBody(BODY))
        self.assertTrue(self.successResultOf(done))

        lost: Deferred[MemoryBody] = Deferred()
        lost.errback(SpoolTrouble("I/O error"))
        bouncer = self.bouncer(read_body=lambda _: lost)
        self.assertTrue(self.successResultOf(bouncer.bounce(self.entry())))
        self.assertIn(b"Received: by us\r\n", self.hop.taken[0].body.data or b"")
        self.assertIn(b"I/O error", self.lines[0])

    def test_declared(self) -> None:
        """A notice with 8-bit text, or to an international sender, declares it in its envelope."""
        bouncer = self.bouncer()
        sender = Address("jö".encode(), b"example.org")

        self.successResultOf(bouncer.bounce(self.entry(sender, MemoryBody(BODY + b"\xc3\xbc\r\n"), smtputf8=True)))

        envelope = self.hop.taken[0].envelope
        self.assertEqual((envelope.body_type, envelope.smtputf8), (b"8BITMIME", True))

    def test_delayed(self) -> None:
        """The sender of a message that waits is told once, with a token of its own."""
        bouncer = self.bouncer(BUSY, TAKEN)
        entry = self.entry()

        self.assertFalse(self.successResultOf(bouncer.delayed(entry, self.now + 86400)))
        self.assertTrue(self.successResultOf(bouncer.delayed(entry, self.now + 86400)))
        entry.delayed = True
        self.assertTrue(self.successResultOf(bouncer.delayed(entry)))

        (message,) = self.hop.taken
        self.assertEqual(message.envelope.token, Token(b"q7.d", 5 * 256))
        self.assertEqual(message.envelope.sender, NULL_SENDER)
        self.assertIn(b"Action: delayed\r\n", message.body.data or b"")
        self.assertIn(b"Will-Retry-Until: Tue, 24 Nov 2026", message.body.data or b"")

    def test_not_delayed(self) -> None:
        """Nobody is told of the delay of a bounce, of what a machine or a list wrote, or before the first attempt."""
        bouncer = self.bouncer()
        bulk = MemoryBody(b"Subject: x\r\nPrecedence: bulk\r\n\r\n")
        fresh = self.entry()
        fresh.last = {}

        for entry in (self.entry(NULL_SENDER), self.entry(DOUBLE_BOUNCE_SENDER), self.entry(body=bulk), fresh):
            self.assertTrue(self.successResultOf(bouncer.delayed(entry)))

        self.assertEqual(self.hop.asked, [])

    def test_delay_notice_refused(self) -> None:
        """A delay notice that is refused for good is not worth a double bounce."""
        bouncer = self.bouncer(REFUSED)

        self.assertTrue(self.successResultOf(bouncer.delayed(self.entry())))

        self.assertEqual(len(self.hop.asked), 1)
        self.assertIn(b"dropped-bounce", self.lines[-1])


class RulesTests(SynchronousTestCase):
    def test_bulk(self) -> None:
        """Automatic and list mail is known by its header alone (RFC 3834)."""
        for line, bulk in [
            (b"Auto-Submitted: auto-generated", True),
            (b"AUTO-SUBMITTED:auto-replied (x)", True),
            (b"Auto-Submitted: no", False),
            (b"Auto-Submitted: No ; x=y", False),
            (b"Auto-Submitted: nope", True),
            (b"Precedence: list", True),
            (b"precedence : Junk", True),
            (b"Precedence: first-class", False),
            (b"List-Id: <x.example.org>", True),
            (b"List-Unsubscribe: <mailto:x>", True),
            (b"Listing: x", False),
            (b"X-Precedence: bulk", False),
            (b" Precedence: bulk", False),
        ]:
            self.assertEqual(is_bulk(b"Subject: x\r\n" + line + b"\r\n"), bulk, line)

    def test_header_of(self) -> None:
        """The header ends at the first empty line; a very long one is cut at the end of a line."""
        self.assertEqual(header_of(BODY), b"From: <joe@example.org>\r\nSubject: hello\r\n")
        self.assertEqual(header_of(b"\r\nbody\r\n"), b"")
        self.assertEqual(header_of(b"A: b\r\n"), b"A: b\r\n")
        self.assertEqual(header_of(b""), b"")
        cut = header_of(b"A: b\r\n" * 20_000)
        self.assertTrue(60_000 < len(cut) <= 65_538 and cut.endswith(b"\r\n"))

    def test_return_path(self) -> None:
        """Bounces for a sender that differs by recipient (VERP) go to the list's own address."""
        self.assertEqual(return_path(Address(b"list-@host.example-", b"[]")), Address(b"list-", b"host.example"))
        self.assertEqual(return_path(DOUBLE_BOUNCE_SENDER), DOUBLE_BOUNCE_SENDER)
        self.assertEqual(return_path(SENDER), SENDER)

    def test_wire_sender(self) -> None:
        """To others a double bounce has the null sender; all other senders are as they are."""
        self.assertEqual(wire_sender(DOUBLE_BOUNCE_SENDER), NULL_SENDER)
        self.assertEqual(wire_sender(NULL_SENDER), NULL_SENDER)
        self.assertEqual(wire_sender(SENDER), SENDER)
