"""Whether a name that a client gives is one: what HELO and sender checks ask of DNS."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from qmq.dns.query import NoData, NoSuchDomain

# A qmq.dns.resolver.Resolver; all of these raise DNSTrouble when nobody knows for now.
Resolver = Any


async def has_address(resolver: Resolver, name: bytes) -> bool:
    """Whether the host has an address; an address literal, in brackets or not, is one."""
    return is_literal(name) or await _addressed(resolver, name)


async def has_exchanger(resolver: Resolver, name: bytes) -> bool:
    """Whether the name has an MX or an address; a literal has. A null MX says nothing of the host."""
    if is_literal(name):
        return True
    exchanges = await _exchanges(resolver, name)
    return exchanges is not None and (any(one.host for one in exchanges) or await _addressed(resolver, name))


async def takes_mail(resolver: Resolver, domain: bytes) -> bool:
    """Whether mail can be sent to the domain: it has an MX, or an address and no null MX (RFC 5321 5.1, RFC 7505)."""
    if is_literal(domain):
        return True
    exchanges = await _exchanges(resolver, domain)
    if exchanges is None:
        return False
    return any(one.host for one in exchanges) if exchanges else await _addressed(resolver, domain)


def is_literal(name: bytes) -> bool:
    """Whether the name is an IP address, as ``[192.0.2.1]``, ``[IPv6:2001:db8::1]`` or bare."""
    text = name.decode("ascii", "replace").lower()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1].removeprefix("ipv6:")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


async def _exchanges(resolver: Resolver, name: bytes) -> Sequence[Any] | None:
    """The MX records, if any; None: there is no such name."""
    try:
        found: Sequence[Any] = await resolver.mx(name)
    except NoData:
        return ()
    except NoSuchDomain:
        return None
    return found


async def _addressed(resolver: Resolver, name: bytes) -> bool:
    try:
        await resolver.addresses(name)
    except (NoData, NoSuchDomain):
        return False
    return True
