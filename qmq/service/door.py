"""The front door of one configuration: who clients are, what checkers think of them, what may be said."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from twisted.logger import Logger

from qmq.conf import checks
from qmq.conf.clients import layers
from qmq.conf.model import Conf
from qmq.conf.settings import OWN_CHECKS
from qmq.receive.catalogue import installed, look_in, make_checkers, terms_of
from qmq.receive.clients import Clients
from qmq.receive.guard import Guard
from qmq.receive.policy import Policy
from qmq.receive.reception import Limits
from qmq.receive.tally import Tallies
from qmq.routing.intake import Intake
from qmq.rules.watched import Files
from qmq.service.common import House

_log = Logger()


@dataclass(frozen=True, slots=True)
class Door:
    """What all listeners of one configuration share: who clients are, and what checkers think of them."""

    policy: Policy
    clients: Clients


def open_door(house: House, intake: Intake, guard: Guard, tallies: Tallies, numbers: count[int]) -> Door:
    """The checks and the clients' settings, as the configuration is now; *numbers* are the connections'."""
    conf = house.conf
    files = Files(house.log.warning)
    context = checks.context(
        conf, house.reactor, files, lambda: house.conf,
        reactor=house.reactor, resolver=house.resolver, mx=house.mx,
    )  # fmt: skip
    os.makedirs(context.spool, mode=0o700, exist_ok=True)
    look_in(context.folder)
    options = dict(conf.primary.checks)
    made = make_checkers(_there(conf.primary.checks), context, options)
    policy = Policy(
        [*made, ("intake", intake)], house.reactor, terms=terms_of(options), guard=guard,
        tallies=tallies, call_from_thread=house.reactor.callFromThread, present=lambda: house.conf, files=files,
    )  # fmt: skip
    return Door(policy, Clients(layers(conf), files, house.resolver, house.reactor, numbers=numbers))


def limits(conf: Conf) -> Limits:
    """What a session may say, and how much."""
    primary = conf.primary
    return Limits(
        databytes=max(primary.databytes, primary.databytes_most), line=primary.line, command=primary.command,
        recipients=primary.recipients, errors=primary.errors, hops=primary.hops, helo=primary.helo == "required",
        held=primary.verdicts == "rcpt",
    )  # fmt: skip


def room(conf: Conf) -> int:
    """
    How many sessions the process has descriptors for; a session has its socket, and its draft may be a file.

    Beyond it a client gets 421. Without this bound clients would take the
    descriptors that handing over and storing need, and nobody be served.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ours = 32 + len(conf.instances) * (2 + conf.primary.handover_connections)
    return max(8, (descriptors - ours) // 2)


def _there(named: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """
    The checks to make: one of qmq's own whose file was taken away is left out, loudly.

    Without rcpthosts nobody vouches for a recipient, and all are refused. Any
    other name that is not installed is a mistake, and make_checkers says so.
    """
    known = installed()
    names = [name for name, _ in named]
    for name in names:
        if name in OWN_CHECKS and name not in known:
            _log.error("the check {name} is not installed: it is left out", name=name)
    return [name for name in names if name in known or name not in OWN_CHECKS]
