import os
from ipaddress import ip_network
from itertools import count

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.dns.query import DNSTrouble, NoSuchDomain
from qmq.receive.clients import Clients, Deny, Layers
from qmq.rules.watched import BadLine, Files
from qmq.session import Environment

SERVER = ("192.0.2.25", 25)


class FakeResolver:
    """Knows names and addresses; a Deferred in place of an answer is given as it is."""

    def __init__(self, names=None, addresses=None):
        self.names = names or {}
        self.known = addresses or {}
        self.asked = []

    def _answer(self, table, key):
        self.asked.append(key)
        answer = table.get(key, NoSuchDomain(key))
        if isinstance(answer, Deferred):
            return answer
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def ptr(self, ip):
        return self._answer(self.names, ip)

    def addresses(self, host):
        return self._answer(self.known, host)


class ClientsTestCase(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.warnings = []
        self.files = Files(self.warnings.append)
        self.resolver = FakeResolver({"192.0.2.1": ["MX.example.", "b.example"]}, {"mx.example": ["192.0.2.1"]})

    def write(self, text, name="tcp.smtp"):
        if not hasattr(self, "path"):
            self.path = os.path.join(self.mktemp(), name)
            os.makedirs(os.path.dirname(self.path))
        with open(self.path, "w", encoding="utf-8") as file:
            file.write(text)
        return self.path

    def clients(self, rules="", hosts="127.0.0.1 localhost lo.example\n", **layers):
        hosts_file = self.mktemp()
        with open(hosts_file, "w", encoding="utf-8") as file:
            file.write(hosts)
        return Clients(
            Layers(rules=self.write(rules) if rules else "", **layers),
            self.files, self.resolver, self.clock, hosts=hosts_file,
        )  # fmt: skip

    def session(self, clients, ip="192.0.2.1", listener=""):
        return clients.session(ip, 40000, *SERVER, listener)


class LayerTests(ClientsTestCase):
    def test_nothing(self):
        """Without settings a client is a stranger with all checks off; each has its number."""
        clients = self.clients()
        one, two = self.session(clients), self.session(clients)

        self.assertEqual((one.client, one.port, one.server, one.server_port), ("192.0.2.1", 40000, *SERVER))
        self.assertEqual((one.number, two.number, one.relay, one.user), (1, 2, False, b""))
        self.assertEqual(one.environment, Environment())
        self.assertIsNot(one.conduct, two.conduct)

    def test_order(self):
        """From weak to strong: default, process, [primary], [listen], the rule, the narrowest [client]."""
        names = ("A", "B", "C", "D", "E", "F")
        layer = [dict.fromkeys(names[n:], str(n)) for n in range(6)]
        rule = "192.0.2.:allow," + ",".join(f"{k}='{v}'" for k, v in layer[4].items())
        clients = self.clients(
            rule + "\n", weak=tuple(layer[:3]), listeners={"in": layer[3]},
            clients=[(ip_network("192.0.0.0/16"), {"F": "wide"}), (ip_network("192.0.2.0/24"), layer[5])],
        )  # fmt: skip

        found = self.session(clients, listener="in").environment.variables
        elsewhere = self.session(clients, listener="out").environment.variables

        self.assertEqual(found, dict(zip(names, "012345", strict=True)))
        self.assertEqual(elsewhere["D"], "2")
        self.assertEqual(self.session(clients, "192.0.3.1").environment.variables["F"], "wide")

    def test_same_object(self):
        """Clients of the same rule, listener and section share one Environment; others have their own."""
        clients = self.clients("192.0.2.:allow,SPF='3'\n", clients=[(ip_network("192.0.2.9/32"), {"SPF": "1"})])
        environments = [self.session(clients, ip).environment for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.9")]

        self.assertIs(environments[0], environments[1])
        self.assertEqual([e.spf for e in environments], [3, 3, 1])

    def test_unset(self):
        """A stronger layer may unset what a weaker one has set."""
        clients = self.clients(
            weak=({"MFDNSCHECK": "", "HELOCHECK": "!"},),
            clients=[(ip_network("192.0.2.1"), {"MFDNSCHECK": None, "HELOCHECK": None})],
        )
        found = self.session(clients).environment

        self.assertEqual((found.mfdnscheck, found.helocheck), (False, None))
        self.assertTrue(self.session(clients, "192.0.2.2").environment.mfdnscheck)

    def test_relay(self):
        """Clients in relay are trusted unless a section says no; a rule's own text for them stays."""
        clients = self.clients(
            "10.0.0.2:allow,RELAYCLIENT='@fix.me'\n192.0.2.7:allow,RELAYCLIENT=''\n",
            relay=[ip_network("10.0.0.0/8")], clients=[(ip_network("10.0.0.3"), {"RELAYCLIENT": None})],
        )  # fmt: skip
        sessions = [self.session(clients, ip) for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.7", "192.0.2.8")]

        self.assertEqual([s.environment.relayclient for s in sessions], [b"", b"@fix.me", None, b"", None])
        self.assertEqual([s.relay for s in sessions], [True, True, False, True, False])

    def test_databytes(self):
        """Nobody has more than the hard limit, who has none has that; else each has its own."""
        clients = self.clients(
            "192.0.2.1:allow,DATABYTES='0'\n192.0.2.2:allow,DATABYTES='900'\n192.0.2.3:allow,DATABYTES='9999'\n",
            weak=({"DATABYTES": "500"},), databytes=1000,
        )  # fmt: skip
        found = [self.session(clients, f"192.0.2.{n}").environment.databytes for n in (1, 2, 3, 4)]

        self.assertEqual(found, [1000, 900, 1000, 500])

    def test_who(self):
        """TCPREMOTEINFO is the user, TCPREMOTEHOST the name, whatever DNS says."""
        clients = self.clients("192.0.2.1:allow,TCPREMOTEINFO='joe',TCPREMOTEHOST='Desk.example'\n")
        session = self.session(clients)

        self.assertEqual((session.user, session.host), (b"joe", "desk.example"))

    def test_unix(self):
        """Who comes by a unix socket is trusted, has no name, and no rule is for it."""
        session = self.session(self.clients(":deny\n"), "")

        self.assertEqual((session.client, session.host, session.relay), ("", "unknown", True))
        self.assertEqual(self.resolver.asked, [])

    def test_numbers(self):
        """After a reload the count goes on."""
        old = self.clients()
        self.session(old)
        new = Clients(Layers(), self.files, self.resolver, self.clock, numbers=old.numbers)

        self.assertEqual(self.session(new).number, 2)

    def test_bound(self):
        """However many rules there are, no more than some thousand environments are remembered."""
        clients = self.clients("".join(f"10.0.{n // 250}.{n % 250}:allow,N='{n}'\n" for n in range(2500)))
        for n in range(2500):
            self.assertEqual(self.session(clients, f"10.0.{n // 250}.{n % 250}").environment.variables, {"N": str(n)})

        self.assertLessEqual(len(clients._merged), 2000)


class RuleTests(ClientsTestCase):
    def test_deny(self):
        """A denied client gets 554 and nothing else."""
        denied = self.session(self.clients("192.0.2.:deny\n"))

        self.assertIsInstance(denied, Deny)
        self.assertEqual((denied.reply.code, denied.reply.status, denied.host), (554, "5.7.1", "mx.example"))

    def test_edit(self):
        """An edit holds for the next connection; a slip leaves the rules as they were, with a warning."""
        clients = self.clients("192.0.2.1:allow,SPF='3'\n")
        first = self.session(clients).environment.spf
        self.write("192.0.2.1:allow,SPF='30'\n")
        slip = self.session(clients).environment.spf
        self.write("192.0.2.1:allow,SPF='4',A='1'\n")

        self.assertEqual((first, slip, self.session(clients).environment.spf), (3, 3, 4))
        self.assertEqual(len(self.warnings), 1)
        self.assertIn("tcp.smtp:1: SPF: 30 is not within", self.warnings[0])

    def test_bad(self):
        """Rules that are none are told at the start."""
        with self.assertRaises(BadLine):
            self.clients("192.0.2.1\n")

    def test_not_here(self):
        """A variable that does nothing yet is warned of once."""
        clients = self.clients("192.0.2.1:allow,SMTPAUTH=''\n")
        for _ in range(3):
            self.session(clients)

        self.assertEqual(len(self.warnings), 1)
        self.assertIn("SMTPAUTH is not used", self.warnings[0])

    def test_by_host(self):
        """A rule by name holds only for a name that leads back to the address."""
        self.resolver.names["192.0.2.2"] = ["mx.example"]  # it says so, but mx.example does not
        clients = self.clients("=mx.example:allow,RELAYCLIENT=''\n=.example:deny\n")

        self.assertTrue(self.session(clients).relay)
        liar = self.session(clients, "192.0.2.2")
        self.assertEqual((liar.relay, liar.host), (False, "mx.example"))

    def test_by_host_later(self):
        """If an edit brings the first rule by name, names known by then are confirmed before it counts."""
        clients = self.clients("10.:deny\n")
        self.session(clients)
        self.assertEqual(self.resolver.asked, ["192.0.2.1"])
        self.write("=mx.example:allow,RELAYCLIENT=''\n")

        self.assertTrue(self.session(clients).relay)

    def test_forward_only_if_needed(self):
        """The name is looked up forward only if a rule goes by it, or conf-qmq wants that."""
        self.session(self.clients("10.:deny\n"))

        self.assertEqual(self.resolver.asked, ["192.0.2.1"])


class NameTests(ClientsTestCase):
    def host(self, clients, ip="192.0.2.1"):
        return self.session(clients, ip).host

    def test_name(self):
        """The first name, in lower case; who has none is unknown; each is asked once a minute."""
        clients = self.clients()

        self.assertEqual([self.host(clients), self.host(clients), self.host(clients, "192.0.2.9")],
                         ["mx.example", "mx.example", "unknown"])  # fmt: skip
        self.assertEqual(self.resolver.asked, ["192.0.2.1", "192.0.2.9"])
        self.clock.advance(61)
        self.host(clients)
        self.assertEqual(self.resolver.asked[2:], ["192.0.2.1"])

    def test_no(self):
        """With reverse = no nobody is asked."""
        self.assertEqual(self.host(self.clients(reverse="no")), "unknown")
        self.assertEqual(self.resolver.asked, [])

    def test_confirmed(self):
        """With reverse = confirmed a name that does not lead back is unknown, and so is one that cannot be asked."""
        self.resolver.names.update({"192.0.2.2": ["mx.example"], "192.0.2.3": ["c.example"]})
        self.resolver.known["c.example"] = DNSTrouble("no answer")
        clients = self.clients(reverse="confirmed")

        self.assertEqual([self.host(clients, f"192.0.2.{n}") for n in (1, 2, 3)], ["mx.example", "unknown", "unknown"])

    def test_confirmed_ipv6(self):
        """Addresses are compared as addresses, however they are written."""
        self.resolver.names["2001:db8::1"] = ["v6.example"]
        self.resolver.known["v6.example"] = ["192.0.2.8", "2001:DB8:0::1"]

        self.assertEqual(self.host(self.clients(reverse="confirmed"), "2001:db8::1"), "v6.example")

    def test_nonsense(self):
        """What cannot be a name is unknown: it would go into header fields and logs."""
        for name in ("a b.example", "a\\010b.example", "<x>", "", "a..b", "x" * 300, "\xe9.example", "a;rm.example"):
            self.resolver.names["192.0.2.1"] = [name]
            self.assertEqual(self.host(self.clients()), "unknown", name)

    def test_waits(self):
        """While DNS thinks, the session waits; the answer decides."""
        answer = self.resolver.names["192.0.2.1"] = Deferred()
        waiting = self.session(self.clients())
        self.assertNoResult(waiting)
        answer.callback(["late.example"])

        self.assertEqual(self.successResultOf(waiting).host, "late.example")

    def test_too_late(self):
        """After reverse-time it is unknown, and stays so for a minute."""
        self.resolver.names["192.0.2.1"] = Deferred()
        clients = self.clients(reverse_time=5)
        waiting = self.session(clients)
        self.clock.advance(4.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)

        self.assertEqual(self.successResultOf(waiting).host, "unknown")
        self.assertEqual(self.host(clients), "unknown")
        self.assertEqual(self.resolver.asked, ["192.0.2.1"])

    def test_trouble(self):
        """Trouble with DNS is no trouble for the client."""
        self.resolver.names["192.0.2.1"] = DNSTrouble("refused")

        self.assertEqual(self.host(self.clients()), "unknown")

    def test_bug(self):
        """Nor is a bug in our resolver, but that is logged."""
        self.resolver.names["192.0.2.1"] = KeyError("x")

        self.assertEqual(self.host(self.clients()), "unknown")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_gone(self):
        """A client that goes away meanwhile stops the question; nothing is remembered of it."""
        cancelled = []
        self.resolver.names["192.0.2.1"] = Deferred(cancelled.append)
        clients = self.clients()
        waiting = self.session(clients)
        waiting.cancel()

        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(len(cancelled), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.resolver.names["192.0.2.1"] = ["mx.example"]
        self.assertEqual(self.host(clients), "mx.example")

    def test_loopback(self):
        """Addresses of this machine are looked up in /etc/hosts alone, unless the name servers are our own."""
        self.resolver.names["127.0.0.1"] = ["dns.example"]

        self.assertEqual(self.host(self.clients(), "127.0.0.1"), "localhost")
        self.assertEqual(self.host(self.clients(hosts=""), "127.0.0.1"), "unknown")
        self.assertEqual(self.resolver.asked, [])
        self.assertEqual(self.host(self.clients(loopback_by_dns=True), "127.0.0.1"), "dns.example")

    def test_many(self):
        """Of ten thousand clients the oldest are forgotten."""
        clients = self.clients()
        for n in range(10_100):
            self.host(clients, f"10.1.{n // 250}.{n % 250}")

        self.assertEqual(len(clients._names), 10_000)

    def test_count(self):
        """Numbers may come from elsewhere."""
        clients = Clients(Layers(), self.files, self.resolver, self.clock, numbers=count(7))

        self.assertEqual(self.session(clients).number, 7)
