import os

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from qmq.checks.recipients import Factory, KnownRecipients, ask
from qmq.interfaces import ICheckerFactory, IRecipientChecker
from qmq.mail import Address, Reply, address
from qmq.programs import Exit, ProgramTrouble
from qmq.receive.context import Context
from qmq.rules.recipients import Program, read
from qmq.rules.watched import BadLine
from qmq.session import Conduct, Environment, Session, Transaction, Verdict
from tests.rules.test_recipients import FolderCase

TRANSACTION = Transaction(b"spool-1", address(b"a@x.example"))


class Owned:
    """An instance with a file of its own, or none."""

    def __init__(self, recipients=""):
        self.recipients = recipients


class CheckerCase(FolderCase):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("control"))
        self.owners = {}
        self.conduct = Conduct()

    def made(self, *lines, **options):
        if lines:
            self.write("control/recipients", *lines)
        context = Context(
            lambda _: True, 0, Clock(),
            control=self.path("control"), folder=self.home, files=self.files, owner=self.owners.get,
            some=lambda true: any(map(true, self.owners.values())),
        )  # fmt: skip
        return Factory().make(context, options)

    def session(self, relay=False, **environment):
        return Session(
            "192.0.2.1", 40000, "192.0.2.25", 25,
            relay=relay, host="client.test", environment=Environment(**environment), conduct=self.conduct,
        )  # fmt: skip

    def said(self, checker, raw, **session):
        return checker.recipient(self.session(**session), TRANSACTION, address(raw))

    def summed(self, verdict):
        return verdict and (verdict.reply.code if verdict.reply else verdict.reason)

    def sums(self, checker, *addresses):
        return [self.summed(self.said(checker, raw)) for raw in addresses]


