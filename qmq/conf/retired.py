"""
``retired = OLD=NEW``: instances that are no more, whose mail is to go to others.

OLD has no line in [instances] any more. Its queue runs on until it is empty,
with NEW's manners and ``queue:NEW`` as its next hop, and takes no mail but what
is on its way to it already. Of a section [OLD] only *spool* and *process* are
left to be said.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from qmq.conf.model import Conf, Instance
from qmq.conf.read import Document
from qmq.conf.settings import RESERVED, Handover
from qmq.conf.written import Findings, Written

ROLE = "retired"
_SITE = b"queue:"
_STILL_SAID = ("spool", "process")


def retire(
    pairs: Sequence[tuple[str, str]], listed: Sequence[Instance], spool: str, said: Callable[[str], Mapping[str, Any]]
) -> Iterator[Instance]:
    """
    The instances that *pairs* retire; what `verify` finds wrong is left out.

    *spool* is [qmq]'s; *said* gives what a section says, by `Instance`'s fields.
    """
    names = {instance.name: instance for instance in listed}
    seen = {name.lower() for name in (*names, *RESERVED)}
    for old, new in pairs:
        if old.lower() in seen or new not in names:
            continue
        seen.add(old.lower())
        mine = said(old)
        yield replace(
            names[new], id="", number=0, name=old, role=ROLE, domains=(), deliver=_SITE + new.encode(), routes=(),
            spool=mine["spool"] or os.path.join(spool, old), handover=Handover("qmtp"), process=mine["process"],
            qmtp_listen=None, recipients="", badmailfrom="", filter="", overflow="", home="",
        )  # fmt: skip


def still_said(section: Mapping[str, Written]) -> dict[str, Written]:
    """Of a retired instance's section what still counts."""
    return {key: at for key, at in section.items() if key in _STILL_SAID}


def successor(instance: Instance) -> str:
    """Who gets what is left in the queue of *instance*; empty if it is not retired."""
    return instance.deliver.removeprefix(_SITE).decode() if instance.role == ROLE else ""


def words(document: Document) -> Iterator[tuple[str, str, Written]]:
    """OLD, NEW and the place of each word of `retired`."""
    section = document.sections.get("qmq")
    if section is not None and (said := section.settings.get("retired")) is not None:
        for at in said.words():
            old, equals, new = at.text.partition("=")
            if equals:
                yield old, new, at


def verify(conf: Conf, document: Document, findings: Findings) -> None:
    """OLD is listed nowhere else, NEW is an instance, and [OLD] says no more than it may."""
    listed = {planned.name.lower(): planned for planned in document.plan}
    names = [instance.name for instance in conf.instances if instance.role != ROLE]
    said = list(words(document))
    olds = {old.lower() for old, _, _ in said}
    first: dict[str, str] = {}
    for old, new, at in said:
        if old.lower() in RESERVED:
            findings.error(at, f"retired: {old} is a section of qmq's own, no instance", "name an instance that was")
        elif (planned := listed.get(old.lower())) is not None:
            remedy = f"cut {planned.text}:{planned.name} there, or {at.text} here"
            findings.error(at, f"retired: {old} is in [instances] (line {planned.at.line})", remedy)
        elif old.lower() in first:
            findings.error(at, f"retired: {old} is retired already, by {first[old.lower()]}", "one is enough: cut this")
        else:
            first[old.lower()] = at.text
            _successor(old, new, at, names, olds, findings)
            _section(old, document, findings)


def _successor(old: str, new: str, at: Written, names: list[str], olds: set[str], findings: Findings) -> None:
    example = f"write {old}={names[0]}" if names else "list an instance in [instances]"
    if new == old:
        findings.error(at, f"retired: {old} cannot get its own mail", example)
    elif new.lower() in olds:
        findings.error(at, f"retired: {new} is retired itself", f"write {old}= and the one that {new}'s mail goes to")
    elif new not in names:
        findings.error(at, f"retired: {new} is no instance of [instances]", example)


def _section(old: str, document: Document, findings: Findings) -> None:
    section = document.sections.get(old)
    if section is None:
        return
    if more := [key for key in section.settings if key not in _STILL_SAID]:
        findings.error(
            section.settings[more[0]],
            f"{old} is retired: its {', '.join(more)} {'counts' if len(more) == 1 else 'count'} no more",
            f"cut what stands in [{old}], but for spool and process",
        )
