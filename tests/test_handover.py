"""
The hand-over with its real parts: router, primary's queue, QMTP both ways, an instance's queue, a bouncer; cut everywhere.

Only the sockets, the disks and the downstream hosts are played. Whoever was
told 250 gets mail once, or one bounce: whatever is cut, and whenever.
"""

import itertools
import re
import shutil
import tempfile
from collections import Counter
from functools import partial

from twisted.internet import error
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.bounce.bouncer import Bouncer
from qmq.conf.load import load
from qmq.deliver.destinations import Destinations
from qmq.deliver.qmtp import QMTPClient
from qmq.log import EventLog
from qmq.mail import (
    DOUBLE_BOUNCE_SENDER,
    NULL_SENDER,
    Address,
    Envelope,
    FileBody,
    MemoryBody,
    Message,
    Reply,
    Token,
    address,
)
from qmq.queue.runner import Queue, Terms
from qmq.queue.schedule import parse_schedule
from qmq.receive.draft import Drafts
from qmq.receive.qmtp import QMTPFactory
from qmq.routing.diallers import HandOverDialler
from qmq.routing.hops import InProcess
from qmq.routing.intake import Intake
from qmq.routing.router import ByDomain, Router
from qmq.routing.states import States
from qmq.routing.tokens import OpenTokens
from qmq.service.common import House
from qmq.service.handover import Hops
from qmq.service.instance import InstanceService
from qmq.service.primary import PrimaryService
from qmq.sockets import Sockets
from qmq.spool.memory import Memory, MemorySpool
from qmq.spool.writer import Writers
from tests.queue.fakes import NEVER, OK, FakeDialler, FakeLog

START = 1_700_000_000.0
WEEK = 604800.0
RETRY = parse_schedule("1s*5 2s")
JOE = Address(b"joe", b"source.test")
POSTMASTER = Address(b"postmaster", b"gateway.test")
NO = Reply(550, "5.1.1", "no such mailbox")
LATER = Reply(451, "4.3.0", "busy")
_MARK = re.compile(rb"(?:X-Mark|X-Qmq-Queue-ID): (\S+)")
_ABOUT = re.compile(rb"Final-Recipient: rfc822; (\S+)")


class End(StringTransport):
    """One end of a connection; asks a pull producer for all it has."""

    def registerProducer(self, producer, streaming):
        super().registerProducer(producer, streaming)
        while not streaming and self.producer is not None and not self.disconnected:
            producer.resumeProducing()


class Link:
    """A connection: what one end wrote the other gets, as far as the net lets it."""

    def __init__(self, net, line, server):
        self.net, self.line, self.server = net, line, server
        self.alive = True
        self.there, self.back = End(), End()
        server.makeConnection(self.back)
        line.makeConnection(self.there)

    def pump(self):
        """Carry what there is; whether there was anything."""
        return self.alive and (
            self._carry("request", self.there, self.server) or self._carry("answer", self.back, self.line)
        )

    def _carry(self, way, end, protocol):
        data = end.value()
        if not data:
            if end.disconnecting or end.disconnected:
                self.cut()
            return False
        end.clear()
        left = self.net.left.get(way)
        if left is None or len(data) < left:
            if left is not None:
                self.net.left[way] = left - len(data)
            protocol.dataReceived(data)
            return True
        self.net.left.pop(way)
        if left:
            protocol.dataReceived(data[:left])
        self.net.cuts += 1
        self.net.at_cut()
        self.cut()
        return True

    def cut(self):
        """Both ends lose it."""
        if self.alive:
            self.alive = False
            self.net.links.remove(self)
            for protocol in (self.line, self.server):
                protocol.connectionLost(Failure(error.ConnectionLost()))


class Net:
    """The way to one instance; *left* says after how many octets it is cut."""

    def __init__(self):
        self.factory = None  # the instance's; None: nobody listens
        self.links = []
        self.left = {}
        self.cuts = 0
        self.at_cut = lambda: None

    def connect(self, client):
        server = None if self.factory is None else self.factory.buildProtocol(UNIXAddress("x"))
        if server is None:
            client.clientConnectionFailed(None, Failure(error.ConnectionRefusedError()))
        else:
            self.links.append(Link(self, client.buildProtocol(UNIXAddress("x")), server))
        return self

    def pump(self):
        """Whether anything was carried."""
        return any([link.pump() for link in tuple(self.links)])


