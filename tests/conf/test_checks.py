import os

from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from qmq.conf import checks
from qmq.conf.load import load
from qmq.conf.read import read
from qmq.conf.settings import OWN_CHECKS
from qmq.conf.written import Findings
from qmq.interfaces import ICheckerFactory
from qmq.rules.watched import BadLine
from tests.conf.folders import HEAD, USER, ConfTestCase


@implementer(ICheckerFactory)
class FakeFactory:
    """Makes nothing; does what it is told."""

    help = "for tests"

    def __init__(self, name, make=lambda *_: object(), **more):
        self.name = name
        self._make = make
        self.__dict__.update(more)

    def make(self, context, options):
        return self._make(context, options)


def refuses(context, options):
    raise ValueError(f"{options['level']!r} is no level; write 1 to 3")


class ChecksTests(ConfTestCase):
    def test_some_instance(self):
        """A check learns whether any instance has something set, by the configuration of the moment."""
        confs = [load(self.write(HEAD + more), USER, rules=False) for more in ("", "callout = open\n")]
        now = [confs[0]]
        asked = []

        def wants(owner):
            asked.append(owner.name)
            return owner.callout == "open"

        some = checks.context(confs[0], None, None, lambda: now[0]).some

        self.assertEqual([some(wants), some(wants)], [False, False])
        self.assertEqual(len(asked), len(confs[0].instances))  # once each
        now[0] = confs[1]
        self.assertTrue(some(wants))

    def findings(self, said, *factories, sections="", files=None):
        """The errors and the warnings of these checks, if these factories are installed."""
        path = self.write(HEAD.replace("[alpha]", f"{said}\n[alpha]") + sections, files)
        conf = load(path, USER, rules=False)
        findings = Findings()
        checks.verify(conf, read(path, Findings()), findings, {f.name: f for f in factories})
        folder = os.path.dirname(path)
        return [
            [(os.path.relpath(n.path, folder), n.line, n.text, n.remedy) for n in notes]
            for notes in (findings.errors, findings.warnings)
        ]

    def error(self, line, text, remedy, *of, path="conf-qmq", **more):
        errors, _ = self.findings(*of, **more)
        self.assertEqual([e[:2] for e in errors], [(path, line)], errors)
        self.assertIn(text, errors[0][2])
        self.assertIn(remedy, errors[0][3])

    def test_right(self):
        """Checks that can be made are right, and were made with what the configuration has for them."""
        made = []
        factory = FakeFactory("mine", lambda *of: made.append(of), options={"level": "how much"})

        self.assertEqual(self.findings("checks = mine", factory, sections="[check mine]\nlevel = 2\n"), [[], []])
        ((context, options),) = made
        self.assertEqual(
            (options, context.me, context.owner(b"alpha.example").name), ({"level": "2"}, "mx.example.org", "alpha")
        )
        self.assertTrue(context.control.endswith("/control"))
        self.assertIsNone(context.reactor)
        self.assertEqual(context.databytes, 1 << 30)

    def test_unknown(self):
        """An unknown name is an error at its line, answered with the nearest."""
        self.error(8, "there is no check mien", "do you mean mine?", "checks = mine\n  mien", FakeFactory("mine"))

    def test_own_missing(self):
        """One of our own whose file was taken away is left out, with a warning."""
        errors, warnings = self.findings("checks = spf mine", FakeFactory("mine"))

        self.assertEqual(errors, [])
        self.assertEqual([w[:3] for w in warnings], [("conf-qmq", 7, "the check spf is not installed: it is left out")])

    def test_twice(self):
        """A check named twice is an error."""
        self.error(7, "named twice", "once", "checks = mine mine", FakeFactory("mine"))

    def test_unknown_option(self):
        """An option that a check does not take is told at its line."""
        factory = FakeFactory("mine", options={"level": ""})
        for options, text in (({"level": ""}, "do you mean level?"), ({}, "cut the line")):
            factory.options = options
            self.error(
                12, "[check mine] knows no levle", text, "checks = mine", factory, sections="[check mine]\nlevle = 1\n"
            )

    def test_refused(self):
        """What the check itself has against its options is told at the option, or at its section."""
        for factory in (FakeFactory("mine", refuses), FakeFactory("mine", refuses, options={"level": ""})):
            self.error(
                12, "check mine: '9' is no level", "", "checks = mine", factory, sections="[check mine]\nlevel = 9\n"
            )

    def test_bad_line(self):
        """A bad line in a check's own file is told with that file and line."""

        def make(context, options):
            raise BadLine(context.path("badmailfrom", options), 3, "is no pattern", "write @example.org")

        self.error(
            3, "is no pattern", "@example.org", "checks = mine", FakeFactory("mine", make), path="control/badmailfrom"
        )

    def test_instance(self):
        """An instance's own file is read as the check reads its own; one that no check reads is told."""

        def make(context, options):
            if "file" in options:
                raise BadLine(options["file"], 2, "is no pattern", "write @example.org")

        more = {"sections": "badmailfrom = alpha.bmf\n", "files": {"alpha.bmf": ""}}
        factory = FakeFactory("badmailfrom", make, options={"file": ""})
        self.error(2, "is no pattern", "@example.org", "checks = badmailfrom", factory, path="alpha.bmf", **more)
        errors, warnings = self.findings("checks = mine", FakeFactory("mine"), **more)
        self.assertEqual((errors, [w[:3] for w in warnings]), ([], [("conf-qmq", 11, "badmailfrom is not used")]))

    def test_surprise(self):
        """A stranger's check that raises anything is told, and no traceback."""
        self.error(7, "cannot be made: ZeroDivisionError", "", "checks = mine", FakeFactory("mine", lambda *_: 1 / 0))

    def test_all_at_once(self):
        """All that is wrong is told at once."""
        errors, _ = self.findings("checks = a b c", FakeFactory("b", lambda *_: 1 / 0))

        self.assertEqual(len(errors), 3)


class OwnTests(SynchronousTestCase):
    def test_order(self):
        """The order of SPAMCONTROL 2.5."""
        order = [OWN_CHECKS.index(n) for n in ("badhelo", "mfdnscheck", "rcpthosts", "tarpit", "recipients", "spf",
                                              "badmailfrom", "badrcptto", "databytes", "maxrecipients", "warlord", "qhpsi")]  # fmt: skip

        self.assertEqual(order, sorted(order))
