"""
DNS lists of clients (RFC 5782): how they are written down, asked, and read.

A list is written as rblsmtpd's ``base`` or ``base:text``, with more between:

    zen.example  bl.example=127.0.0.2-11*2  "rbl.example:listed, see https://rbl.example/?ip=%IP%"

``=`` which answers count, ``*`` how much (1), ``:`` the text for the client. A
list with answers or a text is asked for A, another for TXT, which is its text.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

from qmq.mail import value

# rblsmtpd's; of a text from a stranger, too.
_LONGEST_TEXT = 200
_ENTRY = re.compile(
    r"(?P<base>[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})+)\.?"
    r"(?:=(?P<answers>[0-9.,-]+))?(?:\*(?P<weight>[1-9][0-9]{0,4}))?(?::(?P<text>.*))?",
    re.DOTALL,
)
# Lists that know their customers have them put a key before the name: nobody else's business.
_KEY = re.compile(r"[A-Za-z0-9]{20,}\.(?=[^.]+\.)")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_LOOPBACK = (int(IPv4Address("127.0.0.0")), int(IPv4Address("127.255.255.255")))
# By custom, the answers with which a list says that it did not look: asked too much, or by an open resolver.
_NO_LOOKUP = (int(IPv4Address("127.255.255.0")), int(IPv4Address("127.255.255.255")))

Range = tuple[int, int]


class NoAnswer(Exception):
    """The list says that it did not look the client up."""


@value
class DNSList:
    """One list: its zone, how much a hit counts, and what to tell the client."""

    base: str
    weight: int = 1
    text: str = ""  # %IP% stands for the client's address; "": the list's own, or ours
    answers: tuple[Range, ...] = ()  # the addresses that count; none: all of 127/8
    by_address: bool = False  # ask for A; else for TXT

    @property
    def name(self) -> str:
        """The zone as others may see it: without a customer's key."""
        return _KEY.sub("", self.base, count=1)

    def hit(self, answers: Iterable[str]) -> bool:
        """Whether these addresses say that the client is listed; raises NoAnswer."""
        found = [int(IPv4Address(answer)) for answer in answers]
        if self.answers:
            # An operator who names 127.255.255.x means it.
            if any(_within(number, span) for number in found for span in self.answers):
                return True
        elif any(_within(number, _LOOPBACK) and not _within(number, _NO_LOOKUP) for number in found):
            return True
        if any(_within(number, _NO_LOOKUP) for number in found):
            raise NoAnswer(f"{self.name} did not look")
        return False

    def worded(self, ip: str, said: bytes = b"") -> str:
        """What the client is told: our text, else what the list *said*, else that it is listed."""
        text = with_ip(self.text, ip) or clean(said.decode("latin-1"))
        return text or f"{ip} is listed by {self.name}"


def _within(number: int, span: Range) -> bool:
    return span[0] <= number <= span[1]


def with_ip(text: str, ip: str) -> str:
    """*text* with the client's address in it, in a line's printable ASCII and short."""
    return clean(text.replace("%IP%", ip))


def clean(text: str) -> str:
    """One line's printable ASCII, at most 200 characters."""
    return _UNPRINTABLE.sub("?", text[:_LONGEST_TEXT]).strip()


def lists(text: str, *, by_address: bool) -> tuple[DNSList, ...]:
    """
    The lists of an option: parted by blanks or lines; one with a blank in its text stands in double quotes.

    *by_address*: those without answers or text are asked for A too. Raises
    ValueError, with a text for the operator.
    """
    words = shlex.shlex(text, posix=True)
    words.whitespace_split = True
    words.commenters = words.escape = ""
    words.quotes = '"'
    try:
        entries = list(words)
    except ValueError:
        raise ValueError(f"{text!r} has a quote that is not closed") from None
    return tuple(_list(entry, by_address) for entry in entries)


def _list(entry: str, by_address: bool) -> DNSList:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(f"{entry!r} is no DNS list; say bl.example, bl.example*2 or bl.example=127.0.0.2-11:text")
    answers = tuple(_range(part, entry) for part in match["answers"].split(",")) if match["answers"] else ()
    text = match["text"] or ""
    return DNSList(
        match["base"].lower(), int(match["weight"] or 1), text, answers, by_address or bool(answers) or bool(text)
    )


def _range(part: str, entry: str) -> Range:
    first, dash, last = part.partition("-")
    try:
        low = int(IPv4Address(first))
        high = int(IPv4Address(f"{first.rpartition('.')[0]}.{last}")) if dash else low
    except ValueError:
        low, high = 1, 0
    if high < low:
        raise ValueError(f"{entry!r}: {part!r} is no answer of a list; say 127.0.0.2 or 127.0.0.2-11")
    return low, high


def question(ip: str, *, private: bool) -> str:
    """
    What stands before a list's zone to ask for a client: reversed octets, or nibbles (RFC 5782 2.1, 2.4).

    Empty for what is no IP address, and, unless *private*, for addresses that mean
    something within a site alone.
    """
    try:
        address: IPv4Address | IPv6Address = ip_address(ip.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if not private and not address.is_global:
        return ""
    return address.reverse_pointer.removesuffix("in-addr.arpa").removesuffix("ip6.arpa")
