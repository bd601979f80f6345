"""
Who a new client is: its name, and what is set for it.

From weak to strong: the defaults, the process's variables, the words of
[primary], those of [listen WORD], its one rule of tcprules (SPAMCONTROL 2.1),
those of the narrowest [client NET]. What comes of it is made once for all whom
the same rule, listener and section cover, so that a connection costs look-ups.

A name is what DNS says that the address is called; who owns the address can
write there what it likes. So a rule that goes by the name counts only if the
name leads back to the address, and with ``confirmed`` any other is unknown.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from ipaddress import ip_address
from itertools import count
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, TimeoutError  # noqa: A004 - Twisted's own
from twisted.logger import Logger
from twisted.python.failure import Failure

from qmq.dns.query import DNSFailure
from qmq.dns.system import SystemFile, read_hosts
from qmq.mail import Octets, Reply, Seconds, value
from qmq.rules import tcprules
from qmq.rules.environment import Raw, environment, merged
from qmq.rules.nets import Net, Nets, loopback
from qmq.rules.tcprules import NO_RULES, Rule
from qmq.rules.watched import Files
from qmq.session import Environment, Session

_log = Logger()
UNKNOWN = "unknown"  # qmail's word for who has no name
_LASTS: Seconds = 60
_MOST_NAMES = 10_000
_MOST_MERGED = 2_000
# A name may have any octet in it (RFC 2181 11); ours go into header fields, logs and the variables of programs.
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")


@value
class Layers:
    """
    What a configuration sets for clients.

    *weak* are the layers below those of the listener, from weak to strong.
    *databytes* is what a client gets whose own DATABYTES is 0 or more than
    that. With *loopback_by_dns* the name servers know our own addresses too;
    else only /etc/hosts is asked for them (RFC 6303).
    """

    weak: tuple[Raw, ...] = ()
    listeners: Mapping[str, Raw] = field(default_factory=dict, hash=False)
    clients: Sequence[tuple[Net, Raw]] = ()
    rules: str = ""  # path of tcprules; "": none
    relay: Sequence[Net] = ()
    databytes: Octets = 0  # 0: any
    reverse: str = "yes"  # no, confirmed
    reverse_time: Seconds = 5
    loopback_by_dns: bool = False


@value
class Deny:
    """Nothing is taken from this client: say *reply*, and hang up (tcpserver only hung up)."""

    reply: Reply
    host: str


_DENIED = Reply(554, "5.7.1", "no mail is taken from you here")


@value
class _Name:
    """What a client is called; *sure*: the name leads back to it; None: nobody has asked yet."""

    host: str
    sure: bool | None
    expires: Seconds


class Clients:
    """
    Tells who a client is, for all listeners of one configuration.

    *files* reads the rules again when they have changed; a bad line in them is
    BadLine here, and a warning of *files* later. *resolver* provides ptr and
    addresses. *numbers* counts the connections, over a reload too if it is the
    old one's.
    """

    def __init__(
        self,
        layers: Layers,
        files: Files,
        resolver: Any,
        clock: Any,
        *,
        numbers: Iterator[int] | None = None,
        hosts: str = "/etc/hosts",
    ) -> None:
        self.numbers = numbers if numbers is not None else count(1)
        self._layers = layers
        self._files = files
        self._resolver = resolver
        self._clock = clock
        self._now: Callable[[], Seconds] = clock.seconds
        self._hosts = SystemFile(hosts, read_hosts, self._now)
        self._rules = files.watch(layers.rules, tcprules.read, NO_RULES) if layers.rules else None
        self._weak = merged(*layers.weak)
        self._sections: Nets[Raw] = Nets(layers.clients)
        self._relay: Nets[bool] = Nets((net, True) for net in layers.relay)
        self._names: OrderedDict[str, _Name] = OrderedDict()
        self._merged: dict[tuple[str, Rule | None, int, bool], Environment] = {}
        self._warned: set[str] = set()

    def session(
        self, client: str, port: int, server: str, server_port: int, listener: str = ""
    ) -> Session | Deny | Deferred[Session | Deny]:
        """
        The session of a new connection; a Deferred only if its name must be waited for.

        *client* is an IP address as Python writes it, IPv4 never as IPv6; "": it
        came by a unix socket, and is trusted. Never fails but with
        CancelledError, if it is cancelled.
        """
        number = next(self.numbers)
        self._files.look()

        def known(name: _Name) -> Session | Deny:
            found = self._found(client, listener, name)
            if isinstance(found, Deny):
                return found
            return Session(
                client, port, server, server_port, user=found.info, relay=found.relayclient is not None,
                host=found.variables.get("TCPREMOTEHOST", name.host).lower(), number=number, environment=found,
            )  # fmt: skip

        name = self._name(client)
        return known(name) if isinstance(name, _Name) else name.addCallback(known)

    def _found(self, ip: str, listener: str, name: _Name) -> Environment | Deny:
        rule = None
        if ip and self._rules is not None:
            rules = self._rules.now()
            for notice in rules.notices:
                self._notice(str(notice))
            rule = rules.find(ip, name.host if name.sure else "")
            if rule is not None and rule.deny:
                return Deny(_DENIED, name.host)
        return self._environment(ip, listener, rule)

    def _notice(self, text: str) -> None:
        if text not in self._warned and len(self._warned) < 100:
            self._warned.add(text)
            self._files.warn(text)

    def _environment(self, ip: str, listener: str, rule: Rule | None) -> Environment:
        section = self._sections.find(ip) if ip else None
        relay = not ip or self._relay.find(ip) is not None
        # By identity: a section lives as long as we do; a rule is held by this key.
        key = listener, rule, 0 if section is None else id(section), relay
        found = self._merged.get(key)
        if found is None:
            if len(self._merged) >= _MOST_MERGED:
                self._merged.clear()
            found = self._merged[key] = self._merge(listener, rule, section or {}, relay)
        return found

    def _merge(self, listener: str, rule: Rule | None, section: Raw, relay: bool) -> Environment:
        of_listener = self._layers.listeners.get(listener, {})
        raw = merged(self._weak, of_listener, rule.variables if rule is not None else {}, section)
        if relay:
            raw.setdefault("RELAYCLIENT", "")
        found = environment(raw)
        most = self._layers.databytes
        if most and not 0 < (found.databytes or 0) <= most:
            found = environment({**raw, "DATABYTES": str(most)})
        return found

    def _name(self, ip: str) -> _Name | Deferred[_Name]:
        """What a client is called, at once if that is known."""
        if not ip or self._layers.reverse == "no":
            return _Name(UNKNOWN, sure=False, expires=0)
        if not self._layers.loopback_by_dns and loopback(ip):
            names = self._hosts.content().names.get(ip)
            return _Name(names[0] if names else UNKNOWN, sure=bool(names), expires=0)
        known = self._names.get(ip)
        if (
            known is not None
            and 0 < known.expires - self._now() <= _LASTS
            and (known.sure is not None or not self._must_be_sure())
        ):
            return known
        asked = Deferred.fromCoroutine(self._ask(ip))
        asked.addTimeout(self._layers.reverse_time, self._clock)
        named: Deferred[_Name] = asked.addErrback(_trouble, ip).addCallback(self._remember, ip)
        return named.result if named.called and isinstance(named.result, _Name) else named

    def _must_be_sure(self) -> bool:
        return self._layers.reverse == "confirmed" or (self._rules is not None and self._rules.now().by_host)

    async def _ask(self, ip: str) -> tuple[str, bool | None]:
        names = await self._resolver.ptr(ip)
        host = names[0].lower().removesuffix(".") if names else ""
        if not _NAME.fullmatch(host):
            return UNKNOWN, False
        if not self._must_be_sure():
            return host, None
        try:
            addresses = await self._resolver.addresses(host)
        except DNSFailure:
            addresses = ()
        sure = any(ip_address(address) == ip_address(ip) for address in addresses)
        return (host if sure or self._layers.reverse == "yes" else UNKNOWN), sure

    def _remember(self, found: tuple[str, bool | None], ip: str) -> _Name:
        host, sure = found
        name = self._names[ip] = _Name(host, sure, self._now() + _LASTS)
        while len(self._names) > _MOST_NAMES:
            self._names.popitem(last=False)
        return name


def _trouble(failure: Failure, ip: str) -> tuple[str, bool | None]:
    """No name, no answer, or none in time. Whoever cancels us is not interested in any."""
    if failure.check(CancelledError):
        failure.raiseException()
    if not failure.check(DNSFailure, TimeoutError):
        _log.failure("the name of {ip} could not be found out", failure, ip=ip)
    return UNKNOWN, False
