import os
from ipaddress import ip_address, ip_network

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from zope.interface import implementer

from qmq.deadlines import Deadlines
from qmq.interfaces import ISenderChecker
from qmq.mail import Reply
from qmq.receive.clients import Clients, Deny, Layers
from qmq.receive.draft import Drafts
from qmq.receive.reception import Limits
from qmq.receive.smtp import Crowd, caller_of
from qmq.rules.watched import Files
from qmq.session import Session
from tests.receive.fakes import LETTER, TAKEN, TEXT, Client, ListenerCase

HELLO = b"EHLO client.example"
ENDED = TEXT + b".\r\n"


@implementer(ISenderChecker)
class Never:
    """Never answers, or says what it is told to do."""

    def __init__(self, answer=None):
        self.answer = answer or Deferred

    def sender(self, session, transaction):
        return self.answer()


class CrowdTests(ListenerCase):
    def test_each(self):
        """A client has its share of sessions and no more; when one ends there is room again."""
        factory = self.listen(crowd=Crowd(each=2))
        first, _second = (Client(factory) for _ in range(2))

        third = Client(factory)
        self.assertEqual(third.banner, ["421 4.7.0 too many connections from you, try again later"])
        self.assertTrue(third.closed)
        self.assertEqual(Client(factory, "192.0.2.2").banner, ["220 mx.ours.example ESMTP"])

        first.leave()
        self.assertEqual(Client(factory).banner, ["220 mx.ours.example ESMTP"])

    def test_all(self):
        """So have all together."""
        factory = self.listen(crowd=Crowd(sessions=2))
        for n in (1, 2):
            Client(factory, f"192.0.2.{n}")

        late = Client(factory, "192.0.2.3")

        self.assertEqual(late.banner, ["421 4.3.2 too many connections here, try again later"])
        self.assertTrue(late.closed)

    def test_exempt(self):
        """Exempt networks have no share of their own."""
        factory = self.listen(crowd=Crowd(each=1, exempt=(ip_network("192.0.2.0/24"),)))

        for _ in range(3):
            self.assertEqual(Client(factory).banner, ["220 mx.ours.example ESMTP"])

    def test_ipv6_neighbours(self):
        """Addresses of one IPv6 /64 are one client's."""
        factory = self.listen(crowd=Crowd(each=1))
        Client(factory, "2001:db8::1")

        self.assertTrue(Client(factory, "2001:db8::2:1").closed)
        self.assertFalse(Client(factory, "2001:db8:0:1::1").closed)

    def test_relay(self):
        """Clients in relay networks may send anywhere; the others may not."""
        layers = Layers(relay=(ip_network("192.0.2.0/28"),), reverse="no")
        factory = self.listen(who=Clients(layers, Files(), None, self.clock).session)

        for address, code in (("192.0.2.1", "250"), ("::ffff:192.0.2.1", "250"), ("192.0.2.99", "553")):
            codes = Client(factory, address).codes(HELLO, b"MAIL FROM:<>", b"RCPT TO:<x@foreign.example>")
            self.assertEqual(codes[-1], code)

    def test_denied(self):
        """A client that a rule denies gets 554 and the end; the log names it."""
        factory = self.listen(
            who=lambda *_: Deny(Reply(554, "5.7.1", "no mail is taken from you here"), "evil.example")
        )
        client = Client(factory)

        self.assertEqual(client.banner, ["554 5.7.1 no mail is taken from you here"])
        self.assertTrue(client.closed)
        self.assertEqual(self.log.facts[0][3:], (554, "Reject::SNDR::Denied"))

    def test_slow_name(self):
        """While a client's name is asked for, it waits for its banner; one that leaves is forgotten."""
        waiting = []

        def who(*_):
            waiting.append(Deferred())
            return waiting[-1]

        factory = self.listen(who=who)
        client, other = Client(factory), Client(factory)
        self.assertEqual(client.banner, [])

        waiting[0].callback(Session("192.0.2.1", 1, "192.0.2.25", 25, host="named.example"))
        other.leave()

        self.assertEqual(client.heard()[0][:3], "220")
        client.say(*LETTER)
        client.send(ENDED)
        self.assertIn(b"(named.example [192.0.2.1])", self.hop.sent[0][1])
        self.assertEqual(list(factory.sessions), [client.conversation])

    def test_client_address(self):
        """A client's address is known in its plain form, or as none for a unix socket."""
        for host, ip in ("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"):
            caller = caller_of(IPv6Address("TCP", host, 1) if ":" in host else IPv4Address("TCP", host, 1))
            self.assertEqual((caller.address, caller.ip), (ip_address(ip), ip))
        self.assertIsNone(caller_of(UNIXAddress(None)).address)

    def test_nothing_left(self):
        """When all sessions are over, nothing is remembered and no timer runs."""
        factory = self.listen()
        clients = [Client(factory) for _ in range(3)]
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

        for client in clients:
            client.leave()

        self.assertEqual((dict(factory.sessions), dict(factory._each)), ({}, {}))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_hang_up(self):
        """On shutdown idle clients are told at once, those that await an answer after it."""
        self.hop.held = []
        factory = self.listen()
        idle, busy = Client(factory), Client(factory)
        busy.say(*LETTER)
        busy.send(ENDED)

        factory.hang_up()

        self.assertEqual(idle.heard(), ["421 4.3.2 shutting down, try again later"])
        self.assertEqual((idle.closed, busy.closed), (True, False))
        self.hop.held[0].callback([TAKEN])
        self.assertEqual(busy.heard(), ["250 2.0.0 ok spool-1", "421 4.3.2 shutting down, try again later"])
        self.assertTrue(busy.closed)


