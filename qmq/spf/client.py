"""Whom and what a check is about, and what the letters of macros mean then (RFC 7208 4.1 and 7.2)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import field

from qmq.dns import NoSuchDomain
from qmq.dns.resolver import absolute
from qmq.mail import Address, Octets, value

# RFC 1035 2.3.4, without the final dot.
_LONGEST_NAME: Octets = 253
# What can be a mail domain, of several labels (RFC 7208 4.3); underscores are seen in the wild.
_MAIL_DOMAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+")


class BadClient(ValueError):
    """The client's address is none."""


@value
class Client:
    """
    A client that says it may send mail of a domain.

    *domain* is the one to ask for, in A-labels, or "" if it cannot be one. Text
    from the client stands octet for letter (latin-1).
    """

    ip: ipaddress.IPv4Address | ipaddress.IPv6Address
    number: int  # the address
    local: str
    domain: str
    helo: str
    identity: str  # mailfrom or helo
    meanings: dict[str, str] = field(hash=False)  # of the letters i, v, c, s, l, o, h and r


def client(ip: str, sender: Address, helo: bytes, me: str) -> Client:
    """Of what SMTP has; HELO stands for the null sender (RFC 7208 2.4). Raises BadClient."""
    try:
        address = ipaddress.ip_address(ip.partition("%")[0])
    except ValueError as error:
        raise BadClient(f"{ip[:60]!r} is no IP address") from error
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped  # RFC 7208 5: an IPv4 client, whatever the socket says
    four = isinstance(address, ipaddress.IPv4Address)
    identity, raw = ("mailfrom", sender.domain) if sender.local or sender.domain else ("helo", helo)
    local = sender.local.decode("latin-1") or "postmaster"  # RFC 7208 4.3
    domain = mail_domain(raw)
    said = domain or raw.decode("latin-1")
    greeting = helo.decode("latin-1")
    meanings = {
        "i": str(address) if four else ".".join(f"{int(address):032X}"),
        "v": "in-addr" if four else "ip6",
        "c": str(address),
        "s": f"{local}@{said}",
        "l": local,
        "o": said,
        "h": greeting,
        "r": me,
    }
    return Client(address, int(address), local, domain, greeting, identity, meanings)


def mail_domain(raw: bytes) -> str:
    """The A-labels of a domain that mail may come from; "": it can be none."""
    try:
        name = absolute(raw)
    except NoSuchDomain:
        return ""
    text = b".".join(name.labels[:-1]).decode("ascii", "replace")
    return text if _MAIL_DOMAIN.fullmatch(text) else ""


def query_name(text: str) -> str:
    """
    What a macro's expansion is asked for as, cut to 253 octets from the left (RFC 7208 7.3).

    "" if it can be no name: an empty or too long label, or not in US-ASCII.
    """
    text = text.removesuffix(".")
    while len(text) > _LONGEST_NAME:
        _, dot, text = text.partition(".")
        if not dot:
            return ""
    if not text.isascii() or not all(0 < len(label) <= 63 for label in text.split(".")):
        return ""
    return text
