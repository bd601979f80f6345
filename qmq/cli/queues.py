"""qmq stat, pause, resume, refuse, accept: the queues of a running gateway, all processes in one view."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from qmq.cli.ask import ask
from qmq.cli.look import wide_console
from qmq.cli.options import conf_option, json_option, patience_option
from qmq.cli.tallies import show_checks
from qmq.cli.texts import age, size, took
from qmq.mail import Seconds


@click.command()
@conf_option
@json_option
@patience_option
@click.option("--checks", is_flag=True, help="The checkers instead of the queues: what they said, and their times.")
def stat(conf: str, as_json: bool, patience: Seconds, checks: bool) -> None:
    """
    What each queue holds and does, over all processes.

    As qmail-qstat, one line a queue: queued messages, their size, the age of
    the oldest, those being delivered; since the start of its process what was
    delivered, deferred and bounced, and the seconds from acceptance to delivery
    (median and 99th of a hundred). Then what keeps it from taking or delivering
    mail, if anything does. A process that does not answer is named.

    With --checks one line a checker, since the start: how often it was asked,
    refused (5yz) and deferred (4yz); how often it raised, was late, or did not
    come back; the mean and the longest time to its answer.

    \b
      qmq stat
      qmq stat --json
    """  # noqa: D301 - \b is click's: keep these lines
    answers = ask(conf, patience=patience, do="stat")
    if as_json and not checks:
        for fact in answers:
            click.echo(json.dumps(fact))
        return
    facts = sorted(answers, key=lambda fact: (not fact.get("main"), fact["process"]))
    if checks:
        show_checks(facts, as_json=as_json)
        return
    wide_console().print(_table(facts))
    queues = [queue for fact in facts for queue in fact["queues"].values()]
    total = sum(queue["queued"] for queue in queues)
    octets = sum(queue.get("octets") or 0 for queue in queues)
    click.echo(f"messages in queue: {total}" + (f", {size(octets)}" if total else ""))
    down = [name for fact in facts for name, pid in fact.get("workers", {}).items() if not pid]
    if down:
        click.echo(f"not running just now: {', '.join(down)}", err=True)


def _table(facts: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="queues", title_justify="left")
    table.add_column("queue", no_wrap=True)
    table.add_column("process", no_wrap=True, style="dim")
    for column in ("queued", "size", "oldest", "in hand", "delivered", "deferred", "bounced", "p50", "p99"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state")
    for fact in facts:
        for name, q in sorted(fact["queues"].items()):
            numbers = [str(q[word]) for word in ("in_hand", "delivered", "deferred", "bounced")]
            oldest = age(q["age"]) if q["queued"] and q.get("age") is not None else ""
            times = [took(q.get(word)) if q["delivered"] else "" for word in ("p50", "p99")]
            table.add_row(
                Text(name), Text(fact["process"]), str(q["queued"]), size(q["octets"]) if q["queued"] else "", oldest,
                *numbers, *times, Text(state(q)),
            )  # fmt: skip
    return table


def state(queue: Mapping[str, Any]) -> str:
    """What keeps a queue from taking mail, or from delivering it; empty if nothing does."""
    words = [word for word in ("paused", "refusing") if queue.get(word)]
    if full := queue.get("full"):
        words.append(f"full: {full}" if isinstance(full, str) else "full")
    return ", ".join(words)


def _switch(word: str, undo: str, help_: str) -> click.Command:
    @click.command(name=word, help=help_)
    @click.argument("queues", nargs=-1, metavar="QUEUE...")
    @click.option("--all", "everything", is_flag=True, help="All queues.")
    @conf_option
    @json_option
    @patience_option
    def command(queues: tuple[str, ...], everything: bool, conf: str, as_json: bool, patience: Seconds) -> None:
        if bool(queues) == everything:
            raise click.UsageError(f"which queues? Say their names, or --all: qmq {word} NAME")
        answers = ask(conf, patience=patience, do=word, queue=list(queues))
        for fact in answers:
            click.echo(json.dumps(fact) if as_json else f"{fact['queue']}: {fact['done']}")
        if answers.missing:
            raise click.ClickException("not everywhere; what is named above did not take part")
        if undo and not as_json:
            click.echo(f"to undo it: qmq {undo} {' '.join(queues) or '--all'}", err=True)

    return command


pause = _switch("pause", "resume", """
    Stop delivering from QUEUE; mail is still taken.

    As postconf defer_transports of Postfix, or svc -d of qmail-send while
    qmail-queue goes on. What is on its way goes on.

    \b
      qmq pause customer1
    """)  # fmt: skip
resume = _switch("resume", "", """
    Deliver again from QUEUE, after pause.

    \b
      qmq resume customer1
    """)  # fmt: skip
refuse = _switch("refuse", "accept", """
    Take no mail for QUEUE: its recipients get 452; what is there is delivered.

    Other recipients are taken as ever, where Postfix could only stop smtpd for
    all of them.

    \b
      qmq refuse customer1
    """)  # fmt: skip
accept = _switch("accept", "", """
    Take mail for QUEUE again, after refuse or drain.

    \b
      qmq accept customer1
    """)  # fmt: skip
