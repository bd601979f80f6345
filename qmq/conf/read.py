"""
conf-qmq to sections and the plan of instances, each value with its line.

The dialect is configparser's (without interpolation, a key twice is an error);
the reader is our own, since configparser stops at the first error and does
not tell where a value stood. A file without any section is a classic one: the
body of [instances], in either format of SPAMCONTROL 1.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from qmq.conf.written import Findings, Written

# Where the stores are unless [qmq] says so, beside conf-qmq.
SPOOL = "var/spool"

_SECTION = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])+)\]")  # [listen [::]:25] has brackets within
_SETTING = re.compile(r"([^=:]*?)\s*[=:]\s*(.*)")
_COMMENT = re.compile(r"(?:^|\s)[#;].*")
_RECORD = re.compile(r"([^:]*):([^:]*)(?::(.*))?")


@dataclass(slots=True)
class Section:
    """``[name]`` and what stands below it."""

    at: Written
    settings: dict[str, Written] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """A record of [instances]: the number as text (leading zeros name folders), name, source address."""

    at: Written
    text: str
    name: str
    bind: str = ""

    @property
    def number(self) -> int:
        """Decimal: 08 and 09 are numbers too."""
        return int(self.text)


@dataclass(slots=True)
class Document:
    """All that the file says. *classic*: it has no sections."""

    path: str
    sections: dict[str, Section] = field(default_factory=dict)
    plan: list[Planned] = field(default_factory=list)
    classic: bool = False

    @property
    def whole(self) -> Written:
        """The file as the place of what is nowhere in it."""
        return Written(self.path, 0)


def read(path: str, findings: Findings) -> Document:
    """The document at *path*; what cannot be read is in *findings*, and left out."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except OSError as trouble:
        findings.error(Written(path, 0), f"cannot be read: {trouble.strerror}", "`qmq init` writes one to start from")
        return Document(path)
    except UnicodeDecodeError as trouble:
        findings.error(Written(path, 0), f"octet {trouble.start} is no UTF-8", "save the file as UTF-8")
        return Document(path)
    return parse(path, text, findings)


def parse(path: str, text: str, findings: Findings) -> Document:
    """The document of a text; *path* is for the errors."""
    # Not splitlines(): it knows eleven line ends, editors know one.
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    classic = not any(_SECTION.match(line.strip()) for line in lines)
    document = Document(path, classic=classic)
    section = "instances" if classic else None
    key = ""
    for number, raw in enumerate(lines, 1):
        here = Written(path, number, (raw.split("#")[0] if section == "instances" else _COMMENT.sub("", raw)).strip())
        if not here.text:
            continue
        if header := _SECTION.fullmatch(here.text):
            section, key = header[1].strip(), ""
            _open(document, section, here, findings)
        elif section is None:
            findings.error(here, f"{here.text!r} stands before the first section", "put [instances] or [qmq] above it")
        elif section == "instances":
            document.plan.extend(_records(here, findings))
        elif raw[0] in " \t" and key:
            settings = document.sections[section].settings
            old = settings[key]
            settings[key] = Written(path, old.line, f"{old.text}\n{here.text}", (*old.lines, number))
        else:
            key = _setting(document.sections[section], here, findings) or key
    _check_plan(document, findings)
    return document


def _open(document: Document, name: str, here: Written, findings: Findings) -> None:
    if (known := document.sections.get(name)) is not None:
        findings.error(here, f"section [{name}] is there twice", f"join it with line {known.at.line}")
    else:
        document.sections[name] = Section(here)


def _setting(section: Section, here: Written, findings: Findings) -> str:
    match = _SETTING.fullmatch(here.text)
    key = match[1].strip().lower() if match else ""
    if match is None or not key:
        findings.error(here, f"{here.text!r} is no setting", "write KEY = VALUE, or [SECTION]")
        return ""
    if (known := section.settings.get(key)) is not None:
        findings.error(here, f"{key} is there twice", f"line {known.line} has it already: keep one")
        return ""
    section.settings[key] = Written(here.path, here.line, match[2], (here.line,))
    return key


def _records(here: Written, findings: Findings) -> Iterator[Planned]:
    """The records of one line: usually one; the original took several."""
    words = here.text.split()
    if len(words) > 1 and not all(re.match("[0-9]+:.", word) for word in words):
        words = ["".join(words)] if re.fullmatch(r"[0-9]+\s*[:=]\s*\S+", here.text) else [here.text]
    for word in words:
        match = _RECORD.fullmatch(word.replace("=", ":", 1) if ":" not in word else word)
        if match is None or not match[2].strip():
            findings.error(here, f"{word!r} is no instance", "write NUMBER:NAME, such as 01:customer1")
        elif not re.fullmatch("[0-9]{1,5}", match[1]):
            findings.error(
                here, f"{match[1]!r} is no number", f"write NUMBER:NAME, such as 01:{match[2].strip() or 'customer1'}"
            )
        elif match[2].split() != [match[2]]:
            findings.error(here, f"the name {match[2]!r} has a blank", f"write {'_'.join(match[2].split())}")
        else:
            yield Planned(here, match[1], match[2], (match[3] or "").strip())


def _check_plan(document: Document, findings: Findings) -> None:
    numbers: dict[int, Planned] = {}
    names: dict[str, Planned] = {}
    for planned in document.plan:
        if other := numbers.get(planned.number):
            findings.error(
                planned.at,
                f"number {planned.text} is taken by {other.name} (line {other.at.line})",
                f"write {max(p.number for p in document.plan) + 1}:{planned.name}",
            )
        if other := names.get(planned.name.lower()):
            # A name is a folder too, and some file systems know no case.
            findings.error(
                planned.at,
                f"name {planned.name} is taken by {other.text} (line {other.at.line})",
                "names must differ, not only in case",
            )
        numbers.setdefault(planned.number, planned)
        names.setdefault(planned.name.lower(), planned)
