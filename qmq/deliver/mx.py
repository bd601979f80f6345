"""
Where mail for a domain goes: its exchangers in order, or its own address.

RFC 5321 5.1: MX records by preference, equal ones in random order, the
domain's addresses if it has none. RFC 7505: a null MX takes no mail. Where we
stand among the exchangers ourselves, those as good as we or worse are left
out, or mail would go round (RFC 5321 5.1); where no better one is left, it is
a loop. A route or a literal asks for no MX.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from random import Random
from typing import Protocol

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from qmq.dns import DNSFailure, DNSTrouble, Exchange, NoData, NoSuchDomain
from qmq.mail import DeliveryFailure, Reply, value

_LITERAL = re.compile(r"\[(?:(IPv6):)?([0-9A-Fa-f:.]+)\]", re.IGNORECASE)


@value
class Candidate:
    """One address to try; *preference* is the MX record's, 0 without one."""

    host: str
    address: str
    port: int
    preference: int


class Names(Protocol):
    """What is asked of DNS; qmq.dns.Resolver has it."""

    def mx(self, domain: str) -> Deferred[Sequence[Exchange]]:
        """Exchangers, the most preferred first."""

    def addresses(self, host: str) -> Deferred[Sequence[str]]:
        """IPv4 and IPv6 addresses."""


@value
class _Looked:
    """An exchanger and what became of the look-up of its addresses."""

    exchange: Exchange
    addresses: Sequence[str]
    trouble: bool


class MX:
    """
    Finds candidates.

    *own* gives our own addresses, *own_names* our host names in lower case. A
    loopback or unspecified address is ours too, unless *loopback_is_own* is
    false. *families* are the IP versions to use, in the order of liking; they
    take turns. At most *hosts* exchangers with *addresses* addresses each.
    """

    def __init__(
        self,
        resolver: Names,
        *,
        own: Callable[[], Collection[str]],
        own_names: Collection[str],
        random: Random,
        families: Sequence[int] = (4, 6),
        hosts: int = 20,
        addresses: int = 5,
        loopback_is_own: bool = True,
    ) -> None:
        self._resolver = resolver
        self._own = own
        self.own_names = frozenset(name.lower().removesuffix(".") for name in own_names)
        self._random = random
        self._families = tuple(families)
        self._most_hosts = hosts
        self._most_addresses = addresses
        self._loopback_is_own = loopback_is_own

    def candidates(self, domain: bytes | str, port: int = 25) -> Deferred[list[Candidate]]:
        """Addresses to try for mail to *domain* (or ``[192.0.2.1]``), best first; fails with DeliveryFailure."""
        return Deferred.fromCoroutine(self._candidates(_text(domain), port))

    def addresses(self, host: bytes | str, port: int) -> Deferred[list[Candidate]]:
        """Addresses of a host that is named by a route: no MX, and it may be on this machine."""
        return Deferred.fromCoroutine(self._routed(_text(host), port))

    async def _routed(self, host: str, port: int) -> list[Candidate]:
        literal = _literal(host)
        found = [literal] if literal is not None else await self._of_domain(host)
        return [Candidate(host, address, port, 0) for address in self._order(found)] or _refuse(_unusable(host))

    async def _candidates(self, domain: str, port: int) -> list[Candidate]:
        literal = _literal(domain)
        if literal is not None:
            looked = [_Looked(Exchange(0, domain), [literal], trouble=False)]
        else:
            try:
                exchanges = await self._resolver.mx(domain)
            except NoData:
                looked = [_Looked(Exchange(0, domain), await self._of_domain(domain), trouble=False)]
            except DNSFailure as failure:
                raise DeliveryFailure(_reply(domain, failure)) from failure
            else:
                looked = await self._look_up(domain, exchanges)
        return self._usable(domain, looked, port)

    async def _of_domain(self, domain: str) -> Sequence[str]:
        try:
            return await self._resolver.addresses(domain)
        except DNSFailure as failure:
            raise DeliveryFailure(_reply(domain, failure)) from failure

    async def _look_up(self, domain: str, exchanges: Sequence[Exchange]) -> list[_Looked]:
        hosts = [exchange for exchange in exchanges if exchange.host]
        if not hosts:
            _refuse(Reply(556, "5.1.10", f"{domain} takes no mail (null MX)"))
        shuffled = list(hosts)
        self._random.shuffle(shuffled)
        shuffled.sort(key=lambda exchange: exchange.preference)
        return await gatherResults([self._look_up_one(exchange) for exchange in shuffled[: self._most_hosts]])

    def _look_up_one(self, exchange: Exchange) -> Deferred[_Looked]:
        def found(addresses: Sequence[str]) -> _Looked:
            return _Looked(exchange, addresses, trouble=False)

        def not_found(failure: Failure) -> _Looked:
            failure.trap(DNSFailure)
            return _Looked(exchange, (), trouble=failure.check(DNSTrouble) is not None)

        return self._resolver.addresses(exchange.host).addCallbacks(found, not_found)

    def _usable(self, domain: str, looked: list[_Looked], port: int) -> list[Candidate]:
        ours = self._our_preference(looked)
        better = [one for one in looked if ours is None or one.exchange.preference < ours]
        found = [
            Candidate(one.exchange.host, address, port, one.exchange.preference)
            for one in better
            for address in self._order(one.addresses)
        ]
        if found:
            return found
        # An exchanger that we could not look up may be the one to use: its trouble comes before any judgement.
        if any(one.trouble for one in better):
            _refuse(Reply(451, "4.4.3", f"no address of an exchanger of {domain} can be looked up for now"))
        if ours is not None:
            _refuse(Reply(554, "5.4.6", f"mail for {domain} loops back to myself"))
        return _refuse(_unusable(domain))

    def _our_preference(self, looked: Iterable[_Looked]) -> int | None:
        """The best preference under which we stand among the exchangers ourselves."""
        own = {_normal(address) for address in self._own()}
        ours = [
            one.exchange.preference
            for one in looked
            if one.exchange.host in self.own_names or any(self._is_own(address, own) for address in one.addresses)
        ]
        return min(ours, default=None)

    def _is_own(self, text: str, own: Collection[str]) -> bool:
        normal = _normal(text)
        if normal in own:
            return True
        address = ipaddress.ip_address(normal)
        return self._loopback_is_own and (address.is_loopback or address.is_unspecified)

    def _order(self, addresses: Sequence[str]) -> list[str]:
        """Shuffled, since a cache gives them in the same order for an hour; then one family after the other in turn."""
        families: dict[int, list[str]] = {family: [] for family in self._families}
        for text in addresses:
            address = ipaddress.ip_address(_normal(text))
            nobody = address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255"
            if address.version in families and not nobody:
                families[address.version].append(str(address))
        for members in families.values():
            self._random.shuffle(members)
        longest = max(map(len, families.values()), default=0)
        turns = [members[i] for i in range(longest) for members in families.values() if i < len(members)]
        return turns[: self._most_addresses]


