"""What all services of one process share."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from qmq.conf.model import Conf
from qmq.deliver.mx import MX
from qmq.dns.resolver import Resolver
from qmq.log import EventLog, to_descriptor
from qmq.mail import Clock
from qmq.spool.sqlite import SQLiteTable
from qmq.spool.store import Store
from qmq.spool.writer import Writers

# Writer threads of a process: as many stores can be waiting for their disks at once.
_WRITERS = 4
# sys.stdout is twistd's log by now.
STDOUT = 1


@dataclass
class House:
    """
    One process: its reactor, configuration, log, disk threads and resolver.

    *conf* is replaced as a whole by a reload; whoever needs it later asks here.
    """

    reactor: Any
    conf: Conf
    log: EventLog
    writers: Writers
    resolver: Resolver
    mx: MX
    wall: Clock = field(default=time.time)

    def close(self) -> None:
        """After all services have stopped."""
        self.log.flush()
        self.writers.stop()


def open_house(reactor: Any, conf: Conf) -> House:
    """As *conf* says."""
    if conf.general.log == "-":
        descriptor = STDOUT
    else:
        descriptor = os.open(conf.general.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    resolver = Resolver(reactor)
    mx = MX(resolver, own=lambda: own_addresses(conf), own_names=[conf.general.me], random=random.SystemRandom())
    return House(
        reactor,
        conf,
        EventLog(to_descriptor(descriptor), reactor, time.time),
        Writers(_WRITERS, call_from_thread=reactor.callFromThread),
        resolver,
        mx,
    )


def own_addresses(conf: Conf) -> Collection[str]:
    """The addresses that the primary listens on, for the guard against loops; wildcards are found by name."""
    return {host for host, _ in conf.primary.listen if host not in ("", "0.0.0.0", "::")}


def spool(house: House, folder: str) -> Store:
    """The durable store of a queue, in *folder*."""
    primary = house.conf.primary
    table = SQLiteTable(folder, reserve=primary.reserve)
    return Store(table, clock=house.reactor, writers=house.writers, wall=house.wall, inline=primary.inline)


def say(line: str) -> None:
    """One line to whoever started us, past twistd's log."""
    with contextlib.suppress(OSError):  # nobody is listening any more
        os.write(STDOUT, line.encode() + b"\n")
