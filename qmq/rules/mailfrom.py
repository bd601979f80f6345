"""
Which senders which client may use: control/mailfromrules (SPAMCONTROL 2.12).

A line is ``client:address,address``. A client is an account (TCPREMOTEINFO), an
account at an address or host (``account@192.0.2.1``, ``account@=host``), an IP
address, ``=host``, an address's beginning up to a dot or colon (``192.0.2.``),
the end of a name in DNS (``=.example.org``), or ``=`` for all that have one.
``192.0.2.37-53`` is a range. The first line of a client counts.

Of what follows the last colon, ``@domain`` allows that domain, ``domain`` its
sub-domains too, ``.domain`` these alone, and anything else that address: where
the original compares ends of text, names are compared whole here. Nothing
behind the colon allows every sender.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from qmq.mail import Address
from qmq.rules.badmailfrom import UNKNOWN, suffixes
from qmq.rules.cdb import CDB, open_cdb
from qmq.rules.watched import BadLine, Slips, lines
from qmq.rules.wildmat import Rules

_RANGE = re.compile(rb"((?:[0-9]{1,3}\.)*)([0-9]{1,3})-([0-9]{1,3})((?:\.[0-9]{0,3})*)")
_MEANT_AS_RANGE = re.compile(rb"[0-9][0-9.]*-[0-9.-]*")
_OCTET = 255


class MailFromRules:
    """The rules of one text file; *path* is for complaints. Raises BadLine."""

    def __init__(self, rules: Rules, path: str) -> None:
        self._rules: dict[bytes, frozenset[bytes]] = {}
        slips = Slips()
        for number, line in rules:
            with slips:
                self._add(line, path, number)
        slips.tell()

    def _add(self, line: bytes, path: str, number: int) -> None:
        client, colon, addresses = line.lower().rpartition(b":")
        if not (colon and client):
            raise BadLine(path, number, "no client and colon", "write CLIENT:ADDRESS,ADDRESS")
        allowed = [one.strip() for one in addresses.split(b",")] if addresses else []
        if not all(allowed):
            raise BadLine(path, number, "an empty address", "write CLIENT:ADDRESS,ADDRESS, or CLIENT: for any")
        for key in _clients(client, path, number):
            self._rules.setdefault(key, frozenset(allowed))

    def get(self, key: bytes) -> frozenset[bytes] | None:
        """What a client is allowed; empty: anything."""
        return self._rules.get(key)


def _clients(client: bytes, path: str, number: int) -> Iterable[bytes]:
    """The clients of a range; or the one there is."""
    if match := _RANGE.fullmatch(client):
        before, low, high, behind = match[1], int(match[2]), int(match[3]), match[4]
        if low <= high <= _OCTET:
            return [b"%b%d%b" % (before, one, behind) for one in range(low, high + 1)]
    elif not _MEANT_AS_RANGE.fullmatch(client):
        return [client]
    raise BadLine(path, number, f"{client.decode()} is no range of addresses", "write it as in 192.0.2.37-53")


def allows(rules: MailFromRules | CDB, ip: str, host: str, account: bytes, sender: Address) -> bool:
    """
    Whether the client may use the sender; raises OSError for a damaged CDB.

    A line that does not have it does not keep a more general one from having it.
    """
    forms = frozenset(_forms(sender))
    for key in _keys(ip.encode(), b"" if host == UNKNOWN else host.lower().encode(), account.lower()):
        listed = rules.get(key)
        if listed is not None and (not listed or _among(forms, listed)):
            return True
    return False


def _among(forms: frozenset[bytes], listed: frozenset[bytes] | bytes) -> bool:
    """Whether one of the forms is listed; qmail-mfrules joins a list with a + in front of each, whatever is in them."""
    if isinstance(listed, frozenset):
        return not forms.isdisjoint(listed)
    text = listed + b"+"
    return any(b"+" + form + b"+" in text for form in forms)


def _forms(sender: Address) -> Iterator[bytes]:
    """What a rule may say to allow the sender."""
    yield bytes(sender).lower()
    yield b"@" + sender.domain
    for suffix in suffixes(sender.domain):
        yield suffix
        if suffix != sender.domain:
            yield b"." + suffix


def _keys(ip: bytes, host: bytes, account: bytes) -> Iterator[bytes]:
    """From the most particular to the most general."""
    if account:
        yield account
        yield account + b"@" + ip
        if host:
            yield account + b"@=" + host
    yield ip
    if host:
        yield b"=" + host
    for end in range(len(ip) - 1, 0, -1):
        if ip[end - 1 : end] in {b".", b":"}:
            yield ip[:end]
    if host:
        for suffix in suffixes(host):
            if suffix != host:
                yield b"=." + suffix
        yield b"="


def read_mailfromrules(path: str) -> MailFromRules | CDB:
    """The rules in the file at *path*, text or compiled; raises OSError and BadLine. To be given to Context.watch."""
    return open_cdb(path) if path.endswith(".cdb") else MailFromRules(lines(path), path)
