from collections.abc import Sequence
from random import Random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from qmq.deliver.mx import MX, Candidate
from qmq.dns import DNSTrouble, Exchange, NoData, NoSuchDomain
from qmq.mail import DeliveryFailure, Reply

Found = Sequence[Any] | Exception


class FakeNames:
    """DNS from two tables; what is missing in the first is no data, in the second no such domain."""

    def __init__(self, exchanges: dict[str, Found], addresses: dict[str, Found]) -> None:
        self.exchanges = exchanges
        self.known = addresses
        self.asked: list[str] = []

    def mx(self, domain: str) -> Deferred[Any]:
        """From the table."""
        return self._answer(self.exchanges.get(domain, NoData(domain)))

    def addresses(self, host: str) -> Deferred[Any]:
        """From the table."""
        self.asked.append(host)
        return self._answer(self.known.get(host, NoSuchDomain(host)))

    def _answer(self, found: Found) -> Deferred[Any]:
        return fail(found) if isinstance(found, Exception) else succeed(found)


class MXTests(SynchronousTestCase):
    def mx(self, exchanges: dict[str, Found], addresses: dict[str, Found], **options: Any) -> MX:
        """With 192.0.2.25 and 2001:db8::25 as our own addresses, and mx.us.example as our name."""
        self.names = FakeNames(exchanges, addresses)
        options.setdefault("random", Random(1))
        options.setdefault("own", lambda: ["192.0.2.25", "2001:db8::25"])
        return MX(self.names, own_names=["mx.us.example"], **options)

    def found(self, mx: MX, domain: bytes | str = "example.org", **options: Any) -> list[Candidate]:
        return self.successResultOf(mx.candidates(domain, **options))

    def refusal(self, mx: MX, domain: bytes | str = "example.org") -> Reply:
        return self.failureResultOf(mx.candidates(domain), DeliveryFailure).value.reply

    def test_preference(self) -> None:
        """Exchangers come in the order of their preference, each with its addresses and the port asked for."""
        mx = self.mx(
            {"example.org": [Exchange(20, "b.example"), Exchange(10, "a.example")]},
            {"a.example": ["192.0.2.1"], "b.example": ["192.0.2.2"]},
        )

        self.assertEqual(
            self.found(mx, b"Example.ORG.", port=2525),
            [Candidate("a.example", "192.0.2.1", 2525, 10), Candidate("b.example", "192.0.2.2", 2525, 20)],
        )

    def test_equal_preference(self) -> None:
        """Exchangers of equal preference, and the addresses of one, are tried in random order."""
        hosts = [Exchange(10, f"h{n}.example") for n in range(4)]
        mx = self.mx({"example.org": hosts}, {f"h{n}.example": [f"192.0.2.{n}", f"192.0.2.10{n}"] for n in range(4)})

        orders = {tuple(candidate.address for candidate in self.found(mx)) for _ in range(40)}

        self.assertEqual({order[0] for order in orders}, {f"192.0.2.{a}{n}" for n in range(4) for a in ("", "10")})
        self.assertEqual({len(order) for order in orders}, {8})

    def test_no_mx(self) -> None:
        """A domain without MX records gets its mail at its own addresses."""
        mx = self.mx({}, {"example.org": ["192.0.2.1"]})

        self.assertEqual(self.found(mx), [Candidate("example.org", "192.0.2.1", 25, 0)])

    def test_families(self) -> None:
        """IPv4 and IPv6 addresses take turns in the order of liking; a family that is not wanted is left out."""
        addresses = {"example.org": ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]}

        for families, colons in [((4, 6), [0, 1, 0, 1]), ((6, 4), [1, 0, 1, 0]), ((4,), [0, 0]), ((6,), [1, 1])]:
            mx = self.mx({}, addresses, families=families)
            self.assertEqual([":" in candidate.address for candidate in self.found(mx)], colons)
        self.assertEqual(self.refusal(self.mx({}, {"example.org": ["2001:db8::1"]}, families=(4,))).status, "5.4.4")

    def test_refusals(self) -> None:
        """Null MX, no such domain, nothing there, and trouble are told apart, by code and by status."""
        for exchanges, addresses, expected in [
            ([Exchange(0, "")], {}, (556, "5.1.10")),
            (NoSuchDomain(""), {"example.org": ["192.0.2.1"]}, (550, "5.1.2")),
            (NoData(""), {"example.org": NoData("")}, (550, "5.1.2")),
            (DNSTrouble(""), {"example.org": ["192.0.2.1"]}, (451, "4.4.3")),
            (NoData(""), {"example.org": DNSTrouble("")}, (451, "4.4.3")),
            ([Exchange(10, "a.example")], {}, (550, "5.4.4")),
            ([Exchange(10, "a.example"), Exchange(20, "b.example")], {"b.example": DNSTrouble("")}, (451, "4.4.3")),
        ]:
            reply = self.refusal(self.mx({"example.org": exchanges}, addresses))
            self.assertEqual((reply.code, reply.status), expected)
            self.assertIn("example.org", reply.text)

    def test_some_exchangers_unknown(self) -> None:
        """An exchanger that can't be looked up does not keep us from the others; a null one among others is none."""
        mx = self.mx(
            {
                "example.org": [
                    Exchange(0, ""),
                    Exchange(1, "x.example"),
                    Exchange(2, "y.example"),
                    Exchange(3, "z.example"),
                ]
            },
            {"x.example": DNSTrouble(""), "z.example": ["192.0.2.1"]},
        )

        self.assertEqual([candidate.host for candidate in self.found(mx)], ["z.example"])

    def test_ourselves_among_exchangers(self) -> None:
        """Exchangers as good as ourselves or worse are left out, whether we are known by address or by name."""
        exchanges = [Exchange(10, "best"), Exchange(20, "ours"), Exchange(20, "equal"), Exchange(30, "worse")]
        addresses: dict[str, Found] = {name: ["198.51.100.1"] for name in ("best", "equal", "worse")}
        for ours in (["192.0.2.25"], ["198.51.100.7", "2001:DB8:0::25"], ["127.0.0.9"], ["0.0.0.0"], ["::"],
                     ["::ffff:192.0.2.25"], ["::ffff:127.0.0.1"]):  # fmt: skip
            mx = self.mx({"example.org": exchanges}, {**addresses, "ours": ours})
            self.assertEqual([candidate.host for candidate in self.found(mx)], ["best"], ours)

        by_name = [Exchange(10, "best"), Exchange(20, "mx.us.example"), Exchange(30, "worse")]
        mx = self.mx({"example.org": by_name}, {**addresses, "mx.us.example": DNSTrouble("")})
        self.assertEqual([candidate.host for candidate in self.found(mx)], ["best"])

    def test_loop(self) -> None:
        """Mail that would come back to ourselves at once is refused for good, by MX, by address and by literal."""
        for exchanges, addresses, domain in [
            ([Exchange(10, "ours")], {"ours": ["192.0.2.25"]}, "example.org"),
            (
                [Exchange(10, "localhost"), Exchange(20, "other")],
                {"localhost": ["127.0.0.1", "::1"], "other": ["192.0.2.1"]},
                "example.org",
            ),
            (NoData(""), {"example.org": ["192.0.2.25"]}, "example.org"),
            (NoData(""), {}, "[192.0.2.25]"),
            (NoData(""), {}, "[IPv6:2001:db8::25]"),
            (NoData(""), {}, "[0.0.0.0]"),
        ]:  # fmt: skip
            reply = self.refusal(self.mx({"example.org": exchanges}, addresses), domain)
            self.assertEqual((reply.code, reply.status), (554, "5.4.6"))

    def test_loop_or_trouble(self) -> None:
        """While a better exchanger than ourselves can't be looked up, mail waits; it is not taken for a loop."""
        mx = self.mx(
            {"example.org": [Exchange(10, "best"), Exchange(20, "ours")]},
            {"best": DNSTrouble(""), "ours": ["192.0.2.25"]},
        )

        self.assertEqual(self.refusal(mx).code, 451)

    def test_loopback_allowed(self) -> None:
        """Where loopback is declared not to be ours, an exchanger there is used; 0.0.0.0 and multicast never are."""
        mx = self.mx(
            {"example.org": [Exchange(10, "local")]},
            {"local": ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::"]},
            loopback_is_own=False,
        )

        self.assertEqual([candidate.address for candidate in self.found(mx)], ["127.0.0.1"])

    def test_bounds(self) -> None:
        """Of a thousand exchangers twenty are looked up, and of a hundred addresses five are tried."""
        mx = self.mx(
            {"example.org": [Exchange(n, f"h{n}.example") for n in range(1000)]},
            {f"h{n}.example": [f"192.0.2.{k}" for k in range(100, 200)] for n in range(1000)},
        )

        found = self.found(mx)

        self.assertEqual(self.names.asked, [f"h{n}.example" for n in range(20)])
        self.assertEqual(len(found), 100)

    def test_literals(self) -> None:
        """Mail to an address literal goes there without DNS; a literal that is none is refused."""
        mx = self.mx({}, {})

        self.assertEqual(self.found(mx, b"[192.0.2.1]"), [Candidate("[192.0.2.1]", "192.0.2.1", 25, 0)])
        self.assertEqual(self.found(mx, "[ipv6:2001:DB8::1]")[0].address, "2001:db8::1")
        self.assertEqual(self.names.asked, [])
        for domain in ("[]", "[192.0.2.256]", "[2001:db8::1]", "[IPv6:192.0.2.1]", "[192.0.2.1", "[x]", "[192.0.2.1]x"):
            self.assertEqual(self.refusal(mx, domain).status, "5.1.2", domain)

    def test_routes(self) -> None:
        """A host named by a route is looked up by its address alone, and may be on this machine."""
        mx = self.mx({"host.example": [Exchange(10, "other")]}, {"host.example": ["127.0.0.1"], "dead": DNSTrouble("")})

        found = self.successResultOf(mx.addresses("host.example", 2525))
        literal = self.successResultOf(mx.addresses("[192.0.2.25]", 25))
        trouble = self.failureResultOf(mx.addresses("dead", 25), DeliveryFailure).value.reply

        self.assertEqual(found, [Candidate("host.example", "127.0.0.1", 2525, 0)])
        self.assertEqual(literal, [Candidate("[192.0.2.25]", "192.0.2.25", 25, 0)])
        self.assertEqual(trouble.code, 451)
