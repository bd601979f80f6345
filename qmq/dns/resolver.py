"""
What the other rooms ask of DNS: exchangers, addresses, texts, names of addresses.

Answers are remembered as long as their TTL says, within [5 s, 1 h], negative
ones too (RFC 2308); trouble is not. Who asks what is being asked already
shares the answer. "localhost" and what stands in /etc/hosts is answered here
(RFC 6761 6.3). No search list: a mail domain is always whole.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import idna
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.python.failure import Failure

from qmq.dns.query import DNSFailure, DNSTrouble, NoData, NoSuchDomain, Query, Server
from qmq.dns.system import SystemFile, read_hosts, read_resolv_conf
from qmq.mail import Octets, Seconds, value

Name = str | bytes
Question = tuple[str, dns.rdatatype.RdataType]  # the name in lower case, without the final dot

A, AAAA = dns.rdatatype.A, dns.rdatatype.AAAA
MX, TXT, PTR = dns.rdatatype.MX, dns.rdatatype.TXT, dns.rdatatype.PTR

# Questions for one answer, following CNAMEs from message to message. Within a
# message dnspython stops after 16.
_CHASES = 8
# A name has at most 255 octets; with non-ASCII letters it may be longer before it is encoded.
_LONGEST_NAME = 1000


@value
class Exchange:
    """One MX record; an empty host is the null MX (RFC 7505)."""

    preference: int
    host: str


@value
class _Known:
    """An answer, or the failure that is one, until *expires* on the reactor's clock."""

    records: Sequence[Any] | DNSFailure
    expires: Seconds
    octets: Octets


