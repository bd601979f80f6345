"""Which of many networks an address lies in: the narrowest."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Generic, TypeVar

T = TypeVar("T")
Net = IPv4Network | IPv6Network


@lru_cache(maxsize=4096)
def parsed(ip: str) -> IPv4Address | IPv6Address:
    """
    The address that *ip* is; raises ValueError if it is none.

    Remembered: to read one costs 4 us, and each client's is looked at several times.
    """
    return ip_address(ip)


@lru_cache(maxsize=4096)
def loopback(ip: str) -> bool:
    """Whether it is this machine's own (RFC 6890); raises ValueError if it is no address."""
    return parsed(ip).is_loopback


class Nets(Generic[T]):
    """
    Values by network; of two for the same one the first counts.

    A look-up costs one dict's for each length of prefix there is, however many networks.
    """

    __slots__ = ("_levels",)

    def __init__(self, entries: Iterable[tuple[Net, T]] = ()) -> None:
        levels: dict[int, dict[int, dict[int, T]]] = {4: {}, 6: {}}
        for net, what in entries:
            host_bits = net.max_prefixlen - net.prefixlen
            level = levels[net.version].setdefault(host_bits, {})
            level.setdefault(int(net.network_address) >> host_bits, what)
        self._levels = {version: sorted(found.items()) for version, found in levels.items()}

    def __bool__(self) -> bool:
        return any(self._levels.values())

    def find(self, ip: str) -> T | None:
        """What the narrowest network of this IP address has; None if it is in none. ValueError if it is no address."""
        address = parsed(ip)
        number = int(address)
        for host_bits, level in self._levels[address.version]:
            key = number >> host_bits
            if key in level:
                return level[key]
        return None
