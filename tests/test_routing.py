"""Hand-over: what the client is told, what is kept, and for whom."""

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from qmq.interfaces import IConnection, IDialler, INextHop
from qmq.mail import Address, DeliveryFailure, Entry, Envelope, MemoryBody, Message, Reply, Token
from qmq.routing.diallers import HandOverDialler, MoveDialler
from qmq.routing.hops import InProcess
from qmq.routing.intake import Intake
from qmq.routing.router import Router
from qmq.routing.states import States, Waiting
from qmq.routing.tokens import OpenTokens

K = Reply(250, "2.0.0", "ok", mta="customer1")
Z = Reply(451, "4.3.0", "filter is busy", mta="customer1")
D = Reply(550, "5.1.1", "no such user", mta="customer1")
UNKNOWN = Reply(451, "4.4.2", "no answer")
KEPT = Reply(250, "2.0.0", "kept", mta="primary")


def message(*recipients, seq=1):
    addresses = tuple(Address(*r.encode().split(b"@")) for r in recipients)
    return Message(Envelope(Token(b"p", seq), Address(b"s", b"src"), addresses), b"", MemoryBody(b"x\r\n"))


@implementer(INextHop)
class Hop:
    """Answers what it was told to; keeps what it was sent."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.sent = []

    def send(self, message):
        self.sent.append(message)
        answer = self.replies.pop(0) if self.replies else [K] * len(message.envelope.recipients)
        return answer if isinstance(answer, Deferred) else succeed(answer)


class Log:
    """Only what the router says."""

    def kept(self, queue_id, name):
        """Not asserted."""


class RouterTests(SynchronousTestCase):
    """Two instances, c1 and c2, and the primary's own queue."""

    def setUp(self):
        self.time = 1000.0
        self.free = True
        self.c1, self.c2 = Hop(), Hop()
        self.kept = []
        self.kept_for = []
        self.own_replies = None
        self.overflow = {}
        names = {b"one": "c1", b"two": "c2"}
        self.states = States(lambda: self.time)
        self.intake = Intake(
            lambda a: names.get(a.domain), lambda name: self.overflow.get(name, ""), self.states, lambda: self.time,
            lambda: self.free, {}, sessions=20, share=0.1, budget=(3, 10_000, 600),
        )  # fmt: skip
        self.router = Router(
            self.intake.instance, {"c1": self.c1, "c2": self.c2}, self, self.intake, self.states.away, Log(),
            lambda: self.time,
        )  # fmt: skip
        verifyObject(INextHop, self.router)

    def take(self, message, names):
        """The primary's own store."""
        self.kept.append(message)
        self.kept_for.append(names)
        return succeed(self.own_replies or [KEPT] * len(message.envelope.recipients))

    def send(self, *recipients):
        return self.successResultOf(self.router.send(message(*recipients)))

    def test_straight_through(self):
        """In the usual case the primary keeps nothing and the client hears the instance."""
        self.assertEqual(self.send("a@one"), [K])
        self.assertEqual(self.kept, [])

    def test_refused_by_all(self):
        """A refusal of every recipient reaches the client inside the session: no bounce is owed."""
        self.c1.replies = [[D, D]]

        self.assertEqual(self.send("a@one", "b@one"), [D, D])
        self.assertEqual(self.kept, [])

    def test_tempfail_of_instance(self):
        """The instance's own Z goes to the client as 4xx."""
        self.c1.replies = [[Z]]

        self.assertEqual(self.send("a@one"), [Z])
        self.assertEqual(self.kept, [])

    def test_taken_and_refused(self):
        """If some were taken, the client gets 250 and those refused are kept here, to be bounced durably."""
        self.c1.replies = [[K, D]]

        self.assertEqual(self.send("a@one", "b@one"), [K, KEPT])
        self.assertEqual(self.kept[0].envelope.recipients, (Address(b"b", b"one"),))

    def test_taken_and_deferred(self):
        """K and Z mixed: 250, and the Z ones are kept under the same token."""
        self.c1.replies = [[Z, K]]

        self.assertEqual(self.send("a@one", "b@one"), [KEPT, K])
        self.assertEqual(self.kept[0].envelope.token, Token(b"p", 1))

    def test_unknown_outcome(self):
        """No answer: kept under the same token, and the client is told 250."""
        self.c1.replies = [[UNKNOWN]]

        self.assertEqual(self.send("a@one"), [KEPT])
        self.assertEqual(self.kept[0].envelope.token, Token(b"p", 1))

    def test_unknown_and_refused(self):
        """Where one is unknown the whole message counts as taken; the refused one is bounced later."""
        self.c1.replies = [[UNKNOWN, D]]

        self.assertEqual(self.send("a@one", "b@one"), [KEPT, KEPT])

    def test_nothing_can_be_kept(self):
        """If our own store can't take what is uncertain, the client hears 4xx and keeps it."""
        self.c1.replies = [[UNKNOWN]]
        self.own_replies = [Reply(452, "4.3.1", "full", mta="primary")]

        self.assertEqual([r.code for r in self.send("a@one")], [452])

    def test_rest_cannot_be_kept(self):
        """If some were taken and our store can't take the rest, the client, who has one answer for all, hears 4xx."""
        for replies in ([K, UNKNOWN], [K, D], [Z, K]):
            self.c1.replies = [replies]
            self.own_replies = [Reply(452, "4.3.1", "full", mta="primary")]

            self.assertEqual([r.code for r in self.send("a@one", "b@one")], [452, 452])

    def test_two_instances(self):
        """For several instances the message is ours first; none of them is asked before it is safe."""
        self.assertEqual(self.send("a@one", "b@two"), [KEPT, KEPT])
        self.assertEqual((self.c1.sent, self.c2.sent), ([], []))

    def test_nobodys_domain(self):
        """Recipients of whom no instance knows are refused at RCPT, and if they all come through, then here."""
        self.assertEqual(self.intake.recipient(None, None, Address(b"b", b"nowhere")).reply.code, 550)
        self.assertEqual([r.code for r in self.send("b@nowhere")], [550])

    def test_domain_lost_on_the_way(self):
        """If one domain of several has no instance any more, the client is to try again: none is lost in silence."""
        self.assertEqual([r.code for r in self.send("a@one", "b@nowhere")], [451, 451])
        self.assertEqual(self.kept, [])

    def test_share_of_sessions(self):
        """At most a share of the sessions waits for one instance; its next recipient gets 452, others none."""
        self.c1.replies = [Deferred(), Deferred()]
        self.router.send(message("a@one"))
        self.router.send(message("a@one", seq=2))

        self.assertEqual(self.intake.recipient(None, None, Address(b"a", b"one")).reply.code, 452)
        self.assertIsNone(self.intake.recipient(None, None, Address(b"a", b"two")))

    def test_full_instance(self):
        """A full instance's recipients get 452 while its word is fresh; older than 5 s means accept."""
        self.states.tell("c1", {"full": "limit-bytes"})
        self.assertEqual(self.intake.recipient(None, None, Address(b"a", b"one")).reply.code, 452)

        self.time += 6

        self.assertIsNone(self.intake.recipient(None, None, Address(b"a", b"one")))

    def test_budget(self):
        """What waits here for an unreachable instance is bounded, for that instance alone."""
        for seq in range(3):
            self.c1.replies = [[UNKNOWN]]
            self.successResultOf(self.router.send(message("a@one", seq=seq)))

        self.assertEqual(self.intake.recipient(None, None, Address(b"a", b"one")).reply.code, 452)
        self.assertIsNone(self.intake.recipient(None, None, Address(b"a", b"two")))

    def test_away(self):
        """What is for an instance whose process is not running is kept at once: its clients do not wait."""
        self.states.tell("c1", {"away": True})

        self.assertEqual(self.send("a@one"), [KEPT])
        self.assertEqual((self.c1.sent, self.kept_for), ([], [["c1"]]))
        self.assertEqual(self.kept[0].envelope.origin.born, self.time)
        self.assertEqual(self.send("a@two"), [K])

    def test_back(self):
        """Whoever keeps mail for it hears when it is there again; nobody hears of the others."""
        heard = []
        self.states.back.append(heard.append)

        self.states.tell("c1", {})
        self.states.tell("c1", {"away": True})
        self.assertEqual(heard, [])
        self.states.tell("c1", {"refusing": False})

        self.assertEqual(heard, ["c1"])
        self.assertEqual(self.send("a@one"), [K])

    def test_away_is_news(self):
        """A word older than 5 s counts for nothing: then it is asked itself."""
        self.states.tell("c1", {"away": True})
        self.time += 6

        self.assertEqual(self.send("a@one"), [K])

    def test_overflow(self):
        """What an instance past its limits cannot take goes to its overflow instead of a 452."""
        self.overflow["c1"] = "c2"
        self.states.tell("c1", {"full": "limit-messages"})

        self.assertIsNone(self.intake.recipient(None, None, Address(b"a", b"one")))
        self.assertEqual(self.send("a@one"), [K])
        self.assertEqual((len(self.c1.sent), len(self.c2.sent)), (0, 1))

    def test_overflow_at_once(self):
        """An instance that has become full since it last said so is known by its own word: the overflow gets it."""
        self.overflow["c1"] = "c2"
        self.c1.replies = [[Reply(452, "4.3.1", "this queue is full", mta="c1")]]

        self.assertEqual(self.send("a@one"), [K])
        self.assertEqual((len(self.c1.sent), len(self.c2.sent)), (1, 1))

    def test_overflow_full_too(self):
        """If the overflow takes nothing either, the recipient gets 452, and mail goes where it belongs."""
        self.overflow["c1"] = "c2"
        self.states.tell("c1", {"refusing": True})
        self.states.tell("c2", {"full": "disk"})

        self.assertEqual(self.intake.recipient(None, None, Address(b"a", b"one")).reply.code, 452)
        self.assertEqual(self.intake.instance(Address(b"a", b"one")), "c1")

    def test_doubt_is_not_diverted(self):
        """A hand-over without an answer is repeated to the same instance, whoever should get the domain's mail now."""
        self.overflow["c1"] = "c2"
        self.states.tell("c1", {"full": "limit-age"})
        self.c2.replies = [[UNKNOWN]]

        self.assertEqual(self.send("a@one"), [KEPT])
        self.assertEqual(self.kept_for, [["c2"]])

    def test_disk_reserve(self):
        """Below the disk reserve nothing is taken at MAIL."""
        self.free = False

        self.assertEqual(self.intake.sender(None, None).reply.code, 452)


