"""
check_host(): what a domain says of a client (RFC 7208 4 to 6).

One Check is one evaluation with all that it includes. What it may cost is
counted across all records (RFC 7208 4.6.4): terms that ask DNS, terms that
found nothing there, hosts of an MX, names of an address. So no domain can
make us ask more than some 120 questions, and a loop ends by itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Sequence
from typing import Any

from qmq.dns import DNSFailure, DNSTrouble, NoData, NoSuchDomain
from qmq.mail import value
from qmq.spf.client import Client, query_name
from qmq.spf.macro import BadMacro, Template, expand, letters, template
from qmq.spf.record import BadRecord, Mechanism, Record, Result, is_record, parse

# RFC 7208 4.6.4.
_TERMS = 10
_HOSTS = 10


@value
class Limits:
    """How many terms may ask DNS, and how many of them in vain (RFC 7208 4.6.4)."""

    terms: int = _TERMS
    voids: int = 2


@value
class Outcome:
    """A result, and where it comes from."""

    result: Result
    mechanism: str = ""  # what matched, as it stood in the record
    problem: str = ""  # of temperror and permerror, for people
    domain: str = ""  # in whose record
    explanation: Template | None = None  # the exp= of that record


class _Stop(Exception):
    """Ends the check, wherever it is."""

    def __init__(self, result: Result, problem: str) -> None:
        super().__init__(problem)
        self.outcome = Outcome(result, problem=problem)


class Check:
    """
    Asks *resolver* (qmq.dns.Resolver) whether *client* may send mail of its domain.

    *rules* are local ones (SPAMCONTROL 2.2, spflocalrules): looked at before the
    domain's record would refuse everybody else (the last terms of one
    qualifier that end in all), before the default result, and if there is no
    record. Their questions are counted apart.
    """

    def __init__(
        self, resolver: Any, client: Client, limits: Limits, rules: Sequence[Mechanism] = (), time: str = "0"
    ) -> None:
        self._resolver = resolver
        self._client = client
        self._limits = limits
        self._rules = rules
        self._meanings = {**client.meanings, "t": time}
        self._four = isinstance(client.ip, ipaddress.IPv4Address)
        self._terms = 0
        self._voids = 0
        self._names: Sequence[str] | None = None  # of the client, once validated

    async def outcome(self) -> Outcome:
        """The result of the client's domain; never fails but by being cancelled."""
        domain = self._client.domain
        if not domain:
            return Outcome(Result.NONE, problem="no domain name to ask for")
        try:
            return await self._judge(domain, self._rules)
        except _Stop as stop:
            return stop.outcome

    async def explanation(self, outcome: Outcome) -> str | None:
        """The domain's own words to a fail, expanded but not made safe; None if it has none (RFC 7208 6.2)."""
        if outcome.explanation is None:
            return None
        try:
            name = await self._target(outcome.explanation, outcome.domain)
            if not name or len(texts := await self._resolver.txt(name)) != 1:
                return None
            return await self.expanded(template(texts[0].decode("ascii"), explanation=True), outcome.domain)
        except (DNSFailure, BadMacro, UnicodeDecodeError, _Stop):
            return None

    async def expanded(self, of: Template, domain: str) -> str:
        """The text of a template; *domain* is what %{d} means."""
        meanings = self._meanings | {"d": domain}
        if "p" in letters(of):
            meanings["p"] = await self._name(domain)
        return expand(of, meanings)

    async def _judge(self, domain: str, rules: Sequence[Mechanism]) -> Outcome:
        redirected = False
        while True:
            record = await self._record(domain)
            if record is None:
                return await self._nothing(domain, rules, redirected=redirected)
            place = _before_refusals(record) if rules else -1
            for index, mechanism in enumerate(record.mechanisms):
                if index == place and (found := await self._locally(rules, domain)):
                    return found
                if await self._matches(mechanism, domain):
                    return Outcome(mechanism.result, mechanism.text, "", domain, record.explanation)
            if record.redirect is None:
                found = await self._locally(rules, domain)
                return found or Outcome(Result.NEUTRAL, "default", "", domain)
            self._count_term()
            target = await self._target(record.redirect, domain)
            if not target:
                raise _Stop(Result.PERMERROR, f"{domain} redirects to no domain")
            domain, redirected = target, True

    async def _nothing(self, domain: str, rules: Sequence[Mechanism], *, redirected: bool) -> Outcome:
        """There is no record."""
        if redirected:  # RFC 7208 6.1
            raise _Stop(Result.PERMERROR, f"redirect to {domain}, which has no record")
        found = await self._locally(rules, domain)
        return found or Outcome(Result.NONE, problem=f"{domain} has no record", domain=domain)

    async def _locally(self, rules: Sequence[Mechanism], domain: str) -> Outcome | None:
        """What local rules say, if anything; their errors are no match, but trouble is trouble."""
        if not rules:
            return None
        counted = self._terms, self._voids
        self._terms = self._voids = 0
        try:
            for mechanism in rules:
                if await self._matches(mechanism, domain):
                    return Outcome(mechanism.result, mechanism.text, "", domain)
        except _Stop as stop:
            if stop.outcome.result is Result.TEMPERROR:
                raise
        finally:
            self._terms, self._voids = counted
        return None

    async def _record(self, domain: str) -> Record | None:
        try:
            texts = await self._resolver.txt(domain)
        except (NoSuchDomain, NoData):
            return None
        except DNSTrouble as trouble:
            raise _Stop(Result.TEMPERROR, str(trouble)) from trouble
        records = [text for text in texts if is_record(text)]
        if not records:
            return None
        if len(records) > 1:
            raise _Stop(Result.PERMERROR, f"{domain} has {len(records)} records")
        try:
            return parse(records[0])
        except BadRecord as error:
            raise _Stop(Result.PERMERROR, f"the record of {domain}: {error}") from error

    async def _matches(self, mechanism: Mechanism, domain: str) -> bool:
        kind = mechanism.kind
        if kind == "all":
            return True
        if kind in {"ip4", "ip6"}:
            return self._four == (kind == "ip4") and self._within(mechanism.network, mechanism)
        self._count_term()
        if mechanism.target is None:
            target = domain
        elif not (target := await self._target(mechanism.target, domain)) and kind != "include":
            return False  # it cannot be in DNS (suite: invalid-domain-*)
        match kind:
            case "include":
                return await self._included(mechanism, target)
            case "a":
                return any(self._within(n, mechanism) for n in await self._addresses(target, counted=True))
            case "mx":
                return await self._exchanged(mechanism, target)
            case "ptr":
                under = "." + target.lower()
                return any(("." + name).endswith(under) for name in await self._validated())
            case _:  # exists: A, for IPv6 clients too (RFC 7208 5.7)
                return bool(await self._found(self._resolver.a(target), counted=True))

    async def _included(self, mechanism: Mechanism, target: str) -> bool:
        """RFC 7208 5.2, and RFC 8616 4 for a local part that cannot be in DNS."""
        if not target and mechanism.target is not None and letters(mechanism.target) & {"s", "l"}:
            return False
        outcome = await self._judge(target, ()) if target else Outcome(Result.NONE)
        if outcome.result is Result.NONE:
            raise _Stop(Result.PERMERROR, f"{mechanism.text[:60]} has no record")
        return outcome.result is Result.PASS

    async def _exchanged(self, mechanism: Mechanism, target: str) -> bool:
        exchangers = await self._found(self._resolver.mx(target), counted=True)
        if len(exchangers) > _HOSTS:
            raise _Stop(Result.PERMERROR, f"{target} has more than {_HOSTS} MX")
        found = False
        for exchanger in exchangers:
            numbers = await self._addresses(exchanger.host, counted=False) if exchanger.host else ()
            if any(self._within(number, mechanism) for number in numbers):
                return True
            found = found or bool(numbers)
        if exchangers and not found:
            self._count_void()  # the term's one, however many hosts it named
        return False

    async def _addresses(self, host: str, *, counted: bool) -> Sequence[int]:
        """Those of the client's family."""
        ask, family = (self._resolver.a, socket.AF_INET) if self._four else (self._resolver.aaaa, socket.AF_INET6)
        texts = await self._found(ask(host), counted=counted)
        return [int.from_bytes(socket.inet_pton(family, text), "big") for text in texts]

    def _within(self, network: int, mechanism: Mechanism) -> bool:
        shift = 32 - mechanism.prefix4 if self._four else 128 - mechanism.prefix6
        return (network ^ self._client.number) >> shift == 0

    async def _found(self, answer: Awaitable[Sequence[Any]], *, counted: bool) -> Sequence[Any]:
        """Records, or none; *counted*: a void lookup counts."""
        try:
            return await answer
        except (NoSuchDomain, NoData):
            if counted:
                self._count_void()
            return ()
        except DNSTrouble as trouble:
            raise _Stop(Result.TEMPERROR, str(trouble)) from trouble

    async def _target(self, of: Template, domain: str) -> str:
        """What to ask DNS for, or "" if that cannot be asked."""
        if not self._client.local.isascii() and letters(of) & {"s", "l"}:
            return ""  # RFC 8616 4: matches nothing, escaped neither
        return query_name(await self.expanded(of, domain))

    async def _validated(self) -> Sequence[str]:
        """The client's names that have its address too, asked for once (RFC 7208 5.5); trouble is no name."""
        if self._names is not None:
            return self._names
        found: list[str] = []
        self._names = found
        try:
            names = await self._resolver.ptr(str(self._client.ip))
        except DNSTrouble:
            return found
        except DNSFailure:
            self._count_void()
            return found
        for name in names[:_HOSTS]:
            try:
                numbers = await self._addresses(name, counted=False)
            except _Stop:
                continue
            if self._client.number in numbers:
                found.append(name.lower())
        return found

    async def _name(self, domain: str) -> str:
        """%{p}: the domain itself, else a name in it, else any, else "unknown" (RFC 7208 7.3)."""
        names, domain = await self._validated(), domain.lower()
        best = [name for name in names if name == domain] or [name for name in names if name.endswith("." + domain)]
        return (best or [*names, "unknown"])[0]

    def _count_term(self) -> None:
        self._terms += 1
        if self._terms > self._limits.terms:
            raise _Stop(Result.PERMERROR, f"more than {self._limits.terms} terms that ask DNS")

    def _count_void(self) -> None:
        self._voids += 1
        if self._voids > self._limits.voids:
            raise _Stop(Result.PERMERROR, f"more than {self._limits.voids} terms that found nothing in DNS")


def _before_refusals(record: Record) -> int:
    """Where the last terms of one qualifier, not +, begin that end in all; -1: there is no such end."""
    terms = record.mechanisms
    end = next((index for index, mechanism in enumerate(terms) if mechanism.kind == "all"), -1)
    if end < 0 or terms[end].result is Result.PASS:
        return -1
    while end and terms[end - 1].result is terms[end].result:
        end -= 1
    return end
