"""What is said to strangers in a turn leaves at its end, together; between our own processes at once."""

import errno
import os
import socket
import time
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.trial.unittest import SynchronousTestCase

from qmq import sends
from qmq.reactor import MonotonicEPollReactor
from qmq.sends import fast_writer, hurry
from tests.connections import connected


class Deaf(Protocol):
    """Says nothing of itself, and remembers why it ended."""

    over = None

    def connectionLost(self, reason):
        self.over = reason.type


class Choosy:
    """A producer that does something when it is told to pause."""

    def __init__(self, pause):
        self.pauseProducing = pause

    def resumeProducing(self):
        pass

    def stopProducing(self):
        pass


class Connections:
    """Of a reactor, each with the peer's socket; `ends` has their protocols."""

    def connect(self, kind="tcp"):
        protocol = Deaf()
        transport, peer = connected(self.reactor, protocol, kind)
        self.addCleanup(peer.close)
        peer.setblocking(False)
        self.ends[transport] = protocol
        return transport, peer

    def silent(self, peer):
        """Nothing has come to it."""
        try:
            heard = peer.recv(1)
        except BlockingIOError:
            return True
        return self.fail(f"{heard!r} has come")

    def turn(self, times=1):
        for _ in range(times):
            self.reactor.doIteration(0)

    def hear(self, peer, octets):
        """So many of them, while the loop goes on."""
        got = bytearray()
        while len(got) < octets:
            try:
                got += peer.recv(1 << 20)
            except BlockingIOError:
                self.turn()
        return bytes(got)


class FastWriterTests(Connections, SynchronousTestCase):
    """On a reactor that holds nothing."""

    def setUp(self):
        self.ends = {}
        self.reactor = MemoryReactor()
        self.transport, self.peer = self.connect()
        self.addCleanup(self.transport.socket.close)
        self.peer.setblocking(True)

    def writing(self):
        return self.transport in self.reactor.getWriters()

    def test_at_once(self):
        """What can be sent is sent at once, and no small packet waits for an ACK."""
        write = fast_writer(self.transport)

        write(b"hello")

        self.assertEqual(self.peer.recv(100), b"hello")
        self.assertFalse(self.writing())
        self.assertTrue(self.transport.getTcpNoDelay())

    def test_rest(self):
        """What the kernel does not take goes by the transport, in order, and nothing overtakes it."""
        write = fast_writer(self.transport)
        big = b"x" * 20_000_000

        write(big)
        write(b"end")

        self.assertTrue(self.writing())
        got = bytearray()
        while not got.endswith(b"end"):
            self.transport.doWrite()
            got += self.peer.recv(1 << 20)
        self.assertEqual(got, big + b"end")

    def test_tls(self):
        """Once TLS is on, nothing goes round it."""
        write = fast_writer(self.transport)
        encrypted = []
        self.transport.TLS = True
        self.transport.protocol = type("TLS", (), {"write": lambda _, data: encrypted.append(data)})()

        write(b"secret")

        self.assertEqual(encrypted, [b"secret"])

    def test_peer_gone(self):
        """A peer that is gone is for Twisted to find out."""
        write = fast_writer(self.transport)
        self.transport.socket.close()

        write(b"hello")

        self.assertTrue(self.writing())

    def test_any_transport(self):
        """Other transports are written to as they are, and there is nothing to hurry."""
        transport = StringTransport()

        fast_writer(transport)(b"hello")
        hurry(transport)

        self.assertEqual(transport.value(), b"hello")


