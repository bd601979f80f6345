import errno
import fcntl
import os
import socket

from twisted.trial.unittest import SynchronousTestCase

from qmq.cord import Cord
from tests.cords import Peer, Reactor


class CordTests(SynchronousTestCase):
    """One end of a cord, and a plain socket at the other."""

    def setUp(self):
        self.reactor = Reactor()
        ours, theirs = socket.socketpair()
        self.heard, self.losses = [], []
        self.cord = Cord(self.reactor, ours, lambda *what: self.heard.append(what), lambda: self.losses.append(1))
        self.cord.start()
        self.peer = Peer(theirs)
        self.addCleanup(theirs.close)
        self.addCleanup(self.cord.close)

    def pair(self):
        """Two cords that hear each other."""
        ours, theirs = socket.socketpair()
        heard = []
        near = Cord(self.reactor, ours, lambda *_: None, lambda: None)
        far = Cord(self.reactor, theirs, lambda *what: heard.append(what), lambda: None)
        self.addCleanup(near.close)
        self.addCleanup(far.close)
        far.start()
        return near, heard

    def test_lines_both_ways(self):
        """A message arrives whole, however it is cut on the way."""
        self.cord.send({"do": "this"})
        self.reactor.turn()
        self.peer.socket.sendall(b'{"n": 1, "ans')
        self.reactor.turn()
        self.peer.socket.sendall(b'wer": 2}\n{"n": 2}\n{')
        self.reactor.turn()

        self.assertEqual(self.peer.read()[0], [{"do": "this"}])
        self.assertEqual(self.heard, [({"n": 1, "answer": 2}, []), ({"n": 2}, [])])

    def test_descriptors_go_with_their_line(self):
        """Each line gets its own descriptors, also when several lines were under way at once."""
        near, heard = self.pair()
        pipes = [os.pipe() for _ in range(3)]
        near.send({"do": "a"}, [pipes[0][1]])
        near.send({"do": "b"})
        near.send({"do": "c"}, [pipes[1][1], pipes[2][1]])
        for _, end in pipes:
            os.close(end)  # the cord has copies

        for _ in range(9):
            self.reactor.turn()

        self.assertEqual([(what["do"], len(got)) for what, got in heard], [("a", 1), ("b", 0), ("c", 2)])
        received = [end for _, got in heard for end in got]
        for (reading, _), writing in zip(pipes, received, strict=True):
            os.write(writing, b"x")
            self.assertTrue(fcntl.fcntl(writing, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
            os.close(writing)
            self.assertEqual((os.read(reading, 9), os.read(reading, 9)), (b"x", b""))
            os.close(reading)

    def test_more_descriptors_than_the_kernel_takes_at_once(self):
        """300 descriptors are sent with one order."""
        near, heard = self.pair()
        near.send({"do": "take"}, [0] * 300)

        for _ in range(9):
            self.reactor.turn()

        self.assertEqual([len(got) for _, got in heard], [300])
        for descriptor in heard[0][1]:
            os.close(descriptor)

    def test_peer_that_does_not_read(self):
        """To a peer that does not read, orders are refused when 4 MiB wait; of facts the newest of each subject waits."""
        sent = 0
        while self.cord.send({"do": "x" * 100_000}):
            self.reactor.turn()
            sent += 1
            self.assertLess(sent, 100)
        for number in range(1000):
            self.cord.tell({"a": number, "b": {"n": number}} if number % 2 else {"a": number})
            self.reactor.turn()

        lines = []
        for _ in range(sent * 4):
            lines += self.peer.read()[0]
            self.reactor.turn()
        self.assertEqual(len(lines), sent + 1)
        self.assertEqual(lines[-1], {"facts": {"a": 999, "b": {"n": 999}}})
        self.assertTrue(self.cord.send({"do": "again"}))

    def test_lost_once(self):
        """The peer's end is told once; afterwards nothing can be sent."""
        self.peer.socket.close()
        self.reactor.turn()
        self.reactor.turn()

        self.assertEqual(self.losses, [1])
        self.assertFalse(self.cord.send({"do": "x"}))
        self.cord.tell({"a": 1})
        self.assertEqual((self.reactor.readers, self.reactor.writers), (set(), set()))

    def test_descriptors_that_nobody_gets_are_closed(self):
        """A cord that ends closes what it has not sent, and what it has received for a line that never came whole."""
        reading, writing = os.pipe()
        self.cord.send({"do": "x"}, [writing])
        socket.send_fds(self.peer.socket, [b'{"fds": 1'], [writing])
        self.reactor.removeWriter(self.cord)
        self.reactor.turn()
        os.close(writing)

        self.cord.close()

        self.assertEqual(os.read(reading, 1), b"")
        os.close(reading)

    def test_a_descriptor_that_is_not_open(self):
        """What can't be copied is an error of the sender, and the cord stays whole."""
        with self.assertRaises(OSError) as caught:
            self.cord.send({"do": "x"}, [0, 10**6])

        self.assertEqual(caught.exception.errno, errno.EBADF)
        self.cord.send({"do": "y"})
        self.reactor.turn()
        self.assertEqual(self.peer.read()[0], [{"do": "y"}])
