"""
tcprules: which client may connect, and what is set for it (SPAMCONTROL 2.1).

One rule a line, ``ADDRESS:allow,VAR="value",...`` or ``ADDRESS:deny``; what
tcprules has compiled of such a file is read too. Of all rules for a client one
alone counts, the first of

1. ``user@IP`` and ``user@=HOST``, if the client has a user,
2. ``IP``,
3. ``=HOST``, if the client has a name,
4. networks, from narrow to wide: ``10.``, ``10.0.0.0/8``, ``2001:db8:``,
   ``2001:db8::/32``; of two of one width the one with dots counts,
5. ``=.DOMAIN`` from long to short, and ``=``, if the client has a name,
6. the empty address.

An IPv6 address has colons of its own: the one before ``allow`` is the last one
before the first comma. So ``2001:db8::allow`` is the prefix ``2001:db8:``, and
``2001:db8:::allow`` the address ``2001:db8::``; in brackets it is plain to see.

Two things differ from ucspi-tcp6, which tries all rules with dots before those
with a slash, and from both, which pass over a line that can match nobody: that
is an error here, since it is always a slip.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address, ip_network

from qmq.mail import Octets
from qmq.rules.cdb import open_cdb
from qmq.rules.environment import COMMANDS, NOT_HERE, BadVariable, environment
from qmq.rules.nets import Net, Nets
from qmq.rules.watched import BadLine, Slips, lines

_MOST = 500_000  # rules of a file, ranges expanded; some 100 MB
_LARGEST: Octets = 256 << 20  # a compiled file
_HOST = re.compile(r"[A-Za-z0-9._-]*")
_PART = r"(?:0|[1-9][0-9]{0,2})"
_RANGE = re.compile(rf"((?:{_PART}\.){{0,3}})({_PART})-([0-9]{{1,3}})((?:\.{_PART}){{0,3}}\.?)")
_PREFIX4 = re.compile(rf"(?:{_PART}\.){{1,3}}")
_PREFIX6 = re.compile(r"(?:[0-9A-Fa-f]{1,4}:){1,7}")
_WRITE = 'write ADDRESS:allow, ADDRESS:deny or ADDRESS:allow,NAME="VALUE"'


class Rule:
    """What one line says. Lines that say the same are one Rule, compared by identity."""

    __slots__ = ("deny", "variables")

    def __init__(self, deny: bool, variables: Mapping[str, str]) -> None:
        self.deny = deny
        self.variables = variables


class Rules:
    """
    All rules of a file.

    *by_host*: some go by the client's name, which must be sure then.
    *notices* are the lines that set what we do not have, each variable once.
    *commands* are the programs that are named: variable, command line, and the
    number of the first line that has it.
    """

    __slots__ = ("_by_key", "_nets", "by_host", "commands", "notices")

    def __init__(
        self,
        by_key: Mapping[str, Rule] | None = None,
        nets: Nets[Rule] | None = None,
        notices: tuple[BadLine, ...] = (),
        commands: tuple[tuple[str, str, int], ...] = (),
    ) -> None:
        self._by_key = by_key or {}
        self._nets = nets or Nets()
        self.by_host = any("=" in key for key in self._by_key)
        self.notices = notices
        self.commands = commands

    def find(self, ip: str, host: str = "", user: str = "") -> Rule | None:
        """
        The one rule for a client; None: nothing is said of it.

        *ip* as Python writes it, IPv4 never as IPv6; *host* in lower case, ""
        if unknown.
        """
        by_key = self._by_key
        if user:
            rule = by_key.get(f"{user}@{ip}") or (by_key.get(f"{user}@={host}") if host else None)
            if rule is not None:
                return rule
        rule = by_key.get(ip) or (by_key.get("=" + host) if host else None) or self._nets.find(ip)
        if rule is not None:
            return rule
        if host and self.by_host:
            at = host.find(".")
            while at >= 0:
                if (rule := by_key.get("=" + host[at:])) is not None:
                    return rule
                at = host.find(".", at + 1)
            if (rule := by_key.get("=")) is not None:
                return rule
        return by_key.get("")


NO_RULES = Rules()


def read(path: str) -> Rules:
    """The rules at *path*, compiled if its name ends in ``.cdb``; raises BadLine and OSError."""
    making = _Making(path)
    if path.endswith(".cdb"):
        for key, what in _records(path):
            making.compiled(key, what)
    else:
        slips = Slips()
        for number, row in lines(path):
            with slips:
                making.line(number, row.decode("utf-8", "surrogateescape"))
        slips.tell()
    return making.rules()


class _Making:
    """Rules as they are found. The first of two for one address counts."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._line = 0
        self._by_key: dict[str, Rule] = {}
        self._dotted: list[tuple[Net, Rule]] = []
        self._slashed: list[tuple[Net, Rule]] = []
        self._same: dict[tuple[bool, tuple[tuple[str, str], ...]], Rule] = {}
        self._notices: dict[str, BadLine] = {}
        self._commands: dict[tuple[str, str], int] = {}

    def rules(self) -> Rules:
        """All of them."""
        commands = tuple((name, text, line) for (name, text), line in self._commands.items())
        nets = Nets([*self._dotted, *self._slashed])
        return Rules(self._by_key, nets, tuple(self._notices.values()), commands)

    def line(self, number: int, row: str) -> None:
        """One line of a text."""
        self._line = number
        head = row.partition(",")[0]
        address, colon, instruction = head.rpartition(":")
        deny = instruction == "deny"
        if not colon or not (deny or instruction == "allow"):
            raise self._bad(f"{head!r} is no rule", _WRITE)
        rule = self._rule(deny, dict(self._variables(row[len(head) :])))
        for one in self._expanded(address):
            self._add(one, rule)

    def _variables(self, rest: str) -> Iterator[tuple[str, str]]:
        """``,NAME="value"`` again and again; any character may stand for the quotes."""
        while rest:
            name, equals, quoted = rest[1:].partition("=")
            text, closing, after = quoted[1:].partition(quoted[:1]) if quoted else ("", "", "")
            if rest[0] != "," or not equals or not name or not closing:
                raise self._bad(f"{rest!r} sets no variable", 'write ,NAME="VALUE", without blanks')
            yield name, text
            rest = after

    def _expanded(self, address: str) -> Iterator[str]:
        """``1.2.3.37-53`` is 17 addresses."""
        user, at, ip = address.rpartition("@")
        match = _RANGE.fullmatch(ip)
        if match is None:
            yield address
            return
        low, high = int(match[2]), min(int(match[3]), 255)
        if low > high:
            raise self._bad(f"{ip} is an empty range", f"write {match[1]}{match[3]}-{match[2]}{match[4]}")
        for number in range(low, high + 1):
            yield f"{user}{at}{match[1]}{number}{match[4]}"

    def compiled(self, key: bytes, what: bytes) -> None:
        """One record of a cdb: D for deny, +NAME=VALUE, each with a null behind it."""
        parts = what.decode("utf-8", "surrogateescape").split("\0")[:-1]
        pairs = (part[1:].partition("=") for part in parts if part.startswith("+") and "=" in part)
        rule = self._rule(any(part.startswith("D") for part in parts), {name: text for name, _, text in pairs})
        bits = key[1:].rstrip(b"\0")
        if key[:1] in {b"_", b"^"} and b"@" not in key:
            # ucspi-tcp6: a network is its bits, 0 for a zero and some other character for a one.
            width = 32 if key[:1] == b"_" else 128
            if len(bits) > width:
                raise self._bad(f"{key!r} is no network", "make the file again with tcprules")
            number = int("".join("0" if bit == 0x30 else "1" for bit in bits) or "0", 2) << (width - len(bits))
            packed = number.to_bytes(width // 8, "big")
            self._slashed.append((ip_network((packed, len(bits))), rule))
            return
        self._add(key.decode("utf-8", "surrogateescape"), rule)

    def _rule(self, deny: bool, variables: dict[str, str]) -> Rule:
        same = deny, tuple(variables.items())
        rule = self._same.get(same)
        if rule is None:
            try:
                environment(variables)
            except BadVariable as bad:
                raise self._bad(bad.text, bad.remedy) from None
            for name, text in variables.items():
                if name in COMMANDS and text:
                    self._commands.setdefault((name, text), self._line)
                if name in NOT_HERE:
                    remedy = f"cut {name}"
                    self._notices.setdefault(name, self._bad(f"{name} is not used: {NOT_HERE[name]}", remedy))
            rule = self._same[same] = Rule(deny, variables)
        return rule

    def _add(self, address: str, rule: Rule) -> None:
        if len(self._by_key) + len(self._dotted) + len(self._slashed) >= _MOST:
            raise self._bad(f"more than {_MOST} rules", "write networks, such as 192.0.2.0/24")
        user, at, where = address.rpartition("@")
        if "=" in where:
            self._add_host(user + at, where, rule)
        elif not where and not at:
            self._by_key.setdefault("", rule)
        elif (ip := self._ip(where)) is not None:
            self._by_key.setdefault(f"{user}{at}{ip}", rule)
        elif user or at:
            raise self._bad(f"{address!r} matches nobody", "behind user@ write one address, or =HOST")
        else:
            self._add_net(where, rule)

    def _add_host(self, user: str, where: str, rule: Rule) -> None:
        before, _, host = where.partition("=")
        if before or not _HOST.fullmatch(host) or ".." in host:
            raise self._bad(f"{user}{where} names no host", "write =mx.example.org, =.example.org, or = for any name")
        if user and (not host or host.startswith(".")):
            raise self._bad(f"{user}{where} matches nobody", "behind user@= write a whole name")
        self._by_key.setdefault(f"{user}={host.lower()}", rule)

    def _add_net(self, where: str, rule: Rule) -> None:
        if _PREFIX4.fullmatch(where):
            numbers = where.rstrip(".").split(".")
            self._dotted.append(
                (self._net(where, ".".join(numbers + ["0"] * (4 - len(numbers))), 8 * len(numbers)), rule)
            )
        elif _PREFIX6.fullmatch(where):
            self._dotted.append((self._net(where, f"{where}:", 16 * where.count(":")), rule))
        elif "/" in where:
            ip, _, bits = where.replace("[", "").replace("]", "").partition("/")
            if _PREFIX4.fullmatch(f"{ip.rstrip('.')}.") and ip.count(".") < 4:  # 127./8, as its manual writes it
                numbers = ip.rstrip(".").split(".")
                ip = ".".join(numbers + ["0"] * (4 - len(numbers)))
            self._slashed.append((self._net(where, ip, int(bits) if bits.isascii() and bits.isdigit() else -1), rule))
        else:
            remedy = (
                f"write {where}. with a dot"
                if _PREFIX4.fullmatch(where + ".")
                else (
                    f"write ={where}"
                    if re.search("[a-z]", where) and _HOST.fullmatch(where)
                    else "write 192.0.2.1, 192.0.2., 192.0.2.0/24, 2001:db8::/32 or =HOST"
                )
            )
            raise self._bad(f"{where!r} matches nobody", remedy)

    def _net(self, where: str, ip: str, bits: int) -> Net:
        """What is set beyond the prefix is cut, as tcprules does."""
        try:
            return ip_network(f"{ip}/{bits}", strict=False)
        except ValueError:
            raise self._bad(f"{where!r} is no network", "write 192.0.2., 192.0.2.0/24 or 2001:db8::/32") from None

    @staticmethod
    def _ip(where: str) -> str | None:
        """One address, as Python writes it; None if it is none."""
        try:
            ip = ip_address(where[1:-1] if where.startswith("[") and where.endswith("]") else where)
        except ValueError:
            return None
        return str(ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip)

    def _bad(self, text: str, remedy: str) -> BadLine:
        return BadLine(self._path, self._line, text, remedy)


def _records(path: str) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values of a cdb, as they were added: from behind the header up to the first table."""
    open_cdb(path).close()  # is it one?
    with open(path, "rb") as file:
        octets = file.read(_LARGEST + 1)
    if len(octets) > _LARGEST:
        raise BadLine(path, 0, f"is larger than {_LARGEST} octets", "write networks instead of single addresses")
    tables = struct.unpack_from("<" + "II" * 256, octets)
    end = min(tables[::2])
    at = 2048
    while at < end:
        key, what = struct.unpack_from("<II", octets, at)
        if at + 8 + key + what > end:
            raise BadLine(path, 0, "is damaged", "make it again with tcprules")
        yield octets[at + 8 : at + 8 + key], octets[at + 8 + key : at + 8 + key + what]
        at += 8 + key + what