class Work:
    """What a connection sees of its destination."""

    def __init__(self, *messages):
        self.messages = list(messages)
        self.done, self.idles, self.losts = [], 0, []

    def take(self):
        return self.messages.pop(0) if self.messages else None

    def finished(self, message, replies):
        self.done.append((message, replies))

    def idle(self, connection):
        self.idles += 1

    def lost(self, connection, reason):
        self.losts.append(reason)


class HandOverDiallerTests(SynchronousTestCase):
    """The primary's own queue delivers to instances as others do to hosts."""

    def test_all_that_waits(self):
        """One slot hands over what waits, one after the other, and frees its budget."""
        hop, waiting = Hop(), {"c1": Waiting()}
        first, second = message("a@one"), message("b@one", seq=2)
        waiting["c1"].add(first.envelope.token.id, 10, 0)
        dialler = HandOverDialler({"c1": hop}, waiting, lambda _: False)
        verifyObject(IDialler, dialler)
        work = Work(second)
        connection = self.successResultOf(dialler.dial(b"c1", work))
        verifyObject(IConnection, connection)

        connection.send(first)

        self.assertEqual([m for m, _ in work.done], [first, second])
        self.assertEqual(len(waiting["c1"]), 0)
        self.assertEqual(work.idles, 1)

    def test_unreachable(self):
        """An instance that can't be reached is left alone for a while, like any dead host."""
        hop = Hop([UNKNOWN])
        work = Work(message("b@one", seq=2))
        connection = self.successResultOf(HandOverDialler({"c1": hop}, {}, lambda _: False).dial(b"c1", work))

        connection.send(message("a@one"))

        self.assertEqual(work.losts, [UNKNOWN])
        self.assertEqual(len(hop.sent), 1)

    def test_away(self):
        """Nobody is dialled who is away, nor who is no more; the schedule brings its mail later."""
        dialler = HandOverDialler({"c1": Hop()}, {}, lambda name: name == "c1")
        for site in (b"c1", b"c9"):
            failure = self.failureResultOf(dialler.dial(site, Work()), DeliveryFailure)
            self.assertTrue(failure.value.reply.temporary)


