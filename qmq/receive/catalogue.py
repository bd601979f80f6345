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
from qmq.interfaces import ICheckerFactory
from qmq.receive.context import Context

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
    takes = getattr(factory, "options", None)
    if takes is not None and (unknown := sorted(set(options) - set(takes))):
        words = f"takes {', '.join(takes)}" if takes else "takes no options"
        raise ValueError(f"{name} {words}, but has: {', '.join(unknown)}")
    made: object = factory.make(context, options)
    return made
