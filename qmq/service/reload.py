"""
A new configuration for a gateway that runs: looked at as a whole, told, then applied queue by queue.

A file with errors, mail that would stay behind, a port that cannot be opened:
nothing changes. What is applied closes no other socket. A queue that comes,
goes or moves to another process is away for that moment, and its mail waits in
the primary's store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import DeferredLock, gatherResults
from twisted.logger import Logger

from qmq.admin.words import Say
from qmq.conf.diff import Difference, difference, in_force
from qmq.conf.load import load
from qmq.conf.model import Conf
from qmq.conf.written import ConfErrors
from qmq.service.crews import Roles, crew
from qmq.sockets import CannotListen

if TYPE_CHECKING:
    from qmq.service.gateway import Gateway

log = Logger()


class Reload:
    """
    For one process: of a main process the whole gateway's, of a worker its own part, when it is ordered.

    One at a time; what comes meanwhile waits.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._one = DeferredLock()

    async def reload(self, request: Mapping[str, Any], say: Say) -> None:
        """`qmq reload`, SIGHUP. Raises ValueError: why nothing has changed."""
        gateway = self._gateway
        await self._one.acquire()
        gateway.notifier.reloading()
        gateway.reopen_logs()
        try:
            conf, found = self._look()
            troubles = await self._apply(conf)
        except ValueError as error:
            log.error("conf-qmq was not reloaded: {error}", error=error)  # noqa: TRY400 - no traceback for a mistake
            raise
        finally:
            gateway.notifier.ready()
            self._one.release()
        for trouble in troubles:
            log.error("{trouble}", trouble=trouble)
        log.info("conf-qmq reloaded: {lines}", lines="; ".join(found.lines) or "nothing has changed")
        say({
            "process": gateway.process, "reload": "reloaded", "changes": found.lines, "restart": found.restart,
            "troubles": troubles,
        })  # fmt: skip

    async def diff(self, request: Mapping[str, Any], say: Say) -> None:
        """`qmq diff`: what a reload would change now, and why it would be refused."""
        found = difference(self._gateway.conf, _read(self._gateway))
        say({
            "process": self._gateway.process, "changes": found.lines, "restart": found.restart,
            "refused": [*found.refused, *self._mail_left(found)],
        })  # fmt: skip

    async def ordered(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> list[str]:
        """A worker's part: what it runs from now on, and sockets for it. What was not well."""
        gateway = self._gateway
        for word, descriptor in zip(order.get("words", ()), descriptors, strict=True):
            gateway.sockets.take(word, descriptor)
        await self._one.acquire()
        try:
            # The main process has looked at its rules before.
            conf = in_force(gateway.conf, load(gateway.conf.path, rules=False))
            gateway.use(conf)
            gateway.only = tuple(order["roles"])
            troubles = await gateway.become(gateway.only)
            wanted = {"control", *(listener.word for listener in gateway.listeners(conf))}
            for word in set(gateway.sockets.words()) - wanted:
                gateway.sockets.drop(word)
            return troubles
        finally:
            self._one.release()

    def consider(self) -> tuple[Conf, Difference]:
        """What conf-qmq says now, and how it differs; raises ConfErrors, and ValueError if that must not be."""
        conf = load(self._gateway.conf.path).at(self._gateway.only)
        found = difference(self._gateway.conf, conf)
        if refused := [*found.refused, *self._mail_left(found)]:
            raise ValueError("\n".join(refused))
        return conf, found

    def _look(self) -> tuple[Conf, Difference]:
        """All that may be wrong is found before anything changes."""
        gateway = self._gateway
        try:
            conf, found = self.consider()
        except ConfErrors as errors:
            raise ValueError(str(errors)) from None
        fresh = [listener for listener in gateway.listeners(conf) if listener.word not in gateway.sockets]
        try:
            gateway.make_folders(conf)
            gateway.sockets.open(fresh, patience=0)
        except (CannotListen, OSError) as error:
            for listener in fresh:
                if listener.word in gateway.sockets:
                    gateway.sockets.drop(listener.word)
            raise ValueError(str(error)) from None
        return conf, found

    def _mail_left(self, found: Difference) -> list[str]:
        """Instances that are to go, and still have mail."""
        left = {name: self._gateway.known.queued(name) for name in found.removed}
        return [
            f"{name} {_still(count)}: say where it goes, `retired = {name}=OTHER` in [qmq], "
            f"or have it delivered first: qmq drain {name}"
            for name, count in left.items()
            if count != 0
        ]

    async def _apply(self, conf: Conf) -> list[str]:
        gateway = self._gateway
        before = {listener.word for listener in gateway.listeners(gateway.conf)}
        conf = in_force(gateway.conf, conf)
        gateway.use(conf)
        roles, crews = gateway.deal(conf)
        troubles = await self._order(crews)
        troubles += await gateway.become(roles)
        for word in before - {listener.word for listener in gateway.listeners(conf)}:
            gateway.sockets.drop(word)
        return troubles

    async def _order(self, crews: Mapping[str, Roles]) -> list[str]:
        """The workers: those that lose a queue first, since a store has one process."""
        gateway, before = self._gateway, self._gateway.crews
        if gateway.workers is None:
            return []
        gateway.crews = dict(crews)
        ended = [gateway.workers.remove(name) for name in before if name not in crews]
        troubles: list[str] = []
        for name in sorted(before, key=lambda name: len(crews.get(name, ())) - len(before[name])):
            if name in crews:
                troubles += await self._order_one(name, crews[name], before[name])
        await gatherResults(ended, consumeErrors=True)
        for name, roles in crews.items():
            if name not in before:
                gateway.known.note_away(roles)
                gateway.workers.add(crew(gateway.conf, name, roles))
        gateway.known.forget_gone()
        return troubles

    async def _order_one(self, name: str, roles: Roles, before: Roles) -> list[str]:
        gateway = self._gateway
        workers = gateway.workers
        assert workers is not None
        new = crew(gateway.conf, name, roles)
        fresh = [role for role in roles if role not in before]
        gateway.known.note_away(fresh)
        known = set(gateway.given.get(name, ()))
        words = [word for word in new.words if word not in known]
        gateway.given[name] = new.words
        workers.change(new)
        if name not in workers.pids():  # it is started again by the new file
            return []
        try:
            answer: list[str] = await workers.order(name, {"do": "reload", "roles": list(roles)}, words)
        except Exception as error:  # noqa: BLE001 - told; a worker that is started again goes by the new file
            return [f"{name}: {error}"]
        return answer


def _still(count: int | None) -> str:
    if count is None:
        return "does not run now, so nobody knows what mail it still has"
    return f"still has mail ({count} messages)"


def _read(gateway: Gateway) -> Conf:
    try:
        return load(gateway.conf.path).at(gateway.only)
    except ConfErrors as errors:
        raise ValueError(str(errors)) from None
