from dataclasses import replace

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from qmq.checks.greetdelay import Factory
from qmq.interfaces import ICheckerFactory, IConnectionChecker
from qmq.receive.context import Context
from qmq.receive.policy import Policy, Refusal
from qmq.session import Conduct, Environment, Session

SESSION = Session("192.0.2.1", 40000, "192.0.2.25", 25)


def client(early=False, relay=False, **environment):
    conduct = Conduct()
    conduct.early = early
    return replace(SESSION, relay=relay, environment=Environment(**environment), conduct=conduct)


class GreetDelayTests(SynchronousTestCase):
    def made(self, **options):
        self.clock = Clock()
        self.checker = Factory().make(Context(lambda _: False, 0, self.clock), options)
        self.policy = Policy([("greetdelay", self.checker)], self.clock)
        return self.policy

    def test_interfaces(self):
        """The checker and its factory keep their word."""
        self.made()
        self.assertTrue(verifyObject(IConnectionChecker, self.checker))
        self.assertTrue(verifyObject(ICheckerFactory, Factory()))

    def test_patient(self):
        """A client that waits for the banner gets it when its GREETDELAY is over, even if that is minutes."""
        for delay in (1.5, 20, 300):
            answer = self.made().connection(client(greetdelay=delay))

            self.clock.advance(delay - 0.1)
            self.assertNoResult(answer)
            self.clock.advance(0.1)
            self.assertIsNone(self.successResultOf(answer))
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_early(self):
        """A client that speaks while it should wait is refused at once then, and hung up on."""
        session = client(greetdelay=5)
        answer = self.made().connection(session)
        self.clock.advance(4)
        session.conduct.early = True
        self.clock.advance(1)

        refusal = self.successResultOf(answer)
        self.assertIsInstance(refusal, Refusal)
        verdict = refusal.verdict
        self.assertEqual((verdict.reply.code, verdict.now, verdict.close), (554, True, True))
        self.assertEqual(verdict.reason, "Reject::SNDR::Early_Talker")

    def test_nothing_to_wait_for(self):
        """Without GREETDELAY, and where RBLSMTPD is set, the banner comes at once, whoever spoke before."""
        policy = self.made()
        for session in (
            client(early=True),
            client(early=True, greetdelay=5, rblsmtpd=""),
            client(greetdelay=5, rblsmtpd="-no"),
        ):
            self.assertIsNone(policy.connection(session))

    def test_option(self):
        """The option's delay holds for clients without GREETDELAY; one that says 0 does not wait."""
        policy = self.made(delay="10s")
        self.assertIsNone(policy.connection(client(variables={"GREETDELAY": "0"})))

        slow, quick = policy.connection(client()), policy.connection(client(greetdelay=2))

        self.clock.advance(2)
        self.assertIsNone(self.successResultOf(quick))
        self.assertNoResult(slow)
        self.clock.advance(8)
        self.assertIsNone(self.successResultOf(slow))

    def test_relay_clients(self):
        """Relay clients wait as others do, unless the site says no."""
        self.assertIsInstance(self.made().connection(client(relay=True, greetdelay=2)), Deferred)
        self.assertIsNone(self.made(relay="no").connection(client(relay=True, greetdelay=2)))

    def test_many(self):
        """When many wait already the next is greeted at once, or refused at once if it was early; a place gets free."""
        policy = self.made(waiting="2")
        first, second = policy.connection(client(greetdelay=5)), policy.connection(client(greetdelay=9))

        self.assertIsNone(policy.connection(client(greetdelay=5)))
        self.assertIsInstance(policy.connection(client(early=True, greetdelay=5)), Refusal)
        self.clock.advance(5)
        self.successResultOf(first)
        third = policy.connection(client(greetdelay=5))
        self.assertIsNone(policy.connection(client(greetdelay=5)))
        self.assertNoResult(second)
        self.assertNoResult(third)

    def test_gone(self):
        """A client that goes while it waits leaves nothing behind."""
        policy = self.made(waiting="1")
        for _ in range(3):
            answer = policy.connection(client(greetdelay=5))
            answer.addErrback(lambda _: None)
            answer.cancel()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_options(self):
        """A wrong option is refused with what to write instead."""
        for options, word in (
            ({"seconds": "1"}, "delay"),
            ({"delay": "soon"}, "20s"),
            ({"delay": "10m"}, "5m"),
            ({"waiting": "0"}, "1000"),
            ({"relay": "maybe"}, "yes"),
        ):
            with self.assertRaises(ValueError) as caught:
                self.made(**options)
            self.assertIn(word, str(caught.exception))