def _refuse(reply: Reply) -> list[Candidate]:
    raise DeliveryFailure(reply)


def _reply(domain: str, failure: DNSFailure) -> Reply:
    if isinstance(failure, NoSuchDomain):
        return Reply(550, "5.1.2", f"{domain}: no such domain")
    if isinstance(failure, NoData):
        return Reply(550, "5.1.2", f"{domain} has neither an MX nor an address")
    return Reply(451, "4.4.3", f"{domain} can't be looked up for now")


def _unusable(domain: str) -> Reply:
    return Reply(550, "5.4.4", f"no exchanger of {domain} has an address that can be used")


def _text(domain: bytes | str) -> str:
    text = domain.decode("utf-8", "replace") if isinstance(domain, bytes) else domain
    return text.lower().removesuffix(".")


def _literal(domain: str) -> str | None:
    """The address of a literal (RFC 5321 4.1.3), or None for a name; fails with DeliveryFailure if it is neither."""
    if not domain.startswith("["):
        return None
    match = _LITERAL.fullmatch(domain)
    try:
        if match is not None:
            family = ipaddress.IPv6Address if match[1] else ipaddress.IPv4Address
            return str(family(match[2]))
    except ValueError:
        pass  # as if it did not match
    raise DeliveryFailure(Reply(550, "5.1.2", f"{domain} is no address literal"))


def _normal(text: str) -> str:
    """One spelling for each address; an IPv4 address in IPv6 clothes is the IPv4 address."""
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
