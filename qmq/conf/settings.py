"""
The one table of settings: it drives parsing, defaults, bounds, hints and the reference in docs/conf-qmq.md.

A default is written as an operator would write it and read by the same
function. Where it depends on other settings it is empty here, *shown* says
what it is, and load.py works it out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qmq.conf import units
from qmq.conf.read import SPOOL
from qmq.conf.units import BadValue
from qmq.conf.words import WORDS
from qmq.deliver.dial import parse_site
from qmq.queue.schedule import parse_schedule


@dataclass(frozen=True, slots=True)
class Handover:
    """How mail comes to an instance; an empty host means this one, where qmq runs it itself."""

    protocol: str
    host: str = ""
    port: int = 0


def handover(text: str) -> Handover:
    """``qmtp``, ``smtp`` or ``lmtp``; with ``:HOST:PORT`` to another host; ``qmq:HOST:PORT``: with our extension."""
    protocol, colon, where = text.partition(":")
    ports = {"qmtp": 209, "qmq": 209, "smtp": 25, "lmtp": 24}
    if protocol not in ports:
        raise BadValue(f"{text!r} is no way to hand over", "write qmtp, or qmtp:HOST:PORT, smtp:HOST, lmtp:HOST")
    if protocol == "qmq" and not colon:
        raise BadValue("qmq is the way to another gateway", "write qmq:HOST:PORT; here, qmtp is enough")
    return Handover(protocol, *units.host_port(where, ports[protocol])) if colon else Handover(protocol)


def handover_text(way: Handover) -> str:
    """The text that *handover* reads back as *way*."""
    return f"{way.protocol}:{units.host_port_text((way.host, way.port))}" if way.host else way.protocol


def site(text: str) -> bytes:
    """One next hop: ``mx``, or ``smtp:``, ``lmtp:``, ``qmtp:`` and ``HOST[:PORT]``."""
    raw = text.encode()
    if raw != b"mx":
        try:
            parse_site(raw)
        except ValueError as bad:
            raise BadValue(str(bad)) from None  # it says what to write
    return raw


def route(text: str) -> tuple[bytes, bytes]:
    """``DOMAIN=SITE``: an exception to `deliver`, for one domain; ``*`` for every other."""
    key, equals, hop = text.partition("=")
    if not equals:
        raise BadValue(f"{text!r} is no route", "write DOMAIN=SITE, such as shop.example.org=smtp:192.0.2.7")
    pattern = units.domain_pattern(key)
    return (b"" if pattern == b"*" else pattern), site(hop)


def route_text(said: tuple[bytes, bytes]) -> str:
    """The text that *route* reads back as *said*."""
    return f"{said[0].decode() or '*'}={said[1].decode()}"


def schedule(text: str) -> str:
    """The times of retries, as qmq.queue.schedule reads them."""
    try:
        parse_schedule(text)
    except ValueError as bad:
        raise BadValue(str(bad)) from None  # it says what to write
    return text


def word(text: str) -> str:
    """A name without blanks, brackets or colons."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", text):
        raise BadValue(f"{text!r} is no name", "use letters, digits, '.', '_' and '-'")
    return text


def line(text: str) -> str:
    """Printable ASCII text of one line, as it can stand in an SMTP reply."""
    if not re.fullmatch(r"[\x20-\x7e]*", text):
        raise BadValue("only printable ASCII can stand there", "write one line of plain text")
    return text


def retired(text: str) -> tuple[str, str]:
    """``OLD=NEW``: an instance that is no more, and the one that gets what is left in its queue."""
    old, equals, new = text.partition("=")
    if not equals:
        raise BadValue(f"{text!r} does not say where its mail goes", "write OLD=NEW, such as customer7=internet")
    return word(old), word(new)


def path(text: str) -> str:
    """A path; load.py makes it absolute, from the folder of the file that says it."""
    return text


def log(text: str) -> str:
    """``-`` for standard output, or a path."""
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """
    One line of the reference.

    *each*: the value is a row of words, each read by *parse*; "rows": of
    lines. Out of *floor* and *ceiling* is an error, in classic files a warning.
    *text* is the inverse of *parse*; *nothing* says what is not set.
    """

    key: str
    parse: Callable[[str], Any]
    default: str
    help: str
    shown: str = ""
    each: str = ""
    floor: float | None = None
    ceiling: float | None = None
    text: Callable[[Any], str] = str
    nothing: str = "none"

    @property
    def field(self) -> str:
        """The attribute of General, Primary or Instance that has the value."""
        return self.key.replace("-", "_")

    def said(self, value: Any) -> str:
        """*value*, of a row a tuple, as an operator would write it."""
        if value is None or value in ("", ()):
            return self.nothing
        return " ".join(map(self.text, value)) if self.each else self.text(value)