class SendsTests(Connections, SynchronousTestCase):
    """On the gateway's own reactor."""

    def setUp(self):
        self.ends = {}
        self.reactor = MonotonicEPollReactor()
        self.addCleanup(self.reactor.disconnectAll)

    def test_end_of_turn(self):
        """Nobody hears anything before the turn is over, then all hear what was said to them, in order."""
        ours = [self.connect() for _ in range(100)]
        writers = [fast_writer(transport) for transport, _ in ours]
        for n, write in enumerate(writers[:40]):
            write(b"one %d " % n)
        for n, write in enumerate(writers[:40]):
            write(b"two %d" % n)
        for _, peer in ours[:40]:
            self.silent(peer)

        self.turn()

        for n, (_, peer) in enumerate(ours[:40]):
            self.assertEqual(peer.recv(100), b"one %d two %d" % (n, n))

    def test_one(self):
        """One that is alone is heard as well."""
        transport, peer = self.connect()

        fast_writer(transport)(b"hello")
        self.silent(peer)
        self.turn()

        self.assertEqual(peer.recv(100), b"hello")

    def test_own_process(self):
        """By a unix socket it goes at once."""
        transport, peer = self.connect("unix")

        fast_writer(transport)(b"work")

        self.assertEqual(peer.recv(100), b"work")

    def test_bounded(self):
        """So much, and for so many, is held; what is beyond is sent at once, and in order."""
        ours = [self.connect() for _ in range(257)]
        for transport, _ in ours:
            fast_writer(transport)(b"hello")
        self.assertEqual(ours[-1][1].recv(100), b"hello")
        self.silent(ours[0][1])
        self.turn()
        self.assertEqual([peer.recv(100) for _, peer in ours[:-1]], [b"hello"] * 256)

        (one, peer), (_, other) = ours[:2]
        for part in (b"x" * 60_000, b"y" * 5_535):
            fast_writer(one)(part)
            self.silent(peer)
        fast_writer(one)(b"z")
        self.assertEqual(self.hear(peer, 65_536), b"x" * 60_000 + b"y" * 5_535 + b"z")
        self.silent(other)

    def test_hurry(self):
        """What was said before is out before anything else is written; what others are told waits."""
        (one, peer), (two, other) = self.connect(), self.connect()
        fast_writer(one)(b"220 ready ")
        fast_writer(two)(b"hello")

        hurry(one)

        self.assertEqual(peer.recv(100), b"220 ready ")
        self.silent(other)
        self.turn()
        self.silent(peer)
        self.assertEqual(other.recv(100), b"hello")

    def test_tls(self):
        """Once TLS is on, it gets what is said before it is told to close."""
        transport, _ = self.connect()
        write = fast_writer(transport)
        told = []

        class TLS:
            write = told.append

            def loseConnection(self):
                told.append(None)

            def connectionLost(self, reason):
                pass

        transport.TLS = True
        transport.protocol = TLS()

        write(b"221 bye")
        transport.loseConnection()
        self.turn()

        self.assertEqual(told, [b"221 bye", None])

    def test_closed_with_backlog(self):
        """One that reads up and is then told good-bye hears all of it, though both happen in one turn."""
        transport, peer = self.connect()
        write = fast_writer(transport)
        big = b"x" * 8_000_000

        class Polite:
            def dataReceived(self, data):
                write(b"221 bye")
                transport.loseConnection()

            def connectionLost(self, reason):
                pass

        transport.protocol = Polite()
        write(big)
        got = self.hear(peer, 7_900_000)
        while transport.dataBuffer or transport._tempDataBuffer:  # what is left is about to leave
            peer.send(b"QUIT\r\n")
            self.turn()
            got += self.hear(peer, len(big) - len(got))

        self.turn(3)
        self.assertEqual(self.hear(peer, len(big) + 7 - len(got)), (big + b"221 bye")[len(got) :])

    def test_closed_by_peer(self):
        """Who has said all he had to say, and hears the answer in the same turn, hears it."""
        (one, peer), (two, other) = self.connect(), self.connect()
        write = fast_writer(two)

        class Answer:
            def dataReceived(self, data):
                write(b"250 ok")

            def connectionLost(self, reason):
                pass

        one.protocol = Answer()
        peer.send(b"K")
        other.shutdown(socket.SHUT_WR)

        self.turn(3)

        self.assertEqual(other.recv(100), b"250 ok")

    def test_end(self):
        """What was said when the reactor stopped is sent."""
        ours = [self.connect() for _ in range(3)]
        for transport, _ in ours:
            fast_writer(transport)(b"421 bye")

        self.reactor.disconnectAll()

        self.assertEqual([peer.recv(100) for _, peer in ours], [b"421 bye"] * 3)

    def test_interrupted(self):
        """If sending is broken off, nobody goes on with a reply missing."""
        ours = [self.connect() for _ in range(3)]
        for transport, _ in ours:
            fast_writer(transport)(b"hello")
        with mock.patch.object(sends, "_ready", side_effect=KeyboardInterrupt):
            self.assertRaises(KeyboardInterrupt, self.reactor.sends.flush)
        self.reactor.runUntilCurrent()
        self.assertEqual([transport.connected for transport, _ in ours], [0, 0, 0])

        transport, peer = self.connect()
        fast_writer(transport)(b"hello")
        self.turn()
        self.assertEqual(peer.recv(100), b"hello")

    def test_no_answer(self):
        """A connection of which the kernel does not tell what it has sent is cut, and it is not asked again."""
        ours = [self.connect() for _ in range(3)]
        aio = sends.linux_aio.Context(8)

        class Dumb:
            def submit(self, *operations):
                return aio.submit(*operations)

            def process_events(self, *how):
                return 0

        self.reactor.sends._aio = Dumb()
        for transport, _ in ours:
            fast_writer(transport)(b"hello")
        self.turn()
        self.reactor.runUntilCurrent()
        self.assertEqual([transport.connected for transport, _ in ours], [0, 0, 0])
        self.assertIs(self.reactor.sends._aio, False)
        aio.process_events(8)

    def test_closed_after(self):
        """What was said before a connection was closed arrives; one that was aborted says nothing."""
        (polite, peer), (rude, other), (third, _) = self.connect(), self.connect(), self.connect()
        fast_writer(polite)(b"421 bye")
        fast_writer(rude)(b"421 bye")
        fast_writer(third)(b"hello")
        polite.loseConnection()
        rude.abortConnection()

        self.reactor.runUntilCurrent()
        self.turn(3)

        self.assertEqual((peer.recv(100), peer.recv(100)), (b"421 bye", b""))
        self.assertRaises(ConnectionResetError, other.recv, 100)
        self.assertEqual((self.ends[polite].over, self.ends[third].over), (ConnectionDone, None))

    def test_descriptor_reused(self):
        """What was said to a connection that is gone never reaches another that got its descriptor."""
        (gone, _), (third, _) = self.connect(), self.connect()
        number = gone.fileno()
        another, peer = socket.socketpair()
        peer.setblocking(False)
        self.addCleanup(peer.close)
        fast_writer(gone)(b"for another's eyes")
        fast_writer(third)(b"hello")
        gone.abortConnection()
        self.reactor.runUntilCurrent()
        with another, socket.socket(fileno=os.dup2(another.fileno(), number)):
            self.turn()
            self.silent(peer)

    def test_peer_gone(self):
        """A connection that the peer has reset is lost, and the others hear what was said to them."""
        (bad, gone), (good, peer), (third, other) = self.connect(), self.connect(), self.connect()
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        for transport in (bad, good, third):
            fast_writer(transport)(b"hello")

        self.turn(3)

        self.assertEqual((peer.recv(100), other.recv(100)), (b"hello", b"hello"))
        self.assertIn(self.ends[bad].over, {ConnectionDone, ConnectionLost})
        self.assertEqual((self.ends[good].over, self.ends[third].over), (None, None))

    def test_full(self):
        """A peer that does not read gets all of it in the end, in order, whatever is said meanwhile; others do not wait."""
        (slow, peer), (quick, other) = self.connect(), self.connect()
        pauses = []
        slow.registerProducer(Choosy(lambda: pauses.append(1)), True)
        said = b""
        for n in range(400):
            part = b"%d " % n + b"x" * 60_000
            fast_writer(slow)(part)
            fast_writer(quick)(b"%d " % n)
            self.turn()
            said += part

        self.assertEqual(self.hear(other, 1490), b"".join(b"%d " % n for n in range(400)))
        self.assertTrue(pauses)
        self.assertEqual(self.hear(peer, len(said)), said)

    def full(self, transport):
        """The kernel takes nothing more for it; how many octets it has taken."""
        octets = 0
        for _ in range(100):
            try:
                octets += transport.socket.send(b"x" * 65_536)
            except BlockingIOError:
                self.turn()
        transport.bufferSize = 1
        return octets

    def test_says_when_full(self):
        """What a producer says when it is told to pause comes after what filled the buffer."""
        (slow, peer), (quick, other) = self.connect(), self.connect()
        write, write_quick = fast_writer(slow), fast_writer(quick)
        words = [(write, b"end"), (write_quick, b"and")]  # told to pause again, it has nothing more to say

        def pause():
            while words:
                say, word = words.pop()
                say(word)

        before = self.full(slow)
        slow.registerProducer(Choosy(pause), True)
        write_quick(b"hello ")
        write(b"begin")

        self.turn()
        self.assertEqual(words, [])
        self.assertEqual(self.hear(other, 9), b"hello and")
        self.assertEqual(self.hear(peer, before + 8), b"x" * before + b"beginend")

    def test_says_much_to_another(self):
        """Nor does it overtake what another, that is full too, was told before."""
        (one, _), (two, peer) = self.connect(), self.connect()
        write_two = fast_writer(two)
        words = [b"y" * 70_000]
        self.full(one)
        before = self.full(two)
        one.registerProducer(Choosy(lambda: words and write_two(words.pop())), True)
        fast_writer(one)(b"begin")
        write_two(b"before")

        self.turn()

        self.assertEqual(self.hear(peer, before + 70_006), b"x" * before + b"before" + b"y" * 70_000)

    def test_producer_raises(self):
        """A connection whose producer breaks is cut, and the others are not."""
        (bad, _), (good, peer) = self.connect(), self.connect()
        self.full(bad)
        bad.registerProducer(Choosy(lambda: 1 / 0), True)
        fast_writer(good)(b"hello")
        fast_writer(bad)(b"and more")

        began = time.monotonic()
        self.reactor.doIteration(10)  # though nothing else comes, it is not waited for
        self.reactor.runUntilCurrent()

        self.assertLess(time.monotonic() - began, 5)
        self.assertEqual(peer.recv(100), b"hello")
        self.assertEqual((bad.connected, good.connected), (0, 1))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_without_aio(self):
        """Where the kernel takes no such calls, or no more of them, each is sent for itself."""
        for broken in (
            mock.patch.object(sends.linux_aio, "Context", side_effect=SystemError(errno.EAGAIN)),
            mock.patch.object(sends, "linux_aio", None),
        ):
            with broken:
                self.reactor = MonotonicEPollReactor()
                self.addCleanup(self.reactor.disconnectAll)
                ours = [self.connect() for _ in range(3)]
                for transport, _ in ours:
                    fast_writer(transport)(b"hello")
                self.turn()
                self.assertEqual([peer.recv(100) for _, peer in ours], [b"hello"] * 3)

    def test_aio_fails(self):
        """A call that the kernel does not take, or takes a part of, is made up for."""
        for taken in (0, 1, 2, OverflowError("full")):
            ours = [self.connect() for _ in range(3)]
            aio = sends.linux_aio.Context(8)
            refused = {"side_effect": taken} if isinstance(taken, Exception) else {}

            class Narrow:
                def submit(self, *operations, aio=aio, taken=taken):
                    if isinstance(taken, Exception):
                        raise taken
                    return aio.submit(*operations[:taken])

                def process_events(self, *how, aio=aio):
                    return aio.process_events(*how)

            self.reactor.sends._aio = Narrow()
            for n, (transport, _) in enumerate(ours):
                fast_writer(transport)(b"hello %d" % n)
            self.turn()
            self.assertEqual([peer.recv(100) for _, peer in ours], [b"hello 0", b"hello 1", b"hello 2"])
            self.assertEqual(len(self.flushLoggedErrors(OverflowError)), len(refused))

    @given(
        said=st.lists(
            st.tuples(st.integers(0, 3), st.sampled_from([1, 7, 4096, 70_000, 3_000_000]), st.sampled_from("wwwwth")),
            max_size=30,
        )
    )
    def test_in_order(self, said):
        """Whatever is said to whom, whenever the turn ends, each hears what was said to him and nothing else."""
        ours = [self.connect() for _ in range(4)]
        writers = [fast_writer(transport) for transport, _ in ours]
        expected = [b"", b"", b"", b""]
        for n, (who, octets, what) in enumerate(said):
            data = bytes([n + 1]) * octets
            writers[who](data)
            expected[who] += data
            if what == "t":
                self.turn()
            elif what == "h":
                hurry(ours[who][0])
        self.turn()
        for (transport, peer), whole in zip(ours, expected, strict=True):
            self.assertEqual(self.hear(peer, len(whole)), whole)
            self.silent(peer)
            transport.abortConnection()
        self.reactor.runUntilCurrent()
