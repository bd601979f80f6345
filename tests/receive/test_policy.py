from dataclasses import replace
from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from qmq.interfaces import (
    IBlocking,
    ICheckerFactory,
    IHeloChecker,
    IMessageChecker,
    IRecipientChecker,
    ISelective,
    ISenderChecker,
)
from qmq.mail import Address, Reply
from qmq.receive.catalogue import installed, make, make_checkers, parted, terms_of
from qmq.receive.context import Context
from qmq.receive.policy import Policy, Refusal, Terms
from qmq.rules.watched import Files
from qmq.session import VOUCH, Environment, Session, Transaction, Verdict

SESSION = Session("192.0.2.1", 40000, "192.0.2.25", 25)
TRANSACTION = Transaction(b"spool-1", Address(b"a", b"x.example"))
RECIPIENT = Address(b"b", b"ours.example")
REFUSAL = Verdict(reply=Reply(550, "5.7.1", "no"), reason="Reject::X::Y")


@implementer(IRecipientChecker)
class Says:
    """Answers what it was given: a value, an awaitable, or the result of a call."""

    def __init__(self, answer=None):
        self.answer = answer
        self.asked = 0

    def recipient(self, session, transaction, recipient):
        self.asked += 1
        return self.answer() if callable(self.answer) else self.answer


async def later(deferred):
    return await deferred


class PolicyTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()

    def ask(self, *checkers):
        policy = Policy([(f"c{n}", checker) for n, checker in enumerate(checkers)], self.clock)
        return policy.recipient(SESSION, TRANSACTION, RECIPIENT)

    def test_no_opinion(self):
        """Nobody having an opinion is no opinion, and costs no Deferred."""
        self.assertIsNone(self.ask())
        self.assertIsNone(self.ask(Says(), Says()))

    def test_first_refusal(self):
        """The first refusal ends the phase."""
        last = Says(VOUCH)

        self.assertEqual(self.ask(Says(), Says(REFUSAL), last), Refusal(1, REFUSAL))
        self.assertEqual(last.asked, 0)

    def test_stop(self):
        """A checker that stops keeps the later ones from refusing."""
        self.assertTrue(self.ask(Says(Verdict(stop=True)), Says(REFUSAL)).stop)

    def test_vouch_goes_on(self):
        """A vouched recipient may still be refused by a later checker."""
        self.assertEqual(self.ask(Says(VOUCH), Says(REFUSAL)).verdict.reply, REFUSAL.reply)

    def test_sum(self):
        """Delays and fields of all checkers add up, in order."""
        verdict = self.ask(
            Says(Verdict(delay=2, fields=b"A: 1\r\n")), Says(VOUCH), Says(Verdict(delay=3, fields=b"B: 2\r\n"))
        )

        self.assertEqual(verdict, Verdict(vouch=True, delay=5, fields=b"A: 1\r\nB: 2\r\n"))

    def test_waiting(self):
        """A checker may answer later, by coroutine or Deferred; the next is asked only then."""
        for wrap in (later, lambda deferred: deferred):
            waiting = Deferred()
            following = Says(Verdict(delay=1))
            answer = self.ask(Says(Verdict(delay=2)), Says(lambda wrap=wrap, d=waiting: wrap(d)), following)

            self.assertNoResult(answer)
            self.assertEqual(following.asked, 0)
            waiting.callback(VOUCH)

            self.assertEqual(self.successResultOf(answer), Verdict(vouch=True, delay=3))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_several_waiting(self):
        """Several waiting checkers wait one after the other; the first refusal ends it."""
        first, second, last = Deferred(), Deferred(), Says(VOUCH)
        answer = self.ask(Says(first), Says(), Says(lambda: later(second)), last)

        first.callback(None)
        second.callback(REFUSAL)

        self.assertEqual(self.successResultOf(answer), Refusal(2, REFUSAL))
        self.assertEqual(last.asked, 0)

    def test_awaitable_at_once(self):
        """An awaitable that need not wait gives its answer at once."""
        self.assertIs(self.successResultOf(self.ask(Says(succeed(VOUCH)))), VOUCH)

    def assert_failed(self, refusal, error):
        verdict = refusal.verdict
        self.assertEqual((verdict.reply.code, verdict.reply.status), (451, "4.3.0"))
        self.assertEqual((verdict.reason, verdict.info), ("Reject::CHECK::Failed", "c0"))
        self.assertEqual(len(self.flushLoggedErrors(error)), 1)

    def test_raises(self):
        """A checker that raises defers this recipient, with its name in the log."""
        self.assert_failed(self.ask(Says(lambda: 1 / 0), Says(VOUCH)), ZeroDivisionError)

    def test_raises_later(self):
        """The same if it raises while it is waited for, or behind one that was."""
        waiting = Deferred()
        answer = self.ask(Says(lambda: later(waiting)))
        waiting.errback(OSError("gone"))
        self.assert_failed(self.successResultOf(answer), OSError)

    def test_nonsense(self):
        """The same if its answer is no Verdict, a refusal that refuses nothing, or fields with a bare CR or LF."""
        self.assert_failed(self.successResultOf(self.ask(Says(True))), TypeError)
        self.assert_failed(self.successResultOf(self.ask(Says(succeed("yes")))), TypeError)
        self.assert_failed(self.ask(Says(Verdict(reply=Reply(250, "", "ok")))), ValueError)
        for fields in (b"A: 1\n", b"A: 1\r2\r\n"):
            self.assert_failed(self.ask(Says(Verdict(fields=fields))), ValueError)
            self.assert_failed(self.successResultOf(self.ask(Says(succeed(Verdict(fields=fields))))), ValueError)

    def test_too_late(self):
        """The same if it does not answer in 30 s; it is cancelled, and what it says later is not heard."""
        waiting = Deferred(lambda _: None)
        answer = self.ask(Says(waiting), Says(VOUCH))

        self.clock.advance(29.9)
        self.assertNoResult(answer)
        self.clock.advance(0.2)

        self.assert_failed(self.successResultOf(answer), TimeoutError)

    def test_deaf(self):
        """A checker that ignores its cancelling keeps nobody waiting."""

        async def deaf():
            while True:
                try:
                    await Deferred()
                except Exception:
                    if len(tries) > 3:
                        raise
                    tries.append(1)

        tries = []
        answer = self.ask(Says(deaf))

        self.clock.advance(31)

        self.assert_failed(self.successResultOf(answer), TimeoutError)

    def test_own_time(self):
        """conf-qmq may give a checker another time than it says itself."""
        waiting = Deferred()
        policy = Policy([("c0", Says(waiting))], self.clock, terms={"c0": Terms(timeout=5)})
        answer = policy.recipient(SESSION, TRANSACTION, RECIPIENT)

        self.clock.advance(5)

        self.assert_failed(self.successResultOf(answer), TimeoutError)

    def test_tallies(self):
        """What each checker said is counted, and how long it took."""
        waiting = Deferred()
        policy = Policy([("a", Says(VOUCH)), ("b", Says(waiting)), ("c", Says(REFUSAL))], self.clock)
        answer = policy.recipient(SESSION, TRANSACTION, RECIPIENT)
        self.clock.advance(2)
        waiting.callback(None)
        self.successResultOf(answer)

        facts = policy.tallies()
        self.assertEqual([facts[name]["asked"] for name in "abc"], [1, 1, 1])
        self.assertEqual([facts[name]["refused"] for name in "abc"], [0, 0, 1])
        self.assertGreaterEqual(facts["b"]["longest"], 2)
        self.assertLess(facts["a"]["longest"], 1)

    def test_cancelled(self):
        """When the client leaves, the checker is cancelled and nothing is logged."""
        waiting = Deferred()
        answer = self.ask(Says(lambda: later(waiting)))

        answer.cancel()

        self.failureResultOf(answer)
        self.assertTrue(waiting.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_phases(self):
        """A checker is asked in each phase whose interface it provides, and in no other."""

        @implementer(IHeloChecker, IMessageChecker)
        class Both:
            def helo(self, session):
                return REFUSAL

            def message(self, session, transaction, message):
                return VOUCH

        policy = Policy([("both", Both())], self.clock)

        self.assertEqual(policy.helo(SESSION), Refusal(0, REFUSAL))
        self.assertIs(policy.message(SESSION, TRANSACTION, None), VOUCH)
        self.assertIsNone(policy.connection(SESSION))
        self.assertIsNone(policy.sender(SESSION, TRANSACTION))

    def test_selective(self):
        """A checker that says whom it concerns is asked of those alone, and asked whom once for all of them."""

        @implementer(IHeloChecker, ISenderChecker, ISelective)
        class OfSome:
            wondered = 0

            def concerns(self, environment, phase):
                self.wondered += 1
                return environment.spf > 0 and phase == "helo"

            def helo(self, session):
                return REFUSAL

            def sender(self, session, transaction):
                return REFUSAL

        checker = OfSome()
        policy = Policy([("c", checker), ("d", Says())], self.clock)
        some = replace(SESSION, environment=Environment(spf=3))

        for _ in range(2):
            self.assertIsNone(policy.helo(SESSION))
            self.assertEqual(policy.helo(some), Refusal(0, REFUSAL))
            self.assertIsNone(policy.sender(some, TRANSACTION))
        self.assertEqual(checker.wondered, 4)
        self.assertEqual(policy.tallies()["c"]["asked"], 2)

    def test_selective_anew(self):
        """Who is asked of whom is decided anew when the configuration has changed, for open sessions too."""

        @implementer(IHeloChecker, ISelective)
        class OfTheMoment:
            def concerns(self, environment, phase):
                return conf[0] == "strict"

            def helo(self, session):
                return REFUSAL

        conf = ["mild"]
        policy = Policy([("c", OfTheMoment())], self.clock, present=lambda: conf[0])

        self.assertIsNone(policy.helo(SESSION))
        conf[0] = "strict"
        self.assertEqual(policy.helo(SESSION), Refusal(0, REFUSAL))

    def test_selective_by_file(self):
        """Who is asked for want of a file is asked from the connection on after it has come, by open sessions too."""
        path, files = self.mktemp(), Files()
        watched = files.watch(path, lambda _: REFUSAL, None)

        @implementer(IHeloChecker, ISelective)
        class ByFile:
            def concerns(self, environment, phase):
                return not watched.absent()

            def helo(self, session):
                return watched.now()

        policy = Policy([("c", ByFile())], self.clock, files=files)

        self.assertIsNone(policy.helo(SESSION))
        Path(path).touch()
        self.assertIsNone(policy.helo(SESSION))
        files.look()
        self.assertEqual(policy.helo(SESSION), Refusal(0, REFUSAL))

    def test_selective_broken(self):
        """One that cannot say whom it concerns is asked of everybody, and named in the log."""

        @implementer(IHeloChecker, ISelective)
        class Broken:
            def concerns(self, environment, phase):
                raise SystemExit

            def helo(self, session):
                return REFUSAL

        policy = Policy([("c", Broken())], self.clock)

        self.assertEqual(policy.helo(SESSION), Refusal(0, REFUSAL))
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 1)
        self.assertEqual(policy.tallies()["c"]["failed"], 1)

    def test_useless(self):
        """What provides no checker's interface is refused at the start, and so is what does not keep its word."""

        @implementer(IHeloChecker)
        class Broken:
            pass

        with self.assertRaises(ValueError) as caught:
            Policy([("odd", object())], self.clock)
        self.assertIn("odd", str(caught.exception))
        with self.assertRaises(ValueError) as caught:
            Policy([("broken", Broken())], self.clock)
        self.assertIn("helo", str(caught.exception))


