"""The test kit for checkers, as a stranger would use it."""

import time

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.checks.databytes import Factory as DataBytesFactory
from qmq.dns.query import DNSTrouble, NoData, NoSuchDomain
from qmq.interfaces import (
    IConnectionChecker,
    IHeloChecker,
    IMessageChecker,
    INextHop,
    IRecipientChecker,
    ISenderChecker,
)
from qmq.mail import Reply
from qmq.receive.guard import Stuck
from qmq.session import Verdict
from qmq.testing import Client, FakeClock, FakeDNS, _Hop, answer_of, context, make, session, transaction

REFUSAL = Verdict(Reply(553, "5.7.1", "no"), reason="Reject::TEST::No")
GOOD = ("a@client.example", "b@ours.example")


@implementer(ISenderChecker)
class At:
    """Answers at MAIL what it was given, or what that gives when it is called."""

    def __init__(self, answer=None):
        self.answer = answer

    def sender(self, session, transaction):
        return self.answer() if callable(self.answer) else self.answer


class ClientTests(SynchronousTestCase):
    def test_taken(self):
        """A message that nobody minds is taken; the test sees what was handed over, our Received field in front."""
        client = Client(At())

        told = client.mail(*GOOD, text="Subject: x\n\n.dot\n")

        self.assertTrue(told.taken)
        self.assertEqual(told.seconds, 0)
        self.assertEqual(client.sent[0].envelope.recipients[0].local, b"b")
        self.assertTrue(client.sent[0].text.startswith(b"Received:"))
        self.assertTrue(client.sent[0].text.endswith(b"Subject: x\r\n\r\n.dot\r\n"))

    def test_refused(self):
        """A sender's refusal is heard at RCPT, as from a running gateway; the next message is another."""
        client = Client(At(REFUSAL))

        told = client.mail(*GOOD)

        self.assertEqual((told.mail[:3], told.rcpt, told.data, told.taken), ("250", ("553 5.7.1 no",), "", False))
        self.assertEqual(told.reply, "553 5.7.1 no")
        self.assertEqual(client.log, ["Reject::TEST::No"])
        self.assertEqual(client.tallies()["at"]["refused"], 1)
        self.assertEqual(client.mail(*GOOD).reply, "553 5.7.1 no")

    def test_not_ours(self):
        """Recipients that are not ours are refused, but for a relay client."""
        self.assertTrue(Client().mail("a@client.example", "b@elsewhere.example").reply.startswith("553"))
        self.assertTrue(Client(relay=True).mail("a@client.example", "b@elsewhere.example").taken)
        self.assertTrue(Client(ours=("o.example",)).mail("", "b@o.example").taken)

    def test_waits(self):
        """For what waits time goes on by itself, and the test sees how long; nobody sleeps."""
        began = time.monotonic()
        clock = FakeClock()

        def later():
            return deferLater(clock, 20, lambda: None)

        client = Client(At(later), At(Verdict(delay=5)), clock=clock)

        self.assertEqual(client.mail(*GOOD).seconds, 25)
        self.assertLess(time.monotonic() - began, 1)

    def test_late(self):
        """One that never answers gets its session a 451 when its time is over."""
        told = Client(At(Deferred)).mail(*GOOD)

        self.assertEqual((told.reply[:3], told.seconds), ("451", 30))
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)

    def test_guarded(self):
        """One that sleeps is interrupted if the test wants it, as in a running gateway."""
        client = Client(At(lambda: time.sleep(10)), guarded=True)

        self.assertTrue(client.mail(*GOOD).reply.startswith("451"))

        client.leave()
        self.assertEqual(len(self.flushLoggedErrors(Stuck)), 1)

    def test_phases(self):
        """Every phase can be tested: the connection, HELO, recipients, the text."""

        @implementer(IConnectionChecker, IHeloChecker, IRecipientChecker, IMessageChecker)
        class All:
            def connection(self, session):
                seen.append(session.client)

            def helo(self, session):
                seen.append(session.helo)

            def recipient(self, session, transaction, recipient):
                seen.append(recipient.local)

            def message(self, session, transaction, message):
                return Verdict(fields=b"X-Seen: yes\r\n")

        seen = []
        client = Client(All(), client="2001:db8::1", hello="HELO me.example")
        client.mail(*GOOD)

        self.assertEqual(seen, ["2001:db8::1", b"me.example", b"b"])
        self.assertIn(b"X-Seen: yes\r\n", client.sent[0].text)

    def test_closed(self):
        """A refusal at once, before the banner, ends the connection."""

        @implementer(IConnectionChecker)
        class Closed:
            def connection(self, session):
                return Verdict(Reply(554, "5.7.1", "go away"), now=True)

        client = Client(Closed())

        self.assertTrue(client.banner.startswith("554"))
        self.assertTrue(client.closed)

    def test_settings(self):
        """A client's settings are what a listener would have found for it."""
        client = Client(At(), databytes=100)

        self.assertIn("SIZE 100", client.hello)

    def test_interfaces(self):
        """What is pretended keeps the interfaces."""
        verifyObject(INextHop, _Hop([]))


