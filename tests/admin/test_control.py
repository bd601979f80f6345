import base64
import json

from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from qmq.admin.control import ControlFactory, Desk
from qmq.admin.facts import destination, facts
from qmq.mail import HELD, MemoryBody, Reply
from tests.admin.fakes import LATER, NOW, FakeQueue, Told, entry


class DeskTestCase(SynchronousTestCase):
    """A process with two queues."""

    def setUp(self):
        self.alpha = FakeQueue(*(entry(n, age=1000 - n) for n in range(1, 6)))
        self.beta = FakeQueue(entry(1, "u@beta.example other@beta.example", site=b"smtp:192.0.2.7:25", reply=LATER))
        self.queues = {"alpha": self.alpha, "beta": self.beta}
        self.doings = {}
        self.desk = Desk("worker-1", lambda: self.queues, lambda: {"workers": {}}, self.doings, wall=lambda: NOW)

    def ask(self, do, **request):
        """The facts, without the last."""
        told = Told()
        self.successResultOf(ensureDeferred(self.desk.answer({"do": do, **request}, told)))
        self.last = told.pop()
        self.assertTrue(self.last["end"])
        return told


class ListTests(DeskTestCase):
    def test_facts(self):
        """Each message is told with its queue, state, age, destination and latest answer."""
        (fact,) = self.ask("list", queue="beta")

        self.assertEqual(fact["queue"], "beta")
        self.assertEqual(fact["id"], "abcdef-1")
        self.assertEqual(fact["destination"], "192.0.2.7")
        self.assertEqual(fact["last"], "451 4.7.1 greylisted, come back")
        self.assertEqual(fact["recipients"][1], {"address": "other@beta.example", "reply": ""})
        self.assertEqual((fact["state"], fact["age"], fact["size"], fact["due"]), ("waiting", 100, 2000, NOW + 60))

    def test_states(self):
        """What is in hand, held, moving and bouncing is told apart."""
        one = entry(1)
        found = [facts(one, NOW)["state"]]
        one.bouncing = ((one.message.envelope.sender, LATER),)
        found.append(facts(one, NOW)["state"])
        one.site = b"queue:beta"
        found.append(facts(one, NOW)["state"])
        one.due = HELD
        found.append(facts(one, NOW)["state"])
        one.due = None
        found.append(facts(one, NOW)["state"])

        self.assertEqual(found, ["waiting", "bouncing", "moving", "held", "in-hand"])

    def test_pages(self):
        """All of a long queue is told, a page after the other, the first of them small."""
        self.queues["alpha"] = queue = FakeQueue(*map(entry, range(1, 301)))

        found = self.ask("list", queue=["alpha"])

        self.assertEqual([fact["number"] for fact in found], list(range(1, 301)))
        self.assertEqual(
            [(after, limit) for _, after, limit in queue.spool.asked], [(0, 20), (20, 100), (120, 100), (220, 100)]
        )

    def test_limit_and_after(self):
        """A page of one queue begins after a number and ends at a limit."""
        found = self.ask("list", queue="alpha", after=2, limit=2)

        self.assertEqual([fact["number"] for fact in found], [3, 4])

    def test_query(self):
        """Only what matches is told, of all queues if none is named."""
        self.assertEqual(
            [f["queue"] for f in self.ask("list", query={"recipient": "@beta.example", "sender": ""})], ["beta"]
        )

    def test_wrong_query(self):
        """A word that cannot be asked for is told with those that can, once."""
        (fact,) = self.ask("list", query={"colour": "red"})

        self.assertTrue(fact["wrong"])
        self.assertIn("'colour' cannot be asked for", fact["error"])
        self.assertIn("destination", fact["error"])

    def test_trouble(self):
        """A queue whose store fails says so; the others answer."""
        self.alpha.spool.trouble = "alpha: disk I/O error"

        found = self.ask("list")

        self.assertIn({"queue": "alpha", "trouble": "alpha: disk I/O error"}, found)
        self.assertEqual([fact["queue"] for fact in found if "id" in fact], ["beta"])

    def test_fault(self):
        """A queue that breaks says so; the others answer, and the fault is logged."""
        self.alpha.spool.find = None

        found = self.ask("list")

        self.assertEqual([fact["queue"] for fact in found if "trouble" in fact], ["alpha"])
        self.assertEqual([fact["queue"] for fact in found if "id" in fact], ["beta"])
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    def test_hanging_store(self):
        """A queue whose disk hangs keeps nobody from the other queues."""
        self.alpha.spool.hangs = True
        told = Told()

        asked = ensureDeferred(self.desk.answer({"do": "list"}, told))

        self.assertEqual([fact["queue"] for fact in told], ["beta"])
        asked.cancel()
        self.failureResultOf(asked)

    def test_destination(self):
        """A destination is the host or domain, of several all."""
        self.assertEqual(
            destination("smtp:[2001:db8::1]:25 mx:x.example qmtp:h.example"), "[2001:db8::1], x.example, h.example"
        )
        self.assertEqual(destination("queue:beta"), "beta")
        self.assertEqual(destination("beta"), "beta")


