"""
qmail's variables as words of conf-qmq: in [primary] for all clients, in [listen WORD] and [client NET] for some.

The words are those of the one table, qmq.rules.environment; here they get
units, as every other setting has them, and become the text that the variable
would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from qmq.conf import units
from qmq.conf.units import BadValue
from qmq.conf.written import Written
from qmq.rules.environment import VARIABLES, BadVariable, Variable, parsed

WORDS: Mapping[str, Variable] = {variable.word: variable for variable in VARIABLES.values()}
_LISTS = frozenset({"HELOCHECK", "LOCALMFCHECK", "BADMIMETYPE"})  # empty, they ask their file alone
_LEAST = 65536  # RFC 5321 4.5.3.1.7: a message of so many octets must be taken


def raw(variable: Variable, text: str) -> str | None:
    """The variable's text; None: it is not set, whatever a weaker layer says. Raises BadValue."""
    if text == "none" and variable.name != "DATABYTES":
        return None
    if variable.kind == "flag" and text in {"yes", "no"}:
        return "" if text == "yes" else None
    found = _SAID[variable.kind](variable, text)
    try:
        parsed(variable.name, found)
    except BadVariable as bad:
        raise BadValue(bad.text.removeprefix(f"{variable.name}: "), bad.remedy) from None
    return found


def _flag(variable: Variable, text: str) -> str:
    if variable.name != "RELAYCLIENT" or not text:
        raise BadValue(f"{text!r} is neither yes nor no", "write yes or no")
    return text


def _count(_: Variable, text: str) -> str:
    return str(units.count(text))


def _time(variable: Variable, text: str) -> str:
    if variable.name == "TARPITDELAY" and text == "notorious":
        return "999"
    seconds = units.duration(text)
    if not seconds.is_integer():
        raise BadValue(f"{text!r} is no whole number of seconds", f"write {int(seconds) + 1}s")
    return str(int(seconds))


def _size(variable: Variable, text: str) -> str:
    if text == "none":
        return "0"
    octets = units.octets(text)
    if variable.name == "DATABYTES" and octets < _LEAST:
        least = units.octets_text(_LEAST)
        raise BadValue(f"{text} is less than {least}", f"write {least} or more, or none")
    return str(octets)


def _text(variable: Variable, text: str) -> str:
    return "" if text == "list" and variable.name in _LISTS else text


_SAID = {"flag": _flag, "count": _count, "time": _time, "size": _size, "text": _text}


def said(variable: Variable, text: str | None) -> str:
    """What *raw* reads back as *text*."""
    if text is None:
        return "none"
    match variable.kind:
        case "flag":
            return text or "yes"
        case "size":
            return units.octets_text(int(text)) if int(text) else "none"
        case "time":
            return "notorious" if (variable.name, text) == ("TARPITDELAY", "999") else units.duration_text(int(text))
        case _:
            return text or ("list" if variable.name in _LISTS else text)


def word_of(at: Written) -> str:
    """A value of one word or line, whatever lines it stands on."""
    return " ".join(at.text.split("\n"))


def nearest_word(key: str) -> str:
    """A remedy for what is no word for a client's settings."""
    close = get_close_matches(key, WORDS, 1, 0.5)
    return f"do you mean {close[0]}?" if close else f"known are {', '.join(WORDS)}"


def reference() -> Iterator[str]:
    """The lines of the words' reference in docs/conf-qmq.md."""
    yield "### [primary], [listen WORD], [client NET ...]"
    yield ""
    yield "| word | variable | says | meaning |"
    yield "|---|---|---|---|"
    for word, variable in WORDS.items():
        yield f"| `{word}` | `{variable.name}` | {variable.kind} | {variable.help} |"
