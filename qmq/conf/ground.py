"""
What this machine and this account allow: asked once, given to load() as a value.

Ports below the lowest free one need root or CAP_NET_BIND_SERVICE; who is root
must become somebody else.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass

_BIND_SERVICE = 10  # CAP_NET_BIND_SERVICE, capabilities(7)


@dataclass(frozen=True, slots=True)
class Ground:
    """*lowest_port*: the lowest that this process may open. *accounts*: those of qmq and qmail, if they exist."""

    root: bool = False
    lowest_port: int = 1024
    cores: int = 2
    accounts: frozenset[str] = frozenset()


def ground(user: str = "") -> Ground:
    """Of this process; *user* is one more account to look for."""
    root = os.geteuid() == 0
    accounts = frozenset(name for name in (user, "qmq", "qmails") if name and _exists(name))
    return Ground(root, 1 if root or _may_bind() else _lowest(), len(os.sched_getaffinity(0)), accounts)


def _exists(account: str) -> bool:
    try:
        pwd.getpwnam(account)
    except KeyError:
        return False
    return True


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
