"""`qmq check`: is the configuration right?"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmq.cli.options import conf_option, json_option
from qmq.conf.explain import census, describe
from qmq.conf.load import load
from qmq.conf.written import ConfErrors, Note


@click.command()
@conf_option
@json_option
def check(conf: str, as_json: bool) -> None:
    """
    Read the configuration; tell every error and warning with its line and what to write.

    Nothing is started or changed. Ends with 1 if there is an error.
    """
    try:
        loaded = load(conf)
    except ConfErrors as errors:
        _tell("error", errors.errors, as_json)
        _tell("warning", errors.warnings, as_json)
        sys.exit(1)
    _tell("warning", loaded.warnings, as_json)
    if as_json:
        return
    table = Table(box=None, show_header=False)
    for fact in describe(loaded):
        table.add_row(Text(fact.name), Text(fact.value))
    Console(soft_wrap=True).print(table)
    click.echo(f"{conf}: right, {census(loaded)}")


def _tell(kind: str, notes: Iterable[Note], as_json: bool) -> None:
    for note in notes:
        if as_json:
            fact = {"kind": kind, "path": note.path, "line": note.line, "text": note.text, "remedy": note.remedy}
            click.echo(json.dumps(fact))
            continue
        place = f"{note.path}:{note.line}" if note.line else note.path
        click.echo(f"{place}: {click.style(kind, fg='red' if kind == 'error' else 'yellow')}: {note.text}", err=True)
        if note.remedy:
            click.echo(f"    {note.remedy}", err=True)