class CountTests(DeskTestCase):
    def test_count(self):
        """What matches is counted piece by piece, and the last number is marked."""
        found = self.ask("count", queue="alpha")

        self.assertEqual([fact["counted"] for fact in found], [2, 4, 5])
        self.assertEqual(found[-1], {"queue": "alpha", "counted": 5, "octets": 10000, "all": True})


class ShowTests(DeskTestCase):
    def test_show(self):
        """A message is shown with its header, ours and the sender's."""
        (fact,) = self.ask("show", id="abcdef-1", queue="beta")

        self.assertEqual(fact["header"], "Received: by us\nSubject: no. 1\nX: y")
        self.assertEqual(fact["origin"]["made_here"], False)

    def test_several(self):
        """A message that is in several queues is shown in each."""
        self.assertEqual({fact["queue"] for fact in self.ask("show", id="abcdef-1")}, {"alpha", "beta"})

    def test_unknown(self):
        """Of an unknown message nothing is said."""
        self.assertEqual(self.ask("show", id="abcdef-99"), [])
        self.assertEqual(self.ask("cat", id="abcdef-99"), [])

    def test_no_id(self):
        """Without an id nothing is shown."""
        self.assertTrue(self.ask("show")[0]["wrong"])

    def test_cat(self):
        """The text comes whole, a long one in pieces of 64 KiB."""
        one = self.beta.spool.entries[1]
        text = bytes(range(256)) * 1000
        one.message = type(one.message)(one.message.envelope, b"F: f\r\n", MemoryBody(text))

        found = self.ask("cat", id="abcdef-1", queue="beta")

        self.assertEqual(b"".join(base64.b64decode(fact["text"]) for fact in found), b"F: f\r\n" + text)
        self.assertLessEqual(max(len(fact["text"]) for fact in found), 4 * 65536 // 3 + 4)
        self.assertTrue(found[-1]["all"])


class ActTests(DeskTestCase):
    def test_progress(self):
        """An order tells how many are done as it goes, and at last how many come later."""
        self.alpha.spool.entries[5].due = None

        found = self.ask("hold", queue="alpha", query={"older": "0"})

        self.assertEqual([fact["done"] for fact in found], [1, 2, 3, 4, 4])
        self.assertEqual(found[-1], {"queue": "alpha", "done": 4, "later": 1})
        self.assertEqual(self.alpha.spool.entries[1].due, HELD)

    def test_words(self):
        """Every order reaches the queue with all that was said."""
        for order in ("hold", "release", "now", "delete", "bounce", "move"):
            self.ask(order, queue="beta", query={"id": "abcdef-9"}, to="alpha", reason="gone")

        self.assertEqual([said[0] for said in self.beta.said], ["hold", "release", "now", "delete", "bounce", "move"])
        self.assertEqual(self.beta.said[0][1:], ({"id": "abcdef-9"}, "alpha", "gone"))

    def test_not_to_itself(self):
        """What is to be moved to a queue is not moved there from there: it would say that it has it, and it would go."""
        self.ask("move", to="alpha")

        self.assertEqual(self.alpha.said, [])
        self.assertEqual(len(self.beta.said), 1)

    def test_trouble(self):
        """An order goes on in the other queues if one fails."""
        self.alpha.spool.trouble = "no"

        found = self.ask("delete")

        self.assertIn({"queue": "beta", "done": 1, "later": 0}, found)


class SwitchTests(DeskTestCase):
    def test_switches(self):
        """Queues are paused, resumed, refused and accepted by name."""
        self.assertEqual(self.ask("pause", queue=["alpha"]), [{"queue": "alpha", "done": "pause"}])
        self.assertEqual((self.alpha.paused, self.beta.paused), (True, False))
        self.ask("resume")
        self.ask("refuse", queue="beta")
        self.assertEqual((self.alpha.paused, self.beta.refusing), (False, True))
        self.ask("accept")
        self.assertFalse(self.beta.refusing)


class StatTests(DeskTestCase):
    def test_stat(self):
        """The process tells its queues with the age of the oldest message, and who it is."""
        (fact,) = self.ask("stat")

        self.assertEqual((fact["process"], fact["workers"]), ("worker-1", {}))
        self.assertEqual(fact["queues"]["alpha"]["queued"], 5)
        self.assertEqual(fact["queues"]["alpha"]["age"], 999)

    def test_empty(self):
        """An empty queue has no oldest message."""
        self.queues["alpha"] = FakeQueue()

        self.assertIsNone(self.ask("stat")[0]["queues"]["alpha"]["age"])

    def test_come_and_go(self):
        """A queue that has come since is asked, one that is gone is not."""
        self.queues["gamma"] = self.queues.pop("beta")

        self.assertEqual(sorted(self.ask("stat")[0]["queues"]), ["alpha", "gamma"])
        self.assertEqual(self.last["known"], ["alpha", "gamma"])


class DoingTests(DeskTestCase):
    def test_doing(self):
        """The gateway's own words are passed on, those that wait too."""

        async def reload(request, say):
            say({"process": "main", "reload": "reloaded"})

        self.doings |= {"reload": reload, "diff": lambda request, say: say({"changes": [request["x"]]})}

        self.assertEqual(self.ask("reload"), [{"process": "main", "reload": "reloaded"}])
        self.assertEqual(self.ask("diff", x="+ a"), [{"changes": ["+ a"]}])

    def test_not_here(self):
        """What is for the main process is passed over by others; an unknown word is told with those that are known."""
        self.assertEqual(self.ask("reload", main=True), [])
        (fact,) = self.ask("dance")
        self.assertIn("no such request: 'dance'; known are accept, bounce", fact["error"])

    def test_refused(self):
        """What a doing refuses is the asker's error."""

        def reload(request, say):
            raise ValueError("conf-qmq:3: wrong")

        self.doings["reload"] = reload

        self.assertEqual(self.ask("reload"), [{"error": "conf-qmq:3: wrong", "wrong": True}])


class CounterTests(DeskTestCase):
    """At the socket."""

    def setUp(self):
        super().setUp()
        self.clock = Clock()
        self.counter = ControlFactory(self.desk, self.clock).buildProtocol(None)
        self.transport = StringTransport()
        self.counter.makeConnection(self.transport)

    def said(self):
        lines = [json.loads(line) for line in self.transport.value().splitlines()]
        self.transport.clear()
        return lines

    def request(self, **request):
        self.counter.dataReceived(json.dumps(request).encode() + b"\n")

    def test_answer(self):
        """A request is a line, its answer a line a fact, and an end."""
        self.counter.dataReceived(b'{"do": "pause", ')
        self.counter.dataReceived(b'"queue": "alpha"}\n')

        self.assertEqual(self.said(), [
            {"queue": "alpha", "done": "pause"}, {"end": True, "queues": ["alpha"], "known": ["alpha", "beta"]},
        ])  # fmt: skip

    def test_nonsense(self):
        """What is no request is told, and the next one is answered."""
        self.counter.dataReceived(b"hello\n[]\n")

        self.assertEqual([("error" in fact, "end" in fact) for fact in self.said()], [(True, False), (False, True)] * 2)
        self.request(do="stat")
        self.assertEqual(self.said()[0]["process"], "worker-1")

    def test_fault(self):
        """A fault of ours is told, and logged."""

        def reload(request, say):
            raise ZeroDivisionError("division by zero")

        self.doings["reload"] = reload

        self.request(do="reload")

        self.assertIn("division", self.said()[0]["error"])
        self.flushLoggedErrors(ZeroDivisionError)

    def test_too_long(self):
        """A request without end is cut off."""
        self.counter.dataReceived(b"x" * 300_000)

        self.assertTrue(self.transport.disconnected)

    def test_beats(self):
        """While a store takes long a beat a second says that the process lives; none come when all is said."""
        self.alpha.spool.hangs = True
        self.request(do="list", queue="alpha")

        self.clock.pump([1, 1])

        self.assertEqual(self.said(), [{"beat": True}] * 2)
        self.alpha.spool.hanging[0].callback([])
        self.assertTrue(self.said()[-1]["end"])
        self.clock.pump([1, 1])
        self.assertEqual(self.said(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_backpressure(self):
        """A long text is fetched no faster than it is read."""
        one = self.beta.spool.entries[1]
        one.message = type(one.message)(one.message.envelope, b"", MemoryBody(b"x" * 65536 * 5))
        write = self.transport.write
        self.transport.write = lambda data: (write(data), self.counter.pauseProducing())

        self.request(do="cat", id="abcdef-1", queue="beta")
        first = self.said()
        self.counter.resumeProducing()

        self.assertEqual(len(first), 1)
        self.assertEqual(len(self.said()), 1)

    def test_gone(self):
        """When the asker hangs up nobody works for it any more."""
        self.alpha.spool.hangs = True
        self.request(do="list")
        cancelled = []
        self.alpha.spool.hanging[0].addErrback(cancelled.append)

        self.counter.connectionLost(None)

        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.alpha.spool.asked), 1)

    def test_gone_while_acting(self):
        """An order that is under way is cancelled, too."""
        waiting = Deferred(lambda _: cancelled.append(True))
        cancelled = []
        self.alpha.act = lambda *_, **__: waiting
        self.request(do="delete")

        self.counter.connectionLost(None)

        self.assertEqual(cancelled, [True])

    def test_in_turn(self):
        """Requests of one connection are answered one after the other."""
        self.alpha.spool.hangs = True
        self.request(do="list", queue="alpha")
        self.request(do="pause", queue="beta")

        self.assertFalse(self.beta.paused)
        self.alpha.spool.hanging[0].callback([])
        self.assertTrue(self.beta.paused)


class ReplyTests(SynchronousTestCase):
    def test_one_line(self):
        """A reply of several lines is told in one."""
        one = entry(1, reply=Reply(550, "5.1.1", "no\nsuch user"))

        self.assertEqual(facts(one, NOW)["last"], "550 5.1.1 no such user")