class DeadlineTests(ListenerCase):
    def wait(self, client, seconds, say=None):
        """What the client hears, and when."""
        for second in range(seconds):
            self.clock.advance(1)
            if say is not None and not client.closed:
                client.conversation.dataReceived(say)
            if heard := client.heard():
                return second + 1, heard[-1][:9]
        return None

    def test_idle(self):
        """A silent client is told 421 after five minutes."""
        client = self.client()

        self.assertEqual(self.wait(client, 400), (302, "421 4.4.2"))
        self.assertTrue(client.closed)

    def test_dribbled_command(self):
        """A client that sends a command octet by octet is no better."""
        client = self.client()

        self.assertEqual(self.wait(client, 400, say=b"N"), (302, "421 4.4.2"))

    def test_dribbled_body(self):
        """A client that sends a body octet by octet is cut, and nothing of it stays."""
        client = self.client(drafts=Drafts(self.folder, inline=10))
        client.say(*LETTER)

        self.assertEqual(self.wait(client, 400, say=b"x"), (302, "421 4.4.2"))
        self.assertEqual(os.listdir(self.folder), [])
        self.assertEqual(self.hop.sent, [])

    def test_whole_session(self):
        """A client that never stops talking is cut after an hour."""
        client = self.client(limits=Limits(talk=99999))
        for _ in range(3600):
            self.clock.advance(1)
            self.assertEqual(client.codes(b"NOOP"), ["250"])

        self.assertEqual(self.wait(client, 10), (2, "421 4.4.2"))

    def test_answer_awaited(self):
        """A client that waits for our answer is not idle."""
        self.hop.held = []
        client = self.client()
        client.say(*LETTER)
        client.send(ENDED)

        self.assertIsNone(self.wait(client, 1000))
        self.hop.held[0].callback([TAKEN])
        self.assertEqual(client.heard(), ["250 2.0.0 ok spool-1"])

    def test_lingering(self):
        """A connection that does not end when told to is aborted."""
        client = self.client()
        client.say(b"QUIT")

        self.clock.pump([1] * 15)

        self.assertTrue(client.transport.disconnected)

    def test_silent_checker(self):
        """A checker that never answers costs its client a 451, and no other client anything."""
        client = self.client(("never", Never()))
        self.assertEqual(client.codes(HELLO, b"MAIL FROM:<>"), ["250"])
        self.assertEqual(Client(self.listen()).codes(*LETTER), ["250", "250", "250", "354"])

        self.clock.advance(31)

        self.assertEqual(client.heard(), ["250 2.1.0 ok"])
        self.assertEqual(client.codes(b"RCPT TO:<b@ours.example>"), ["451"])
        self.assertEqual(len(self.flushLoggedErrors(TimeoutError)), 1)

    def test_raising_checker(self):
        """So does one that raises; the session goes on."""
        client = self.client(("raises", Never(lambda: 1 / 0)))

        self.assertEqual(
            client.codes(HELLO, b"MAIL FROM:<>", b"RCPT TO:<b@ours.example>", b"NOOP"), ["250", "250", "451", "250"]
        )
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_broken_sweep(self):
        """A session that breaks when it is looked at does not keep the others from being looked at."""
        factory = self.listen(deadlines=Deadlines(idle=10))
        broken, client = Client(factory), Client(factory)
        broken.conversation.sweep = None

        self.assertEqual(self.wait(client, 20), (12, "421 4.4.2"))
        self.assertTrue(self.flushLoggedErrors(TypeError))