class RecipientsTests(CheckerCase):
    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.assertTrue(verifyObject(IRecipientChecker, self.made()))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_no_file(self):
        """Without control/recipients it has no opinion; the file counts from the next connection on."""
        checker = self.made()
        self.assertIs(self.said(checker, b"x@one.test"), None)

        self.write("control/recipients", b"!two.test")
        self.files.look()

        self.assertEqual(self.sums(checker, b"x@one.test"), [550])

    def test_concerns(self):
        """Nobody, as long as there is neither a file nor an instance with one of its own."""
        self.files.come = list  # somebody would be told of a file that comes
        checker = self.made()
        self.assertFalse(checker.concerns(Environment(), "recipient"))
        self.owners[b"one.test"] = Owned("one.recipients")
        self.assertTrue(checker.concerns(Environment(), "recipient"))
        self.owners.clear()
        self.assertFalse(checker.concerns(Environment(), "recipient"))

        self.write("control/recipients", b"!two.test")
        self.files.look()
        self.assertTrue(checker.concerns(Environment(), "recipient"))

    def test_known(self):
        """Who is known is accepted with the reason why, from sources beside qmail's control folder."""
        self.cdb("users/a.cdb", b"bob@one.test")
        checker = self.made(b"@one.test:users/a.cdb", b"!two.test")

        reasons = self.sums(checker, b"Bob@one.test", b"x@two.test")

        self.assertEqual(reasons, ["Accept::RCPT::Recipients_Cdb", "Accept::RCPT::Recipients_Wild"])
        self.assertEqual(self.conduct.failed_recipients, 0)

    def test_unknown(self):
        """Who is not known is refused, counted, and the refusal is logged as SPAMCONTROL did."""
        self.cdb("a.cdb", b"bob@one.test")
        checker = self.made(b"a.cdb")

        verdict = self.said(checker, b"eve@one.test")
        self.assertEqual((verdict.reply.code, verdict.reason), (550, "Reject::RCPT::Failed_Rcptto"))
        self.assertEqual(self.said(checker, b"eve@one.test", recipients450=True).reply.code, 450)
        self.assertEqual(self.conduct.failed_recipients, 2)

    def test_relay(self):
        """A relay client is not asked."""
        for relayclient in (None, b"", b"@x"):
            concerned = self.made(b"!two.test").concerns(Environment(relayclient=relayclient), "recipient")
            self.assertIs(concerned, relayclient is None)
        self.assertIs(self.said(self.made(b"!two.test"), b"x@one.test", relay=True), None)

    def test_postmaster(self):
        """Bare <postmaster> is always there; who else has no domain is at localhost."""
        self.cdb("a.cdb", b"root@localhost")
        checker = self.made(b"a.cdb")

        self.assertEqual(
            self.sums(checker, b"Postmaster", b"root", b"bob"), [None, "Accept::RCPT::Recipients_Cdb", 550]
        )

    def test_instances_own(self):
        """An instance's own file counts for its recipients, and only there."""
        self.cdb("a.cdb", b"bob@one.test", b"bob@two.test")
        self.write("theirs", b"!two.test")
        self.owners.update({b"one.test": Owned(), b"two.test": Owned("theirs")})
        checker = self.made(b"a.cdb")

        self.assertEqual(self.sums(checker, b"eve@one.test", b"eve@two.test"), [550, "Accept::RCPT::Recipients_Wild"])

    def test_instances_own_is_bad(self):
        """While an instance's own file is missing or wrong its recipients are deferred, the others not; told once."""
        self.owners[b"two.test"] = Owned("theirs")
        checker = self.made(b"!one.test")

        self.assertEqual(
            self.sums(checker, b"x@one.test", b"x@two.test", b"x@two.test"), ["Accept::RCPT::Recipients_Wild", 451, 451]
        )
        self.files.look()
        self.assertEqual(self.sums(checker, b"x@two.test"), [451])
        self.assertEqual(len(self.warned), 1)
        self.write("theirs", b"*:nothing.cdb")
        self.files.look()
        self.assertEqual(self.sums(checker, b"x@two.test"), [451])
        self.assertIn("theirs:1", self.warned[1])
        self.write("theirs", b"!two.test")
        self.files.look()
        self.assertEqual(self.sums(checker, b"x@two.test"), ["Accept::RCPT::Recipients_Wild"])
        self.assertEqual(self.conduct.failed_recipients, 0)

    def test_named_file(self):
        """A file that is named must be there: at the start, and later its recipients are deferred until it is back."""
        self.assertRaises(ValueError, self.made, file="mine")
        self.write("mine", b"!one.test")
        self.files.look()
        checker = self.made(file="mine")
        self.assertEqual(self.sums(checker, b"x@one.test"), ["Accept::RCPT::Recipients_Wild"])

        os.unlink(self.path("mine"))
        self.files.look()

        self.assertEqual(self.sums(checker, b"x@one.test"), [451])

    def test_bad_file(self):
        """A bad line, a missing cdb and a program that can't be run are refused at the start, with file and line."""
        self.write("plain", b"#!/bin/sh")
        for line in (b"bob", b"*:absent.cdb", b"*|/absent/program", b"*|users/absent", b"*|./plain"):
            with self.assertRaises(BadLine) as caught:
                self.made(b"#", line)
            self.assertIn("recipients:2", str(caught.exception))

    def test_edited_badly(self):
        """After a slip of the editor the rules stay as they were."""
        checker = self.made(b"!one.test")
        self.write("control/recipients", b"!one.test", b"*:absent.cdb")
        self.files.look()

        self.assertEqual(self.sums(checker, b"x@one.test", b"x@two.test"), ["Accept::RCPT::Recipients_Wild", 550])
        self.assertEqual(len(self.warned), 1)

    def test_options(self):
        """A wrong option is refused with what to write instead."""
        for options in ({"trouble": "die"}, {"time": "soon"}, {"at-once": "0"}, {"waiting": "x"}, {"path": "x"}):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn("recipients", str(caught.exception))
        self.made(**{"trouble": "defer", "time": "5s", "at-once": "3", "waiting": "0", "breaks": ""})


