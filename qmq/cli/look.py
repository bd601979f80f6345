"""qmq list, read, show, cat: the messages in the queues, all processes in one view."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmq.cli.ask import Answers, ask
from qmq.cli.options import Selection, conf_option, json_option, patience_option, predicates
from qmq.cli.texts import age, messages, size
from qmq.mail import Seconds

# More than that nobody reads at once.
_SCREEN = 1000
# A line of a table in a file or a pipe is as long as it must be, up to here.
_WIDE = 240


@click.command("list")
@predicates
@conf_option
@json_option
@patience_option
@click.option(
    "--limit", type=click.IntRange(0), help=f"At most so many; 0: all.  [default: {_SCREEN}, all with --json]"
)
@click.option("--after", type=click.IntRange(0), default=0, help="Only numbers above this: the next page of a queue.")
def list_(chosen: Selection, conf: str, as_json: bool, patience: Seconds, limit: int | None, after: int) -> None:
    """
    List messages: those that match all that is said, or all.

    As qmail-qread, mailq or postqueue -p, but over the queues of all processes,
    and only what is asked for. Each line is a message for one destination, with
    the latest answer from there. The first messages are there at once, however
    many follow.

    \b
      qmq list --queue customer1 --older 2h
      qmq list --destination mail.customer1.example --error 451
      qmq list --sender @spammer.example --json
    """  # noqa: D301 - \b is click's: keep these lines
    most = limit if limit is not None else 0 if as_json else _SCREEN
    answers = ask(conf, patience=patience, **chosen.request("list", after=after, limit=most))
    sought = set(chosen.ids)
    found = _print_json(answers, most, sought) if as_json else _print_table(answers, most, sought)
    if sought and found != most:
        raise click.ClickException(f"no such message in any queue: {' '.join(sorted(sought))}")
    if answers.missing and not found:
        sys.exit(1)


def _print_json(answers: Answers, most: int, sought: set[str]) -> int:
    """Each as it comes; how many. What was sought is no longer when it is found."""
    count = 0
    with closing(answers):
        for count, fact in enumerate(answers, 1):
            click.echo(json.dumps(fact))
            sought.discard(fact["id"])
            if count == most:
                break
    return count


def _print_table(answers: Answers, most: int, sought: set[str]) -> int:
    with closing(answers):
        facts = []
        for fact in answers:
            facts.append(fact)
            if len(facts) == most:
                break
    if facts:
        facts.sort(key=lambda fact: (fact["queue"], fact["number"]))
        wide_console().print(table(facts))
        end = f": there may be more, say --limit; of one queue, --queue and --after {facts[-1]['number']}"
        click.echo(messages(len(facts)) + (end if len(facts) == most else ""))
    elif not sought:
        click.echo("no messages")
    sought.difference_update(fact["id"] for fact in facts)
    return len(facts)


def wide_console() -> Console:
    """The terminal's width; elsewhere as wide as it must be, so that no id is cut."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def table(facts: Iterable[dict[str, Any]]) -> Table:
    """Messages for people, one a row."""
    made = Table(box=None, padding=(0, 1, 0, 0))
    for column, justify in (("id", "left"), ("queue", "left"), ("age", "right"), ("size", "right")):
        made.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # one of these words
    made.add_column("state", no_wrap=True)
    made.add_column("tries", justify="right", no_wrap=True)
    made.add_column("from, to, latest answer", overflow="fold")
    now = time.time()
    for fact in facts:
        last = f"\n{fact['last']}" if fact["last"] else ""
        made.add_row(
            Text(fact["id"], "bold"), Text(fact["queue"]), age(fact["age"]), size(fact["size"]), state(fact, now),
            str(fact["attempts"]), Text(f"<{fact['sender']}> {_to(fact)}").append(last, "dim"),
        )  # fmt: skip
    return made


def state(fact: dict[str, Any], now: Seconds) -> str:
    """What is being done about it, and when."""
    match fact["state"]:
        case "waiting":
            due = fact["due"] - now
            return "due" if due <= 0 else f"due in {age(due)}"
        case "moving":
            return f"moving to {fact['destination']}"
        case "in-hand":
            return "in hand"
        case other:
            return str(other)


def _to(fact: dict[str, Any]) -> str:
    """The first recipient, and how many there are besides."""
    first, *rest = [one["address"] for one in [*fact["recipients"], *fact["bouncing"]]] or [""]
    return f"<{first}>" + (f" and {len(rest)} more" if rest else "")