class StartTLSTests(ListenerCase):
    def test_started(self):
        """After STARTTLS and its 220, TLS is on; HELO is forgotten and STARTTLS not offered again."""
        client = self.client(context="context", limits=Limits(helo=True))
        self.assertIn("250-STARTTLS", client.say(HELLO))

        client.conversation.dataReceived(b"STARTTLS\r\n")

        self.assertEqual(client.transport.tls_with, ("context", b"220 2.0.0 ready for TLS\r\n"))
        client.heard()
        client.conversation.handshakeCompleted()
        self.assertEqual(client.codes(b"MAIL FROM:<>"), ["503"])
        self.assertNotIn("250-STARTTLS", client.say(HELLO))
        self.assertEqual(client.codes(b"STARTTLS"), ["503"])
        client.say(*LETTER[1:])
        client.send(ENDED)
        self.assertIn(b"with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)", self.hop.sent[0][1])

    def test_injection(self):
        """Commands behind STARTTLS in the same packet are never answered."""
        client = self.client(context="context")
        client.say(HELLO)

        heard = client.say(
            b"STARTTLS", b"EHLO evil.example", b"MAIL FROM:<evil@x.example>", b"RCPT TO:<b@ours.example>"
        )

        self.assertEqual(heard, ["220 2.0.0 ready for TLS"])
        client.conversation.handshakeCompleted()
        self.assertEqual(client.codes(b"RCPT TO:<b@ours.example>", b"DATA"), ["503", "503"])

    def test_no_name_after(self):
        """A name that was said in the clear is in no Received field of what comes by TLS."""
        client = self.client(context="context")
        client.say(HELLO, b"STARTTLS")
        client.conversation.handshakeCompleted()

        client.say(*LETTER[1:])
        client.send(ENDED)

        self.assertIn(b"Received: from unknown (", self.hop.sent[0][1])

    def test_in_transaction(self):
        """STARTTLS in a transaction forgets it."""
        client = self.client(context="context")
        client.say(*LETTER[:3], b"STARTTLS")
        client.conversation.handshakeCompleted()

        self.assertEqual(client.codes(HELLO, b"DATA"), ["250", "503"])

    def test_without(self):
        """Without a certificate STARTTLS is neither offered nor done."""
        client = self.client()

        self.assertNotIn("250-STARTTLS", client.say(HELLO))
        self.assertEqual(client.codes(b"STARTTLS"), ["502"])

    def test_handshake_never_ends(self):
        """A handshake that takes more than a minute is cut."""
        client = self.client(context="context")
        client.say(HELLO, b"STARTTLS")

        self.clock.pump([1] * 60)
        self.assertFalse(client.transport.disconnected)
        self.clock.pump([1] * 2)

        self.assertTrue(client.transport.disconnected)

    def test_context_breaks(self):
        """If TLS can't be started the connection is cut: the client was promised it."""
        client = self.client(context="context")
        client.transport.startTLS = lambda _: 1 / 0

        client.say(HELLO, b"STARTTLS", b"NOOP")

        self.assertTrue(client.transport.disconnected)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_promise(self):
        """STARTTLS can't be offered without a context."""
        reception = self.listen(context="context")._reception

        self.assertRaises(ValueError, type(self.listen()), reception)
