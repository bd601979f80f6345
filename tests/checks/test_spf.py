import os
import tempfile
from types import SimpleNamespace

from twisted.internet.defer import Deferred
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.checks.spf import Factory
from qmq.interfaces import ICheckerFactory, IMessageChecker, IRecipientChecker
from qmq.mail import NULL_SENDER, Address
from qmq.receive.context import Context
from qmq.rules.watched import BadLine, Files
from qmq.session import VOUCH, Conduct, Environment, Session, Transaction, Verdict
from tests.receive.fakes import LETTER, TEXT, ListenerCase
from tests.spf.fakes import FakeResolver

TO = Address(b"b", b"ours.example")
RESULTS = {
    "pass": "v=spf1 ip4:192.0.2.1", "fail": "v=spf1 -all", "softfail": "v=spf1 ~all", "neutral": "v=spf1 ?all",
    "none": "hello", "permerror": "v=spf1 moo", "temperror": "v=spf1 a:broken.example",
}  # fmt: skip


@implementer(IRecipientChecker)
class Vouch:
    """Takes mail for all but foreign.example."""

    def recipient(self, session, transaction, recipient):
        return None if recipient.domain == b"foreign.example" else VOUCH


class SPFCase(ListenerCase):
    def setUp(self):
        super().setUp()
        self.owners = {}
        self.resolver = FakeResolver({f"{name}.example": {"txt": text} for name, text in RESULTS.items()})
        self.control = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, self.control)

    def control_file(self, name, text):
        path = os.path.join(self.control, name)
        if not os.path.exists(path):
            self.addCleanup(os.remove, path)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def made(self, **options):
        self.files = Files(self.warned.append if hasattr(self, "warned") else None)
        context = Context(
            lambda _: True, 0, self.clock, me="mx.ours.example", control=self.control, files=self.files,
            owner=self.owners.get, some=lambda true: any(map(true, self.owners.values())), resolver=self.resolver,
        )  # fmt: skip
        return Factory().make(context, options)

    def owned(self, domain, level):
        self.owners[domain] = SimpleNamespace(spf=level)


