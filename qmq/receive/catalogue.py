"""
The checkers that there are, by twisted.plugin; and those that a listener asks for, made.

Our own come in by the same door as a stranger's: a file in a folder
``twisted/plugins`` on the Python path or beside conf-qmq, or an installed package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.logger import Logger
from twisted.plugin import getPlugins
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

import twisted.plugins
from qmq.interfaces import IBlocking, ICheckerFactory
from qmq.receive.check import Terms
from qmq.receive.context import Context
from qmq.rules import options as said

# What `[check NAME]` may say of any checker.
TERMS: Mapping[str, str] = {
    "timeout": "how long an answer that must be waited for may take (30s, or what the checker says itself)",
    "threads": "how many calls at once, of a checker that blocks (32)",
    "cpu": "how long one call may compute, of a checker that blocks (500ms)",
}
_USUAL = Terms()
_log = Logger()


def look_in(folder: str) -> None:
    """Look for plug-ins in FOLDER/twisted/plugins as well, behind all others."""
    plugins = os.path.join(os.path.abspath(folder), "twisted", "plugins")
    if os.path.isdir(plugins) and plugins not in twisted.plugins.__path__:
        twisted.plugins.__path__.append(plugins)


def installed() -> dict[str, Any]:
    """The factories (ICheckerFactory) of all checkers there are, by name; bad ones are left out with a log line."""
    found: dict[str, Any] = {}
    for factory in getPlugins(ICheckerFactory):
        try:
            verifyObject(ICheckerFactory, factory)
        except Invalid as error:
            _log.error("a checker's plug-in is left out: {error}", error=str(error))
            continue
        if factory.name in found:
            _log.error("a second checker named {name} is left out", name=factory.name)
            continue
        found[factory.name] = factory
    return found


def make_checkers(
    names: Sequence[str],
    context: Context,
    options: Mapping[str, Mapping[str, str]] | None = None,
    factories: Mapping[str, Any] | None = None,
) -> list[tuple[str, object]]:
    """
    The checkers of `checks =`, in order, each with the options under its name.

    *factories* are by default all that are installed. Raises ValueError, with a
    text for the operator, for a name that nobody provides or an option that its
    checker does not take.
    """
    known = installed() if factories is None else factories
    return [(name, make(name, context, (options or {}).get(name, {}), known)) for name in names]


def make(name: str, context: Context, options: Mapping[str, str], factories: Mapping[str, Any]) -> object:
    """One checker; raises ValueError as above."""
    factory = factories.get(name)
    if factory is None:
        raise ValueError(f"there is no checker named {name!r}; known are: {', '.join(sorted(factories))}")
    terms, own = parted(factory, options)
    takes = getattr(factory, "options", None)
    if takes is not None and (unknown := sorted(set(own) - set(takes))):
        words = f"takes {', '.join([*takes, *TERMS])}"
        raise ValueError(f"{name} {words}, but has: {', '.join(unknown)}")
    made: object = factory.make(context, own)
    if not IBlocking.providedBy(made) and (terms.threads, terms.cpu) != (_USUAL.threads, _USUAL.cpu):
        raise ValueError(f"{name}: threads and cpu are for checkers that block, and it does not")
    return made


def parted(factory: Any, options: Mapping[str, str]) -> tuple[Terms, dict[str, str]]:
    """
    What any checker may be told, read; and what its factory is to be told.

    A word of TERMS that is among the factory's own options is the factory's.
    Raises ValueError.
    """
    mine = set(getattr(factory, "options", None) or ())
    general = {word: text for word, text in options.items() if word in TERMS and word not in mine}
    name = factory.name
    terms = Terms(
        timeout=said.seconds(name, general, "timeout", 0) or None,
        threads=said.count(name, general, "threads", _USUAL.threads, 1),
        cpu=said.seconds(name, general, "cpu", _USUAL.cpu),
    )
    return terms, {word: text for word, text in options.items() if word not in general}


def terms_of(options: Mapping[str, Mapping[str, str]], factories: Mapping[str, Any] | None = None) -> dict[str, Terms]:
    """The Terms of each checker that `checks =` names, for Policy."""
    known = installed() if factories is None else factories
    return {name: parted(known[name], said_of)[0] for name, said_of in options.items() if name in known}
