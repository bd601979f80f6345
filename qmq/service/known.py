"""What a process knows of all instances, and whom it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from qmq.routing.states import States
from qmq.service.crews import takes_mail

if TYPE_CHECKING:
    from qmq.service.gateway import Gateway

log = Logger()


class Known:
    """
    The instances' states, as they were last heard: of those here, of those in workers, or from the main process.

    Once a second, and when one takes mail no more or again, they are told to
    whoever takes mail: the primary here (*states*), and workers that are one.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.states = States(gateway.reactor.seconds)
        self._gateway = gateway
        self._known: dict[str, dict[str, Any]] = {}  # of instances in workers
        self._waiting: dict[str, dict[str, int]] = {}  # of workers that take mail: what they keep for whom
        self._watch = LoopingCall(self.tell)
        self._watch.clock = gateway.reactor

    def start(self) -> None:
        """Tell from now on."""
        self._watch.start(1).addErrback(lambda failure: log.failure("the watch broke", failure))

    def stop(self) -> None:
        """No more."""
        if self._watch.running:
            self._watch.stop()

    def forget(self) -> None:
        """All that workers said: whoever was away is to be dialled again."""
        names = list(self._known)
        self._known.clear()
        back: dict[str, dict[str, Any]] = {name: {} for name in names}
        self.told({"states": back})
        self._tell_workers(back)

    def forget_gone(self) -> None:
        """What is known of instances that no worker has."""
        runs = {role for roles in self._gateway.crews.values() for role in roles}
        for name in set(self._known) - runs:
            del self._known[name]
        for worker in set(self._waiting) - self._gateway.crews.keys():
            del self._waiting[worker]

    def tell(self) -> None:
        """Once a second: the states, to whoever takes mail."""
        if self._gateway.primary is not None or self._gateway.heirs is not None:
            for name, service in self._gateway.instances.items():
                self.states.tell(name, service.state())
        for name, state in self._known.items():
            if state.get("away"):
                self.states.tell(name, state)
        self._tell_workers(self._known)

    def _tell_workers(self, states: Mapping[str, Any]) -> None:
        if self._gateway.workers is not None:
            for name in self._gateway.crews:
                if takes_mail(name):
                    self._gateway.workers.tell(name, {"states": states})

    def heard(self, worker: str, said: Mapping[str, Any]) -> None:
        """A beat of a worker."""
        if said.get("leaving"):
            return
        news, roles = False, frozenset(self._gateway.crews.get(worker, ()))
        for name, state in said["states"].items():
            if "waiting" in state:  # it takes mail
                self._waiting[worker] = state["waiting"]
            elif name in roles:
                before = self._known.get(name, {})
                news = news or (state != before and _matters(state) != _matters(before))
                self._known[name] = state
                self.states.tell(name, state)
        if news:
            self._tell_workers(self._known)

    def away(self, worker: str) -> None:
        """A worker is silent, or gone."""
        self.note_away(self._gateway.crews.get(worker, ()))

    def note_away(self, roles: Sequence[str]) -> None:
        """Their worker does not run, or does not speak."""
        for name in roles:
            if not takes_mail(name):
                self._known[name] = {**self._known.get(name, {}), "away": True}
                self.states.tell(name, self._known[name])
        self._tell_workers(self._known)

    def told(self, facts: Mapping[str, Any]) -> None:
        """By the main process."""
        for name, state in facts.get("states", {}).items():
            self.states.tell(name, state)

    def beat(self) -> dict[str, Any]:
        """What a worker's own beat tells."""
        states: dict[str, Any] = {name: service.state() for name, service in self._gateway.instances.items()}
        if self._gateway.primary is not None:
            states[self._gateway.stores[0]] = {"waiting": self._gateway.primary.kept.left()}
        return states

    def queued(self, name: str) -> int | None:
        """
        Messages that an instance of ours holds, and that are kept for it, as it said a second ago.

        None: nobody knows, for its process is away.
        """
        gateway = self._gateway
        service, state = gateway.instances.get(name), self._known.get(name, {})
        if service is not None:
            state = service.state()
            count: int | None = None if state.get("away") else service.spool.messages
        else:
            count = None if state.get("away") else state.get("queued")
        if count is None:
            return None
        return count + sum(left.get(name, 0) for left in self._left())

    def line(self) -> str:
        """One line for systemctl status."""
        gateway = self._gateway
        names = [*gateway.instances, *self._known]
        held = sum(service.spool.messages for service in gateway.instances.values())
        held += sum(state.get("queued", 0) for state in self._known.values())
        held += sum(sum(left.values()) for left in self._left())
        sessions = f"{gateway.primary.about()['sessions']} sessions, " if gateway.primary is not None else ""
        away = [name for name, state in self._known.items() if state.get("away")]
        return f"{sessions}{held} messages in {len(names)} queues{', away: ' + ' '.join(away) if away else ''}"

    def _left(self) -> list[dict[str, int]]:
        """What is kept for whom, in every store of the primary's."""
        gateway = self._gateway
        kept = [gateway.primary.kept.left()] if gateway.primary is not None else []
        kept += [gateway.heirs.left()] if gateway.heirs is not None else []
        return [*kept, *self._waiting.values()]


def _matters(state: Mapping[str, Any]) -> tuple[bool, ...]:
    """What decides at RCPT; how much is queued does not."""
    return bool(state.get("refusing")), bool(state.get("full")), bool(state.get("away"))