class MoveDiallerTests(SynchronousTestCase):
    """An instance's queue whose site is another instance."""

    def setUp(self):
        self.hop = Hop()
        self.entry = Entry(77, message("a@one"), b"queue:c2", 500.0)
        self.elsewhere = []
        entries = {id(self.entry.message): self.entry}
        self.dialler = MoveDialler(self, {"c2": self.hop}.get, lambda m: entries.get(id(m)), lambda: b"store1")
        verifyObject(IDialler, self.dialler)

    def dial(self, site, work):
        """Any other site."""
        self.elsewhere.append(site)
        return Deferred()

    def test_moved(self):
        """The other queue hears a token of its own for the move, whose it is, and how old."""
        work = Work()
        connection = self.successResultOf(self.dialler.dial(b"queue:c2", work))

        connection.send(self.entry.message)

        (sent,) = self.hop.sent
        self.assertEqual(sent.envelope.token, Token(b"store1.m", 77))
        self.assertEqual(sent.envelope.origin.born, 500.0)
        self.assertEqual(sent.envelope.recipients, self.entry.message.envelope.recipients)
        self.assertEqual(work.done, [(self.entry.message, [K])])

    def test_hosts(self):
        """All other sites are hosts, as ever."""
        self.dialler.dial(b"smtp:mx.one:25", Work())

        self.assertEqual(self.elsewhere, [b"smtp:mx.one:25"])

    def test_no_such_queue(self):
        """A queue that is not there may be there later."""
        failure = self.failureResultOf(self.dialler.dial(b"queue:c9", Work()), DeliveryFailure)

        self.assertTrue(failure.value.reply.temporary)


class TokenTests(SynchronousTestCase):
    """What is in doubt."""

    def test_lowest(self):
        """The lowest number in doubt is that of the oldest open transaction or stored message."""
        numbers = iter(range(10, 20))
        stored = [2**62]
        tokens = OpenTokens(lambda: Token(b"p", next(numbers)), lambda: stored[0])
        first, second = tokens.begin(), tokens.begin()
        self.assertEqual(tokens.lowest(), 10)

        tokens.end(first)
        self.assertEqual(tokens.lowest(), 11)

        stored[0] = 5
        self.assertEqual(tokens.lowest(), 5)
        tokens.end(second)
        self.assertEqual(tokens.lowest(), 5)

    def test_in_process(self):
        """A hand-over within the process carries the lowest number too."""

        class Queue:
            def send_in_doubt(self, message, low):
                return succeed([low])

        self.assertEqual(self.successResultOf(InProcess(Queue(), lambda: 7).send(message("a@one"))), [7])
