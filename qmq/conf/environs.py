"""
What differs in that which is around the settings: the options of checks, and what is set for which clients.

Pure; the lines are those of `qmq.conf.diff`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from qmq.conf.model import Conf
from qmq.conf.units import host_port_text, network_text
from qmq.conf.words import said
from qmq.rules.environment import VARIABLES, Raw

_HIDDEN = ("password", "secret", "token")


def environs(old: Conf, new: Conf) -> Iterator[tuple[Literal["live"], str]]:
    """All of it comes in with a reload, for the clients that come then."""
    was, now = old.primary, new.primary
    # databytes is a setting as well: told as that, if it is another.
    told = {"DATABYTES"} if was.databytes != now.databytes else set()
    for lines in (
        _words("primary", _without(told, was.environment), _without(told, now.environment)),
        _sections(
            {f"listen {host_port_text(where)}": raw for where, raw in was.listeners.items()},
            {f"listen {host_port_text(where)}": raw for where, raw in now.listeners.items()},
        ),
        _sections(
            {f"client {network_text(net)}": raw for net, raw in was.clients},
            {f"client {network_text(net)}": raw for net, raw in now.clients},
        ),
        _checks(dict(was.checks), dict(now.checks)),
    ):
        for line in lines:
            yield "live", line


def _without(names: set[str], raw: Raw) -> Raw:
    return {name: text for name, text in raw.items() if name not in names}


def _sections(was: Mapping[str, Raw], now: Mapping[str, Raw]) -> Iterator[str]:
    for section in {**now, **was}:
        if section not in now:
            yield f"- [{section}]"
        elif section not in was and not now[section]:
            yield f"+ [{section}]"
        else:
            yield from _words(section, was.get(section, {}), now[section])


def _words(section: str, was: Raw, now: Raw) -> Iterator[str]:
    """None is a word as well: that a weaker layer's does not count."""
    texts = [{VARIABLES[name].word: said(VARIABLES[name], text) for name, text in raw.items()} for raw in (was, now)]
    yield from _texts(section, texts[0], texts[1])


def _checks(was: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Options of checks that are asked; that one is asked no more is told by `checks`."""
    for name, options in now.items():
        yield from _texts(f"check {name}", was.get(name, {}), options)


def _texts(section: str, was: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for key in {**now, **was}:
        hidden = any(word in key.lower() for word in _HIDDEN)
        if key not in was:
            yield f"+ [{section}] {key} = {'...' if hidden else _line(now[key])}"
        elif key not in now:
            yield f"- [{section}] {key}"
        elif was[key] != now[key]:
            yield f"~ [{section}] {key}: {'changed' if hidden else f'{_line(was[key])} -> {_line(now[key])}'}"


def _line(text: str) -> str:
    """On one line."""
    return " ".join(text.split())