@implementer(ICheckerFactory)
class Factory:
    name = "x"
    help = "nothing"

    def make(self, context, options):
        return Says(Verdict(delay=context.databytes + len(options)))


@implementer(IBlocking)
class Blocks(Says):
    pass


class BlockingFactory(Factory):
    name = "blocks"

    def make(self, context, options):
        return Blocks()


class CatalogueTests(SynchronousTestCase):
    context = Context(lambda _: False, 7, Clock())

    def test_installed(self):
        """Our own checkers are found as plug-ins."""
        self.assertLessEqual({"rcpthosts", "databytes"}, set(installed()))

    def test_made(self):
        """Checkers are made in the order of their names, each with its options."""
        made = make_checkers(["rcpthosts", "databytes"], self.context, {"databytes": {"limit": "1K"}})

        self.assertEqual([name for name, _ in made], ["rcpthosts", "databytes"])
        Policy(made, Clock())

    def test_strangers(self):
        """Another's factory is as good as ours."""
        made = make_checkers(["x"], self.context, {"x": {"a": "b"}}, {"x": Factory()})

        self.assertEqual(Policy(made, Clock()).recipient(SESSION, TRANSACTION, RECIPIENT).delay, 8)

    def test_terms(self):
        """Any checker may be told its time, and one that blocks its threads; its factory does not hear of it."""
        options = {"x": {"timeout": "500ms", "a": "b"}, "blocks": {"threads": "4", "cpu": "2s"}}
        factories = {"x": Factory(), "blocks": BlockingFactory()}

        made = make_checkers(["x", "blocks"], self.context, options, factories)

        self.assertEqual(terms_of(options, factories), {"x": Terms(timeout=0.5), "blocks": Terms(threads=4, cpu=2)})
        self.assertEqual(Policy(made[:1], Clock()).recipient(SESSION, TRANSACTION, RECIPIENT).delay, 8)

    def test_terms_of_its_own(self):
        """A word that is among a factory's own options is the factory's."""
        factory = Factory()
        factory.options = {"timeout": "its own"}

        self.assertEqual(parted(factory, {"timeout": "x", "cpu": "2s"}), (Terms(cpu=2), {"timeout": "x"}))

    def test_bad_terms(self):
        """What makes no sense is refused with what to say instead."""
        for options, word in (({"timeout": "soon"}, "20s"), ({"threads": "0"}, "1"), ({"threads": "4"}, "block")):
            with self.assertRaises(ValueError) as caught:
                make("x", self.context, options, {"x": Factory()})
            self.assertIn(word, str(caught.exception))

    def test_unknown(self):
        """An unknown name is refused with the names there are."""
        with self.assertRaises(ValueError) as caught:
            make_checkers(["rcpthost"], self.context)

        self.assertIn("'rcpthost'", str(caught.exception))
        self.assertIn("rcpthosts", str(caught.exception))
