"""Writer threads that many stores share."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from qmq.spool.memory import Memory, MemorySpool
from qmq.spool.store import Store
from qmq.spool.writer import Writers
from tests.spool.house import ANN, ORG, message


class TurnTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.calls: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = SimpleQueue()
        self.writers = Writers(1, call_from_thread=lambda call, *arguments: self.calls.put((call, arguments)))
        self.addCleanup(self.writers.stop)

    def called(self) -> None:
        """The reactor's thread is told of one job that has ended."""
        call, arguments = self.calls.get(timeout=10)
        call(*arguments)

    def opened(self) -> Store:
        store = MemorySpool(Memory(), clock=self.clock, wall=self.clock.seconds, writers=self.writers)
        started = store.start()
        self.called()
        self.successResultOf(started)
        return store

    def occupied(self) -> Event:
        """The one thread is busy until this is set."""
        over = Event()
        self.writers.run(lambda: over.wait(10), lambda _: None)
        return over

    def test_free(self) -> None:
        """Where a thread is free a turn comes at once."""
        begun: list[bool] = []
        self.writers.turn(lambda: begun.append(True))

        self.assertEqual(begun, [True])

    def test_fault(self) -> None:
        """A fault of one store does not keep the next one from its turn."""
        begun: list[bool] = []
        self.writers.run(int, lambda number: 1 // number)
        self.writers.turn(lambda: begun.append(True))

        self.assertRaises(ZeroDivisionError, self.called)
        self.assertEqual(begun, [True])

    def test_gather(self) -> None:
        """What comes for a store while all threads write for others is one batch, synced once."""
        store = self.opened()
        over = self.occupied()
        kept = []
        for _ in range(3):
            kept.append(store.keep(message(store.next_token(), ANN), [ORG], 0))
            self.clock.advance(0)
        over.set()
        self.called()
        self.called()

        self.assertEqual([len(self.successResultOf(one)) for one in kept], [1, 1, 1])
        self.assertTrue(self.calls.empty())

    def test_stop(self) -> None:
        """A store that stops while it waits for its turn writes what it has, once, and closes."""
        store = self.opened()
        over = self.occupied()
        kept = store.keep(message(store.next_token(), ANN), [ORG], 0)
        self.clock.advance(0)
        stopped = store.stop()
        over.set()
        for _ in range(3):
            self.called()

        self.assertEqual(len(self.successResultOf(kept)), 1)
        self.successResultOf(stopped)
        self.assertTrue(self.calls.empty())
