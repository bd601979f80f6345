"""
What this machine and this account allow: asked once, given to load() as a value.

Ports below the lowest free one need root or CAP_NET_BIND_SERVICE; who is root
must become somebody else.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field

from qmq.rules.environment import of_process

_BIND_SERVICE = 10  # CAP_NET_BIND_SERVICE, capabilities(7)


@dataclass(frozen=True, slots=True)
class Ground:
    """
    *account* is who we are, *accounts* those of qmq, qmail and `user` that exist.

    *lowest_port* is the lowest that this process may open, or did: who is
    `user` already was root at the start, and a reload opens no port.
    *environment* has those of qmail's variables that the process was started with.
    """

    root: bool = False
    account: str = ""
    lowest_port: int = 1024
    cores: int = 2
    accounts: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)


def ground(user: str = "") -> Ground:
    """Of this process; *user* is one more account to look for."""
    root = os.geteuid() == 0
    accounts = {name: number for name in (user, "qmq", "qmails") if name and (number := _number(name)) is not None}
    account = next((name for name, number in accounts.items() if number == os.geteuid()), "")
    low = 1 if root or account or _may_bind() else _lowest()
    return Ground(root, account, low, len(os.sched_getaffinity(0)), frozenset(accounts), of_process(os.environ))


def _number(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _lowest() -> int:
    try:
        with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 1024  # no Linux, or an old one


def _may_bind() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            held = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    except (OSError, ValueError):
        return False
    return bool(int(held, 16) >> _BIND_SERVICE & 1)
