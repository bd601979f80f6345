"""What all services of one process share."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import resource
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

from qmq.conf.model import Conf
from qmq.deliver.mx import MX
from qmq.dns.resolver import Resolver
from qmq.log import EventLog, LogFile, to_descriptor
from qmq.mail import Clock, Octets, Seconds
from qmq.sockets import sweep
from qmq.spool.disk import SQLiteSpool
from qmq.spool.ring import Ring, suits
from qmq.spool.sqlite import INODES
from qmq.spool.store import Store
from qmq.spool.writer import Writers

# Writer threads of a process: as many stores can be waiting for their disks at once.
_WRITERS = 4
# SQLite's page caches, KiB: in all, and of one store at least and at most. Beside a thousand others a deep queue
# takes 175 KiB with the least and 440 with the most, and is claimed from as fast.
_CACHES, _LEAST_CACHE, _MOST_CACHE = 64 << 10, 64, 512
# What a process that is stopping may take beyond the `stop` of conf-qmq.
_LEAVING: Seconds = 15
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
    writers: Writers  # of the device that [qmq] spool is on
    resolver: Resolver
    mx: MX
    file: LogFile | None = None  # the log's, if it is one
    main: int = 0  # process id of the main process whose worker we are; 0: of none
    wall: Clock = field(default=time.time)
    _disks: dict[int, Writers] = field(default_factory=dict)

    def disk(self, folder: str) -> Writers:
        """The threads that write to the device of *folder*: one that hangs holds up nobody on another."""
        device, spool = _device(folder), _device(self.conf.general.spool)
        if device == spool:
            return self.writers
        if device not in self._disks:
            self._disks[device] = Writers(_WRITERS, call_from_thread=self.reactor.callFromThread)
        return self._disks[device]

    def reopen(self) -> None:
        """The log's file, if it was moved away (logrotate)."""
        if self.file is not None:
            try:
                self.log.flush()
                self.file.reopen()
            except OSError as error:
                self.log.warning(f"the log goes on into the file that is open: {error}")

    def close(self) -> None:
        """After all services have stopped."""
        self.log.flush()
        for writers in (self.writers, *self._disks.values()):
            writers.stop()


def open_house(reactor: Any, conf: Conf, main: int = 0) -> House:
    """As *conf* says; *main* is House.main."""
    file = None if conf.general.log == "-" else LogFile(conf.general.log)
    resolver = Resolver(reactor, servers=conf.general.nameservers or None)
    own = OwnAddresses(reactor, lambda: house.conf)
    mx = MX(resolver, own=own, own_names=[conf.general.me], random=random.SystemRandom())
    ring = Ring(reactor) if suits(_device(conf.general.spool)) else None
    house = House(
        reactor,
        conf,
        EventLog(
            to_descriptor(STDOUT) if file is None else file,
            reactor,
            time.time,
            json=conf.general.log_format == "json",
            tai64n=conf.general.log_format == "multilog",
        ),
        Writers(_WRITERS, call_from_thread=reactor.callFromThread, ring=ring),
        resolver,
        mx,
        file,
        main,
    )
    return house


class OwnAddresses:
    """
    The addresses at which the primary can be reached, for the guard against mail loops.

    Those that it listens on; where it listens on all, those of this machine,
    looked at again after a minute.
    """

    def __init__(self, reactor: Any, conf: Callable[[], Conf]) -> None:
        self._reactor = reactor
        self._conf = conf
        self._known: frozenset[str] = frozenset()
        self._until = float("-inf")

    def __call__(self) -> Collection[str]:
        """As text, IPv6 in its short form."""
        if self._reactor.seconds() >= self._until:
            self._until = self._reactor.seconds() + 60
            hosts = {host for host, _ in self._conf().primary.listen}
            named = hosts - {"", "0.0.0.0", "::"}
            self._known = frozenset(named if named == hosts else named | machine_addresses())
        return self._known


def machine_addresses(proc: str = "/proc/self/net") -> set[str]:
    """
    The addresses of this machine's interfaces, as Linux lists them; what can't be read is left out.

    Of /proc nothing but processes is to be seen where systemd says ProcSubset=pid.
    """
    found: set[str] = set()
    with contextlib.suppress(OSError), open(f"{proc}/fib_trie", encoding="ascii") as lines:
        last = ""
        for line in lines:
            if "host LOCAL" in line:
                found.add(last)
            last = line.split()[-1] if line.split() else ""
    with contextlib.suppress(OSError), open(f"{proc}/if_inet6", encoding="ascii") as lines:
        found |= {str(IPv6Address(int(line.split()[0], 16))) for line in lines}
    return found


def _device(folder: str) -> int:
    """Of the folder, or of the nearest one above it that is there."""
    while not os.path.isdir(folder) and folder != "/":
        folder = os.path.dirname(folder)
    return os.stat(folder).st_dev


def mark(conf: Conf, folder: str) -> str:
    """What remembers that there is a store in *folder*; empty for one below [qmq] spool, which remembers itself."""
    if os.path.dirname(folder) == conf.general.spool:
        return ""
    return os.path.join(conf.general.spool, "run", f"{folder.strip('/').replace('/', '-')}.store")


def spool(
    house: House, folder: str, reserve: Octets, inodes: int = INODES, share: Octets | float | None = None
) -> Store:
    """
    The durable store of a queue, in *folder*.

    At its start it waits for another process that is leaving it, a little longer than that may take.
    """
    conf = house.conf
    cache = min(_MOST_CACHE, max(_LEAST_CACHE, _CACHES // len(conf.instances)))
    return SQLiteSpool(
        folder, clock=house.reactor, writers=house.disk(folder), wall=house.wall, inline=conf.primary.inline,
        reserve=reserve, inodes=inodes, share=share, cache=cache, patience=conf.general.stop + _LEAVING,
        mark=mark(conf, folder),
    )  # fmt: skip


def sweep_controls(conf: Conf) -> None:
    """Commands need not miss processes that were killed and that nobody starts again."""
    sweep(os.path.join(conf.general.spool, "run"), ".control")


def say(line: str) -> None:
    """One line to whoever started us, past twistd's log."""
    with contextlib.suppress(OSError):  # nobody is listening any more
        os.write(STDOUT, line.encode() + b"\n")


def spare_collector() -> None:
    """What is here now stays: the collector need not look at it again. A message makes fifty objects, and no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def more_descriptors() -> None:
    """As many as the system allows: a session needs one, a delivery, a draft."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
