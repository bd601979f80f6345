"""qmq hold, release, now, delete, bounce, move: the same for whatever matches, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from typing import Any

import click

from qmq.cli.act import Asker, run
from qmq.cli.options import (
    Selection,
    all_option,
    conf_option,
    is_primary,
    json_option,
    looks_like_id,
    options,
    patience_option,
    predicates,
)
from qmq.conf.load import load
from qmq.conf.written import ConfErrors
from qmq.mail import Seconds

yes_option = click.option("--yes", is_flag=True, help="Do it, without a dry run.")


def _asking(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of all orders; the command gets an `Asker`."""

    @wraps(command)
    def wrapped(conf: str, as_json: bool, patience: Seconds, **given: Any) -> Any:
        return command(asker=Asker(conf, as_json, patience), **given)

    return all_option(conf_option(json_option(patience_option(wrapped))))


@click.command()
@predicates
@yes_option
@_asking
def hold(asker: Asker, chosen: Selection, everything: bool, yes: bool) -> None:
    """
    Keep messages back: they are not tried until they are released.

    As postsuper -h of Postfix; qmail had nothing like it. What is in delivery
    just now is held when its attempt is over. Without --yes a dry run.

    \b
      qmq hold abc234-1f --yes
      qmq hold --sender @spammer.example
    """  # noqa: D301 - \b is click's: keep these lines
    run(asker, "hold", chosen, everything=everything, sure=yes)


@click.command()
@predicates
@_asking
def release(asker: Asker, chosen: Selection, everything: bool) -> None:
    """
    Let go what is held: it is due at once.

    As postsuper -H of Postfix.

    \b
      qmq release --state held --queue customer1
    """  # noqa: D301 - as above
    run(asker, "release", chosen, everything=everything, sure=True)


@click.command()
@click.argument("ids", nargs=-1, metavar="[QUEUE|ID]...")
@options
@_asking
def now(asker: Asker, chosen: Selection, everything: bool) -> None:  # noqa: ARG001 - that is what it does anyway
    """
    Try at once what matches; everything, if nothing is said.

    As SIGALRM does for qmail-send, or postqueue -f: what waits for its next
    attempt is tried at once, whatever its schedule says. What is held stays
    held.

    \b
      qmq now customer1
      qmq now --destination mail.customer1.example
    """  # noqa: D301 - as above
    words = chosen.query.get("id", "").split()
    known = _instances(asker.conf) if words else ()
    queues = [word for word in words if word in known or not looks_like_id(word) or is_primary(word)]
    if queues:
        query = {**chosen.query, "id": " ".join(word for word in words if word not in queues)}
        chosen = Selection((*chosen.queues, *queues), {word: text for word, text in query.items() if text})
    run(asker, "now", chosen, everything=True, sure=True)


@click.command()
@predicates
@yes_option
@_asking
def delete(asker: Asker, chosen: Selection, everything: bool, yes: bool) -> None:
    """
    Remove messages; nobody is told.

    As postsuper -d of Postfix, or qmail-remove. To have the senders told, say
    `qmq bounce`. Without --yes a dry run; there is no way back.

    \b
      qmq delete --sender @spammer.example --older 2h
      qmq delete --sender @spammer.example --older 2h --yes
    """  # noqa: D301 - as above
    run(asker, "delete", chosen, everything=everything, sure=yes)


@click.command()
@predicates
@click.option("--reason", default="", metavar="TEXT", help="What the sender is told, beside the latest answer.")
@yes_option
@_asking
def bounce(asker: Asker, chosen: Selection, everything: bool, yes: bool, reason: str) -> None:
    """
    Give up: the messages go back to their senders, with the reason.

    As if their lifetime were over. Without --yes a dry run.

    \b
      qmq bounce --domain gone.example --reason "this company is no more" --yes
    """  # noqa: D301 - as above
    run(asker, "bounce", chosen, everything=everything, sure=yes, reason=reason)


@click.command()
@predicates
@click.option("--to", required=True, metavar="QUEUE", help="The queue that gets them.")
@yes_option
@_asking
def move(asker: Asker, chosen: Selection, everything: bool, yes: bool, to: str) -> None:
    """
    Hand messages over to another queue, so that they wait among its mail.

    As postsuper -r after a change of the transport in Postfix. They go to the
    host of their domain as before, unless the other queue has a route for it.
    Each is in one of the queues at any moment, and delivered once, even if a
    process dies. It keeps its age, and gets an id of the other queue. Without
    --yes a dry run.

    \b
      qmq move --queue customer1 --older 1h --to storm --yes
    """  # noqa: D301 - as above
    check_target(asker.conf, to)
    run(asker, "move", chosen, everything=everything, sure=yes, to=to)


def check_target(conf: str, to: str) -> None:
    """A click error if there is no such queue to move to."""
    known = _instances(conf)
    if known and to not in known:
        raise click.UsageError(f"there is no queue {to} to move to; there are {', '.join(sorted(known))}")


def _instances(conf: str) -> Collection[str]:
    """The names of the queues that take mail; none if conf-qmq has errors just now."""
    try:
        return [one.name for one in load(conf, rules=False).instances if one.role != "retired"]
    except ConfErrors:
        return ()