def _time(key: str, default: str, help_: str, floor: float | None = 1, ceiling: float | None = None) -> Setting:
    return Setting(key, units.duration, default, help_, floor=floor, ceiling=ceiling, text=units.duration_text)


def _networks(key: str, default: str, help_: str, shown: str = "") -> Setting:
    return Setting(key, units.network, default, help_, shown, each="words", text=units.network_text)


def _size(key: str, default: str, help_: str, shown: str = "", floor: float | None = None) -> Setting:
    return Setting(key, units.octets, default, help_, shown, floor=floor, text=units.octets_text)


def _count(key: str, default: str, help_: str, shown: str = "", **more: Any) -> Setting:
    return Setting(key, units.count, default, help_, shown, **more)


_RESOLV = "those of /etc/resolv.conf"
_DOMAINS = "all instances' domains"
_ALL_FILES = "as many as the system allows"
# In the order of SPAMCONTROL 2.5. All but rcpthosts do nothing until they are asked to.
OWN_CHECKS = (
    "greetdelay", "dnsbl", "badhelo", "mfdnscheck", "rcpthosts", "tarpit", "recipients", "callout", "spf",
    "localmfcheck", "badmailfrom", "badrcptto", "databytes", "maxrecipients", "warlord", "qhpsi",
    "spamdomains", "qmailqueue",
)  # fmt: skip

GENERAL = (
    Setting("me", units.host_name, "", "this gateway's host name", "control/me; one of the two must say it"),
    Setting("user", str, "", "account to become once the ports are open", "stay who started it",
            nothing="whoever starts it"),
    Setting("spool", path, SPOOL, "folder of the stores, one below it for each instance"),
    _count("workers", "", "processes for the instances; 0: everything in one process", "cores - 1, at least 1",
           ceiling=256),
    Setting("worker-memory", units.or_none("none", units.octets), "2G",
            "memory of one worker; past it it is ended and started again; none: no bound",
            floor=64 << 20, text=units.octets_text),
    _count("worker-files", "", "descriptors of one worker", _ALL_FILES, floor=64, nothing=_ALL_FILES),
    Setting("retired", retired, "",
            "OLD=NEW: OLD is no instance any more, what is left in its queue goes to NEW's",
            "none", each="words", text="=".join),
    _count("base", "", "an instance's QMTP port is base + number", "11000; with classic files 1000 if it can be had",
           floor=0, ceiling=65535),
    Setting("log", log, "-", "file of the log, - for standard output"),
    _networks("relay", "", "clients that may send to any domain", "none"),
    _time("stop", "10s", "how long to wait at a stop for what is under way", floor=0),
    Setting("control", path, "control", "qmail's control folder of the primary, if there is one"),
    Setting("nameservers", units.name_server, "", "who is asked for names, HOST[:PORT]", _RESOLV,
            each="words", text=units.host_port_text, nothing=_RESOLV),
    Setting("log-format", units.one_of("classic", "multilog", "json"), "classic",
            "lines as SPAMCONTROL's; the same with multilog's time stamps; or JSON objects"),
)  # fmt: skip

