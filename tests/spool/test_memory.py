"""The suite over the store in memory."""

from __future__ import annotations

import copy
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from qmq.spool.memory import Memory, MemorySpool
from qmq.spool.store import Store
from qmq.spool.table import Broken
from tests.spool.conformance import SpoolConformance


class MemorySpoolTests(SpoolConformance, SynchronousTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.memory = Memory()

    def make(self, **settings: Any) -> Store:
        return MemorySpool(self.memory, clock=self.clock, wall=self.wall, writers=self.writers, **settings)

    def crashed(self, store: Store, **settings: Any) -> Store:
        self.memory.holder = None
        self.memory = copy.deepcopy(self.memory)
        return self.opened(**settings)

    def damage(self, number: int) -> None:
        row = self.memory.rows[number]
        self.memory.rows[number] = (*row[:9], row[9][:-8] + b"?" + row[9][-7:])

    def break_disk(self, failing: bool) -> None:
        self.memory.trouble = Broken("disk I/O error") if failing else None

    def fill(self, full: bool) -> None:
        self.memory.full = full

    def test_alone(self) -> None:
        """Without writers it works in the caller's thread."""
        store = MemorySpool(clock=self.clock)

        self.successResultOf(store.start())

        self.assertEqual(len(self.kept(store, *[])), 0)
        self.assertTrue(store.free())