class WordsTests(SynchronousTestCase):
    def test_values(self):
        """Sessions and transactions are made in a line; a client's settings too."""
        self.assertEqual(session(host="x.example", helocheck="!").environment.helocheck, "!")
        self.assertEqual(session(host="x.example").host, "x.example")
        self.assertEqual(transaction("").sender, transaction().sender.__class__(b"", b""))
        self.assertEqual(transaction("a@b", "c@d", size=7).recipients[0].domain, b"d")

    def test_make(self):
        """A factory's checker is made with options as from conf-qmq, and refuses what it does not take."""
        checker = make(DataBytesFactory(), {"limit": "1K"})
        self.assertEqual(checker.sender(session(), transaction(size=2000)).reply.code, 552)

        with self.assertRaises(ValueError):
            make(DataBytesFactory(), {"limt": "1K"})

    def test_answer_of(self):
        """An answer may be given, awaited, or come with time."""
        clock = FakeClock()

        async def later():
            await deferLater(clock, 5, lambda: None)
            return REFUSAL

        self.assertIsNone(answer_of(None))
        self.assertEqual(answer_of(later(), clock), REFUSAL)
        with self.assertRaises(AssertionError):
            answer_of(Deferred(), clock, 10)
        with self.assertRaises(ZeroDivisionError):
            answer_of(deferLater(clock, 1, lambda: 1 / 0), clock)


class FakeDNSTests(SynchronousTestCase):
    def test_answers(self):
        """It answers from what it was given, and remembers what it was asked."""
        dns = FakeDNS({"x.example": {"mx": ["20 b.example", "c.example"], "txt": ["v=spf1"], "a": ["192.0.2.7"]}})

        self.assertEqual([e.host for e in self.successResultOf(dns.mx(b"X.example."))], ["c.example", "b.example"])
        self.assertEqual(self.successResultOf(dns.txt("x.example")), [b"v=spf1"])
        self.assertEqual(self.successResultOf(dns.addresses("x.example")), ["192.0.2.7"])
        self.assertEqual(self.successResultOf(dns.a("x.example")), ["192.0.2.7"])
        self.assertEqual(dns.asked[0], ("mx", "x.example"))

    def test_failures(self):
        """It fails as DNS does: no such name, no such records, trouble, silence."""
        dns = FakeDNS({"x.example": {}}, trouble=["t.example"], silent=["s.example"])

        self.failureResultOf(dns.aaaa("x.example"), NoData)
        self.failureResultOf(dns.ptr("192.0.2.9"), NoSuchDomain)
        self.failureResultOf(dns.mx("t.example"), DNSTrouble)
        self.assertNoResult(dns.a("s.example"))

    def test_context(self):
        """A factory finds it in its context, with the domains that are ours."""
        dns = FakeDNS()
        made = context(dns, ours=("o.example",), databytes=5)

        self.assertIs(made.resolver, dns)
        self.assertTrue(made.knows(b"o.example"))
        self.assertEqual(made.databytes, 5)
