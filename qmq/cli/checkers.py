"""`qmq checkers`: which checkers are installed, what they can be told, and which of them conf-qmq asks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qmq.cli.options import conf_option, json_option
from qmq.conf.load import load
from qmq.conf.written import ConfErrors
from qmq.receive.catalogue import TERMS, installed, look_in


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@conf_option
@json_option
def checkers(names: tuple[str, ...], conf: str, as_json: bool) -> None:
    """
    List the checkers that can be named in `checks =`, with what [check NAME] may say.

    Those that conf-qmq names come first, in its order. A file in a folder
    twisted/plugins beside conf-qmq is found, and so is an installed package.
    With NAME: that one, and where it comes from.
    """
    look_in(os.path.dirname(os.path.abspath(conf)))
    known = installed()
    if strange := [name for name in names if name not in known]:
        raise click.ClickException(f"there is no checker {', '.join(strange)}; known are {', '.join(sorted(known))}")
    asked = _asked(conf)
    first = [name for name in asked if name in known]
    order = names or [*first, *sorted(set(known) - set(first))]
    found = [_facts(known[name], asked) for name in order]
    if as_json:
        for facts in found:
            click.echo(json.dumps(facts))
        return
    console = Console(highlight=False)
    if names:
        for facts in found:
            _show(console, facts)
        return
    width = max((len(word) + 2 for facts in found for word in (facts["name"], *facts["options"])), default=0)
    _list(console, f"asked, in this order (checks = of {conf})", [facts for facts in found if facts["asked"]], width)
    _list(console, "installed, but not asked" if asked else "installed", [f for f in found if not f["asked"]], width)
    console.print(Text(f"options of all: {', '.join(TERMS)}; qmq checkers NAME tells more"))
    for name in asked:
        if name not in known:
            click.echo(f"{conf} names {name}, which is not installed", err=True)


def _asked(conf: str) -> dict[str, Mapping[str, str]]:
    """What conf-qmq names, with its options; nothing if there is none to read."""
    if not os.path.exists(conf):
        return {}
    try:
        return dict(load(conf).primary.checks)
    except ConfErrors:
        click.echo(f"{conf} has errors: qmq check --conf {conf}", err=True)
        return {}


def _facts(factory: Any, asked: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    module = type(factory).__module__
    options = dict(getattr(factory, "options", None) or {})
    return {
        "name": factory.name,
        "help": factory.help,
        "options": options,
        "any_options": getattr(factory, "options", None) is None,
        "general_options": {word: text for word, text in TERMS.items() if word not in options},
        "asked": factory.name in asked,
        "said": dict(asked.get(factory.name, {})),
        "module": module,
        "file": getattr(sys.modules.get(module), "__file__", None) or "",
    }


def _list(console: Console, heading: str, found: Sequence[Mapping[str, Any]], width: int) -> None:
    if not found:
        return
    table = Table(title=Text(heading), title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, min_width=width)
    table.add_column()
    for facts in found:
        text = Text(facts["help"])
        if not facts["module"].startswith("qmq."):
            text.append(f" (from {facts['module']})", "dim")
        table.add_row(Text(facts["name"], "bold"), text)
        for word, help_ in facts["options"].items():
            table.add_row(Text(f"  {word}", "cyan"), Text(help_))
    console.print(table)
    console.print()


def _show(console: Console, facts: Mapping[str, Any]) -> None:
    name = facts["name"]
    console.print(Text(f"{name}: {facts['help']}", "bold"))
    console.print(Text(f"  from {facts['module']} ({facts['file']})"), soft_wrap=True)
    console.print("  named in checks =" if facts["asked"] else "  not named in checks =")
    if facts["any_options"]:
        console.print("  which options it takes it does not tell")
    table = Table(title=Text(f"[check {name}] may say"), title_justify="left", box=None, show_header=False)
    for word, text in {**facts["options"], **facts["general_options"]}.items():
        value = facts["said"].get(word)
        table.add_row(Text(word, "cyan"), Text(text), Text("" if value is None else f"= {value}"))
    console.print(Padding(table, (0, 0, 1, 2)))