PRIMARY = (
    Setting("listen", units.listen, "tcp:25", "where clients come by SMTP", each="words", text=units.host_port_text),
    Setting("checks", word, " ".join(OWN_CHECKS), "checks in their order; options in [check NAME]", each="words"),
    Setting("verdicts", units.one_of("rcpt", "at-once"), "rcpt",
            "when a client, its HELO or its sender is refused: at each RCPT, so that the log has both, or at once"),
    Setting("codes", units.one_of("rfc", "classic"), "rfc",
            "enhanced codes where RFC 2034 wants them, or as (#5.7.1) behind the text"),
    Setting("helo", units.one_of("optional", "required"), "optional", "whether MAIL needs a HELO before it"),
    Setting("rules", path, "", "tcprules, as text or compiled (.cdb); none",
            "tcp.smtp(.cdb) here, tcp.smtp or rules.smtpd(.cdb) in control"),
    Setting("reverse", units.one_of("yes", "no", "confirmed"), "yes",
            "whether a client's name is looked up; confirmed: a name that does not lead back is unknown"),
    _time("reverse-time", "5s", "so long the name is waited for; then it is unknown", floor=0.1, ceiling=60),
    Setting("localiphost", units.host_name, "", "our name for recipients at [our IP address]", "me"),
    Setting("rcpthosts", units.domain_pattern, "", "take mail for these domains only", _DOMAINS,
            each="words", text=bytes.decode, nothing=_DOMAINS),
    Setting("greeting", line, "", "the banner's text; its first word is a host name", "me"),
    _size("databytes", "50M", "largest message", floor=65536),
    _size("databytes-most", "1G", "largest message of clients whose own databytes is larger, or none", floor=65536),
    _size("line", "64K", "longest line of a message", floor=1000),
    _size("command", "2K", "longest command line", floor=512),
    _size("header", "1M", "longest header", floor=65536),
    _count("processes", "1", "processes that take mail; 1: the main process does", floor=1, ceiling=64),
    _count("hops", "100", "Received fields at which a message counts as looping", floor=10),
    _count("recipients", "1000", "recipients of one message", floor=100),
    _count("errors", "100", "errors of one client before it is cut off", floor=1),
    _time("timeout", "300s", "a silent client is cut off", floor=300),
    _time("session", "1h", "longest session", floor=300),
    _count("sessions", "1000", "clients at once", floor=1),
    _count("sessions-per-client", "50", "clients at once from one address", floor=1),
    _networks("limit-exempt", "", "clients without the limit above", "none"),
    Setting("certificate", path, "", "PEM file of the certificate and its chain, for STARTTLS", "no STARTTLS"),
    Setting("key", path, "", "PEM file of its key", "in the certificate's file"),
    # The usual client waits 300 s for our answer; twice the limit of a hand-over must fit (RFC 5321 4.5.3.2.6: 10 min).
    _time("handover-time", "120s", "limit of one hand-over, the instance's filters included", ceiling=120),
    _count("handover-connections", "4", "connections to each instance", floor=1),
    Setting("share", units.share, "0.1", "part of the sessions that may wait for one instance",
            text=units.share_text),
    Setting("retry", schedule, "1s 2s 5s 10s*6 30s*10 1m*60 5m", "when hand-overs are tried again"),
    _time("lifetime", "7d", "how long a hand-over is tried"),
    _count("budget-messages", "100000", "messages kept here for one instance; then 452 for that one", floor=1),
    _size("budget-bytes", "10G", "octets kept here for one instance; then 452"),
    _time("budget-age", "7d", "age of the oldest kept here for one instance; then 452"),
    _size("reserve", "100M", "free disk below which MAIL gets 452"),
    _size("inline", "128K", "bodies up to this are stored in the database, longer ones as files"),
)  # fmt: skip

