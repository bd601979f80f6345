from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from qmq.queue.marks import Marks
from tests.queue.fakes import message
from tests.queue.house import House


class MarksTests(SynchronousTestCase):
    def setUp(self) -> None:
        """A folder of a queue."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_kept(self) -> None:
        """A mark is there for the next process, until it is taken away."""
        self.successResultOf(Marks(self.folder).set("paused", True))
        found = Marks(self.folder).read()
        self.successResultOf(Marks(self.folder).set("paused", False))

        self.assertEqual(found, {"paused"})
        self.assertEqual(os.listdir(self.folder), [])

    def test_no_folder(self) -> None:
        """A folder that is not there yet has no marks, and can't be given any; without one nothing is kept."""
        nowhere = os.path.join(self.folder, "nowhere")

        self.assertEqual(Marks(nowhere).read(), frozenset())
        self.failureResultOf(Marks(nowhere).set("paused", True), OSError)
        self.successResultOf(Marks(None).set("paused", True))
        self.assertEqual(Marks(None).read(), frozenset())

    def test_threads(self) -> None:
        """Threads may be late and in disorder: what was said last holds."""
        jobs: list[tuple[Callable[[], None], Callable[[Any], None]]] = []
        marks = Marks(self.folder, lambda *job: jobs.append(job))
        marks.set("paused", True)
        last = marks.set("paused", False)

        for job, done in reversed(jobs):
            done(job())  # type: ignore[func-returns-value]  # a thread does so, too

        self.successResultOf(last)
        self.assertEqual(marks.read(), frozenset())

    def test_queue(self) -> None:
        """A queue that was paused, or refused mail, does so after a crash as well, until it is told otherwise."""
        before = House(marks=Marks(self.folder))
        before.send()
        self.successResultOf(before.queue.pause())
        self.successResultOf(before.queue.refuse())

        after = House(before.spool, marks=Marks(self.folder))
        after.wait(600)
        state = after.queue.paused, after.queue.refusing, len(after.dialler.dialled)
        refused = self.successResultOf(after.queue.send(message()))
        self.successResultOf(after.queue.accept())
        self.successResultOf(after.queue.resume())
        after.work()

        self.assertEqual(state, (True, True, 0))
        self.assertEqual(refused[0].code, 452)
        self.assertEqual(after.delivered(), 1)
        self.assertEqual(Marks(self.folder).read(), frozenset())

    def test_cannot_be_kept(self) -> None:
        """If it can't be kept the operator is told, and the queue is paused all the same."""
        house = House(marks=Marks(os.path.join(self.folder, "nowhere")))

        self.failureResultOf(house.queue.pause(), OSError)

        self.assertTrue(house.queue.paused)
        self.assertIn("until the next start only", house.log.warnings()[0])