class Resolver:
    """
    Asks the servers of *resolv_conf*, or *servers* if given.

    All answers are Deferreds that fail with NoSuchDomain, NoData or DNSTrouble
    alone; cancelling one leaves the others who ask the same alone. Names are
    str or bytes (UTF-8) and may be internationalised. *entries* and *octets*
    bound the memory of answers, *flights* the questions under way: one more is
    DNSTrouble at once. Of an answer the first 200 records are read. *reactor* provides IReactorFDSet, IReactorTCP and
    IReactorTime; *connect* makes the UDP sockets.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        servers: Sequence[Server] | None = None,
        resolv_conf: str = "/etc/resolv.conf",
        hosts: str = "/etc/hosts",
        timeout: Seconds = 5,
        tries: int = 2,
        entries: int = 10_000,
        octets: Octets = 32 << 20,
        flights: int = 500,
        shortest: Seconds = 5,
        longest: Seconds = 3600,
        connect: Callable[[Server], socket.socket] | None = None,
    ) -> None:
        self.hits = 0
        self.misses = 0
        self._clock: Callable[[], Seconds] = reactor.seconds
        self._query = Query(reactor, timeout, tries, connect)
        self._servers = servers
        self._resolv_conf = SystemFile(resolv_conf, read_resolv_conf, self._clock)
        self._hosts = SystemFile(hosts, read_hosts, self._clock)
        self._entries = entries
        self._octets = octets
        self._most_flights = flights
        self._shortest = shortest
        self._longest = longest
        self._cache: OrderedDict[Question, _Known] = OrderedDict()
        self._cached_octets = 0
        self._flights: dict[Question, list[Deferred[Sequence[Any]]]] = {}

    def mx(self, domain: Name) -> Deferred[Sequence[Exchange]]:
        """The exchangers of *domain*, the most preferred first."""
        return self._ask(domain, MX)

    def a(self, host: Name) -> Deferred[Sequence[str]]:
        """IPv4 addresses from DNS alone, in its order; for DNS lists and SPF."""
        return self._ask(host, A)

    def aaaa(self, host: Name) -> Deferred[Sequence[str]]:
        """IPv6 addresses from DNS alone, in its order."""
        return self._ask(host, AAAA)

    def txt(self, name: Name) -> Deferred[Sequence[bytes]]:
        """The texts of *name*, the strings of each joined."""
        return self._ask(name, TXT)

    def addresses(self, host: Name) -> Deferred[Sequence[str]]:
        """
        IPv4 and then IPv6 addresses of *host*, from /etc/hosts or DNS.

        Trouble with one family does not matter where the other has addresses.
        """
        text = host.decode("utf-8", "replace") if isinstance(host, bytes) else host
        if local := self._local(text.lower().removesuffix(".")):
            return succeed(local)
        asked = [self._ask(text, A), self._ask(text, AAAA)]
        return gatherResults([d.addErrback(_as_value) for d in asked]).addCallback(_both)

    def ptr(self, ip: str) -> Deferred[Sequence[str]]:
        """The names of an IP address, from /etc/hosts or DNS."""
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            return fail(NoSuchDomain(f"{ip!r} is no IP address"))
        if names := self._hosts.content().names.get(str(address)):
            return succeed(names)
        return self._ask(address.reverse_pointer, PTR)

    def _local(self, host: str) -> Sequence[str]:
        if host == "localhost" or host.endswith(".localhost"):
            return ("127.0.0.1", "::1")
        try:
            return (str(ipaddress.ip_address(host)),)
        except ValueError:
            return self._hosts.content().addresses.get(host, ())

    def _ask(self, name: Name, kind: dns.rdatatype.RdataType) -> Deferred[Sequence[Any]]:
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
        question = (text.lower().removesuffix("."), kind)
        if (known := self._recall(question)) is not None:
            self.hits += 1
            return fail(_fresh(known.records)) if isinstance(known.records, DNSFailure) else succeed(known.records)
        try:
            asked = absolute(name)
        except NoSuchDomain as failure:
            return fail(_fresh(failure))
        self.misses += 1
        waiters = self._flights.get(question)
        if waiters is None:
            if len(self._flights) >= self._most_flights:
                return fail(DNSTrouble("too many questions under way"))
            waiters = self._flights[question] = []
            answer: Deferred[Sequence[Any]] = Deferred(waiters.remove)
            waiters.append(answer)
            Deferred.fromCoroutine(self._find(question, asked)).addBoth(self._landed, question)
        else:
            answer = Deferred(waiters.remove)
            waiters.append(answer)
        return answer

    def _landed(self, result: Sequence[Any] | Failure, question: Question) -> None:
        waiters = self._flights.pop(question)
        if not isinstance(result, Failure):
            for waiter in waiters[:]:
                waiter.callback(result)
            return
        failure = result.value
        if not isinstance(failure, DNSFailure):  # a hole in our reading: whoever asks must get an answer
            failure = DNSTrouble(f"{type(failure).__name__}: {failure}")
        for waiter in waiters[:]:
            waiter.errback(_fresh(failure))

    async def _find(self, question: Question, name: dns.name.Name) -> Sequence[Any]:
        asked, kind = question
        servers = self._servers if self._servers is not None else self._resolv_conf.content()
        ttl = float(self._longest)
        octets = 200
        for _ in range(_CHASES):
            answer = await self._query.ask(servers, name, kind)
            try:
                chain = answer.resolve_chaining()
            except dns.exception.DNSException as nonsense:  # a loop, or an answer for a name that does not exist
                raise DNSTrouble(f"{_text(name)}: {type(nonsense).__name__}") from nonsense
            ttl = min(ttl, chain.minimum_ttl)
            octets += len(answer.wire or b"")
            if chain.answer is not None:
                records = _values(kind, chain.answer)
                self._remember(question, records, ttl, octets)
                return records
            failure: DNSFailure
            if answer.rcode() == dns.rcode.NXDOMAIN:
                failure = NoSuchDomain(f"no such domain: {asked}")
            elif chain.canonical_name == name or _has_soa(answer):
                failure = NoData(f"{asked} has no {kind.name} record")
            else:
                name = chain.canonical_name
                continue
            self._remember(question, failure, ttl, octets)
            raise _fresh(failure)
        raise DNSTrouble(f"{asked}: too many CNAMEs")

    def _recall(self, question: Question) -> _Known | None:
        known = self._cache.get(question)
        if known is None:
            return None
        # Far in the future: the clock was put back.
        if not 0 < known.expires - self._clock() <= self._longest:
            self._forget(question)
            return None
        self._cache.move_to_end(question)
        return known

    def _remember(self, question: Question, records: Sequence[Any] | DNSFailure, ttl: Seconds, octets: Octets) -> None:
        if question in self._cache:
            self._forget(question)
        lasts = min(max(ttl, self._shortest), self._longest)
        self._cache[question] = _Known(records, self._clock() + lasts, octets)
        self._cached_octets += octets
        while len(self._cache) > self._entries or self._cached_octets > self._octets:
            self._forget(next(iter(self._cache)))

    def _forget(self, question: Question) -> None:
        self._cached_octets -= self._cache.pop(question).octets


def absolute(name: Name) -> dns.name.Name:
    """
    The name as DNS has it: A-labels, rooted, no escapes; raises NoSuchDomain for what can be no name.

    Text is not unescaped: a backslash is a backslash, a dot parts labels.
    """
    if len(name) > _LONGEST_NAME:
        raise NoSuchDomain("a name of more than 255 octets")
    try:
        text = name.decode("utf-8") if isinstance(name, bytes) else name
        text = text.lower().removesuffix(".")
        encoded = text.encode("ascii") if text.isascii() else idna.encode(text, uts46=True)
        return dns.name.Name([*encoded.split(b"."), b""])
    except (UnicodeError, dns.exception.DNSException) as failure:  # IDNAError is a UnicodeError
        raise NoSuchDomain(f"{name!r} is no domain name") from failure


def _fresh(failure: DNSFailure) -> DNSFailure:
    """The same, never raised: one that was holds on to the frames it went through."""
    return type(failure)(*failure.args)


def _text(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _values(kind: dns.rdatatype.RdataType, records: Any) -> Sequence[Any]:
    """Plain values: the parsed records of an answer weigh many times as much."""
    if kind == MX:
        found = [Exchange(r.preference, "" if r.exchange == dns.name.root else _text(r.exchange)) for r in records]
        return tuple(sorted(found, key=lambda exchange: exchange.preference))
    if kind == TXT:
        return tuple(b"".join(r.strings) for r in records)
    if kind == PTR:
        return tuple(_text(r.target) for r in records)
    return tuple(r.address for r in records)


def _has_soa(answer: dns.message.QueryMessage) -> bool:
    """RFC 2308 2.2: with a SOA record in it, the answer is whole, and says that there is no data."""
    return any(records.rdtype == dns.rdatatype.SOA for records in answer.authority)


def _as_value(failure: Failure) -> DNSFailure:
    failure.trap(DNSFailure)
    return cast("DNSFailure", failure.value)


def _both(results: Sequence[Sequence[str] | DNSFailure]) -> Sequence[str]:
    failures = [result for result in results if isinstance(result, DNSFailure)]
    addresses = [address for result in results if not isinstance(result, DNSFailure) for address in result]
    if addresses:
        return tuple(addresses)
    for failure in failures:
        if isinstance(failure, DNSTrouble):
            raise failure
    raise failures[0]
