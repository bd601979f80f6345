from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.dnsbl import Factory
from qmq.dns.query import DNSTrouble, NoData, NoSuchDomain
from qmq.interfaces import ICheckerFactory, IConnectionChecker
from qmq.receive.context import Context
from qmq.receive.policy import Policy, Refusal
from qmq.session import Environment, Session

IP = "5.6.7.8"
ASKED = "8.7.6.5."
SESSION = Session(IP, 40000, "192.0.2.25", 25)
SPENT = "127.255.255.254"  # the answer of a list that was asked too much


class FakeResolver:
    """Zones in memory: addresses and texts by name; a name of *slow* is answered by `answer`."""

    def __init__(self):
        self.addresses = {}
        self.texts = {}
        self.slow = set()
        self.trouble = set()
        self.asked = []
        self.waiting = {}
        self.cancelled = []

    def a(self, name):
        return self._find(name, "A", self.addresses)

    def txt(self, name):
        return self._find(name, "TXT", self.texts)

    def _find(self, name, kind, zone):
        self.asked.append(f"{kind} {name}")
        if name in self.slow:
            self.waiting[name] = Deferred(lambda _: self.cancelled.append(name))
            return self.waiting[name]
        if name in self.trouble:
            return fail(DNSTrouble("timeout"))
        if name in zone:
            return succeed(zone[name])
        known = name in self.addresses or name in self.texts
        return fail(NoData(name) if known else NoSuchDomain(name))

    def list(self, zone, text=None, answer="127.0.0.2", of=ASKED):
        if answer:
            self.addresses[of + zone] = (answer,)
        if text is not None:
            self.texts[of + zone] = (text,)

    def answer(self, zone, *found):
        waiting = self.waiting.pop(ASKED + zone)
        if found:
            waiting.callback(found)
        else:
            waiting.errback(NoSuchDomain("no"))


class DNSBLTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.dns = FakeResolver()

    def made(self, **options):
        return Factory().make(Context(lambda _: False, 0, self.clock, resolver=self.dns), options)

    def ask(self, session=SESSION, **options):
        """What the policy makes of it: it may be late."""
        return Policy([("dnsbl", self.made(**options))], self.clock).connection(session)

    def verdict(self, session=SESSION, **options):
        answer = self.ask(session, **options)
        answer = self.successResultOf(answer) if isinstance(answer, Deferred) else answer
        self.assertEqual(self.clock.getDelayedCalls(), [])
        return answer.verdict if isinstance(answer, Refusal) else answer

    def test_interfaces(self):
        """The checker and its factory keep their word; while a configuration is only checked there is no resolver."""
        self.assertTrue(verifyObject(IConnectionChecker, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))
        self.assertIsNotNone(Factory().make(Context(lambda _: False, 0, self.clock), {"lists": "bl.example"}))

    def test_listed(self):
        """A client that a list has a text for is told it, with 451, or 553 if the site says so, at RCPT."""
        self.dns.list("bl.example", b"Blocked, see https://bl.example/")

        verdict = self.verdict(lists="bl.example")
        self.assertEqual((verdict.reply.code, verdict.reply.status), (451, "4.7.1"))
        self.assertEqual(verdict.reply.text, "Blocked, see https://bl.example/")
        self.assertEqual((verdict.reason, verdict.info), ("Reject::SNDR::Blocklisted", "bl.example"))
        self.assertFalse(verdict.now or verdict.close)
        self.assertEqual(self.verdict(lists="bl.example", reply="553").reply.status, "5.7.1")

    def test_not_listed(self):
        """A client that no list knows comes in; each is asked once, by the reversed address."""
        self.assertIsNone(self.verdict(lists="bl.example zen.example"))
        self.assertEqual(self.dns.asked, ["TXT 8.7.6.5.bl.example", "TXT 8.7.6.5.zen.example"])

    def test_ipv6(self):
        """A client with IPv6 is asked for by its nibbles; one that is IPv4 within IPv6 by its octets."""
        nibbles = "1.0.0.0." + "0.0.0.0." * 5 + "0.0.0.0.0.0.6.2."
        self.dns.list("bl.example", b"no", of=nibbles)

        verdict = self.verdict(replace(SESSION, client="2600::1"), lists="bl.example")
        self.assertEqual(verdict.reply.text, "no")

        self.verdict(replace(SESSION, client="::ffff:5.6.7.8"), lists="bl.example")
        self.assertEqual(self.dns.asked[-1], "TXT 8.7.6.5.bl.example")

    def test_text_alone(self):
        """A list of old that has only texts counts as it did with rblsmtpd."""
        self.dns.list("old.example", b"no", answer=None)

        self.assertEqual(self.verdict(lists="old.example").reply.text, "no")

    def test_own_text(self):
        """With a text of the site's a list is asked for an address, and %IP% in the text is the client's."""
        self.dns.list("bl.example")

        verdict = self.verdict(lists='zen.example "bl.example:you are listed, see https://x.example/?ip=%IP%"')

        self.assertEqual(verdict.reply.text, "you are listed, see https://x.example/?ip=5.6.7.8")
        self.assertIn("A 8.7.6.5.bl.example", self.dns.asked)

    def test_addresses(self):
        """With type = a there is an answer without any text of the list's."""
        self.dns.list("bl.example")

        self.assertEqual(self.verdict(lists="bl.example", type="a").reply.text, "5.6.7.8 is listed by bl.example")
        self.assertEqual(self.dns.asked, ["A 8.7.6.5.bl.example"])

    def test_answers(self):
        """Only the answers that were named count."""
        for answer, listed in (("127.0.0.2", True), ("127.0.0.11", True), ("127.0.0.12", False), ("127.0.1.2", True)):
            self.dns.list("bl.example", answer=answer)
            self.assertEqual(self.verdict(lists="bl.example=127.0.0.2-11,127.0.1.2") is not None, listed, answer)

    def test_no_answers(self):
        """An answer from outside 127/8, as of a domain that was sold, is no listing."""
        self.dns.list("bl.example", b"buy this domain", answer="192.0.2.80")

        self.assertIsNone(self.verdict(lists="bl.example"))
        self.assertIsNone(self.verdict(lists="bl.example", type="a"))

    def test_list_refuses_us(self):
        """A list that says we asked too much has said nothing of the client."""
        self.dns.list("zen.example", b"Error: open resolver", answer=SPENT)

        for options in ({}, {"type": "a"}):
            verdict = self.verdict(lists="zen.example", **options)
            self.assertIsNone(verdict.reply)
            self.assertEqual((verdict.reason, verdict.info), ("Info::SNDR::Blocklist_Trouble", "zen.example"))
        self.assertIsNone(self.verdict(lists="zen.example=127.0.0.2").reply)
        self.assertEqual(self.verdict(lists="zen.example", fail="closed").reply.code, 451)

    def test_early_decision(self):
        """The answer is given as soon as one list has the client; the others are asked no longer."""
        self.dns.slow = {ASKED + "slow.example", ASKED + "bl.example"}
        answer = self.ask(lists="slow.example bl.example:no")
        self.assertNoResult(answer)

        self.dns.answer("bl.example", "127.0.0.2")

        self.assertEqual(self.successResultOf(answer).verdict.reply.text, "no")
        self.assertEqual(self.dns.cancelled, [ASKED + "slow.example"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_weights(self):
        """Hits are weighed together, and all that made a refusal are named."""
        lists = "a.example*2 b.example c.example"
        self.dns.list("a.example", b"a")
        self.assertIsNone(self.verdict(lists=lists, threshold="3"))

        self.dns.list("c.example", b"c")
        verdict = self.verdict(lists=lists, threshold="3")
        self.assertEqual((verdict.reply.text, verdict.info), ("a", "a.example,c.example"))

    def test_hopeless(self):
        """When no answer can bring the weight together any more nobody waits for it."""
        self.dns.slow = {ASKED + "slow.example"}

        self.assertIsNone(self.verdict(lists="slow.example a.example*2", threshold="3"))
        self.assertEqual(self.dns.cancelled, [ASKED + "slow.example"])

    def test_allowed(self):
        """A client on a list of good ones comes in, whatever others say, who are waited for no longer."""
        self.dns.list("bl.example", b"no")
        self.dns.list("good.example")
        self.assertIsNone(self.verdict(lists="bl.example", allow="good.example"))

        self.dns.slow = {ASKED + "good.example"}
        answer = self.ask(lists="bl.example", allow="good.example")
        self.assertNoResult(answer)
        self.dns.answer("good.example")
        self.assertEqual(self.successResultOf(answer).verdict.reply.code, 451)

    def test_fail_open(self):
        """A list in trouble says nothing, and the refusal of another is a 451 then, for rblsmtpd's reasons."""
        self.dns.trouble = {ASKED + "dead.example"}
        self.assertIsNone(self.verdict(lists="dead.example bl.example").reply)

        self.dns.list("bl.example", b"no")
        self.assertEqual(self.verdict(lists="dead.example bl.example", reply="553").reply.code, 451)
        self.assertIsNone(self.verdict(lists="bl.example", allow="dead.example").reply)

    def test_fail_closed(self):
        """A list in trouble counts as a hit, but only for now; one of good clients as none."""
        self.dns.trouble = {ASKED + "dead.example"}

        verdict = self.verdict(lists="dead.example", reply="553", fail="closed")
        self.assertEqual((verdict.reply.code, verdict.reply.text), (451, "temporary RBL lookup error"))
        self.assertEqual(verdict.info, "dead.example")

        self.dns.list("bl.example", b"no")
        verdict = self.verdict(lists="bl.example", allow="dead.example", reply="553", fail="closed")
        self.assertEqual((verdict.reply.code, verdict.reply.text), (451, "no"))

    def test_time(self):
        """Lists that do not answer in time are in trouble, and asked no longer."""
        for fail_, code in (("open", None), ("closed", 451)):
            self.dns.slow = {ASKED + "slow.example", ASKED + "slower.example"}
            answer = self.ask(lists="slow.example slower.example", fail=fail_, time="4s")
            self.clock.advance(3.9)
            self.assertNoResult(answer)
            self.clock.advance(0.1)

            result = self.successResultOf(answer)
            self.assertEqual(result.verdict.reply.code if isinstance(result, Refusal) else None, code)
            self.assertEqual(len(self.dns.cancelled), 2)
            self.dns.cancelled.clear()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_long_time(self):
        """A time above a checker's usual one is given too."""
        self.dns.slow = {ASKED + "slow.example"}
        answer = self.ask(lists="slow.example:no", time="60s")
        self.clock.advance(59)
        self.dns.answer("slow.example", "127.0.0.2")

        self.assertEqual(self.successResultOf(answer).verdict.reply.text, "no")

    def test_gone(self):
        """A client that goes meanwhile leaves no question behind."""
        self.dns.slow = {ASKED + "a.example", ASKED + "b.example"}
        answer = self.ask(lists="a.example b.example")
        answer.addErrback(lambda _: None)

        answer.cancel()

        self.assertEqual(len(self.dns.cancelled), 2)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_inform(self):
        """Only informing, nobody is refused: each hit is a header field in front of the client's mail."""
        self.dns.list("a.example", b"see https://a.example/")
        self.dns.list("b.example", b"b")

        verdict = self.verdict(lists="a.example c.example b.example", inform="yes")

        self.assertIsNone(verdict.reply)
        self.assertEqual(verdict.fields, b"X-RBL-Info: see https://a.example/\r\nX-RBL-Info: b\r\n")
        self.assertEqual((verdict.reason, verdict.info), ("Info::SNDR::Blocklisted", "a.example,b.example"))
        self.assertIsNone(self.verdict(lists="c.example", inform="yes"))

    def test_rblsmtpd(self):
        """RBLSMTPD stands for the lists: nothing skips them, a text is a 451, one behind a minus sign a 553."""
        self.dns.list("bl.example", b"no")
        for relay in (False, True):
            for value, code, text in (
                ("go away", 451, "go away"),
                ("-go away %IP%", 553, "go away 5.6.7.8"),
                ("caf\xe9\r\nx", 451, "caf???x"),
            ):
                session = replace(SESSION, relay=relay, environment=Environment(rblsmtpd=value))
                verdict = self.verdict(session, lists="bl.example")
                self.assertEqual((verdict.reply.code, verdict.reply.text, verdict.info), (code, text, "RBLSMTPD"))
        self.assertIsNone(self.verdict(replace(SESSION, environment=Environment(rblsmtpd="")), lists="bl.example"))
        self.assertEqual(self.dns.asked, [])

    def test_rblsmtpd_informs(self):
        """What rblsmtpd -i left in RBLSMTPD becomes the field it became with the original."""
        session = replace(SESSION, environment=Environment(rblsmtpd="[RBL info] see https://a.example/"))

        verdict = self.verdict(session)

        self.assertIsNone(verdict.reply)
        self.assertEqual(verdict.fields, b"X-RBL-Info: see https://a.example/\r\n")

    def test_not_asked(self):
        """Without lists, for relay clients and for addresses of a site's own nobody is asked."""
        self.dns.list("bl.example", b"no")
        self.assertIsNone(self.made().connection(SESSION))
        for session in (
            replace(SESSION, relay=True),
            replace(SESSION, client="127.0.0.1"),
            replace(SESSION, client="10.1.2.3"),
            replace(SESSION, client="::1"),
            replace(SESSION, client="fe80::1%eth0"),
            replace(SESSION, client="/run/socket"),
        ):
            self.assertIsNone(self.made(lists="bl.example").connection(session))
        self.assertIsNotNone(self.verdict(replace(SESSION, relay=True), lists="bl.example", relay="yes"))

        self.dns.list("bl.example", b"test", of="2.0.0.127.")
        self.assertIsNotNone(self.verdict(replace(SESSION, client="127.0.0.2"), lists="bl.example", private="yes"))

    def test_key(self):
        """A customer's key before a list's name is told to nobody."""
        zone = "abcdefghij0123456789abcdef.zen.dq.example"
        self.dns.list(zone)

        verdict = self.verdict(lists=zone, type="a")

        self.assertEqual(verdict.info, "zen.dq.example")
        self.assertNotIn("abcdefghij", verdict.reply.text)
        self.assertEqual(self.dns.asked, [f"A {ASKED}{zone}"])

    @given(st.binary(max_size=400))
    def test_strange_texts(self, text):
        """Whatever a list's text is, the reply and the field are one short line of printable ASCII."""
        self.setUp()
        self.dns.list("bl.example", text)

        verdict = self.verdict(lists="bl.example")
        self.assertRegex(verdict.reply.text, r"\A[\x20-\x7e]{1,200}\Z")
        verdict = self.verdict(lists="bl.example", inform="yes")
        self.assertRegex(verdict.fields, rb"\AX-RBL-Info: [\x20-\x7e]{1,200}\r\n\Z")

    def test_broken(self):
        """A hole in our own reading is no opinion of the client: the policy hears of it."""
        self.dns.addresses[ASKED + "bl.example"] = ("nonsense",)

        self.assertEqual(self.verdict(lists="bl.example", type="a").reply.code, 451)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_options(self):
        """A wrong option is refused with what to write instead."""
        for options, word in (
            ({"list": "bl.example"}, "lists"),
            ({"lists": "bl"}, "bl.example"),
            ({"lists": "bl.example*0"}, "bl.example*2"),
            ({"lists": "bl.example=300.0.0.1"}, "127.0.0.2"),
            ({"lists": "bl.example=127.0.0.9-3"}, "127.0.0.2-11"),
            ({"lists": "bl.example=127.0.0.9-300"}, "127.0.0.2-11"),
            ({"lists": 'bl.example:"x'}, "not closed"),
            ({"lists": "bl.example BL.example"}, "bl.example*2"),
            ({"lists": "bl.example", "allow": "bl.example"}, "more than once"),
            ({"lists": "a.example b.example*2", "threshold": "4"}, "weigh 3"),
            ({"type": "mx"}, "txt, a"),
            ({"reply": "550"}, "451, 553"),
            ({"fail": "often"}, "open, closed"),
            ({"time": "0"}, "20s"),
        ):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn(word, str(caught.exception))
