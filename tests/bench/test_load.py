from collections import Counter

from twisted.trial.unittest import SynchronousTestCase

from tests.bench import BENCH  # noqa: F401 - puts bed on the path
from tests.real.gateway import needs

from bed.load import Got, Sent, Sink, Source, arrivals, counted, course, figures, joined, mix  # isort: skip


def told(due=10.0, said=10.5, code=250, tries=1, unsure=0):
    return Sent(due, said, code, tries, unsure)


class MixTests(SynchronousTestCase):
    def test_weights(self):
        """Each domain has its share."""
        self.assertEqual(Counter(mix({"ok.test": 1, "dead.test": 9})), {"ok.test": 1, "dead.test": 9})

    def test_spread(self):
        """A domain's messages stand as far from each other as they can."""
        self.assertEqual(mix({"a": 2, "b": 4}), ["b", "a", "b", "b", "a", "b"])

    def test_shared(self):
        """Domains that share a weight get the same, each; the others keep their part of the whole."""
        dead = tuple(f"dead{n}.test" for n in range(50))

        found = Counter(mix({"ok.test": 1, dead: 9}))

        self.assertEqual({found[domain] for domain in dead}, {9})
        self.assertEqual(found["ok.test"] * 9, sum(found[domain] for domain in dead))


class FiguresTests(SynchronousTestCase):
    def test_rates(self):
        """Rates count from the first message that was due: to the last 250, and to the last delivery."""
        found = counted([(told(10, 11), Got(13, 1, 0)), (told(12, 12), Got(14, 1, 0))])

        self.assertEqual((found.accept, found.through), (1.0, 0.5))
        self.assertEqual((found.p50, found.max), (2.0, 2.0))

    def test_lost(self):
        """Lost is what was acknowledged and never came; what was refused is not lost."""
        found = counted([(told(), Got(0, 0, 0)), (told(said=0, code=451), Got(0, 0, 0)), (told(), Got(11, 1, 0))])

        self.assertEqual((found.recipients, found.accepted, found.delivered, found.lost), (3, 2, 1, 1))

    def test_doubled(self):
        """A second copy counts, unless a try of the message was lost after its text: then it may be right."""
        found = counted([(told(), Got(11, 3, 0)), (told(tries=2, unsure=1), Got(11, 2, 0))])

        self.assertEqual(found.doubled, 2)

    def test_early(self):
        """A sink may have the message before the source has read its 250: that is no wait, not a negative one."""
        self.assertEqual(counted([(told(said=10.5), Got(10.4, 1, 0))]).max, 0.0)

    def test_recipients(self):
        """A message to several is one that was accepted, and several deliveries."""
        message = told(10, 11)

        found = counted([(message, Got(12, 1, 0)), (message, Got(12, 1, 0))])

        self.assertEqual((found.accept, found.through), (1.0, 1.0))

    def test_nothing(self):
        """Of nothing all figures are nothing."""
        self.assertEqual(counted([]).through, 0.0)

    def test_course(self):
        """Waits over time stand at the second of the 250; what never came has none, and is seen from the counts."""
        pairs = [
            (told(said=20.2), Got(20.3, 1, 0)),
            (told(said=20.9), Got(0, 0, 0)),
            (told(said=22.0), Got(24.0, 1, 0)),
        ]

        first, second = course(pairs, 20.0)

        self.assertEqual(first[:3], (0.0, 2, 1))
        self.assertEqual(second, (2.0, 1, 1, 2.0, 2.0))

    def test_arrivals(self):
        """Deliveries over time tell of the seconds without any, too."""
        pairs = [(told(), Got(20.3, 1, 0)), (told(), Got(22.1, 1, 0)), (told(), Got(0, 0, 0))]

        self.assertEqual(arrivals(pairs, 20.0), [(0.0, 1), (1.0, 0), (2.0, 1)])


class DirectTests(SynchronousTestCase):
    """The real ones, source to sink, some hundred messages."""

    def setUp(self):
        needs("cc")

    def run_through(self, *, hosts=("127.0.0.1:0=ok",), **load):
        sink = Sink(recipients=load["messages"] * load.get("recipients", 1), hosts=hosts, seconds=20)
        self.addCleanup(sink.stop)
        sink.start()
        source = Source(to=sink.addresses[0], seconds=10, **load)
        self.addCleanup(source.stop)
        source.start()
        source.wait()
        sink.settle(source.head().accepted * source.recipients, stall=1)
        return source, sink

    def test_nothing_lost(self):
        """What is sent arrives, once, octet for octet as many."""
        source, sink = self.run_through(messages=500, octets=5000)

        found = figures(source, sink)

        self.assertEqual(
            (found.accepted, found.delivered, found.lost, found.doubled, found.failed), (500, 500, 0, 0, 0)
        )
        self.assertEqual(sink.head().octets, 500 * 5000)

    def test_a_connection_each(self):
        """With one message a connection there are as many connections as messages."""
        source, sink = self.run_through(messages=60, per_connection=1, sessions=5)

        self.assertEqual((source.head().connections, figures(source, sink).delivered), (60, 60))

    def test_large(self):
        """A text of a megabyte goes through in pieces, and so do its recipients' commands, pipelined or not."""
        for pipelining in (True, False):
            source, sink = self.run_through(
                messages=4,
                octets=1_000_000,
                sessions=2,
                recipients=300,
                pipelining=pipelining,
                domains=["a.test", "b.test"],
            )

            self.assertEqual(figures(source, sink).delivered, 1200)
            self.assertEqual(len(joined(source, sink, lambda domain: domain == "a.test")), 600)
            self.assertEqual(sink.head().octets, 4 * 1_000_000)

    def test_by_the_clock(self):
        """With a rate, messages are due by the clock, and a slow host's waits count from there."""
        source, sink = self.run_through(messages=100, rate=500, sessions=20, hosts=["127.0.0.1:0=slow:50"])

        sent = source.messages_sent()

        self.assertAlmostEqual(sent[-1].due - sent[0].due, 99 / 500, places=6)
        self.assertGreater(figures(source, sink).due50, 0.05)

    def test_deferred(self):
        """A message that a host defers has its tries, and is no loss."""
        source, sink = self.run_through(messages=2, sessions=2, tries=2, hosts=["127.0.0.1:0=defer"])

        self.assertEqual([(one.code, one.tries, one.said) for one in source.messages_sent()], [(451, 2, 0.0)] * 2)
        self.assertEqual((figures(source, sink).lost, figures(source, sink).failed), (0, 4))

    def test_loopback_alone(self):
        """It sends to this machine and to no other."""
        source = Source(to="192.0.2.1:25", messages=1)
        self.addCleanup(source.stop)
        source.start()

        self.assertRaisesRegex(RuntimeError, "only loopback", source.wait)