INSTANCE = (
    Setting("role", units.one_of("normal", "bounce", "storm"), "normal",
            "bounce: sends the bounces of all; storm: set aside for floods, gets what its domains say"),
    Setting("domains", units.domain_pattern, "",
            "whose mail it gets: example.org, .example.org (below it), * (every other)", "none", each="words",
            text=bytes.decode),
    Setting("deliver", site, "mx",
            "next hop: mx, smtp:HOST[:PORT], lmtp:..., qmtp:...; several: tried in this order", each="words",
            text=bytes.decode),
    Setting("route", route, "",
            "exceptions, DOMAIN=SITE, one a line; classic: smtproutes, qmtproutes", "none", each="words",
            text=route_text),
    _count("concurrency", "120", "deliveries at once; 0: hold"),
    _count("concurrency-per-host", "20", "deliveries at once to one host", floor=1),
    Setting("retry", schedule, "quadratic 20", "when to try again: qmail's, or times such as 1m 5m*3 1h*6 4h"),
    _time("lifetime", "7d", "how long a message is tried"),
    _time("bounce-lifetime", "1d", "how long a bounce is tried"),
    Setting("bouncefrom", str, "MAILER-DAEMON", "local part of the sender that bounces show"),
    Setting("bouncehost", units.host_name, "", "its domain", "me"),
    Setting("doublebounceto", units.or_none("none", units.mailbox), "",
            "who gets bounces that cannot be delivered; none", "postmaster@ me"),
    _size("bouncemaxbytes", "64K", "of the message, so much goes into its bounce"),
    Setting("helohost", units.host_name, "", "the name in EHLO", "me"),
    Setting("bind", units.address_or_nothing, "", "source address of deliveries", "any", nothing="any"),
    Setting("spool", path, "", "folder of its store, on a device of its own if wanted", "NAME below spool of [qmq]"),
    Setting("handover", handover, "qmtp",
            "how it gets mail: qmtp, smtp or lmtp; with :HOST:PORT it is on another host; "
            "qmq:HOST:PORT if qmq runs there", text=handover_text),
    Setting("process", units.one_of("shared", "own"), "shared", "own: a worker process of its own"),
    Setting("memory", units.or_none("none", units.octets), "",
            "with process = own: memory of its worker; none: no bound", "worker-memory of [qmq]",
            floor=64 << 20, text=units.octets_text),
    _count("files", "", "with process = own: descriptors of its worker", "worker-files of [qmq]", floor=64,
           nothing=_ALL_FILES),
    _time("timeoutconnect", "60s", "limit of one connection attempt"),
    _time("timeoutremote", "300s", "limit of each wait for the next hop's answer"),
    _networks("peers", "127.0.0.1 ::1", "who may bring mail by QMTP over TCP"),
    _networks("qmq-peers", "",
              "other gateways that may hand over by QMTP with our extension; they are trusted like ourselves", "none"),
    Setting("qmtp-listen", units.or_none("none", units.listen), "", "where it listens for QMTP; none",
            "127.0.0.1, base + number", text=units.host_port_text),
    _size("databytes", "50M", "largest message", floor=65536),
    _count("hops", "100", "Received fields at which a message counts as looping", floor=10),
    Setting("recipients", path, "", "file of the recipients it knows, as control/recipients", "the primary's",
            nothing="the primary's"),
    Setting("badmailfrom", path, "", "senders it does not want, beside the primary's control/badmailfrom", "none"),
    Setting("spf", units.or_none("none", units.spf_level), "none",
            "SPF level for its recipients, 0 to 6; none: the client's"),
    Setting("spam-threshold", units.or_none("none", units.number), "none",
            "spam score from which on its mail is refused, -1: not scanned; none: what control/spamdomains says",
            text=units.number_text),
    Setting("filter", line, "",
            "program that judges its mail before it is taken, written for QMAILQUEUE: "
            "exit code 0 takes it, 11 to 40 refuse it, others and none: 451", "none"),
    _time("filter-time", "60s", "so long it may take; then 451", ceiling=110),
    _count("filter-processes", "10", "how many of it run at once", floor=1),
    Setting("callout", units.one_of("no", "open", "closed"), "no",
            "whether its next hop is asked for each recipient; if it does not answer: open takes it, closed says 450"),
    Setting("delay-notice", units.or_none("never", units.duration), "never",
            "tell the sender after this time; or never", text=units.duration_text, nothing="never"),
    _count("limit-messages", "1000000", "messages in its store; then 452", floor=1),
    _size("limit-bytes", "50G", "octets in its store; then 452"),
    Setting("limit-disk", units.or_none("none", units.disk), "none",
            "what its store may take of the disk, 20G or 25% of its device; then 452; none: all but the reserve",
            text=units.disk_text),
    Setting("limit-age", units.or_none("none", units.duration), "none",
            "age of the oldest message in its store; then 452 until that one is gone; none: no bound",
            text=units.duration_text),
    _size("reserve", "", "free space on its device below which it takes no mail", "reserve of [primary]"),
    _count("reserve-inodes", "1000", "free inodes there, likewise"),
    Setting("overflow", word, "", "instance that gets the mail, instead of a 452, while this one takes none",
            "none: 452"),
    Setting("tls", units.one_of("opportunistic", "none"), "opportunistic",
            "STARTTLS where the next hop offers it; or none"),
    Setting("home", path, "", "qmail's folder of this instance, with control/ in it", "control-NN, HOME-NN/control"),
)  # fmt: skip

TABLES = {"qmq": GENERAL, "primary": PRIMARY, "instance": INSTANCE}
RESERVED = frozenset({"qmq", "primary", "instances", "instance", "check", "listen", "client"})


def find(kind: str, key: str) -> Setting | None:
    """The setting of that name in sections of that kind (qmq, primary, instance)."""
    return next((setting for setting in TABLES[kind] if setting.key == key), None)


def nearest(kind: str, key: str) -> str:
    """A remedy for a key that is unknown there: the nearest known one, or where that key belongs."""
    if kind != "primary" and key in WORDS:
        return f"{key} belongs into [primary], [listen WORD] or [client NET]"
    for other, table in TABLES.items():
        if other != kind and any(setting.key == key for setting in table):
            return f"{key} belongs into [{'NAME' if other == 'instance' else other}]"
    known = [setting.key for setting in TABLES[kind]] + (list(WORDS) if kind == "primary" else [])
    if close := get_close_matches(key, known, 1, 0.5):
        return f"do you mean {close[0]}?"
    return f"known are {', '.join(setting.key for setting in TABLES[kind])}"


def reference() -> Iterator[str]:
    """The lines of the reference in docs/conf-qmq.md."""
    for kind, table in TABLES.items():
        yield f"### [{'NAME' if kind == 'instance' else kind}]"
        yield ""
        yield "| setting | default | meaning |"
        yield "|---|---|---|"
        for setting in table:
            bounds = f" (at least {setting.text(setting.floor)})" if setting.floor and setting.floor > 1 else ""
            bounds += f" (at most {setting.text(setting.ceiling)})" if setting.ceiling else ""
            default = f"`{setting.default}`" if setting.default else setting.shown
            yield f"| `{setting.key}` | {default} | {setting.help}{bounds} |"
        yield ""