class ProgramTests(CheckerCase):
    """With programs that say what the test tells them to."""

    def setUp(self):
        super().setUp()
        self.asked = []
        self.answers = {}

    def ask(self, program, address, session):
        self.asked.append((program.argv[0], address))
        answer = self.answers.get(address, False)
        return answer if isinstance(answer, Deferred) else succeed(answer)

    def checker(self, *lines, **how):
        rules = read(self.write("recipients", *lines), self.home, self.files, lambda name: name)
        return KnownRecipients(lambda _: rules, self.ask, self.warned.append, **how)

    def said(self, checker, raw, **session):
        return self.successResultOf(self.waited(checker, raw))

    def waited(self, checker, raw):
        return Deferred.fromCoroutine(super().said(checker, raw))

    def test_known(self):
        """Whom a program knows is accepted, and the log says that a program did it."""
        self.answers[b"Bob@one.test"] = True

        self.assertEqual(
            self.sums(self.checker(b"*|check"), b"Bob@one.test", b"eve@one.test"), ["Accept::RCPT::Recipients_Pam", 550]
        )
        self.assertEqual(self.conduct.failed_recipients, 1)

    def test_extension(self):
        """A program that does not know list-any is asked for list-."""
        self.answers[b"list-@one.test"] = True

        self.assertEqual(self.sums(self.checker(b"*|check"), b"List-any@one.test"), ["Accept::RCPT::Recipients_Pam"])
        self.assertEqual(self.asked, [("check", b"List-any@one.test"), ("check", b"list-@one.test")])

    def test_order(self):
        """Programs and files are asked in the order of the lines, until the first that knows."""
        self.cdb("a.cdb", b"bob@one.test")
        self.answers[b"eve@one.test"] = True
        checker = self.checker(b"*|one", b"a.cdb", b"*|two")

        self.assertEqual(self.sums(checker, b"bob@one.test", b"x@one.test"), ["Accept::RCPT::Recipients_Cdb", 550])
        self.assertEqual([name for name, _ in self.asked], ["one", "one", "two"])

    def test_trouble(self):
        """If a program can't tell there is one answer, as it is set; it counts for nothing, and the log knows why."""
        trouble = Verdict(reply=Reply(421, "4.3.0", "later"), close=True)
        for said in (trouble, None):
            self.answers[b"bob@one.test"] = fail(ProgramTrouble("check took too long", b"ldap: \x1b down\nmore"))
            self.assertIs(self.said(self.checker(b"*|check", b"!one.test", trouble=said), b"bob@one.test"), said)

        self.assertEqual(self.conduct.failed_recipients, 0)
        self.assertEqual(self.warned[0], r"recipients: check took too long: 'ldap: \x1b down'")

    def test_nul(self):
        """No address with a NUL in it is given to a program: there it would end."""
        checker = self.checker(b"*|check")

        verdict = self.successResultOf(
            Deferred.fromCoroutine(checker.recipient(self.session(), TRANSACTION, Address(b"bob\0x", b"one.test")))
        )

        self.assertEqual((verdict.reply.code, self.asked), (550, []))

    def test_cancel(self):
        """If the client is gone the program is not waited for any more."""
        self.answers[b"bob@one.test"] = answer = Deferred()
        waiting = self.waited(self.checker(b"*|check"), b"bob@one.test")

        waiting.cancel()

        self.assertTrue(answer.called)
        waiting.addErrback(lambda _: None)


class FakePrograms:
    """They exit with this code."""

    def __init__(self, code):
        self.code = code

    def run(self, *given):
        self.given = given
        return succeed(Exit(self.code))


class AskTests(CheckerCase):
    """What a program is given."""

    def asked(self, code):
        self.programs = FakePrograms(code)
        return Deferred.fromCoroutine(
            ask(self.programs, 20, Program(("/bin/check", "a")), b"bob@one.test", self.session())
        )

    def test_exit_codes(self):
        """0 is known, 111 can't tell, all others are unknown."""
        self.assertEqual([self.successResultOf(self.asked(code)) for code in (0, 1, 2, 100, 255)], [True] + [False] * 4)
        self.failureResultOf(self.asked(111), ProgramTrouble)

    def test_given(self):
        """It is given the address and three NULs on descriptor 3, and of the environment who the client is."""
        self.successResultOf(self.asked(0))

        argv, feeds, environ, seconds = self.programs.given
        self.assertEqual((argv, feeds, seconds), (("/bin/check", "a"), {3: b"bob@one.test\0\0\0"}, 20))
        self.assertEqual((environ["TCPREMOTEIP"], environ["TCPREMOTEHOST"]), ("192.0.2.1", "client.test"))
        self.assertLessEqual(
            set(environ),
            {"PATH", "PROTO", "TCPREMOTEIP", "TCPREMOTEHOST", "TCPREMOTEPORT", "TCPLOCALIP", "TCPLOCALPORT"},
        )
