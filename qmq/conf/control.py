"""
qmail's control folder, said in conf-qmq's words (SPAMCONTROL 2.1, 2.2).

Each classic file becomes the setting it stands for, with the unit that qmail
meant: queuelifetime 1440 is ``1440s``. From there on nobody asks which of the
two forms a value came from. Routes and rcpthosts are read in routes.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from qmq.conf.units import BadValue, address_or_nothing
from qmq.conf.written import Findings, Written

NOT_HERE = {
    "locals": "qmq has no local delivery; give these domains an instance that delivers to your mailbox server",
    "virtualdomains": "qmq has no local delivery; rewrite on the mailbox server",
    "percenthack": "qmq does not rewrite user%domain",
    "authsenders": "qmq routes by recipient only",
    "domaincerts": "qmq presents no client certificates",
    "tlsdestinations": "qmq uses TLS where it is offered; tls = none switches it off for an instance",
}


class Folder:
    """A control folder; one that is not there has no files."""

    def __init__(self, path: str, findings: Findings) -> None:
        self.path = path
        self._findings = findings
        self._there = os.path.isdir(path)

    def __bool__(self) -> bool:
        return self._there

    def place(self, name: str, line: int = 0) -> Written:
        """A file as a place."""
        return Written(os.path.join(self.path, name), line, classic=True)

    def first(self, name: str) -> Written | None:
        """The first line, blanks at its end cut; None if there is no such file."""
        lines = self._lines(name)
        if lines is None:
            return None
        return Written(os.path.join(self.path, name), 1, lines[0].rstrip(" \t\r"), classic=True)

    def rows(self, name: str) -> list[Written] | None:
        """The lines that are neither empty nor comments (# in the first column); None if there is no such file."""
        lines = self._lines(name)
        if lines is None:
            return None
        path = os.path.join(self.path, name)
        rows = (Written(path, number, line.rstrip(" \t\r"), classic=True) for number, line in enumerate(lines, 1))
        return [row for row in rows if row.text and not row.text.startswith("#")]

    def _lines(self, name: str) -> list[str] | None:
        if not self._there:
            return None
        try:
            with open(os.path.join(self.path, name), encoding="utf-8", errors="replace", newline="\n") as file:
                return file.read().split("\n")
        except FileNotFoundError:
            return None
        except OSError as trouble:
            self._findings.error(self.place(name), f"cannot be read: {trouble.strerror}", "let qmq's account read it")
            return None


def _text(text: str) -> str:
    return text


def _number(text: str) -> str:
    match = re.match("[0-9]{1,12}", text.lstrip())
    if match is None:
        raise BadValue(f"{text!r} is no number: the default stays", "write a number or remove the file")
    return match[0]


def _seconds(text: str) -> str:
    return _number(text) + "s"


def _octets(text: str) -> str:
    if int(number := _number(text)) == 0:
        # qmail's 0 is no limit; here everything has one.
        raise BadValue("0 meant without limit: the default limit stays", "write a number of octets")
    return number + "B"


Translation = tuple[str, str, Callable[[str], str]]  # file, setting, meaning of its first line

PRIMARY: tuple[Translation, ...] = (
    ("smtpgreeting", "greeting", _text),
    ("databytes", "databytes", _octets),
    ("timeoutsmtpd", "timeout", _seconds),
    ("localiphost", "localiphost", _text),
)
INSTANCE: tuple[Translation, ...] = (
    ("concurrencyremote", "concurrency", _number),
    ("queuelifetime", "lifetime", _seconds),
    ("databytes", "databytes", _octets),
    ("timeoutremote", "timeoutremote", _seconds),
    ("timeoutconnect", "timeoutconnect", _seconds),
    ("helohost", "helohost", _text),
    ("bouncefrom", "bouncefrom", _text),
    ("bouncehost", "bouncehost", _text),
    ("bouncemaxbytes", "bouncemaxbytes", _octets),
)


def settings(folder: Folder, translations: tuple[Translation, ...], findings: Findings) -> dict[str, Written]:
    """What the folder's files set, by setting."""
    found: dict[str, Written] = {}
    for name, key, meaning in translations:
        if (written := folder.first(name)) is None or not written.text:
            continue
        try:
            found[key] = Written(written.path, 1, meaning(written.text), (1,), classic=True)
        except BadValue as bad:
            findings.warning(written, f"{name}: {bad}", bad.remedy)
    return found


def instance_settings(folder: Folder, findings: Findings, me: str, *, own: bool) -> dict[str, Written]:
    """What the folder sets for an instance; *own*: it is the instance's, not the primary's, so its `me` counts too."""
    found = settings(folder, INSTANCE, findings)
    if own and (name := folder.first("me")) and name.text:
        me = name.text
        for key in ("helohost", "bouncehost"):
            found.setdefault(key, name)
    double = folder.first("doublebounceto")
    host = folder.first("doublebouncehost")
    if double is not None or host is not None:
        local = "postmaster" if double is None else double.text
        at = double or host
        assert at is not None
        if not local or local.startswith("@"):
            local = "none"
        elif "@" not in local:
            local += "@" + (host.text if host and host.text else me)
        found["doublebounceto"] = Written(at.path, at.line, local, (1,), classic=True)
    found.update(_source(folder, findings))
    return found


def _source(folder: Folder, findings: Findings) -> dict[str, Written]:
    """domainips: only its default entry has a meaning here, as an instance is one source."""
    found: dict[str, Written] = {}
    for row in folder.rows("domainips") or ():
        key, _, value = row.text.partition(":")
        ip, _, helo = value.partition("|")
        if key not in {"", "*"}:
            findings.warning(row, f"the source address for {key} is not used", "an instance has one: bind = ADDRESS")
            continue
        try:
            found["bind"] = Written(row.path, row.line, address_or_nothing(ip), (row.line,), classic=True)
        except BadValue as bad:
            findings.warning(row, f"not used: {bad}", bad.remedy)
        if helo:
            found["helohost"] = Written(row.path, row.line, helo, (row.line,), classic=True)
    return found


def say_what_is_not_here(folder: Folder, findings: Findings) -> None:
    """One warning for each classic file that would have changed something, and does not here."""
    for name, remedy in NOT_HERE.items():
        if rows := folder.rows(name):
            findings.warning(rows[0], f"{name} is not used", remedy)
