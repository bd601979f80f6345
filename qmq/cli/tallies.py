"""`qmq stat --checks`: what the checkers of a running gateway did, and how long they took."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

_COUNTS = ("asked", "refused", "deferred", "failed", "late", "stuck")


def show_checks(facts: Iterable[Mapping[str, Any]], *, as_json: bool) -> None:
    """From the facts that each process tells for `stat`; one JSON object a checker, or a table."""
    rows = list(_rows(facts))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row))
        return
    table = Table(title="checks", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("check", no_wrap=True)
    for column in (*_COUNTS, "mean", "longest"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counts = [str(row[count]) for count in _COUNTS]
        table.add_row(Text(row["check"]), *counts, _time(row["mean"]), _time(row["longest"]))
    console = Console(highlight=False)
    console.print(table)
    for row in rows:
        if "threads" in row:
            console.print(Text(f"threads of {row['check']}: {_threads(row)}"))


def _rows(facts: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for fact in facts:
        for name, tally in fact.get("primary", {}).get("checks", {}).items():
            yield {"process": fact["process"], "check": name, **tally}


def _threads(row: Mapping[str, Any]) -> str:
    words = [f"{count} {word}" for word, count in row["threads"].items()]
    return ", ".join([*words, f"{row['turned_away']} calls turned away"])


def _time(seconds: float) -> str:
    if not seconds:
        return ""
    for unit, size in (("s", 1), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e6:.1f} us"
