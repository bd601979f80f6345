"""The reactor reads as Twisted's does, by a shorter way."""

from __future__ import annotations

import socket
import time
from typing import Any

from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from qmq.reactor import MonotonicEPollReactor
from tests.connections import connected


class Ears(Protocol):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.over: Any = None
        self.then: Any = lambda: None

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        self.then()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # Twisted's has a default
        self.over = reason.type


class ReactorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MonotonicEPollReactor()
        self.addCleanup(self.reactor.disconnectAll)

    def connection(self, kind: str = "unix") -> tuple[Ears, socket.socket]:
        """A protocol on a transport of the reactor, and the other end."""
        ears = Ears()
        _, other = connected(self.reactor, ears, kind)
        self.addCleanup(other.close)
        return ears, other

    def turn(self) -> None:
        self.reactor.doIteration(0)

    def test_hears(self) -> None:
        """What comes is given to the protocol, in order, and then the end, on either kind of socket."""
        for kind in ("unix", "tcp"):
            ears, other = self.connection(kind)
            other.sendall(b"one")
            self.turn()
            other.sendall(b"two" * 30_000)
            for _ in range(20):
                self.turn()
            self.assertTrue(ears.heard.startswith(b"onetwo"))
            other.close()
            for _ in range(20):
                self.turn()
            self.assertIs(ears.over, ConnectionDone)

    def test_room(self) -> None:
        """Who says little has little room made for it, until there is more to read; nothing is lost on the way."""
        ears, other = self.connection("tcp")
        transport: Any = ears.transport
        for _ in range(10):
            other.sendall(b"x")
            self.turn()
        small = transport.bufferSize
        other.sendall(b"y" * 60_000)
        for _ in range(10):
            self.turn()

        self.assertEqual(ears.heard, b"x" * 10 + b"y" * 60_000)
        self.assertLess(small, 20_000)

    def test_between(self) -> None:
        """What is to be asked between the events of a turn is asked before each of them, and no more when it says so."""
        asked: list[bytes] = []
        (one, other_one), (two, other_two) = self.connection(), self.connection()
        self.reactor.between = lambda: asked.append(one.heard + two.heard)
        for other in (other_one, other_two):
            other.sendall(b"x")
        self.turn()
        self.reactor.between = None
        other_one.sendall(b"y")
        self.turn()

        self.assertEqual((asked, one.heard + two.heard), ([b"", b"x"], b"xyx"))

    def test_reset(self) -> None:
        """A connection that is reset is lost, not done."""
        ears, other = self.connection("tcp")
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        other.close()
        self.turn()
        self.assertIs(ears.over, ConnectionLost)

    def test_aborted(self) -> None:
        """One that another aborts in the same turn of the loop hears nothing more."""
        one, other_one = self.connection()
        two, other_two = self.connection()
        one.then = two.transport.abortConnection  # type: ignore[union-attr]  # it is connected
        two.then = one.transport.abortConnection  # type: ignore[union-attr]  # likewise
        for other in (other_one, other_two):
            other.sendall(b"x")
        self.turn()
        self.assertEqual(len(one.heard + two.heard), 1)

    def test_raises(self) -> None:
        """A protocol that raises is cut, and the others go on."""
        bad, other_bad = self.connection()
        good, other_good = self.connection()
        bad.then = lambda: 1 / 0
        for other in (other_bad, other_good):
            other.sendall(b"x")
        self.turn()
        self.assertEqual((bad.over, good.over, good.heard), (ZeroDivisionError, None, b"x"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_clock(self) -> None:
        """It counts by the monotonic clock."""
        before = time.monotonic()
        now = self.reactor.seconds()
        self.assertLessEqual(before, now)
        self.assertLessEqual(now, time.monotonic())
