"""
From text to values and back: times, sizes, counts, addresses.

Pure. A time and a size always carry their unit, since 1440 once was meant as
minutes and taken as seconds (SPAMCONTROL 1.5); a count never has one. What is
wrong is raised as BadValue, with the remedy in the operator's words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import idna

from qmq.mail import Octets, Seconds

Network = IPv4Network | IPv6Network

_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_OCTETS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_AMOUNT = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,3}))?([A-Za-z]*)")


class BadValue(ValueError):
    """A text that is no such value: what is wrong, and what to write instead."""

    def __init__(self, text: str, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


def duration(text: str) -> Seconds:
    """``90s``, ``5m``, ``1.5h``, ``7d``; also ``ms`` and ``w``."""
    return _amount(text, _MILLISECONDS, "time", "90s, 5m, 24h or 7d") / 1000


def duration_text(seconds: Seconds) -> str:
    """The shortest text that *duration* reads back as *seconds* (whole milliseconds); 7d rather than 1w."""
    return _amount_text(round(seconds * 1000), {u: n for u, n in _MILLISECONDS.items() if u != "w"}, "0s")


def octets(text: str) -> Octets:
    """``500B``, ``64K``, ``50M``, ``10G``: powers of 1024."""
    text = text.removesuffix("iB") if text[-3:-2] in _OCTETS else text
    return _amount(text, {**_OCTETS, **{unit.lower(): size for unit, size in _OCTETS.items()}}, "size", "64K or 50M")


def octets_text(size: Octets) -> str:
    """The shortest text that *octets* reads back as *size*."""
    return _amount_text(size, _OCTETS, "0B")


def _amount(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise BadValue(f"{text!r} is no {what}", f"write it as {examples}")
    whole, fraction, unit = match.groups()
    if not unit:
        raise BadValue(f"{text!r} has no unit", f"write it as {examples}")
    if unit not in units:
        raise BadValue(f"{text!r} has an unknown unit", f"write it as {examples}")
    amount = int(whole) * units[unit]
    return amount + int(fraction) * units[unit] // 10 ** len(fraction) if fraction else amount


def _amount_text(amount: int, units: dict[str, int], nothing: str) -> str:
    unit = max((unit for unit in units if amount % units[unit] == 0), key=units.__getitem__)
    return f"{amount // units[unit]}{unit}" if amount else nothing


def count(text: str) -> int:
    """A bare number."""
    if not re.fullmatch("[0-9]{1,12}", text):
        raise BadValue(f"{text!r} is no count", "write a bare number, such as 120")
    return int(text)


def number(text: str) -> float:
    """A number, with a sign and a fraction if there must be: ``5``, ``7.5``, ``-1``."""
    if not re.fullmatch(r"-?[0-9]{1,6}(?:\.[0-9]{1,3})?", text):
        raise BadValue(f"{text!r} is no number", "write 5 or 7.5")
    return float(text)


def number_text(value: float) -> str:
    """The shortest text that *number* reads back as *value*."""
    return f"{value:.9g}"


def spf_level(text: str) -> int:
    """0 to 6."""
    if not re.fullmatch("[0-6]", text):
        raise BadValue(f"{text!r} is no SPF level", "write a number from 0 to 6")
    return int(text)


def share(text: str) -> float:
    """A part of the whole: ``0.1`` or ``10%``; more than nothing, at most all."""
    match = re.fullmatch(r"([0-9]{0,3}(?:\.[0-9]{1,6})?)(%?)", text)
    value = float(match[1]) / (100 if match[2] else 1) if match and match[1] else 0
    if not 0 < value <= 1:
        raise BadValue(f"{text!r} is no share", "write 0.1 or 10%: more than 0, at most 1")
    return value


def share_text(value: float) -> str:
    """That share as an operator would write it: ``25%``."""
    return f"{value * 100:.6f}".rstrip("0").rstrip(".") + "%"


def disk(text: str) -> Octets | float:
    """``20G``, or a share of a device: ``25%`` is 0.25."""
    return share(text) if text.endswith("%") else octets(text)


def disk_text(value: Octets | float) -> str:
    """The text that *disk* reads back as *value*."""
    return share_text(value) if isinstance(value, float) else octets_text(value)


def one_of(*words: str) -> Callable[[str], str]:
    """One of these words."""

    def word(text: str) -> str:
        if text not in words:
            raise BadValue(f"{text!r} is none of {', '.join(words)}", f"write {words[0]}")
        return text

    return word


def or_none(word: str, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """What *parse* reads, or None for *word*."""
    return lambda text: None if text == word else parse(text)


def network(text: str) -> Network:
    """An address or a network: ``127.0.0.1``, ``10.0.0.0/8``, ``::1``."""
    try:
        return ip_network(text.strip("[]"))
    except ValueError:
        pass  # told below: with host bits set, or no address at all
    try:
        right = ip_network(text, strict=False)
    except ValueError:
        raise BadValue(f"{text!r} is no address or network", "write 192.0.2.1, 10.0.0.0/8 or ::1") from None
    raise BadValue(f"{text!r} is an address within a network", f"write {right}, or the address alone")


def network_text(net: Network) -> str:
    """The shortest text that *network* reads back as *net*: one address is not a network of one."""
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def address_or_nothing(text: str) -> str:
    """An IP address, in its usual form; empty stays empty."""
    if not text:
        return ""
    try:
        return str(ip_address(text.strip("[]")))
    except ValueError:
        raise BadValue(f"{text!r} is no IP address", "write 192.0.2.1 or 2001:db8::1") from None


_NAME = re.compile(r"(?=.{1,253}$)[^\W_](?:[\w-]*[^\W_])?(?:\.[^\W_](?:[\w-]*[^\W_])?)*")


def host_name(text: str) -> str:
    """A host's name, in lower case, without the final dot."""
    name = unicodedata.normalize("NFC", text.lower()).removesuffix(".")
    if not _NAME.fullmatch(name):
        raise BadValue(f"{text!r} is no host name", "write a full name, such as mx.example.org")
    return name


