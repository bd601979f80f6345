"""qmq stat, read, now, pause, resume, refuse, accept: all queues of a running gateway in one view."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from qmq.cli.ask import ask
from qmq.cli.tallies import show_checks

conf_option = click.option(
    "--conf", default="conf-qmq", show_default=True, metavar="FILE", help="The gateway's configuration."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
queue_argument = click.argument("queue", required=False, default="")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


@click.command()
@conf_option
@json_option
@click.option("--checks", is_flag=True, help="The checkers instead of the queues: what they said, and their times.")
def stat(conf: str, as_json: bool, checks: bool) -> None:
    """
    What each queue holds and does, over all processes.

    As qmail-qstat, one line a queue: queued messages, those being delivered,
    what was delivered, deferred and bounced since the start, and the seconds
    from acceptance to delivery (median and 99th of a hundred).

    With --checks one line a checker, since the start: how often it was asked,
    refused (5yz) and deferred (4yz); how often it raised, was late, or did not
    come back; the mean and the longest time to its answer.
    """
    facts = list(ask(conf, do="stat"))
    if checks:
        show_checks(facts, as_json=as_json)
        return
    if as_json:
        for fact in facts:
            click.echo(json.dumps(fact))
        return
    table = Table(title="queues", title_justify="left")
    table.add_column("queue", no_wrap=True)
    for column in ("queued", "in hand", "delivered", "deferred", "bounced", "p50", "p99"):
        table.add_column(column, justify="right")
    table.add_column("state")
    total = 0
    for fact in facts:
        for name, q in sorted(fact["queues"].items()):
            total += q["queued"]
            state = ", ".join(word for word in ("paused", "refusing") if q.get(word))
            table.add_row(
                name, str(q["queued"]), str(q["in_hand"]), str(q["delivered"]), str(q["deferred"]), str(q["bounced"]),
                _seconds(q.get("p50")), _seconds(q.get("p99")), state,
            )  # fmt: skip
    console = Console()
    console.print(table)
    console.print(f"messages in queue: {total}", highlight=False)


@click.command()
@queue_argument
@conf_option
@json_option
@click.option("--limit", default=1000, show_default=True, help="At most so many of each queue.")
@click.option("--recipient", default="", help="Only messages to this address.")
@click.option("--sender", default="", help="Only messages from this address.")
def read(queue: str, conf: str, as_json: bool, limit: int, recipient: str, sender: str) -> None:
    """
    List the messages in QUEUE, or in all.

    As qmail-qread: date, id, size and sender, then each recipient with the
    last answer and the time of the next attempt.
    """
    for fact in ask(conf, do="read", queue=queue, limit=limit, recipient=recipient, sender=sender):
        if as_json:
            click.echo(json.dumps(fact))
        else:
            _show(fact)


def _show(fact: dict[str, Any]) -> None:
    born = time.strftime("%d %b %Y %H:%M:%S GMT", time.gmtime(fact["born"]))
    size = "" if fact["size"] is None else str(fact["size"])
    bouncing = " bouncing" if fact["bouncing"] else ""
    click.echo(f"{born}  #{fact['id']}  {size}  <{fact['sender']}>{bouncing}  {fact['queue']}")
    now = time.time()
    due = "in hand" if fact["due"] is None else f"due in {_age(max(0, fact['due'] - now))}"
    for r in fact["recipients"]:
        click.echo(f"\tremote\t{r['address']}\t{due}\t{r['reply']}")
    for r in fact["bouncing"]:
        click.echo(f"  bouncing\tremote\t{r['address']}\t\t{r['reply']}")


@click.command()
@queue_argument
@conf_option
@json_option
@click.option("--recipient", default="", help="Only messages to this address.")
@click.option("--sender", default="", help="Only messages from this address.")
def now(queue: str, conf: str, as_json: bool, recipient: str, sender: str) -> None:
    """
    Everything in QUEUE (or in all) is due now.

    As SIGALRM does for qmail-send: what waits for its next attempt is tried at
    once, whatever its schedule says.
    """
    for fact in ask(conf, do="now", queue=queue, recipient=recipient, sender=sender):
        click.echo(json.dumps(fact) if as_json else f"{fact['queue']}: {fact['due']} due now")


def _order(word: str, text: str) -> click.Command:
    @click.command(name=word, help=text)
    @queue_argument
    @conf_option
    @json_option
    def command(queue: str, conf: str, as_json: bool) -> None:
        for fact in ask(conf, do=word, queue=queue):
            click.echo(json.dumps(fact) if as_json else f"{fact['queue']}: {fact['done']}")

    return command


pause = _order("pause", "Stop delivering from QUEUE (or all); mail is still taken.")
resume = _order("resume", "Deliver again.")
refuse = _order("refuse", "Take no mail for QUEUE (or all): its recipients get 452; what is there is delivered.")
accept = _order("accept", "Take mail again.")


@click.command()
@conf_option
@json_option
def reload(conf: str, as_json: bool) -> None:
    """Read conf-qmq again, as SIGHUP does; a file with errors changes nothing."""
    for fact in ask(conf, do="reload"):
        click.echo(json.dumps(fact) if as_json else f"{fact['process']}: {fact['reload']}")
