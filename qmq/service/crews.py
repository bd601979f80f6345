"""Which process runs what."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence

from qmq.conf.model import Conf
from qmq.interfaces import SpoolTrouble
from qmq.processes import Crew
from qmq.service import instance as instances
from qmq.service import primary as primaries
from qmq.service.kept import store
from qmq.sockets import Listener
from qmq.spool.lock import Lock

Roles = tuple[str, ...]

# Another process of qmq; behind it stand its options.
COMMAND = (sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile=", "qmq")

_STORE = re.compile(r"primary(-[1-9][0-9]{0,3})?")


def takes_mail(role: str) -> bool:
    """Whether the role is the primary's; it is called after the store that it has: ``primary``, ``primary-2``..."""
    return _STORE.fullmatch(role) is not None


def crews(conf: Conf, stores: Sequence[str], before: Mapping[str, Roles]) -> dict[str, Roles]:
    """
    The roles of each worker.

    `process = own` has a worker of its own, the rest are dealt out evenly: what
    runs somewhere (*before*) stays there, for a queue that moves is away for a
    moment. *stores* are those of primaries that have processes of their own.
    """
    local = [i for i in conf.instances if not i.handover.host]
    dealt: dict[str, list[str]] = {f"worker-{n + 1}": [] for n in range(max(1, conf.general.workers))}
    at = {role: worker for worker, roles in before.items() for role in roles}
    fresh = []
    for instance in local:
        if instance.process == "own":
            dealt[f"worker-{instance.name}"] = [instance.name]
        elif (where := at.get(instance.name, "")) in dealt and where != f"worker-{instance.name}":
            dealt[where].append(instance.name)
        else:
            fresh.append(instance.name)
    shared = [f"worker-{n + 1}" for n in range(max(1, conf.general.workers))]
    for name in fresh:
        min((dealt[worker] for worker in shared), key=len).append(name)
    return {name: (name,) for name in stores} | {name: tuple(roles) for name, roles in dealt.items() if roles}


def crew(conf: Conf, name: str, roles: Roles) -> Crew:
    """A worker's whole."""
    words = [listener.word for role in roles for listener in listeners(conf, role)]
    memory, files = conf.general.worker_memory, conf.general.worker_files
    if len(roles) == 1 and not takes_mail(roles[0]) and (alone := conf.instance(roles[0])).process == "own":
        memory, files = alone.memory, alone.files
    return Crew(name, roles, tuple(words), memory, files)


def listeners(conf: Conf, role: str) -> list[Listener]:
    """The sockets of a role."""
    return primaries.listeners(conf) if takes_mail(role) else instances.listeners(conf, conf.instance(role))


def free_stores(conf: Conf, how_many: int) -> list[str]:
    """The first names of the primary's stores that no process has: one that is leaving may still have its own."""
    found: list[str] = []
    number = 0
    while len(found) < how_many:
        number += 1
        name = "primary" if number == 1 else f"primary-{number}"
        if is_free(conf, name):
            found.append(name)
    return found


def left_stores(conf: Conf, taken: Sequence[str]) -> list[str]:
    """Stores of primaries on disk that are not among *taken*."""
    with os.scandir(conf.general.spool) as entries:
        names = [entry.name for entry in entries if takes_mail(entry.name)]
    return [
        name for name in names
        if name not in taken and os.path.exists(os.path.join(store(conf, name), "spool.db"))
    ]  # fmt: skip


def is_free(conf: Conf, name: str) -> bool:
    """Whether nobody holds the store, nor is about to: a look at its lock."""
    folder = store(conf, name)
    if not os.path.isdir(folder):
        return True
    lock = Lock(os.path.join(folder, "lock"))
    try:
        lock.take()
    except SpoolTrouble:
        return False
    lock.drop()
    return True
