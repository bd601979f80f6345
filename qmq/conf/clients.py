"""
What conf-qmq sets for clients: [listen WORD], [client NET ...], the words of [primary], and the file of rules.

Here they are read and looked over; qmq.receive.clients lays them upon each
other when a client comes.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qmq.conf import units
from qmq.conf.model import Conf, Listen
from qmq.conf.read import Document, Section
from qmq.conf.units import BadValue, Network
from qmq.conf.words import WORDS, nearest_word, raw, word_of
from qmq.conf.written import Findings, Written
from qmq.programs import executable
from qmq.receive.clients import Layers
from qmq.rules import tcprules
from qmq.rules.environment import COMMANDS, NOT_HERE, BadVariable, Raw, parsed
from qmq.rules.watched import BadLine

# Where tcprules' files usually are, beside conf-qmq and in control/.
_BESIDE = ("tcp.smtp", "tcp.smtp.cdb")
_IN_CONTROL = ("tcp.smtp", "tcp.smtp.cdb", "rules.smtpd", "rules.smtpd.cdb")
KINDS = ("listen", "client")


@dataclass(frozen=True, slots=True)
class Said:
    """What the sections set: for all clients, by where they come to, by where they come from."""

    everywhere: Raw
    listeners: Mapping[Listen, Raw]
    clients: tuple[tuple[Network, Raw], ...]


def is_section(name: str) -> bool:
    """Whether a section of that name is for clients."""
    return name.partition(" ")[0] in KINDS


def read(document: Document, listen: Sequence[Listen], findings: Findings) -> Said:
    """What the document's sections say; *listen* is where the primary listens."""
    primary = document.sections.get("primary")
    everywhere = _raw({k: at for k, at in primary.settings.items() if k in WORDS}, findings) if primary else {}
    listeners: dict[Listen, Raw] = {}
    clients: dict[Network, Raw] = {}
    for name, section in document.sections.items():
        kind, _, words = name.partition(" ")
        if kind not in KINDS:
            continue
        said = _section(name, section, findings)
        if not words.strip():
            remedy = "write [listen tcp:25]" if kind == "listen" else "write [client 192.0.2.0/24]"
            findings.error(section.at, f"[{name}] does not say which", remedy)
        elif kind == "listen":
            _listener(section.at, words.strip(), said, listen, listeners, findings)
        else:
            _clients(section.at, words, said, clients, findings)
    return Said(everywhere, listeners, tuple(clients.items()))


def _section(name: str, section: Section, findings: Findings) -> Raw:
    for key, at in section.settings.items():
        if key not in WORDS:
            findings.error(at, f"[{name}] knows no {key}", nearest_word(key))
    return _raw({key: at for key, at in section.settings.items() if key in WORDS}, findings)


def _raw(settings: Mapping[str, Written], findings: Findings) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for key, at in settings.items():
        try:
            found[WORDS[key].name] = text = raw(WORDS[key], word_of(at))
        except BadValue as bad:
            findings.error(at, f"{key}: {bad}", bad.remedy)
        else:
            _program(at, WORDS[key].name, text, os.path.dirname(at.path), findings)
    return found


def _program(at: Written, name: str, text: str | None, folder: str, findings: Findings) -> None:
    """A program that cannot be run is nothing to fail for: it may come yet, and until then mail is deferred."""
    if name not in COMMANDS or not text:
        return
    try:
        words = shlex.split(text)
        executable(words[0] if words else "", folder)
    except ValueError as trouble:
        what, _, remedy = str(trouble).partition("; ")
        findings.warning(at, f"{name}: {what}: mail is deferred", remedy or "write a program's path and its words")


def _listener(
    at: Written, word: str, said: Raw, listen: Sequence[Listen], listeners: dict[Listen, Raw], findings: Findings
) -> None:
    try:
        where = units.listen(word)
    except BadValue as bad:
        findings.error(at, str(bad), bad.remedy)
        return
    if where not in listen:
        findings.error(at, f"nothing listens at {word}", f"add {word} to listen = of [primary]")
    elif where in listeners:
        findings.error(at, f"{word} has a section already", "join the two")
    listeners.setdefault(where, said)


def _clients(at: Written, words: str, said: Raw, clients: dict[Network, Raw], findings: Findings) -> None:
    for word in words.replace(",", " ").split():
        try:
            net = units.network(word)
        except BadValue as bad:
            findings.error(at, str(bad), bad.remedy)
            continue
        if net in clients:
            findings.error(at, f"{word} has a section already", "a network has one section")
        clients.setdefault(net, said)


def rules_path(said: str, folder: str, control: str) -> str:
    """The file of rules: what is said, else the first of the usual ones that is there, else "" (as `none` says)."""
    if said == "none":
        return ""
    if said:
        return os.path.join(folder, said)
    usual = [os.path.join(folder, name) for name in _BESIDE]
    usual += [os.path.join(control, name) for name in _IN_CONTROL] if control else []
    return next((path for path in usual if os.path.isfile(path)), "")


def verify(conf: Conf, findings: Findings) -> None:
    """The process's variables, and the file of rules: its errors with its own lines."""
    process = Written("environment", 0)
    for name, text in conf.primary.process.items():
        if name in NOT_HERE:
            findings.warning(process, f"{name} is not used: {NOT_HERE[name]}", f"unset {name}")
            continue
        try:
            parsed(name, text)
        except BadVariable as bad:
            findings.error(process, bad.text, bad.remedy)
        _program(process, name, text, os.path.dirname(conf.path), findings)
    path, at = conf.primary.rules, conf.places.get("primary.rules")
    if not path:
        return
    try:
        rules = tcprules.read(path)
    except BadLine as first:
        for slip in (first, *first.others):
            findings.error(Written(slip.path, slip.line), slip.text, slip.remedy)
    except FileNotFoundError:
        findings.error(at or Written(path, 0), f"rules: there is no file {path}", "create it, or write rules = none")
    except OSError as trouble:
        findings.error(
            at or Written(path, 0), f"rules: {path} cannot be read: {trouble.strerror}", "let qmq's account read it"
        )
    else:
        for name, text, line in rules.commands:
            _program(Written(path, line), name, text, os.path.dirname(conf.path), findings)
        for notice in rules.notices:
            findings.warning(Written(notice.path, notice.line), notice.text, notice.remedy)


def listener_word(listen: Listen) -> str:
    """The word by which Clients.session is told where a client came to."""
    return f"{listen[0]}:{listen[1]}"


def layers(conf: Conf) -> Layers:
    """All that is set for clients, for qmq.receive.clients.Clients."""
    primary = conf.primary
    by_default = {"DATABYTES": str(primary.databytes)}
    return Layers(
        weak=(by_default, primary.process, primary.environment),
        listeners={listener_word(listen): said for listen, said in primary.listeners.items()},
        clients=primary.clients,
        rules=primary.rules,
        relay=conf.general.relay,
        databytes=max(primary.databytes, primary.databytes_most),
        reverse=primary.reverse,
        reverse_time=primary.reverse_time,
        loopback_by_dns=bool(conf.general.nameservers),
    )