@click.command()
@click.argument("queue", required=False, default="")
@conf_option
@json_option
@patience_option
@click.option("--limit", type=click.IntRange(0), default=_SCREEN, show_default=True, help="At most so many of a queue.")
@click.option("--recipient", default="", help="Only messages to this address.")
@click.option("--sender", default="", help="Only messages from this address.")
def read(queue: str, conf: str, as_json: bool, patience: Seconds, limit: int, recipient: str, sender: str) -> None:
    """
    List the messages in QUEUE, or in all, with every recipient.

    As qmail-qread: date, id, size and sender, then each recipient with the last
    answer and the time of the next attempt. `qmq list` has a line a message,
    and more to choose by.

    \b
      qmq read customer1
    """  # noqa: D301 - \b is click's: keep these lines
    query = {"recipient": recipient, "sender": sender}
    answers = ask(conf, patience=patience, do="list", queue=queue, query=query, limit=limit)
    for fact in answers:
        click.echo(json.dumps(fact) if as_json else "\n".join(_read_lines(fact)))
    if answers.missing:
        sys.exit(1)


def _read_lines(fact: dict[str, Any]) -> list[str]:
    born = time.strftime("%d %b %Y %H:%M:%S GMT", time.gmtime(fact["born"]))
    octets = "" if fact["size"] is None else str(fact["size"])
    bouncing = " bouncing" if fact["bouncing"] else ""
    due = state(fact, time.time())
    return [
        f"{born}  #{fact['id']}  {octets}  <{fact['sender']}>{bouncing}  {fact['queue']}",
        *(f"\tremote\t{one['address']}\t{due}\t{one['reply']}" for one in fact["recipients"]),
        *(f"  bouncing\tremote\t{one['address']}\t\t{one['reply']}" for one in fact["bouncing"]),
    ]


id_argument = click.argument("id_", metavar="ID")


@click.command()
@id_argument
@conf_option
@json_option
@patience_option
def show(id_: str, conf: str, as_json: bool, patience: Seconds) -> None:
    """
    All that is known of message ID, and its header.

    As postcat -eh of Postfix. A message to several hosts is several entries
    (perhaps in several queues); each is shown.

    \b
      qmq show abc234-1f
    """  # noqa: D301 - \b is click's: keep these lines
    facts = list(ask(conf, patience=patience, do="show", id=id_))
    if not facts:
        raise click.ClickException(f"no such message in any queue: {id_}")
    console = wide_console()
    for fact in facts:
        if as_json:
            click.echo(json.dumps(fact))
            continue
        grid = Table(box=None, show_header=False)
        for name, value in _known(fact):
            grid.add_row(Text(name, "bold"), Text(value))
        console.print(grid)
        click.echo(f"\n{fact['header']}\n")


def _known(fact: dict[str, Any]) -> list[tuple[str, str]]:
    origin = fact["origin"]
    came = [origin["protocol"], origin["client"], origin["helo"], origin["user"]]
    made_here = ["made here"] if origin["made_here"] else []
    born = time.strftime("%d %b %Y %H:%M:%S", time.localtime(fact["born"]))
    rows = [
        ("id", fact["id"]),
        ("queue", f"{fact['queue']}, number {fact['number']}"),
        ("came", f"{born}, {age(fact['age'])} ago"),
        ("from", " ".join(filter(None, [*came, *made_here]))),
        ("size", size(fact["size"])),
        ("sender", f"<{fact['sender']}>"),
        ("site", fact["site"]),
        ("state", state(fact, time.time())),
        ("attempts", str(fact["attempts"])),
    ]
    rows += [("to", f"<{one['address']}>  {one['reply']}".rstrip()) for one in fact["recipients"]]
    rows += [("bouncing", f"<{one['address']}>  {one['reply']}") for one in fact["bouncing"]]
    return rows


@click.command()
@id_argument
@conf_option
@json_option
@patience_option
def cat(id_: str, conf: str, as_json: bool, patience: Seconds) -> None:
    """
    Write the text of message ID to stdout, as it is.

    As postcat -bhq of Postfix. Lines end in CRLF, as in SMTP, and our own
    Received field is in front. With --json pieces in base64.

    \b
      qmq cat abc234-1f > message.eml
    """  # noqa: D301 - \b is click's: keep these lines
    if not copy(ask(conf, patience=patience, do="cat", id=id_), as_json=as_json):
        raise click.ClickException(f"no such message in any queue: {id_}")


def copy(answers: Answers, *, as_json: bool) -> bool:
    """One message's text to stdout; false if there is none. Of one that several queues have, the first to answer."""
    first: str | None = None
    out = sys.stdout.buffer
    with closing(answers):
        for fact in answers:
            first = first or fact["queue"]
            if fact["queue"] != first:
                continue
            if as_json:
                click.echo(json.dumps(fact))
            else:
                out.write(base64.b64decode(fact["text"]))
            if fact.get("all"):
                out.flush()
                return True
    out.flush()
    if first:
        raise click.ClickException("the message broke off")
    return False


def examples(answers: Answers, count: int) -> Sequence[dict[str, Any]]:
    """The first few facts; the processes stop looking for more."""
    with closing(answers):
        return [fact for _, fact in zip(range(count), answers, strict=False)]
