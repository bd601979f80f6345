"""
The checks of `checks =`, made once without doing anything, so that `qmq check` tells what is wrong with them.

An unknown name, an option that a check does not take, a value it cannot use: at
conf-qmq's line. A bad line in a check's own file: at that file's line.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from twisted.internet.task import Clock

from qmq.conf.model import Conf, site_for
from qmq.conf.read import Document, Section
from qmq.conf.settings import OWN_CHECKS
from qmq.conf.written import Findings, Written
from qmq.mail import Address
from qmq.receive.catalogue import TERMS, installed, look_in, make
from qmq.receive.context import Context, Owner
from qmq.rules.watched import BadLine, Files


def room(conf: Conf) -> str:
    """A folder of this process for files that live as long as a check."""
    return os.path.join(conf.general.spool, "run", f"checks.{os.getpid()}")


def sweep(conf: Conf) -> None:
    """Remove the rooms of processes that are no more."""
    for folder in glob.glob(os.path.join(glob.escape(conf.general.spool), "run", "checks.*")):
        if not os.path.exists(f"/proc/{folder.rpartition('.')[2]}"):
            shutil.rmtree(folder, ignore_errors=True)


def context(
    conf: Conf, clock: Any, files: Files, now: Callable[[], Conf] | None = None, **live: Any
) -> Context:  # fmt: skip
    """
    What the checks of this configuration may use; *live* are reactor, resolver and mx, if they are to work.

    *now* gives the configuration of the moment: domains that come and go count for sessions that are open, too.
    """
    folder = os.path.dirname(conf.path)
    present = now or (lambda: conf)

    def owner(domain: bytes) -> Any:
        return present().instance_for(domain)

    answers: dict[Callable[[Owner], bool], tuple[Conf, bool]] = {}  # and by which configuration

    def some(true: Callable[[Owner], bool]) -> bool:
        of, answer = answers.get(true, (None, False))
        if of is not present():
            instances: Sequence[Any] = present().instances
            answer = any(true(instance) for instance in instances)
            answers[true] = present(), answer
        return answer

    def site(recipient: Address) -> bytes:
        instance = present().instance_for(recipient.domain)
        return b"" if instance is None else site_for(instance, recipient)

    def says(domain: bytes) -> bool:
        return present().says(domain)

    # What a client may send at most; its own limit, databytes of [primary] by default, is in its environment.
    most = max(conf.primary.databytes, conf.primary.databytes_most)
    return Context(
        lambda domain: present().accepts(domain), most, clock, says=None if conf.primary.said_hosts is None else says,
        me=conf.general.me, folder=folder,
        control=conf.general.control or os.path.join(folder, "control"),
        spool=room(conf), files=files, owner=owner, some=some, site=site, **live,
    )  # fmt: skip


def verify(conf: Conf, document: Document, findings: Findings, factories: Mapping[str, Any] | None = None) -> None:
    """Make each; *factories* are by default all that are installed."""
    look_in(os.path.dirname(conf.path))
    known = installed() if factories is None else factories
    dry = context(conf, Clock(), Files())
    said = conf.places.get("primary.checks", document.whole)
    places: dict[str, Written] = {}
    for at in said.words():
        if at.text in places:
            findings.error(at, f"the check {at.text} is named twice", "name it once")
        places.setdefault(at.text, at)
    for name, options in dict(conf.primary.checks).items():
        at = places.get(name, said)
        section = document.sections.get(f"check {name}")
        if name in known:
            _make(known[name], options, dry, section or Section(at), findings)
        elif name in OWN_CHECKS:
            findings.warning(at, f"the check {name} is not installed: it is left out", f"put qmq/checks/{name}.py back")
        else:
            close = get_close_matches(name, known, 1, 0.6)
            remedy = f"do you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            findings.error(at, f"there is no check {name}", remedy)
    _instances(conf, dry, known, findings)


def _make(factory: Any, options: Mapping[str, str], dry: Context, section: Section, findings: Findings) -> None:
    takes = getattr(factory, "options", None)
    if takes is not None and (unknown := [key for key in section.settings if key not in {*takes, *TERMS}]):
        for key in unknown:
            close = get_close_matches(key, [*takes, *TERMS], 1, 0.5)
            remedy = (
                f"do you mean {close[0]}?"
                if close
                else (f"it takes {', '.join(takes)}" if takes else "it takes none: cut the line")
            )
            findings.error(section.settings[key], f"[check {factory.name}] knows no {key}", remedy)
        return
    try:
        make(factory.name, dry, options, {factory.name: factory})
    except BadLine as first:
        for slip in (first, *first.others):
            findings.error(Written(slip.path, slip.line), slip.text, slip.remedy)
    except ValueError as bad:
        text = str(bad)
        # The option that the text names, if it names one.
        at = next((at for key, at in section.settings.items() if key in text), section.at)
        findings.error(at, f"check {factory.name}: {text.removeprefix(f'{factory.name}: ')}")
    except Exception as surprise:  # noqa: BLE001 - a stranger's code: told at its name, like all that is wrong
        findings.error(section.at, f"check {factory.name} cannot be made: {surprise!r}", "ask whoever wrote it")


def _instances(conf: Conf, dry: Context, known: Mapping[str, Any], findings: Findings) -> None:
    """The instances' own files must be there, and right: each check reads theirs as it reads its own."""
    asked = dict(conf.primary.checks)
    for instance in conf.instances:
        for key, path in (("recipients", instance.recipients), ("badmailfrom", instance.badmailfrom)):
            if not path:
                continue
            at = conf.places[f"{instance.name}.{key}"]
            if not os.path.exists(path):  # an absent list would be an empty one
                findings.error(at, f"{key}: there is no file {path}", "create it, or cut this line")
            elif key not in asked:
                findings.warning(at, f"{key} is not used", f"name the check {key} in checks = of [primary]")
            elif key in known and "file" in getattr(known[key], "options", ()):
                _make(known[key], {**asked[key], "file": path}, dry, Section(at), findings)
