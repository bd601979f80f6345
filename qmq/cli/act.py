"""
An order over whatever matches, in all processes: a dry run first, then with a progress bar.

The dry run tells how many messages are meant, in which queues, and some of
them; on a terminal it asks, elsewhere --yes is to be said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from qmq.cli.ask import Answers, ask
from qmq.cli.look import examples, table, wide_console
from qmq.cli.options import Selection, is_primary
from qmq.cli.texts import messages, size
from qmq.mail import Octets, Seconds

_EXAMPLES = 3
# What was done, for who reads it.
_DONE = {
    "hold": "held", "release": "released", "now": "due now", "delete": "deleted", "bounce": "bounced", "move": "moved",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asker:
    """How to ask: the configuration, how long to wait, in what form to tell."""

    conf: str
    as_json: bool
    patience: Seconds

    def __call__(self, **request: Any) -> Answers:
        """As ask."""
        return ask(self.conf, patience=self.patience, **request)


def run(asker: Asker, order: str, chosen: Selection, *, everything: bool, sure: bool, **more: Any) -> None:
    """One order from the command line: refused if nothing was said, a dry run if not *sure*, else done."""
    if not chosen and not everything:
        raise click.UsageError(
            f"which messages? Say an ID, or an option such as --queue NAME or --sender ADDRESS; --all: {order} all"
        )
    total = None
    if not sure:
        counts = _count(asker, chosen, **more)
        total = sum(count for count, _ in counts.values())
        if not total:
            _nothing(chosen)
            return
        _tell_plan(asker, order, chosen, counts)
        if asker.as_json or not interactive():
            if not asker.as_json:
                click.echo(f"nothing was done; to {order} them say --yes too")
            return
        if not click.confirm("do it?", default=False):
            return
    act(asker, order, chosen, total, **more)


def interactive() -> bool:
    """Whether somebody sits there who can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def act(asker: Asker, order: str, chosen: Selection, total: int | None, **more: Any) -> None:
    """Do it, and say what was done of each queue; ends with 1 if some process did not answer."""
    sums: dict[str, int] = {}
    answers = asker(**chosen.request(order, **more))
    said = False
    with progress(order, total) as tell:
        for fact in answers:
            sums[fact["queue"]] = fact["done"]
            tell(sum(sums.values()))
            if "later" in fact and (fact["done"] or fact["later"] or order == "now"):
                said = said or bool(fact["done"] or fact["later"])
                click.echo(json.dumps(fact) if asker.as_json else _outcome(order, fact, more.get("to", "")))
    if answers.missing:
        raise click.ClickException("not everywhere; what is named above did not take part")
    if not said:
        _nothing(chosen)


def _outcome(order: str, fact: dict[str, Any], to: str) -> str:
    where = f" to {to}" if order == "move" else ""
    text = f"{fact['queue']}: {fact['done']} {_DONE[order]}{where}"
    if fact["later"]:
        text += f"; {fact['later']} in delivery just now: {_DONE[order]}{where} when that is over, if anything is left"
    return text


def _nothing(chosen: Selection) -> None:
    if chosen.ids:
        raise click.ClickException(f"no such message in any queue: {' '.join(chosen.ids)}")
    click.echo("nothing matches", err=True)


def _count(asker: Asker, chosen: Selection, *, to: str = "", **_: Any) -> dict[str, tuple[int, Octets]]:
    counts: dict[str, tuple[int, Octets]] = {}
    with progress("count", None) as tell:
        for fact in asker(**chosen.request("count")):
            counts[fact["queue"]] = (fact["counted"], fact["octets"])
            tell(sum(count for count, _ in counts.values()))
    # What is in the queue to move to stays there, and so does what a primary is about to hand over anyway.
    stays = {name for name in counts if to and (name == to or is_primary(name))}
    return {name: counts[name] for name in sorted(counts) if counts[name][0] and name not in stays}


def _tell_plan(asker: Asker, order: str, chosen: Selection, counts: dict[str, tuple[int, Octets]]) -> None:
    """How many of which queue, and what they are like."""
    if asker.as_json:
        for name, (count, octets) in counts.items():
            click.echo(json.dumps({"would": order, "queue": name, "matches": count, "octets": octets}))
        return
    total = sum(count for count, _ in counts.values())
    click.echo(f"would {order} {messages(total)}, {size(sum(octets for _, octets in counts.values()))}:")
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, (count, octets) in counts.items():
        grid.add_row(Text(f"  {name}"), Text(str(count), justify="right"), Text(size(octets), justify="right"))
    console = wide_console()
    console.print(grid)
    there = Selection(tuple(counts), chosen.query)
    some = examples(asker(**there.request("list", limit=_EXAMPLES)), _EXAMPLES)
    if some:
        click.echo("such as" if total > len(some) else "that is")
        console.print(table(some))


def _unseen(done: int) -> None:
    """For whom nobody watches."""


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if somebody sees it; what it yields is told how many are done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _unseen
        return
    count = TextColumn("{task.completed:.0f}")
    columns = [TextColumn("{task.description}"), BarColumn(), count, *([TaskProgressColumn()] if total else [])]
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)
