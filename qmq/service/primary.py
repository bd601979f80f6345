"""The primary: ESMTP in, hand-over to the instances, and a queue of its own for what is uncertain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import LoopingCall
from zope.interface import directlyProvides

from qmq.conf import checks
from qmq.conf.clients import listener_word
from qmq.conf.model import Conf, Listen
from qmq.deadlines import Deadlines
from qmq.interfaces import IRecipientChecker, ISenderChecker
from qmq.mail import Address, Seconds
from qmq.receive.draft import Drafts
from qmq.receive.guard import Guard
from qmq.receive.reception import Reception
from qmq.receive.smtp import Crowd, SMTPFactory
from qmq.receive.tally import Tallies
from qmq.routing.intake import Intake
from qmq.routing.router import Router
from qmq.routing.states import States, Waiting
from qmq.service.common import House
from qmq.service.door import Door, limits, open_door, room
from qmq.service.instance import InstanceService
from qmq.service.kept import KeptService, store
from qmq.sockets import Listener, Sockets
from qmq.tls import server_options

NAME = "primary"


def smtp_word(listen: Listen) -> str:
    """The word of a listening socket."""
    return f"smtp/{listen[0]}:{listen[1]}"


def listeners(conf: Conf) -> list[Listener]:
    """Where clients come."""
    return [Listener(smtp_word(listen), host=listen[0], port=listen[1]) for listen in conf.primary.listen]


class PrimaryService(MultiService):
    """
    All that takes mail in this process. *here* are the instances that run in it, *name* is its store's.

    What came before a stop and was not handed over is counted once the store is open.
    For so many seconds of *patience* clients wait for their banner until the instances are
    up (`welcome`): what came before would have to be kept here first.
    """

    def __init__(
        self, house: House, sockets: Sockets, here: Mapping[str, InstanceService], states: States, name: str = NAME,
        *, patience: Seconds = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.setName(NAME)
        self.started: Deferred[None] = Deferred()
        self._house = house
        self._sockets = sockets
        self._ports: dict[Listen, Any] = {}
        self._leaving = False
        self._patience = patience
        self._opening: IDelayedCall | None = None  # when patience ends
        self._numbers = count(1)  # of the connections, over reloads too
        self._guard = Guard()
        self._tallies = Tallies()
        primary = house.conf.primary
        self._drafts = Drafts(os.path.join(store(house.conf, name), "drafts"), primary.inline, primary.header)
        self.waiting: dict[str, Waiting] = {}
        self.kept = KeptService(house, name, here, states, self.waiting)
        self.kept.setServiceParent(self)
        self.intake = Intake(
            self._instance_of, self._overflow, states, house.wall, self.kept.spool.free, self.waiting,
            **_bounds(house.conf),
        )  # fmt: skip
        directlyProvides(self.intake, ISenderChecker, IRecipientChecker)
        self.router = Router(
            self.intake.instance, self.kept.hops, self.kept, self.intake, states.away, house.log, house.wall
        )

    def startService(self) -> None:
        """Open the store, count what waits in it, listen."""
        super().startService()
        self.kept.started.addCallback(self._open).chainDeferred(self.started)

    def welcome(self) -> None:
        """The instances are up: no more waiting for them."""
        self._patience = 0
        if self._wait_no_more():
            self._listen(self._door())

    def stopService(self) -> Deferred[Any]:
        """No new sessions; those that wait for an answer get it, then the queue finishes."""
        self._wait_no_more()
        for factory in self._factories():
            factory.hang_up()
        closed = self._close(list(self._ports))
        closed.addBoth(lambda _: MultiService.stopService(self))
        return closed.addBoth(self._hang_up)

    def leave(self) -> Deferred[None]:
        """Take no new client; fires when the last session is over. The sockets stay open for whoever takes over."""
        self._leaving = True
        self._wait_no_more()
        factories = self._factories()
        self._close(list(self._ports))
        over: Deferred[None] = Deferred()

        def look() -> None:
            if not any(factory.sessions for factory in factories):
                watch.stop()
                over.callback(None)

        watch = LoopingCall(look)
        watch.clock = self._house.reactor
        watch.start(0.2)
        self._left = factories
        return over

    def come_back(self) -> None:
        """Nobody took over: take clients again."""
        self._leaving = False
        self._listen(self._door())

    def reconfigure(self) -> Deferred[Any]:
        """New sessions go by the new configuration, open ones by theirs; fires when ports that went are closed."""
        self.intake.configure(**_bounds(self._house.conf))
        self.kept.reconfigure()
        gone = [listen for listen in self._ports if listen not in self._house.conf.primary.listen]
        closed = self._close(gone)
        if not self._leaving and self._opening is None:
            self._listen(self._door())
        return closed

    def about(self) -> dict[str, Any]:
        """For `qmq stat`."""
        return {
            "sessions": len({session for factory in self._factories() for session in factory.sessions}),
            "waiting": self.kept.left(),
            "checks": self._tallies.facts(),
        }

    def _factories(self) -> list[SMTPFactory]:
        return [port.factory for port in self._ports.values()] or self._left

    _left: list[SMTPFactory] = []  # noqa: RUF012 - of ports that were given up; replaced, never changed

    def _close(self, which: list[Listen]) -> Deferred[Any]:
        ports = [self._ports.pop(listen) for listen in which]
        return gatherResults([maybeDeferred(port.stopListening) for port in ports], consumeErrors=True)

    def _instance_of(self, recipient: Address) -> str | None:
        instance = self._house.conf.instance_for(recipient.domain)
        return None if instance is None else instance.name

    def _overflow(self, name: str) -> str:
        return self._house.conf.instance(name).overflow

    def _hang_up(self, _: Any) -> Deferred[Any]:
        self._guard.stop()
        return self.kept.hops.stop()

    def _open(self, _: Any) -> None:
        self._drafts.clear()
        checks.sweep(self._house.conf)
        if self._patience:
            self._opening = self._house.reactor.callLater(self._patience, self.welcome)
        else:
            self._listen(self._door())

    def _wait_no_more(self) -> bool:
        """Whether clients have waited until now."""
        opening, self._opening = self._opening, None
        if opening is not None and opening.active():
            opening.cancel()
        return opening is not None

    def _door(self) -> Door:
        return open_door(self._house, self.intake, self._guard, self._tallies, self._numbers)

    def _listen(self, door: Door) -> None:
        for listen in self._house.conf.primary.listen:
            factory = self._listener(door, listen)
            port = self._ports.get(listen)
            if port is None:
                self._ports[listen] = self._sockets.adopt(self._house.reactor, smtp_word(listen), factory)
            else:
                factory.sessions = port.factory.sessions
                port.factory = factory

    def _listener(self, door: Door, listen: Listen) -> SMTPFactory:
        """What the clients that come there meet."""
        house, conf, primary = self._house, self._house.conf, self._house.conf.primary
        tls = server_options(primary.certificate, primary.key or None) if primary.certificate else None
        reception = Reception(
            me=conf.general.me.encode(), policy=door.policy, hop=self.router, drafts=self._drafts,
            next_token=self.kept.tokens.begin, forget_token=self.kept.tokens.end, log=house.log, clock=house.reactor,
            wall=house.wall, limits=limits(conf), starttls=tls is not None, greeting=primary.greeting,
            localiphost=primary.localiphost, classic=primary.codes == "classic",
        )  # fmt: skip
        crowd = Crowd(min(primary.sessions, room(conf)), primary.sessions_per_client, primary.limit_exempt)
        deadlines = Deadlines(idle=primary.timeout, session=primary.session)
        who = partial(door.clients.session, listener=listener_word(listen))
        return SMTPFactory(reception, who=who, crowd=crowd, deadlines=deadlines, context=tls)


def _bounds(conf: Conf) -> dict[str, Any]:
    """What the intake is bounded by."""
    primary = conf.primary
    budget = (primary.budget_messages, primary.budget_bytes, primary.budget_age)
    return {"sessions": primary.sessions, "share": primary.share, "budget": budget}