class Downstream(FakeDialler):
    """Customers' hosts: count what they take."""

    def __init__(self):
        super().__init__()
        self.took = Counter()  # (sender, mark of the message, recipient)
        self.told_of = Counter()  # (queue id, recipient) that a bounce is about
        self.answers = {}  # by local part

    def serve(self):
        """Take all that is on a connection."""
        while busy := self.busy():
            for connection in busy:
                message = connection.at_work
                text = b"".join(message.chunks())
                mark = _MARK.search(text)[1]
                replies = [self.answers.get(r.local, OK) for r in message.envelope.recipients]
                for recipient, reply in zip(message.envelope.recipients, replies, strict=True):
                    if reply.ok:
                        self.took[message.envelope.sender, mark, recipient] += 1
                        self.told_of.update((mark, about) for about in _ABOUT.findall(text))
                connection.answer(*replies)


class Process:
    """A store, a queue and a bouncer on a clock of their own: a kill stops the clock."""

    def __init__(self, name, memory, now):
        self.name, self.memory = name, memory
        self.clock = Clock()
        self.clock.advance(now)
        memory.holder = None  # whoever had it was killed
        self.spool = MemorySpool(memory, clock=self.clock, wall=self.clock.seconds)

    def open(self, dialler, site_of, bounces, **how):
        self.destinations = Destinations(dialler, self.clock, **how)
        self.queue = Queue(
            self.name, self.spool, self.destinations, site_of, Terms(RETRY, WEEK, WEEK), None,
            self.clock, self.clock.seconds, FakeLog(), jitter=lambda: 0.0,
        )  # fmt: skip
        if bounces is not None:
            way = QMTPClient(self.clock, bounces.connect, extension=True, low=lambda: self.bouncer.low, mta="bounces")
        else:
            way = InProcess(self.queue, lambda: self.bouncer.low)
        self.bouncer = self.queue.bouncer = Bouncer(
            way, self.spool, me="gateway.test", log=EventLog(lambda _: None, self.clock, self.clock.seconds),
            wall=self.clock.seconds, read_body=self.spool.body,
        )  # fmt: skip
        self.queue.startService()


class Instance(Process):
    """An instance that hears on *net*."""

    def __init__(self, name, memory, now, net, downstream, folder, bounces):
        super().__init__(name, memory, now)
        self.busy_for = Counter()  # how often local part is to be answered 451
        self.open(downstream, lambda r: r.domain, bounces)
        net.factory = QMTPFactory(
            clock=self.clock, wall=self.clock.seconds, drafts=Drafts(folder), hop=self.queue,
            next_token=self.spool.next_token, accept=self._accept, me=b"gateway.test", extension=True,
        )  # fmt: skip

    def _accept(self, recipient, trusted):
        if recipient.local.startswith(b"no"):
            return NO
        if self.busy_for[recipient.local] > 0:
            self.busy_for[recipient.local] -= 1
            return LATER
        return None


class Primary(Process):
    """The primary, from the router on."""

    def __init__(self, memory, now, net, bounces):
        super().__init__("primary", memory, now)
        clock = self.clock
        self.tokens = OpenTokens(self.spool.next_token, lambda: self.spool.lowest)
        states = States(clock.seconds)
        self.intake = Intake(
            lambda _: "one", lambda _: "", states, clock.seconds, self.spool.free, {},
            sessions=100, share=0.5, budget=(10**6, 10**12, WEEK),
        )  # fmt: skip
        hops = {"one": QMTPClient(clock, net.connect, extension=True, low=self.tokens.lowest, mta="one")}
        self.open(
            HandOverDialler(hops, self.intake.waiting, states.away), lambda _: b"one", bounces,
            concurrency=120, slots=8, slots_max=16, back_off=(0.5, 5),
        )  # fmt: skip
        self.bouncer.hop = ByDomain(lambda _: "bounces", {"bounces": self.bouncer.hop})
        self.router = Router(lambda _: "one", hops, self, self.intake, states.away, Quiet(), clock.seconds)

    def take(self, message, names):
        """As the primary's store does."""
        token = message.envelope.token
        return self.queue.take(message, [name.encode() for name in names], token.seq + 1)


