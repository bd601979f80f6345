"""
The options of Postfix's sendmail(1), read as it reads them. Pure.

Letters may stand together, a value may stand behind its letter or follow it,
and the first word that is no option ends them: -t behind a recipient is one
more recipient there, too.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import NoReturn

from qmq.cli.mailboxes import BadMailbox, mailboxes
from qmq.cli.submit import NotSent

# Letters as of Postfix's sendmail; those with a colon take a value.
_LETTERS = "A:B:C:F:GIL:N:O:R:UV:X:b:ce:f:h:imno:p:r:q:tvx"
_TAKES = {letter: _LETTERS[at + 1 : at + 2] == ":" for at, letter in enumerate(_LETTERS) if letter != ":"}


@dataclass(slots=True)
class Call:
    """What one call asks for. *mode*: deliver, verify, smtp, list, flush or nothing."""

    mode: str = "deliver"
    conf: str = ""
    sender: bytes | None = None
    name: str = ""
    extract: bool = False
    dot_ends: bool = True
    verbose: bool = False
    flush: list[str] = field(default_factory=list)  # further words for postqueue
    recipients: list[str] = field(default_factory=list)


def parse(arguments: list[str]) -> Call:
    """What the arguments ask for; the first that is no option ends them. Raises NotSent (EX_USAGE)."""
    call = Call()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            _long(call, word, rest)
        elif word == "-q":  # alone it takes no value
            call.mode, call.flush = "flush", ["-f"]
        else:
            _letters(call, word[1:], rest)
    call.recipients = rest
    if call.extract and call.mode != "deliver":
        usage("-t goes with a message only")
    if rest and call.mode not in {"deliver", "verify"}:
        usage(f"{rest[0]}: no recipient is wanted here")
    return call


def _long(call: Call, word: str, rest: list[str]) -> None:
    name, equals, value = word.partition("=")
    if name != "--conf" or not (equals or rest):
        usage(f"{word}: there is no such option; see qmq sendmail --help")
    call.conf = value if equals else rest.pop(0)


def _letters(call: Call, word: str, rest: list[str]) -> None:
    """Options that stand together: those without value, and one with."""
    while word:
        letter, word = word[0], word[1:]
        if letter not in _TAKES:
            usage(f"-{letter}: there is no such option; see qmq sendmail --help")
        value = ""
        if _TAKES[letter]:
            if not word and not rest:
                usage(f"-{letter} needs a value")
            value, word = word or rest.pop(0), ""
        _option(call, letter, value)


def _option(call: Call, letter: str, value: str) -> None:
    match letter, value:
        case "b", _:
            _mode(call, value)
        case "I", _:
            call.mode = "aliases"
        case "q", _:
            _flush(call, value)
        case (("f" | "r"), _):
            call.sender = _one(value)
        case "F", _:
            call.name = value
        case "t", _:
            call.extract = True
        case "i", _:
            call.dot_ends = False
        case "o", _ if value.startswith("i"):
            call.dot_ends = False
        case "v", _:
            call.verbose = True
        case "B", _ if value.upper() not in {"7BIT", "8BITMIME"}:
            usage("-B is 7BIT or 8BITMIME; the gateway finds out by itself")
        case "X", _ if value.startswith("V"):
            usage("-XV: VERP is made by the list's own program; give it a sender for each recipient by -f")
        case _:
            pass  # what other options ask for is as it is, or has no meaning here


def _mode(call: Call, value: str) -> None:
    modes = {"m": "deliver", "v": "verify", "s": "smtp", "p": "list", "i": "aliases", "h": "nothing", "H": "nothing"}
    if value[0] in "dl":
        usage(f"-b{value[0]}: the gateway is started by `twistd -n qmq --conf conf-qmq`")
    if value[0] not in modes:
        usage(f"-b{value[0]}: there is no such mode; see qmq sendmail --help")
    call.mode = modes[value[0]]


def _flush(call: Call, value: str) -> None:
    if value[0].isdigit():
        call.mode = "nothing"  # an interval: who runs the queue is the gateway
    elif value[0] in "IR" and value[1:]:
        call.mode, call.flush = "flush", ["-i" if value[0] == "I" else "-s", value[1:]]
    else:
        usage(f"-q{value}: say -q, -qI and a queue id, or -qR and a domain")


def _one(value: str) -> bytes:
    """The address of -f: bare, in brackets, or with a name."""
    try:
        found = mailboxes(os.fsencode(value))
    except BadMailbox as error:
        raise NotSent(os.EX_USAGE, f"-f: {error}") from None
    if len(found) > 1:
        usage(f"-f: {value!r} is more than one address")
    return found[0] if found else b""


def usage(text: str) -> NoReturn:
    """Raise NotSent: it was called wrongly."""
    raise NotSent(os.EX_USAGE, text)
