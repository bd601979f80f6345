"""
What the configuration says, as frozen objects: the only form the rest of qmq ever sees.

Every setting of settings.TABLES is an attribute here, with its default worked
out. Lookups cost the number of the domain's labels, not that of the domains.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from qmq.conf.settings import Handover
from qmq.conf.units import Network
from qmq.conf.written import Note, Written
from qmq.mail import Address, Octets, Seconds
from qmq.rules.environment import Raw
from qmq.rules.hosts import spellings, walk

Listen = tuple[str, int]  # interface ("": every IPv4 address) and port


@dataclass(frozen=True, slots=True)
class General:
    """[qmq]: what all roles share."""

    me: str
    user: str
    spool: str
    workers: int
    worker_memory: Octets | None
    worker_files: int | None  # None: as many as the system allows
    retired: tuple[tuple[str, str], ...]  # they are among Conf.instances, with role "retired"
    base: int
    log: str
    relay: tuple[Network, ...]
    stop: Seconds
    control: str  # folder of classic files; "" if there is none
    nameservers: tuple[tuple[str, int], ...]  # empty: those of /etc/resolv.conf
    log_format: str


@dataclass(frozen=True, slots=True)
class Primary:
    """
    [primary]: the ESMTP side and the hand-over. *checks* are names with the options of [check NAME].

    *environment* is what its words set for all clients, *listeners* those of
    [listen WORD] for who comes there, *clients* those of [client NET];
    *process* is what the process's variables set (qmq.conf.clients joins them).
    """

    listen: tuple[Listen, ...]
    checks: tuple[tuple[str, Mapping[str, str]], ...]
    rcpthosts: tuple[bytes, ...] | None  # None: the domains of all instances
    said_hosts: tuple[bytes, ...] | None  # those that control/rcpthosts cannot take away; None: it is not asked
    verdicts: str
    codes: str
    helo: str
    rules: str  # path; "": none
    reverse: str
    reverse_time: Seconds
    localiphost: str
    greeting: str
    databytes: Octets
    databytes_most: Octets
    line: Octets
    command: Octets
    header: Octets
    processes: int
    hops: int
    recipients: int
    errors: int
    timeout: Seconds
    session: Seconds
    sessions: int
    sessions_per_client: int
    limit_exempt: tuple[Network, ...]
    certificate: str
    key: str
    handover_time: Seconds
    handover_connections: int
    share: float
    retry: str
    lifetime: Seconds
    budget_messages: int
    budget_bytes: Octets
    budget_age: Seconds
    reserve: Octets
    inline: Octets
    environment: Raw
    listeners: Mapping[Listen, Raw]
    clients: tuple[tuple[Network, Raw], ...]
    process: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Instance:
    """
    A queue of its own.

    *id* is the number as it was written (``01``), for folders. *deliver* and
    the sites of *routes* are for qmq.deliver.dial, but that ``mx`` stands for
    the recipient's domain. Of two routes with one key the first counts. One
    that is *retired* has no domains, no number, and ``queue:NAME`` to deliver to.
    """

    id: str
    number: int
    name: str
    role: str
    domains: tuple[bytes, ...]
    deliver: bytes
    routes: tuple[tuple[bytes, bytes], ...]
    concurrency: int
    concurrency_per_host: int
    retry: str
    lifetime: Seconds
    bounce_lifetime: Seconds
    bouncefrom: str
    bouncehost: str
    doublebounceto: str | None
    bouncemaxbytes: Octets
    helohost: str
    bind: str
    spool: str
    handover: Handover
    process: str
    memory: Octets | None
    files: int | None
    timeoutconnect: Seconds
    timeoutremote: Seconds
    peers: tuple[Network, ...]
    qmq_peers: tuple[Network, ...]
    qmtp_listen: Listen | None
    databytes: Octets
    hops: int
    recipients: str  # absolute path; "": the primary's counts
    badmailfrom: str  # likewise; "": none of its own
    spf: int | None
    spam_threshold: float | None
    filter: str  # a command line; "": none
    filter_time: Seconds
    filter_processes: int
    callout: str
    delay_notice: Seconds | None
    limit_messages: int
    limit_bytes: Octets
    limit_disk: Octets | float | None  # a float: that share of its device
    limit_age: Seconds | None
    reserve: Octets
    reserve_inodes: int
    overflow: str  # "": none
    tls: str
    home: str
    _routes: Mapping[bytes, bytes] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_routes", dict(reversed(self.routes)))

    @property
    def default(self) -> bool:
        """Whether it gets the mail for every domain that is nobody's."""
        return b"*" in self.domains

    @property
    def retired(self) -> bool:
        """Whether it only gives away what is left in its queue."""
        return self.role == "retired"

    def route(self, domain: bytes) -> bytes | None:
        """The key of the route for this domain, or None: then *deliver* counts."""
        return next((key for key in walk(domain) if key in self._routes), None)

    def hop(self, key: bytes | None) -> bytes:
        """The site of the route with that key; *deliver* for None."""
        return self.deliver if key is None else self._routes[key]