class Quiet:
    """The router's log."""

    def kept(self, queue_id, name):
        """Not asserted."""


class Gateway:
    """The primary, instance "one" and instance "bounces", in one world."""

    def __init__(self, test):
        self.folder = tempfile.mkdtemp()
        test.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.memories = {name: Memory(name) for name in (b"p", b"one", b"bounces")}
        self.to_one, self.to_bounces = Net(), Net()
        self.hosts, self.world = Downstream(), Downstream()
        self.now = START
        self.serving = True
        self.start_bounces()
        self.start_one()
        self.start_primary()
        self.told = {}
        self.marks = itertools.count(1)
        self.turn()

    def start_primary(self):
        """The next process of the primary; the last one was killed."""
        self.primary = Primary(self.memories[b"p"], self.now, self.to_one, self.to_bounces)
        self.processes = [self.primary, self.one, self.bounces]

    def start_one(self):
        """The next process of the instance."""
        self.hosts.connections.clear()
        self.one = Instance(
            "one", self.memories[b"one"], self.now, self.to_one, self.hosts, self.folder, self.to_bounces
        )
        self.processes = [self.one, self.bounces, *([self.primary] if hasattr(self, "primary") else [])]

    def start_bounces(self):
        """The instance for bounces, which bounces to itself."""
        memory = self.memories[b"bounces"]
        self.bounces = Instance("bounces", memory, self.now, self.to_bounces, self.world, self.folder, None)

    def turn(self, seconds=0.0, step=0.25):
        """Time goes on."""
        for _ in range(max(3, int(seconds / step))):
            passes = step if seconds else 0.02
            self.now += passes
            for process in self.processes:
                process.clock.advance(passes)
            while self.to_one.pump() or self.to_bounces.pump():
                pass
            if self.serving:
                self.hosts.serve()
                self.world.serve()

    def send(self, *recipients, body=None):
        """A client's message; its mark."""
        mark = b"%d" % next(self.marks)
        primary = self.primary
        token = primary.tokens.begin()
        addresses = tuple(address(r.encode()) for r in recipients)
        body = body or MemoryBody(b"X-Mark: %b\r\n\r\nhi\r\n" % mark)

        def answered(replies):
            primary.tokens.end(token)
            self.told[mark] = replies

        primary.router.send(Message(Envelope(token, JOE, addresses), b"", body)).addCallback(answered)
        self.ids = token.id
        return mark

    def outage(self, seconds):
        """Nobody listens at the instance for a while, should the connection be cut now."""
        net, at_cut = self.to_one, self.to_one.at_cut
        if not seconds:
            return

        def close():
            at_cut()
            net.factory, net.closed = None, net.factory

        net.at_cut = close
        net.closed = net.factory
        self.turn(seconds)
        net.factory = net.closed
        net.at_cut = at_cut

    def taken(self, mark, recipient):
        """How often a customer's host took it."""
        return self.hosts.took[JOE, mark, address(recipient.encode())]

    def bounced(self, queue_id, recipient):
        """How many bounces told of this recipient."""
        return self.world.told_of[queue_id, recipient.encode()]


