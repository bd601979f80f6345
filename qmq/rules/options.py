"""
What ``[check NAME]`` says, read: counts, times, choices.

Pure. Each raises ValueError with the checker, the word, what is wrong and what
to write instead.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from qmq.mail import Seconds

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"([0-9]{1,9})(ms|[smhd])?")


def known(checker: str, options: Mapping[str, str], words: Collection[str]) -> None:
    """Refuses words that the checker does not have."""
    if strange := sorted(set(options) - set(words)):
        takes = f"takes {', '.join(sorted(words))}" if words else "takes no options"
        raise ValueError(f"{checker} {takes}, but has: {', '.join(strange)}")


def count(checker: str, options: Mapping[str, str], word: str, default: int, least: int = 0) -> int:
    """A whole number, *least* or more."""
    text = options.get(word, str(default)).strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= least):
        raise ValueError(
            f"{checker}: {word} = {text!r} is no such count; say a number from {least} on, such as {default}"
        )
    return int(text)


def seconds(checker: str, options: Mapping[str, str], word: str, default: Seconds) -> Seconds:
    """A time above nothing: ``20s``, ``10m``, ``1h``; a bare number is seconds."""
    if word not in options:
        return default
    match = _TIME.fullmatch(options[word].strip())
    time = int(match[1]) * _SECONDS[match[2] or ""] if match else 0.0
    if not time:
        raise ValueError(f"{checker}: {word} = {options[word]!r} is no time; say 20s, 10m or 1h")
    return time


def choice(checker: str, options: Mapping[str, str], word: str, choices: Sequence[str]) -> str:
    """One of *choices*, of which the first is the default."""
    text = options.get(word, choices[0]).strip()
    if text not in choices:
        raise ValueError(f"{checker}: {word} = {text!r} is none of: {', '.join(choices)}")
    return text
