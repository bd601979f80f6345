"""What processes that are no more have kept: opened, handed over, and closed when it is empty."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import LoopingCall

from qmq.receive.draft import Drafts
from qmq.routing.states import States, Waiting
from qmq.service.common import House
from qmq.service.crews import is_free, left_stores
from qmq.service.instance import InstanceService
from qmq.service.kept import KeptService, store

_LOOK = 3.0


class Heirs(MultiService):
    """
    The primary's stores that have no process: after a restart by hand-over, or with fewer processes than before.

    *taken* gives the names of those that have one. A store that a leaving
    process still holds is looked at again until it is free.
    """

    def __init__(
        self, house: House, here: Mapping[str, InstanceService], states: States, taken: Callable[[], Sequence[str]]
    ) -> None:
        super().__init__()
        self._house = house
        self._here = here
        self._states = states
        self._taken = taken
        self._waiting: dict[str, Waiting] = {}
        self._open: dict[str, KeptService] = {}
        self._done: set[str] = set()
        self._watch = LoopingCall(self._look)
        self._watch.clock = house.reactor

    def startService(self) -> None:
        """Look, and go on looking as long as something is left."""
        super().startService()
        self._watch.start(_LOOK)

    def stopService(self) -> Deferred[Any]:
        """Close what is open."""
        if self._watch.running:
            self._watch.stop()
        return maybeDeferred(super().stopService)

    def reconfigure(self) -> None:
        """Ways to instances may have changed."""
        for kept in self._open.values():
            kept.reconfigure()

    def queues(self) -> dict[str, Any]:
        """Those that are open, by name."""
        return {name: kept.queue for name, kept in self._open.items()}

    def left(self) -> dict[str, int]:
        """How many messages are kept for whom."""
        return {name: len(waiting) for name, waiting in self._waiting.items() if len(waiting)}

    def _look(self) -> None:
        for name, kept in list(self._open.items()):
            if kept.started.called and not kept.spool.messages:
                self._close(name)
        conf = self._house.conf
        for name in left_stores(conf, [*self._taken(), *self._open, *self._done]):
            if is_free(conf, name):
                with contextlib.suppress(OSError):  # what lies there does no harm
                    Drafts(os.path.join(store(conf, name), "drafts"), 0).clear()
                kept = self._open[name] = KeptService(self._house, name, self._here, self._states, self._waiting)
                kept.started.addErrback(self._trouble, name)
                kept.setServiceParent(self)

    def _close(self, name: str) -> None:
        kept = self._open.pop(name)
        self._done.add(name)
        maybeDeferred(kept.disownServiceParent).addErrback(self._trouble, name)

    def _trouble(self, failure: Any, name: str) -> None:
        self._house.log.warning(f"{name}: {failure.getErrorMessage()}")