class HandOverTests(SynchronousTestCase):
    def setUp(self):
        """A gateway, without a message in it."""
        self.gateway = Gateway(self)
        self.cases = 0

    def settle(self, mark, recipients, queue_id, busy=False):
        """Let everything come to its end; each recipient of whom the client was told 250 has mail, or a bounce, once."""
        gateway = self.gateway
        gateway.turn(6)
        gateway.serving = True
        gateway.turn(3)
        gateway.turn()
        told = gateway.told.get(mark)
        assert told is not None, "the client has no answer"
        fates = [(gateway.taken(mark, r), gateway.bounced(queue_id, r)) for r in recipients]
        if any(reply.ok for reply in told):
            self.assertTrue(all(reply.ok for reply in told), told)
            self.assertEqual(fates, [(0, 1) if r.startswith("no") else (1, 0) for r in recipients])
        else:
            self.assertEqual(fates, [(0, 0)] * len(recipients))
        self.assertEqual(gateway.memories[b"p"].rows, {})
        self.assertEqual(gateway.memories[b"one"].rows, {})
        self.assertEqual(gateway.memories[b"bounces"].rows, {})
        self.cases += 1

    def cut_everywhere(self, *recipients, serving=True, at_cut=lambda: None, outage=0.0):
        """
        Send the same again and again, the connection cut an octet later each time, until it is not cut any more.

        It can be made again after *outage*; meanwhile hosts take what the instance has if *serving*.
        """
        gateway = self.gateway
        net = gateway.to_one
        for way in ("request", "answer"):
            for place in itertools.count():
                cuts = net.cuts
                net.left = {way: place}
                net.at_cut = at_cut
                gateway.serving = serving
                gateway.one.busy_for.update(
                    {r.partition("@")[0].encode(): 1 for r in recipients if r.startswith("busy")}
                )
                mark = gateway.send(*recipients)
                queue_id = gateway.ids
                gateway.outage(outage)
                gateway.turn(2)
                self.settle(mark, recipients, queue_id)
                gateway.one.busy_for.clear()
                net.left = {}
                if net.cuts == cuts:
                    break
            self.assertGreater(place, 10)
        self.assert_forgotten()

    def assert_forgotten(self):
        """After another message, all that was remembered of those before is gone; the primary remembers nothing."""
        gateway = self.gateway
        for _ in range(2):
            mark = gateway.send("last@x.test")
            gateway.turn(3)
            self.assertEqual(gateway.taken(mark, "last@x.test"), 1)
        self.assertLessEqual(gateway.one.spool.tombstones, 1)
        self.assertLessEqual(len(gateway.memories[b"one"].tombstones), 2)
        self.assertEqual(gateway.primary.spool.tombstones, 0)
        self.assertEqual(len(gateway.memories[b"p"].tombstones), 0)

    def test_straight_through(self):
        """Without a cut the primary writes nothing, and the client has the instance's word."""
        mark = self.gateway.send("a@x.test", "b@y.test")
        self.gateway.turn(1)

        self.assertEqual([(r.code, r.mta) for r in self.gateway.told[mark]], [(250, "one")] * 2)
        self.assertEqual(self.gateway.memories[b"p"].commits, 0)

    def test_one_recipient(self):
        """Cut at each octet of package and answer, and delivered meanwhile: one delivery."""
        self.cut_everywhere("a@x.test", outage=1)

    def test_one_recipient_at_once(self):
        """Cut at each octet, and handed over again at once, while it is being delivered: one delivery."""
        self.cut_everywhere("a@x.test")

    def test_one_recipient_waits(self):
        """Cut at each octet, and still in the instance's queue when it is handed over again: one delivery."""
        self.cut_everywhere("a@x.test", serving=False)

    def test_three_recipients(self):
        """Three recipients at two hosts, cut at each octet of package and answers: one delivery each."""
        self.cut_everywhere("a@x.test", "b@y.test", "c@x.test", outage=1)

    def test_three_recipients_wait(self):
        """The same with all of them still in the instance's queue."""
        self.cut_everywhere("a@x.test", "b@y.test", "c@x.test", serving=False)

    def test_refused(self):
        """Refused by the instance: the client is told, or, if the answer was cut, gets one bounce."""
        self.cut_everywhere("no@x.test")

    def test_mixed(self):
        """Taken, busy and refused: one delivery, one delivery later, one bounce; whatever is cut."""
        self.cut_everywhere("a@x.test", "busy@y.test", "no@x.test", outage=1)

    def test_mixed_waits(self):
        """The same with the taken one still in the queue."""
        self.cut_everywhere("busy@x.test", "no@y.test", "a@y.test", serving=False)

    def test_bounce_of_the_primary(self):
        """The primary's own bounce cut at each octet of its hand-over: one bounce."""

        def prepare(way, place):
            self.gateway.to_one.left = {"answer": 0}
            self.gateway.to_bounces.left = {way: place}
            return self.gateway.send("no@x.test")

        self.bounces_everywhere(prepare, "no@x.test")

    def test_bounce_of_an_instance(self):
        """An instance's bounce cut at each octet of its hand-over: one bounce."""
        self.gateway.hosts.answers[b"gone"] = NEVER

        def prepare(way, place):
            self.gateway.to_bounces.left = {way: place}
            return self.gateway.send("gone@x.test")

        self.bounces_everywhere(prepare, "gone@x.test")

    def bounces_everywhere(self, prepare, recipient):
        gateway = self.gateway
        for way in ("request", "answer"):
            for place in itertools.count():
                cuts = gateway.to_bounces.cuts
                mark = prepare(way, place)
                queue_id = gateway.ids
                gateway.turn(4)
                gateway.turn(80, step=5)  # a bounce that was not taken over is offered again after a minute
                self.assertTrue(all(reply.ok for reply in gateway.told[mark]))
                self.assertEqual((gateway.taken(mark, recipient), gateway.bounced(queue_id, recipient)), (0, 1))
                gateway.to_bounces.left = {}
                if gateway.to_bounces.cuts == cuts:
                    break
            self.assertGreater(place, 10)
        prepare("none", 0)
        gateway.turn(80, step=5)
        self.assertLessEqual(gateway.bounces.spool.tombstones, 2)
        self.assertEqual([gateway.memories[name].rows for name in (b"p", b"one", b"bounces")], [{}, {}, {}])

    def test_instance_killed(self):
        """The instance killed in the middle of each octet, started again: one delivery of what was told 250."""
        self.cut_everywhere("a@x.test", "b@y.test", serving=False, at_cut=self.gateway.start_one)

    def test_remembered_on_disk(self):
        """Delivered, then the instance killed before it could answer: after its start it knows the message."""
        gateway = self.gateway
        for place in range(30):
            gateway.to_one.left = {"answer": place}
            gateway.to_one.at_cut = lambda: setattr(gateway.to_one, "factory", None)
            mark = gateway.send("a@x.test", "b@y.test")
            queue_id = gateway.ids
            gateway.turn(1)
            self.assertEqual(gateway.taken(mark, "a@x.test"), 1)

            gateway.start_one()

            self.settle(mark, ("a@x.test", "b@y.test"), queue_id)
        self.assert_forgotten()

    def test_primary_killed(self):
        """The primary killed with an uncertain message in its queue hands it over again, and it is one delivery."""
        gateway = self.gateway
        for meanwhile in (True, False):
            for place in range(40):
                gateway.serving = meanwhile
                gateway.to_one.left = {"answer": place}
                mark = gateway.send("a@x.test", "b@y.test")
                queue_id = gateway.ids
                gateway.turn()
                for link in tuple(gateway.to_one.links):
                    link.cut()
                gateway.turn()
                gateway.start_primary()
                gateway.turn(1)
                self.settle(mark, ("a@x.test", "b@y.test"), queue_id)
        self.assert_forgotten()

    def test_long_body(self):
        """A message in a file, cut here and there: one delivery."""
        gateway = self.gateway
        path = gateway.folder + "/long"
        data = b"X-Mark: %b\r\n\r\n" + b"x" * 62 + b"\r\n" * 5000
        for way, places in (("request", range(0, 400_000, 9973)), ("answer", range(0, 40, 5))):
            for place in places:
                text = data.replace(b"%b", b"%d" % (self.cases + 1)) + b"y" * 60 + b"\r\n" * 1
                text += (b"z" * 62 + b"\r\n") * 2500
                with open(path, "wb") as file:
                    file.write(text)
                gateway.to_one.left = {way: place}
                mark = gateway.send("a@x.test", "b@y.test", body=FileBody(path, len(text)))
                queue_id = gateway.ids
                gateway.turn(2)
                self.settle(mark, ("a@x.test", "b@y.test"), queue_id)

    def test_nobody_listens(self):
        """With the instance down the client has its 250, and mail comes once when it is up again."""
        gateway = self.gateway
        gateway.to_one.factory = None
        marks = [(gateway.send("a@x.test", "b@y.test"), gateway.ids) for _ in range(20)]
        gateway.turn(5)
        self.assertEqual([gateway.taken(mark, "a@x.test") for mark, _ in marks], [0] * 20)

        gateway.start_one()
        gateway.turn(10)

        for mark, queue_id in marks:
            self.settle(mark, ("a@x.test", "b@y.test"), queue_id)
        self.assert_forgotten()

    def test_silent(self):
        """An instance that is silent for two minutes, and then takes what it had: one delivery."""
        gateway = self.gateway
        one = gateway.one
        gateway.processes.remove(one)
        mark = gateway.send("a@x.test")
        queue_id = gateway.ids
        gateway.turn(130, step=1)
        self.assertTrue(gateway.told[mark][0].ok)

        one.clock.advance(0)
        gateway.processes.append(one)
        gateway.turn(5)

        self.settle(mark, ("a@x.test",), queue_id)

    def test_double_bounce(self):
        """A bounce that fails becomes one double bounce, its mark known to the next instance."""
        gateway = self.gateway
        gateway.hosts.answers[b"gone"] = NEVER
        gateway.world.answers[b"joe"] = NEVER
        gateway.send("gone@x.test")
        gateway.turn(5)

        doubles = [key for key in gateway.world.took.items() if key[0][2] == POSTMASTER]
        self.assertEqual([(sender, count) for (sender, _, _), count in doubles], [(DOUBLE_BOUNCE_SENDER, 1)])