class LevelTests(SPFCase):
    def setUp(self):
        super().setUp()
        self.checker = self.made()

    def session(self, level, **how):
        return Session(
            "192.0.2.1", 40000, "192.0.2.25", 25, helo=how.pop("helo", b"h.example"),
            environment=Environment(spf=level, **how.pop("environment", {})), conduct=Conduct(), **how,
        )  # fmt: skip

    def test_concerns(self):
        """Nobody is asked of whom no level can be; the word of a wrapper is heard of all, relay clients too."""
        phases = ("recipient", "message")

        def concerned(**settings):
            return tuple(phase for phase in phases if self.checker.concerns(Environment(**settings), phase))

        info = {"variables": {"SPFINFO": "pass"}}
        self.owned(b"none.example", None)
        self.owned(b"off.example", 0)
        self.assertEqual(concerned(), ())
        self.assertEqual(concerned(**info), ("message",))
        self.assertEqual(concerned(spf=1), phases)
        self.assertEqual(concerned(spf=1, relayclient=b""), ())
        self.owned(b"on.example", 1)
        self.assertEqual(concerned(), phases)
        self.assertEqual(concerned(relayclient=b"", **info), ("message",))

    def said(self, session, sender=b"fail.example", to=TO, id=b"spool-1"):  # noqa: A002
        transaction = Transaction(id, Address(b"a", sender) if sender else NULL_SENDER)
        answer = self.checker.recipient(session, transaction, to)
        if answer is None or isinstance(answer, Verdict):
            return answer
        return self.successResultOf(Deferred.fromCoroutine(answer))

    def code(self, session, sender=b"fail.example", **how):
        verdict = self.said(session, sender, **how)
        return verdict.reply.code if verdict and verdict.reply else None

    def field(self, session, sender=b"fail.example", id=b"spool-1"):  # noqa: A002
        transaction = Transaction(id, Address(b"a", sender) if sender else NULL_SENDER)
        verdict = self.checker.message(session, transaction, None)
        return verdict.fields if verdict else b""

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        for interface in (IRecipientChecker, IMessageChecker):
            self.assertTrue(verifyObject(interface, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_levels(self):
        """Each level refuses what the one below it does, and one thing more (SPAMCONTROL 2.14)."""
        order = ["temperror", "fail", "softfail", "neutral", "none"]
        for level in range(8):
            for name in RESULTS:
                least = 6 if name == "permerror" else order.index(name) + 2 if name in order else 99
                expected = None if level < least else 451 if name == "temperror" else 550

                self.assertEqual(self.code(self.session(level), name.encode() + b".example"), expected, (level, name))

    def test_off(self):
        """At level 0 nobody is asked, and there is no field."""
        session = self.session(0)

        self.assertIsNone(self.said(session))
        self.assertEqual((self.resolver.asked, self.field(session)), ([], b""))

    def test_words(self):
        """The log has the words of SPAMCONTROL."""
        refused = self.said(self.session(3))
        self.assertEqual((refused.reason, refused.info, refused.reply.status), ("Reject::SPF::Fail", "fail", "5.7.1"))
        self.assertEqual(self.said(self.session(1), b"pass.example").reason, "Accept::SPF::")
        late = self.said(self.session(2), b"temperror.example")
        self.assertEqual((late.reason, late.reply.status), ("Reject::SPF::Temperror", "4.4.3"))

    def test_named_client(self):
        """A client that may send anywhere is not asked about."""
        self.assertIsNone(self.said(self.session(6, relay=True)))
        self.assertEqual(self.resolver.asked, [])

    def test_null_sender(self):
        """The null sender is judged by the name in HELO."""
        self.assertEqual(self.code(self.session(3, helo=b"fail.example"), b""), 550)
        session = self.session(3, helo=b"pass.example")
        self.assertEqual(self.said(session, b"").reason, "Accept::SPF::")
        self.assertIn(b"identity=helo;", self.field(session, b""))

    def test_once(self):
        """All recipients of a transaction share one evaluation; the next transaction has its own."""
        session = self.session(3)
        codes = [self.code(session, to=Address(b"%d" % n, b"ours.example")) for n in range(5)]
        self.assertEqual((codes, self.resolver.asked), ([550] * 5, [("txt", "fail.example")]))

        self.code(session, id=b"spool-2")

        self.assertEqual(len(self.resolver.asked), 2)
        self.assertEqual(len(session.conduct.notes), 1)

    def test_instances(self):
        """An instance's own level goes before the client's, also when it is 0; None leaves the client's."""
        for domain, level in [(b"strict.example", 4), (b"off.example", 0), (b"plain.example", None)]:
            self.owned(domain, level)
        session = self.session(3)

        def code(domain, sender):
            return self.code(session, sender, to=Address(b"b", domain), id=sender)

        self.assertEqual(code(b"strict.example", b"softfail.example"), 550)
        self.assertEqual(code(b"plain.example", b"softfail.example"), None)
        self.assertEqual(code(b"ours.example", b"softfail.example"), None)
        self.assertEqual(len(self.resolver.asked), 1)
        self.assertEqual(code(b"off.example", b"fail.example"), None)
        self.assertEqual(code(b"plain.example", b"fail.example"), 550)

    def test_field(self):
        """The field tells what was found of whom."""
        session = self.session(1)
        self.said(session)

        self.assertEqual(
            self.field(session),
            b"Received-SPF: fail (mx.ours.example: fail.example does not designate 192.0.2.1 as permitted sender)\r\n"
            b'\treceiver=mx.ours.example;\r\n\tclient-ip=192.0.2.1;\r\n\thelo=h.example;\r\n\tenvelope-from="a@fail.example";\r\n'
            b"\tidentity=mailfrom;\r\n\tmechanism=-all;\r\n",
        )
        self.assertEqual(self.field(session, id=b"spool-2"), b"")

    def test_wrapper(self):
        """What a wrapper found is the field, if we did not ask ourselves; named clients' too."""
        info = {"environment": {"variables": {"SPFINFO": "softfail|mailfrom|||||||"}}}
        for session in (self.session(0, **info), self.session(3, relay=True, **info)):
            self.said(session)
            self.assertTrue(
                self.field(session).startswith(
                    b"Received-SPF: softfail\r\n\tidentity=mailfrom;\r\n\tclient-ip=192.0.2.1;"
                )
            )
        session = self.session(1, **info)
        self.said(session)
        self.assertEqual(self.field(session).count(b"Received-SPF"), 1)
        self.assertTrue(self.field(session).startswith(b"Received-SPF: fail"))

    def test_explained(self):
        """A stranger's words are told from ours, each on its line."""
        self.resolver.records["x.example"] = {"txt": "v=spf1 -all exp=e.x.example"}
        self.resolver.records["e.x.example"] = {"txt": "see http://x.example/%{i}"}

        reply = self.said(self.session(3), b"x.example").reply

        self.assertEqual(
            reply.line,
            b"550-5.7.1 SPF: this host may not send mail of x.example, and x.example explains:\r\n"
            b"550 5.7.1 see http://x.example/192.0.2.1\r\n",
        )

    def test_slow_domain(self):
        """A domain that does not answer puts its mail off in time, at level 2; the time can be set."""
        for options, seconds in [({}, 20), ({"time": "7s"}, 7)]:
            checker = self.made(**options)
            waiting = Deferred.fromCoroutine(
                checker.recipient(self.session(2), Transaction(b"spool-9", Address(b"a", b"silent.example")), TO)
            )
            self.clock.advance(seconds - 0.1)
            self.assertNoResult(waiting)
            self.clock.advance(0.1)
            self.assertEqual(self.successResultOf(waiting).reply.code, 451)
            self.assertGreater(checker.limit, seconds)


class FilesTests(SPFCase):
    def setUp(self):
        super().setUp()
        self.warned = []

    def reply(self, checker, sender=b"fail.example"):
        session = Session("192.0.2.1", 4000, "192.0.2.25", 25, environment=Environment(spf=3))
        verdict = self.successResultOf(
            Deferred.fromCoroutine(checker.recipient(session, Transaction(b"s", Address(b"a", sender)), TO))
        )
        return verdict.reply.text if verdict and verdict.reply else None

    def test_explanation(self):
        """The site's own words to a refused client, edited while we run."""
        self.control_file("spfexplain", "%{c} is none of %{d}\n")
        checker = self.made()
        self.assertEqual(self.reply(checker), "192.0.2.1 is none of fail.example")

        self.control_file("spfexplain", "no, %{s}, no\n")
        self.files.look()
        self.assertEqual(self.reply(checker), "no, a@fail.example, no")

        self.control_file("spfexplain", "no %{y}\n")
        self.files.look()
        self.assertEqual(self.reply(checker), "no, a@fail.example, no")
        self.assertIn("spfexplain:1", self.warned[0])

    def test_rules(self):
        """Local rules let a forwarder through that the domain would refuse."""
        path = self.control_file("spflocalrules", "# forwarders\nip4:192.0.2.0/28\n")
        checker = self.made()
        self.assertIsNone(self.reply(checker))

        with open(path, "w", encoding="utf-8"):
            pass
        self.files.look()
        self.assertIsNotNone(self.reply(checker))

    def test_bad(self):
        """A mistake in a file is told with its line and a remedy, before anything starts."""
        for name, text, line in [
            ("spfexplain", "# x\nno %{y}\n", 2), ("spfexplain", "nö\n", 1), ("spfexplain", "a\nb\n", 2), ("spfexplain", "100%\n", 1),
            ("spflocalrules", "ip4:192.0.2.1/33\n", 1), ("spflocalrules", "a\nmx\n", 2), ("spflocalrules", "v=spf1 a\n", 1),
        ]:  # fmt: skip
            path = self.control_file(name, text)
            with self.assertRaises(BadLine) as caught:
                self.made()
            self.assertTrue(str(caught.exception).startswith(f"{path}:{line}: "))
            self.assertIn("; write ", str(caught.exception))
            self.control_file(name, "")

    def test_options(self):
        """Options that are no numbers are refused."""
        for options in ({"time": "soon"}, {"time": "0"}, {"voids": "-1"}):
            with self.assertRaises(ValueError):
                self.made(**options)


class WireTests(SPFCase):
    def test_one_field(self):
        """A letter has one Received-SPF field, before Received, though its first recipients were refused."""
        for domain, level in [(b"ours.example", 1), (b"strict.example", 3)]:
            self.owned(domain, level)
        client = self.client(("spf", self.made()), ("vouch", Vouch()), rcpthosts=False)
        text = [
            b"EHLO client.example",
            b"MAIL FROM:<a@fail.example>",
            b"RCPT TO:<b@strict.example>",
            b"RCPT TO:<b@foreign.example>",
        ]

        codes = client.codes(*text, b"RCPT TO:<b@ours.example>", b"RCPT TO:<c@ours.example>", b"DATA")
        client.send(TEXT + b".\r\n")

        self.assertEqual(codes, ["250", "250", "550", "553", "250", "250", "354"])
        [body] = [text for _, text in self.hop.sent]
        self.assertEqual(body.count(b"Received-SPF: "), 1)
        self.assertTrue(body.startswith(b"Received-SPF: fail "))
        self.assertEqual(self.resolver.asked, [("txt", "fail.example")])

    def test_next_letter(self):
        """The next letter of a connection has a field of its own; one that nobody was asked for has none."""
        self.owned(b"ours.example", 1)
        client = self.client(("spf", self.made()), ("vouch", Vouch()), rcpthosts=False)
        for sender in (b"pass", b"softfail"):
            client.say(
                b"EHLO c.example", b"MAIL FROM:<a@" + sender + b".example>", b"RCPT TO:<b@ours.example>", b"DATA"
            )
            client.send(TEXT + b".\r\n")
        self.owned(b"ours.example", 0)
        client.say(*LETTER[1:])
        client.send(TEXT + b".\r\n")

        self.assertEqual(
            [text.partition(b"(")[0] for _, text in self.hop.sent[:2]],
            [b"Received-SPF: pass ", b"Received-SPF: softfail "],
        )
        self.assertNotIn(b"Received-SPF", self.hop.sent[2][1])

    def test_injection(self):
        """Neither HELO nor sender nor DNS gets a line of its own into the header, nor out of its quotes."""
        self.owned(b"ours.example", 1)
        bad = 'a:"\\;x=y(.x.example'
        self.resolver.records["x.example"] = {"txt": f"v=spf1 +{bad}"}
        self.resolver.records[bad[2:]] = {"a": "192.0.2.1"}
        client = self.client(("spf", self.made()), ("vouch", Vouch()), rcpthosts=False)

        client.say(
            b'EHLO h"\\;result=pass',
            b'MAIL FROM:<"a\\"; result=pass; x\\\\"@x.example>',
            b"RCPT TO:<b@ours.example>",
            b"DATA",
        )
        client.send(TEXT + b".\r\n")

        [(_, text)] = self.hop.sent
        header = text.partition(b"\r\n\r\n")[0].split(b"\r\n")
        self.assertTrue(header[0].startswith(b"Received-SPF: pass (mx.ours.example: x.example designates 192.0.2.1"))
        self.assertIn(b'\tmechanism="+a:\\"\\\\;x=y(.x.example";', header)
        self.assertIn(b'\thelo="h\\"\\\\;result=pass";', header)
        for line in header[:7]:
            self.assertRegex(line, rb"""^(Received-SPF: |\t[a-z-]+=([^";]*|"([^"\\]|\\.)*");$)""")