def domain_pattern(text: str) -> bytes:
    """``example.org`` (that domain), ``.example.org`` (those below it) or ``*`` (every other); in lower case."""
    if text == "*":
        return b"*"
    name = unicodedata.normalize("NFC", text.lower()).removesuffix(".")
    if not _NAME.fullmatch(name.removeprefix(".")):
        hint = "write the domain alone" if "@" in text else "write example.org, .example.org or *"
        raise BadValue(f"{text!r} is no domain", hint)
    try:
        for label in name.removeprefix(".").split("."):
            if len(label if label.isascii() else idna.alabel(label)) > 63:
                raise BadValue(f"{text!r} is no domain: a label is too long", "write at most 63 octets between dots")
    except idna.IDNAError as trouble:
        raise BadValue(f"{text!r} is no domain: {trouble}", "write it as DNS has it, with xn-- labels") from None
    return name.encode()


def mailbox(text: str) -> str:
    """An address as ``user@example.org``."""
    local, _, domain = text.rpartition("@")
    if not local or not _NAME.fullmatch(domain) or re.search(r"[\s<>]", text):
        raise BadValue(f"{text!r} is no address", "write user@example.org")
    return text


def port(text: str) -> int:
    """1 to 65535."""
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise BadValue(f"{text!r} is no port", "write a number from 1 to 65535")
    return int(text)


def host_port(text: str, default: int = 0) -> tuple[str, int]:
    """
    ``HOST:PORT``, ``192.0.2.1:25``, ``[::1]:25``; the port may be left out if there is a *default*.

    The brackets of an IPv6 address are taken off.
    """
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::([^:]*))?", text)
    if match is None or (match[2] is None and not default):
        raise BadValue(f"{text!r} is no HOST:PORT", "write 127.0.0.1:2525, [::1]:2525 or mail.example.org:25")
    host = address_or_nothing(match[1]) if match[1].startswith("[") else host_name(match[1])
    return host, default if match[2] is None else port(match[2])


def host_port_text(where: tuple[str, int]) -> str:
    """The text that *listen*, and for a host *host_port*, read back as *where*."""
    host, number = where
    if not host:
        return f"tcp:{number}"
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def name_server(text: str) -> tuple[str, int]:
    """``192.0.2.53``, ``127.0.0.1:5353``, ``[::1]:53``; an IP address, as no name can be asked before there is one."""
    bare = f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text
    try:
        host, at = host_port(bare, 53)
        return str(ip_address(host)), at
    except ValueError:
        raise BadValue(f"{text!r} is no name server", "write 192.0.2.53, 127.0.0.1:5353 or [::1]:53") from None


def listen(text: str) -> tuple[str, int]:
    """``tcp:25`` (every IPv4 address: host ""), ``tcp:25:interface=127.0.0.1``, ``127.0.0.1:25``, ``[::]:25``."""
    if match := re.fullmatch(r"tcp:([^:]*)(?::interface=(.*))?", text):
        interface = (match[2] or "").replace("\\:", ":")  # as Twisted's endpoint strings quote a colon
        return address_or_nothing(interface), port(match[1])
    try:
        host, number = host_port(text)
        return address_or_nothing(host), number
    except BadValue:
        raise BadValue(f"{text!r} is no place to listen", "write tcp:25, 127.0.0.1:2525 or [::1]:2525") from None