class JoinedTests(SynchronousTestCase):
    """As the services join them: bounces and ordinary mail never tell each other's lowest number in doubt."""

    def joined(self, extra="", here=("one", "bounces")):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        path = folder + "/conf-qmq"
        with open(path, "w") as file:
            file.write(
                f"[instances]\n1:one\n{extra and '90:bounces'}\n[qmq]\nme = gateway.test\nspool = {folder}/spool\n"
                "[primary]\nlisten = 127.0.0.1:2525\n[one]\ndomains = one.test\ndeliver = smtp:127.0.0.1:25\n"
                f"qmtp-listen = none\n{extra}"
            )
        conf = load(path)
        reactor = MemoryReactorClock()
        log = EventLog(lambda _: None, reactor, reactor.seconds)
        house = House(reactor, conf, log, Writers(call_from_thread=None), None, None)
        services = {}
        for instance in conf.instances:
            if instance.name in here:
                hops = partial(Hops, house, services)
                services[instance.name] = InstanceService(house, instance, Sockets(), hops)
        return services, PrimaryService(house, Sockets(), services, States(reactor.seconds))

    def assert_own_low(self, hop, spool):
        """The bouncer's numbers, and no other's."""
        spool.oldest, spool.lowest = 5, 77
        low = hop._lowest if isinstance(hop, InProcess) else hop._low
        self.assertEqual(low(), 5 * 256)

    def test_bounce_instance(self):
        """Each queue's bounces go to the bounce instance with their own lowest number, in process and by socket."""
        for here in ((), ("one",), ("one", "bounces")):
            services, primary = self.joined("[bounces]\nrole = bounce\nqmtp-listen = none\n", here)

            for service in services.values():
                self.assert_own_low(service._bounce_hops["bounces"], service.spool)
            self.assert_own_low(primary.kept._bounce_hops["bounces"], primary.kept.spool)
            ordinary = primary.kept.hops["bounces"]
            low = ordinary._lowest if isinstance(ordinary, InProcess) else ordinary._low
            self.assertEqual(low(), 77)

    def test_no_bounce_instance(self):
        """Without one an instance bounces by itself, and the primary to whoever has the sender's domain, or nobody."""
        services, primary = self.joined(here=("one",))

        self.assert_own_low(services["one"]._bounce_hops["one"], services["one"].spool)
        self.assert_own_low(primary.kept._bounce_hops["one"], primary.kept.spool)
        message = Message(Envelope(Token(b"x.b", 1), NULL_SENDER, (JOE,)), b"", MemoryBody(b""))
        self.assertEqual([r.code for r in self.successResultOf(primary.kept.queue.bouncer.hop.send(message))], [550])
