from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.mail import Address
from qmq.spf.evaluate import Limits
from qmq.spf.finding import SPF
from qmq.spf.macro import template
from qmq.spf.record import mechanisms
from tests.spf.fakes import FakeResolver

IP = "192.0.2.1"


class FindingTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()

    def checking(self, records, *, ip=IP, sender=b"a@x.example", helo=b"h.example", rules=b"", **how):
        self.resolver = FakeResolver(records)
        said = mechanisms(rules)
        spf = SPF(self.resolver, self.clock, "mx.us.example", rules=lambda: said, wall=lambda: 17.5, **how)
        local, _, domain = sender.rpartition(b"@")
        return Deferred.fromCoroutine(spf.check(ip, Address(local, domain), helo))

    def found(self, records, **how):
        return self.successResultOf(self.checking(records, **how))

    def result(self, text, more=(), **how):
        return self.found({"x.example": {"txt": text}, **dict(more)}, **how).result.value

    def test_pass(self):
        """A client that the record names passes, by that term; all others fail."""
        records = {"x.example": {"txt": "v=spf1 ip4:192.0.2.0/28 -all"}}

        found = self.found(records)

        self.assertEqual(
            (found.result.value, found.mechanism, found.domain, found.identity),
            ("pass", "ip4:192.0.2.0/28", "x.example", "mailfrom"),
        )
        self.assertEqual(self.found(records, ip="192.0.2.16").result.value, "fail")
        self.assertEqual(self.found(records, ip="::ffff:192.0.2.1").result.value, "pass")
        self.assertEqual(self.found(records, ip="2001:db8::1").result.value, "fail")

    def test_null_sender(self):
        """The null sender is checked by the name in HELO."""
        found = self.found(
            {"h.example": {"txt": "v=spf1 exists:%{l}.%{o} -all"}, "postmaster.h.example": {"a": "127.0.0.2"}},
            sender=b"",
        )

        self.assertEqual((found.result.value, found.identity, found.domain), ("pass", "helo", "h.example"))

    def test_no_domain(self):
        """What can be no mail domain has no result, and nobody is asked."""
        for sender in [
            b"a@[192.0.2.1]",
            b"a@localhost",
            b"a@x..example",
            b"a@" + b"y" * 64 + b".example",
            b"a@b c.example",
            b"a@x.ex\xffample",
            b"a@[]",
        ]:
            self.assertEqual(self.found({}, sender=sender).result.value, "none", sender)
            self.assertEqual(self.resolver.asked, [])
        self.assertEqual(self.found({}, sender=b"", helo=b"").result.value, "none")

    def test_no_client(self):
        """A client without an IP address has no result."""
        self.assertEqual(self.found({}, ip="/run/socket").result.value, "none")

    def test_international(self):
        """A domain beyond ASCII is asked for by its A-labels (RFC 8616)."""
        found = self.found({"xn--bcher-kva.example": {"txt": "v=spf1 +all"}}, sender="a@bücher.example".encode())

        self.assertEqual((found.result.value, found.domain), ("pass", "xn--bcher-kva.example"))

    def test_international_local_part(self):
        """Terms with a local part that cannot be in DNS match nothing, escaped or not (RFC 8616 4)."""
        text = "v=spf1 exists:%{l}.y.example exists:%{L}.y.example include:%{l}.y.example a:%{s}.y.example ~all"

        self.assertEqual(self.result(text, sender="ü@x.example".encode()), "softfail")
        self.assertEqual(self.resolver.asked, [("txt", "x.example")])

    def test_trouble(self):
        """Trouble with DNS is a temperror, at the record and at its terms; with names of the client it is no match."""
        self.assertEqual(self.found({}, sender=b"a@broken.example").result.value, "temperror")
        for term in ["a:broken.example", "mx:broken.example", "include:broken.example", "exists:broken.example"]:
            self.assertEqual(self.result(f"v=spf1 {term} -all"), "temperror")
        self.assertEqual(self.result("v=spf1 ptr -all", {IP: {"ptr": ["broken.example"]}}), "fail")

    def test_loops(self):
        """Records that include themselves or redirect in a circle end after ten terms."""
        self.assertEqual(self.result("v=spf1 include:x.example -all"), "permerror")
        self.assertEqual(len(self.resolver.asked), 11)
        self.assertEqual(self.result("v=spf1 redirect=x.example"), "permerror")
        self.assertEqual(len(self.resolver.asked), 11)

    def test_voids(self):
        """The third term that finds nothing in DNS ends the check; a limit of the site's own counts instead."""
        text = "v=spf1 a:a.y.example mx:b.y.example exists:c.y.example ~all"

        self.assertEqual(self.result(text), "permerror")
        self.assertEqual(self.result(text, limits=Limits(voids=3)), "softfail")

    def test_voids_of_exchangers(self):
        """An MX whose hosts have no addresses is one void term, however many there are."""
        hosts = [f"h{n}.y.example" for n in range(10)]

        self.assertEqual(
            self.result("v=spf1 mx mx ~all", {"x.example": {"txt": "v=spf1 mx mx ~all", "mx": hosts}}), "softfail"
        )
        self.assertEqual(self.result("", {"x.example": {"txt": "v=spf1 mx mx mx ~all", "mx": hosts}}), "permerror")

    def test_most_questions(self):
        """The most that a hostile record can make us ask."""
        hosts = [f"h{n}.y.example" for n in range(10)]
        records = {
            "x.example": {"txt": "v=spf1 " + "mx " * 10 + "-all exp=%{p}.x.example", "mx": hosts},
            IP: {"ptr": hosts},
        }
        records |= {host: {"a": ["203.0.113.9"]} for host in hosts}

        self.assertEqual(self.found(records).result.value, "fail")

        self.assertEqual(len(self.resolver.asked), 1 + 10 * 11 + 11 + 1)

    def test_names(self):
        """Of an address's names the first ten are looked at, no others, whoever made the rest."""
        names = [f"n{n}.x.example" for n in range(11)]
        records = {"x.example": {"txt": "v=spf1 ptr -all"}, IP: {"ptr": names}}

        self.assertEqual(self.found(records | {names[9]: {"a": IP}}).result.value, "pass")
        self.assertEqual(self.found(records | {names[10]: {"a": IP}}).result.value, "fail")

    def test_late(self):
        """A domain that keeps us waiting is a temperror after 20 seconds, and nothing is asked any more."""
        waiting = self.checking({"x.example": {"txt": "v=spf1 a:silent.example -all"}})
        self.clock.advance(19.9)
        self.assertNoResult(waiting)
        self.clock.advance(0.1)

        self.assertEqual(self.successResultOf(waiting).result.value, "temperror")
        self.assertEqual(self.resolver.cancelled, 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_gone(self):
        """A check that nobody waits for any more stops asking."""
        waiting = self.checking({}, sender=b"a@silent.example")
        waiting.cancel()

        self.failureResultOf(waiting, CancelledError)
        self.assertEqual((self.resolver.cancelled, self.clock.getDelayedCalls()), (1, []))

    def test_late_explanation(self):
        """A fail is a fail, though its explanation does not come."""
        waiting = self.checking({"x.example": {"txt": "v=spf1 -all exp=silent.example"}})
        self.clock.advance(5)

        found = self.successResultOf(waiting)

        self.assertEqual((found.result.value, found.explanation), ("fail", ""))

    def test_explanation(self):
        """The domain's own words are told from ours, and are plain text on one line whatever the client says."""
        records = {"x.example": {"txt": "v=spf1 -all exp=e.x.example"}, "e.x.example": {"txt": "%{l} at %{h} %{t}"}}

        found = self.found(records, sender=b"a\r\n250 ok@x.example", helo="ü\x00".encode())

        self.assertEqual((found.explanation, found.theirs), ("a??250 ok at ??? 17", True))

    def test_long_explanation(self):
        """An explanation of any length is cut."""
        found = self.found({"x.example": {"txt": "v=spf1 -all exp=e.x.example"}, "e.x.example": {"txt": "%{s}" * 5000}})

        self.assertEqual(len(found.explanation), 400)

    def test_own_explanation(self):
        """The site's explanation is used where the domain has none, or a broken one."""
        ours = template("go away, %{c} of %{d}", explanation=True)
        for exp in ["", "exp=nowhere.example", "exp=bad.example", "exp=two.example", "exp=broken.example"]:
            records = {
                "x.example": {"txt": f"v=spf1 -all {exp}"},
                "bad.example": {"txt": "%{x}"},
                "two.example": {"txt": ["1", "2"]},
            }

            found = self.found(records, explanation=lambda: ours)

            self.assertEqual((found.explanation, found.theirs), ("go away, 192.0.2.1 of x.example", False))

    def test_rules(self):
        """Local rules come before the refusal of all others, before the default, and for domains without a record."""
        rules = b"ip4:192.0.2.1"
        for text in [
            "v=spf1 -all",
            "v=spf1 ?a ~all",
            "v=spf1",
            "v=spf1 ip4:203.0.113.1",
            "v=spf1 -ip4:192.0.2.0/24 -all",
            "other",
        ]:
            self.assertEqual(
                self.result(text, {"x.example": {"txt": text, "a": "203.0.113.1"}}, rules=rules), "pass", text
            )
        self.assertEqual(self.found({}, rules=rules).result.value, "pass")
        redirected = {"x.example": {"txt": "v=spf1 redirect=y.example"}, "y.example": {"txt": "v=spf1 -all"}}
        self.assertEqual(self.found(redirected, rules=rules).result.value, "pass")

    def test_rules_do_not_matter(self):
        """Local rules do not come before what the domain says of this client, nor into what it includes."""
        rules = b"-ip4:192.0.2.1"

        self.assertEqual(
            self.result("v=spf1 a -all", {"x.example": {"txt": "v=spf1 a -all", "a": IP}}, rules=rules), "pass"
        )
        self.assertEqual(self.result("v=spf1 +all", rules=rules), "pass")
        included = {"x.example": {"txt": "v=spf1 include:y.example -all"}, "y.example": {"txt": "v=spf1 ~all"}}
        self.assertEqual(self.found(included, rules=b"ip4:203.0.113.1").result.value, "fail")
        self.assertEqual(self.result("v=spf1 a:%{x} -all", rules=b"ip4:192.0.2.1"), "permerror")

    def test_rules_count_apart(self):
        """A domain that has used up its questions leaves local rules theirs; their trouble is no refusal."""
        text = "v=spf1 " + "a " * 10 + "-all"
        records = {"x.example": {"txt": text, "a": "203.0.113.1"}, "l.example": {"txt": "v=spf1 ip4:192.0.2.1"}}

        self.assertEqual(self.found(records, rules=b"include:l.example").result.value, "pass")
        self.assertEqual(self.found(records, rules=b"include:nowhere.example").result.value, "fail")
        more = records | {"x.example": {"txt": "v=spf1 " + "a " * 9 + "-a -a -all", "a": "203.0.113.1"}}
        self.assertEqual(self.found(more, rules=b"ip4:203.0.113.9").result.value, "permerror")
        self.assertEqual(self.found(records, rules=b"include:broken.example").result.value, "temperror")

    @given(
        st.lists(
            st.sampled_from(
                [
                    "a",
                    "mx",
                    "ptr",
                    "-all",
                    "include:x.example",
                    "exists:%{l}.%{h}",
                    "redirect=%{s}",
                    "exp=%{h}",
                    "a:%{p}",
                    "ip4:192.0.2.9",
                    "\x00",
                    "%",
                ]
            ),
            max_size=15,
        ),
        st.binary(max_size=40),
        st.binary(max_size=40),
    )
    def test_any(self, terms, local, helo):
        """Whatever a record and a client say, there is a finding of printable ASCII, soon."""
        records = {"x.example": {"txt": "v=spf1 " + " ".join(terms), "mx": ["m.example"]}, IP: {"ptr": ["x.example"]}}

        found = self.found(records, sender=local.replace(b"@", b"") + b"@x.example", helo=helo)

        for text in (found.explanation, found.mechanism, found.problem):
            self.assertTrue(text.isascii())
            self.assertTrue(text.isprintable())
        self.assertLess(len(self.resolver.asked), 140)

    @given(st.binary(max_size=60), st.binary(max_size=60), st.text(max_size=30))
    def test_any_client(self, domain, helo, ip):
        """Whatever a client calls itself, there is a finding."""
        self.found({}, sender=b"a@" + domain.replace(b"@", b""), helo=helo, ip=ip)
        self.found({}, sender=b"", helo=helo)