@dataclass(frozen=True, slots=True)
class Conf:
    """
    The whole. *path* is conf-qmq's, absolute.

    *places* says who decided what: the place of ``section.key``, of
    ``NAME domain PATTERN`` and ``NAME route KEY``; ``NAME.`` is the instance's.
    *instances* ends with those that are retired.
    """

    path: str
    general: General
    primary: Primary
    instances: tuple[Instance, ...]
    warnings: tuple[Note, ...] = ()
    places: Mapping[str, Written] = field(default_factory=dict, repr=False)
    bounces: Instance | None = field(init=False, compare=False, repr=False)
    default: Instance | None = field(init=False, compare=False, repr=False)
    storm: Instance | None = field(init=False, compare=False, repr=False)
    _names: Mapping[str, Instance] = field(init=False, compare=False, repr=False)
    _owners: Mapping[bytes, Instance] = field(init=False, compare=False, repr=False)
    _accepted: frozenset[bytes] = field(init=False, compare=False, repr=False)
    _said: frozenset[bytes] = field(init=False, compare=False, repr=False)

    def at(self, only: Collection[str]) -> Conf:
        """
        As it is where the roles *only* run: they are at home here, wherever `handover` has others find them.

        So one file serves all hosts.
        """
        if not any(i.name in only and i.handover.host for i in self.instances):
            return self
        home = Handover("qmtp")
        here = tuple(replace(i, handover=home) if i.name in only else i for i in self.instances)
        return replace(self, instances=here)

    def __post_init__(self) -> None:
        owners: dict[bytes, Instance] = {}
        for instance in self.instances:
            for pattern in instance.domains:
                for key in spellings(pattern):
                    owners.setdefault(key, instance)
        rcpthosts = self.primary.rcpthosts
        accepted = set(owners) if rcpthosts is None else {key for pattern in rcpthosts for key in spellings(pattern)}
        said = {key for pattern in self.primary.said_hosts or () for key in spellings(pattern)}
        for name, found in (
            ("bounces", next((i for i in self.instances if i.role == "bounce"), None)),
            ("default", owners.get(b"")),
            ("storm", next((i for i in self.instances if i.role == "storm"), None)),
            ("_names", {instance.name: instance for instance in self.instances}),
            ("_owners", owners),
            # "*" is for relay clients: a default instance must not make an open relay.
            ("_accepted", frozenset(accepted - {b""})),
            ("_said", frozenset(said - {b""})),
        ):
            object.__setattr__(self, name, found)

    def instance(self, name: str) -> Instance:
        """The instance of that name; KeyError if there is none."""
        return self._names[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def owner(self, domain: bytes) -> tuple[Instance, bytes] | None:
        """Whose mail for *domain* is, and by which key: the domain, a suffix with its dot, b"" for ``*``."""
        for key in walk(domain or self.general.me.encode()):
            if (instance := self._owners.get(key)) is not None:
                return instance, key
        return None

    def instance_for(self, domain: bytes) -> Instance | None:
        """Whose mail for *domain* (lower case) is; an empty one is this gateway's own."""
        owners = self._owners
        if domain and (instance := owners.get(domain)) is not None:  # as most are
            return instance
        for key in walk(domain or self.general.me.encode()):
            if (instance := owners.get(key)) is not None:
                return instance
        return None

    def accepts(self, domain: bytes) -> bool:
        """Whether anybody may send to *domain* (qmail's rcpthosts); relay clients may send to all."""
        accepted = self._accepted
        return not domain or domain in accepted or any(key in accepted for key in walk(domain))

    def says(self, domain: bytes) -> bool:
        """Whether conf-qmq itself lets anybody send to *domain*, whatever control/rcpthosts says by now."""
        return any(key in self._said for key in walk(domain))


def site_for(instance: Instance, recipient: Address) -> bytes:
    """The site to deliver to, as qmq.deliver.dial wants it: by route, else *deliver*; ``mx`` becomes ``mx:DOMAIN``."""
    hop = instance.hop(instance.route(recipient.domain))
    if hop == b"mx":
        return b"mx:" + recipient.domain
    if b"mx" in (words := hop.split(b" ")):
        return b" ".join(b"mx:" + recipient.domain if word == b"mx" else word for word in words)
    return hop
