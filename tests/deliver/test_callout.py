from twisted.internet.defer import CancelledError, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.deliver.callout import Callouts
from qmq.deliver.callout_line import NoAnswer
from qmq.deliver.mx import Candidate
from qmq.mail import Address, address

SITE = b"smtp:192.0.2.1"
GREETED = [(None, "220 host"), ("EHLO me", "250-host\r\n250 SIZE 1000")]


class MX:
    """Two hosts of each name."""

    def addresses(self, host, port):
        return succeed([Candidate(host, address, port, 0) for address in ("192.0.2.11", "192.0.2.12")])

    candidates = addresses


class Transport(StringTransport):
    def abortConnection(self):
        self.disconnecting = True


class CalloutsTests(SynchronousTestCase):
    def setUp(self):
        self.reactor = MemoryReactorClock()
        self.made()

    def made(self, **limits):
        self.callouts = Callouts(self.reactor, MX(), b"me", **limits)

    def ask(self, raw, site=SITE):
        recipient = raw if isinstance(raw, Address) else address(raw)
        return self.callouts.ask(site, recipient)

    def connect(self, number=-1):
        """The host takes our call: the line and its transport."""
        factory = self.reactor.tcpClients[number][2]
        line, transport = factory.buildProtocol(None), Transport()
        line.makeConnection(transport)
        return line, transport

    def talk(self, connection, *exchanges):
        """Each is what we are to have said, and the answer to it."""
        line, transport = connection
        for said, answer in exchanges:
            self.assertEqual(transport.value().decode(), f"{said}\r\n" if said else "")
            transport.clear()
            line.dataReceived(answer.encode() + b"\r\n")
        return transport.value().decode()

    def told(self, rcpt, address_="bob@one.test"):
        return [*GREETED, ("MAIL FROM:<>", "250 ok"), (f"RCPT TO:<{address_}>", rcpt)]

    def why(self, asked):
        return str(self.failureResultOf(asked, NoAnswer).value)

    def test_exists(self):
        """A mailbox for which the host takes RCPT exists; no message is begun."""
        asked = self.ask(b"bob@one.test")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 25))

        rest = self.talk(self.connect(), *self.told("250 ok"))

        self.assertEqual((self.successResultOf(asked), rest), (True, "QUIT\r\n"))
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_unknown(self):
        """One that the host refuses for good does not exist."""
        for code in (550, 551, 553, 554):
            self.made()
            asked = self.ask(b"bob@one.test")
            self.talk(self.connect(), *self.told(f"{code} no"))
            self.assertIs(self.successResultOf(asked), False)

    def test_host_does_not_tell(self):
        """What a host says of itself, or of the mailbox's state, is no answer."""
        for said in (
            *(self.told(f"{code} no") for code in (450, 421, 452, 500, 503, 530, 552)),
            [*GREETED, ("MAIL FROM:<>", "530 TLS first")], [*GREETED, ("MAIL FROM:<>", "550 no")],
            [(None, "554 no mail here")], [(None, "421 busy")],
            [(None, "220 host"), ("EHLO me", "421 no")], [(None, "220 host"), ("EHLO me", "500 no"), ("HELO me", "550 no")],
            [(None, "hello")], [(None, "220 host\r\n250 early")],
        ):  # fmt: skip
            self.made()
            asked = self.ask(b"bob@one.test")
            self.talk(self.connect(), *said)
            self.assertIn("192.0.2.1", self.why(asked))

    def test_early_reply(self):
        """A reply that comes before its question is not taken for the answer."""
        asked = self.ask(b"bob@one.test")

        self.talk(self.connect(), *GREETED, ("MAIL FROM:<>", "250 ok\r\n250 ok"))

        self.assertIn("nobody asked", self.why(asked))

    def test_helo(self):
        """A host that does not know EHLO is asked by HELO."""
        asked = self.ask(b"bob@one.test")
        self.talk(
            self.connect(),
            (None, "220 host"),
            ("EHLO me", "502 what"),
            ("HELO me", "250 host"),
            *self.told("250 ok")[2:],
        )
        self.assertTrue(self.successResultOf(asked))

    def test_lmtp(self):
        """LMTP hosts are asked too; QMTP knows no such question."""
        asked = self.ask(b"bob@one.test", b"qmtp:192.0.2.9 lmtp:192.0.2.1:24")
        self.assertEqual(self.reactor.tcpClients[0][:2], ("192.0.2.1", 24))
        self.talk(self.connect(), (None, "220 host"), ("LHLO me", "250 host"), *self.told("250 ok")[2:])
        self.assertTrue(self.successResultOf(asked))

        self.assertIn("cannot be asked", self.why(self.ask(b"bob@one.test", b"qmtp:192.0.2.9")))

    def test_next_host(self):
        """If a host can't be reached the next one of the site is asked, and the next word's."""
        asked = self.ask(b"bob@one.test", b"mx:one.test smtp:192.0.2.3:26")
        for number, place in enumerate([("192.0.2.11", 25), ("192.0.2.12", 25)]):
            self.assertEqual(self.reactor.tcpClients[number][:2], place)
            self.reactor.tcpClients[number][2].clientConnectionFailed(
                self.reactor.connectors[number], Failure(Refused())
            )
        self.assertEqual(self.reactor.tcpClients[2][:2], ("192.0.2.3", 26))

        self.talk(self.connect(), *self.told("550 no"))

        self.assertIs(self.successResultOf(asked), False)

    def test_remembered(self):
        """What was said is remembered for a while, that a mailbox exists for longer; what was not said is not."""
        self.made(exists=3600, unknown=600)
        for name, code in (("bob", 250), ("eve", 550)):
            self.ask(name.encode() + b"@one.test")
            self.talk(self.connect(), *self.told(f"{code} so", f"{name}@one.test"))

        self.assertEqual([self.ask(b"bob@one.test"), self.ask(b"eve@one.test")], [True, False])
        self.reactor.advance(601)
        self.assertEqual(self.ask(b"bob@one.test"), True)
        for code in (450, 550):
            asked = self.ask(b"eve@one.test")
            self.talk(self.connect(), *self.told(f"{code} so", "eve@one.test"))
            asked.addErrback(lambda _: None)
        self.assertIs(self.ask(b"eve@one.test"), False)
        self.reactor.advance(3000)
        self.assertNoResult(self.ask(b"bob@one.test"))

    def test_entries(self):
        """No more answers are remembered than may be; invented names drive no real one out."""
        self.made(entries=4)
        self.ask(b"bob@one.test")
        self.talk(self.connect(), *self.told("250 ok"))
        for number in range(5):
            self.ask(b"%d@one.test" % number)
            self.talk(self.connect(), *self.told("550 no", f"{number}@one.test"))

        self.assertEqual(
            [self.ask(raw) for raw in (b"bob@one.test", b"4@one.test", b"3@one.test")], [True, False, False]
        )
        self.assertNoResult(self.ask(b"2@one.test"))

    def test_asked_once(self):
        """Who asks for what is being asked for gets the same answer; one who goes away takes nobody's answer along."""
        first, second, third = (self.ask(b"bob@one.test") for _ in range(3))
        first.cancel()
        self.failureResultOf(first, CancelledError)

        self.talk(self.connect(), *self.told("250 ok"))

        self.assertEqual(len(self.reactor.tcpClients), 1)
        self.assertEqual([self.successResultOf(second), self.successResultOf(third)], [True, True])

    def test_all_cancelled(self):
        """When nobody waits any more the question is taken back, and its connection ended."""
        asked = self.ask(b"bob@one.test")
        connection = self.connect()
        self.talk(connection, *GREETED)

        asked.cancel()

        self.failureResultOf(asked, CancelledError)
        self.assertTrue(connection[1].disconnecting)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_connections(self):
        """A site has so many connections at most; what waits is asked on them, after a reset."""
        self.made(connections=2)
        asked = [self.ask(b"%d@one.test" % number) for number in range(4)]
        self.assertEqual(len(self.reactor.tcpClients), 2)
        first = self.connect(0)

        self.talk(first, *self.told("250 ok", "0@one.test"))
        self.talk(
            first, ("RSET", "250 ok"), ("MAIL FROM:<>", "250 ok"), ("RCPT TO:<1@one.test>", "550 no"),
            ("RSET", "250 ok"), ("MAIL FROM:<>", "250 ok"), ("RCPT TO:<2@one.test>", "250 ok"),
            ("RSET", "250 ok"), ("MAIL FROM:<>", "250 ok"), ("RCPT TO:<3@one.test>", "250 ok"),
        )  # fmt: skip

        self.assertEqual([self.successResultOf(one) for one in asked], [True, False, True, True])

    def test_too_many_wait(self):
        """Beyond those that may wait nobody is told, at once."""
        self.made(connections=1, waiting=2)
        asked = [self.ask(b"%d@one.test" % number) for number in range(4)]

        self.assertIn("too many", self.why(asked[2]))
        self.assertIn("too many", self.why(asked[3]))
        self.assertNoResult(asked[1])

    def test_late(self):
        """A host that does not answer in time has not told; its connection is ended."""
        asked = self.ask(b"bob@one.test")
        connection = self.connect()
        self.talk(connection, *GREETED)

        self.reactor.advance(10)

        self.assertIn("within 10 s", self.why(asked))
        self.assertTrue(connection[1].disconnecting)

    def test_closes(self):
        """A host that closes has not told."""
        asked = self.ask(b"bob@one.test")
        line, _ = connection = self.connect()
        self.talk(connection, *GREETED)

        line.connectionLost(Failure(ConnectionDone()))

        self.assertIn("closed", self.why(asked))

    def test_rest(self):
        """A site that can't be reached is left alone for ten seconds, and nobody waits for it meanwhile."""
        asked = [self.ask(b"bob@one.test"), self.ask(b"eve@one.test")]
        for number in range(2):
            self.reactor.tcpClients[number][2].clientConnectionFailed(
                self.reactor.connectors[number], Failure(Refused())
            )
        asked.append(self.ask(b"bob@one.test"))

        for one in asked:
            self.assertIn("reached", self.why(one))
        self.assertEqual(len(self.reactor.tcpClients), 2)
        self.reactor.advance(10)
        self.ask(b"bob@one.test")
        self.assertEqual(len(self.reactor.tcpClients), 3)
        self.assertEqual(len(self.callouts._sites), 1)

    def test_odd_addresses(self):
        """Nobody's address becomes a command to the host; what it can't be told does not exist there."""
        for recipient in (
            Address(b"a\r\nRSET", b"one.test"),
            Address(b"a\0", b"one.test"),
            Address("ü".encode(), b"one.test"),
        ):
            self.made()
            asked = self.ask(recipient)
            rest = self.talk(self.connect(), *GREETED)
            self.assertEqual((self.successResultOf(asked), rest), (False, "QUIT\r\n"))

        self.made()
        asked = self.ask(Address("ü".encode(), b"one.test"))
        self.talk(self.connect(), (None, "220 host"), ("EHLO me", "250-host\r\n250 SMTPUTF8"),
                  ("MAIL FROM:<> SMTPUTF8", "250 ok"), ("RCPT TO:<ü@one.test>", "250 ok"))  # fmt: skip
        self.assertIs(self.successResultOf(asked), True)

    def test_bad_site(self):
        """A site that is none is no answer."""
        self.assertIn("no next hop", self.why(self.ask(b"bob@one.test", b"")))

    def test_nothing_is_left(self):
        """When all is answered nothing is kept of a site but its answers."""
        asked = [self.ask(b"%d@%d.test" % (n, n), b"smtp:192.0.2.%d" % n) for n in range(1, 20)]
        for number in range(19):
            self.talk(self.connect(number), *self.told("250 ok", f"{number + 1}@{number + 1}.test"))

        self.assertTrue(all(self.successResultOf(one) for one in asked))
        self.assertEqual((self.callouts._sites, self.callouts._asked, self.reactor.getDelayedCalls()), ({}, {}, []))
