"""qmq drain: let a queue run empty, and wait for it."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from typing import Any

import click

from qmq.cli.act import Asker, progress
from qmq.cli.options import conf_option, in_units, json_option, patience_option
from qmq.cli.orders import check_target
from qmq.cli.texts import age, messages
from qmq.conf.units import duration
from qmq.mail import Seconds

_LOOK: Seconds = 0.5
# Of what stays, so many are looked at for the reasons.
_LOOKED_AT = 1000
_REASONS = 10


@click.command()
@click.argument("queue")
@click.option("--to", default="", metavar="OTHER", help="Move what is there to this queue, instead of delivering it.")
@click.option(
    "--wait", callback=in_units(duration), default="10m", show_default=True, metavar="TIME", help="Give up after this."
)
@conf_option
@json_option
@patience_option
def drain(queue: str, to: str, wait: Seconds, conf: str, as_json: bool, patience: Seconds) -> None:
    """
    Let QUEUE run empty: it takes no more mail, and what it has is tried at once.

    Before an instance is removed or its disk is changed; in qmail that was
    qmail-send without a qmail-smtpd, and patience. Waits until the queue is
    empty; if it is not in time, says what stays and why, and ends with 1. The
    queue goes on refusing mail, until `qmq accept QUEUE`.

    \b
      qmq drain customer1
      qmq drain customer1 --to storm --wait 1m
    """  # noqa: D301 - \b is click's: keep these lines
    asker = Asker(conf, as_json, patience)
    if to:
        check_target(conf, to)
        if to == queue:
            raise click.UsageError("a queue is not moved to itself")
    for order in ("refuse", "move" if to else "now"):
        answers = asker(do=order, queue=[queue], **({"query": {}, "to": to} if order == "move" else {}))
        for _ in answers:
            pass
        if answers.missing:
            raise click.ClickException(f"could not say {order} to all of it; {_undo(queue)}")
    left = _wait(asker, queue, wait)
    if as_json:
        click.echo(json.dumps({"queue": queue, "left": left, "reasons": _reasons(asker, queue) if left else {}}))
    elif left:
        click.echo(f"{queue}: {messages(left)} still there after {age(wait)}")
        for reason, count in list(_reasons(asker, queue).items())[:_REASONS]:
            click.echo(f"  {count}  {reason}")
        click.echo(f"it goes on trying; look: qmq list --queue {queue}; or move them: qmq drain {queue} --to OTHER")
    else:
        click.echo(f"{queue} is empty")
    if not as_json:
        click.echo(f"it takes no mail; {_undo(queue)}")
    sys.exit(1 if left else 0)


def _undo(queue: str) -> str:
    return f"to undo it: qmq accept {queue}"


def _wait(asker: Asker, queue: str, wait: Seconds) -> int:
    """Until it is empty or time is over; how many are left."""
    end = time.monotonic() + wait
    left = at_first = _queued(asker, queue)
    with progress(f"drain {queue}", at_first) as tell:
        while left and time.monotonic() < end:
            time.sleep(min(_LOOK, max(0.0, end - time.monotonic())))
            left = _queued(asker, queue)
            tell(max(0, at_first - left))
    return left


def _queued(asker: Asker, queue: str) -> int:
    answers = asker(do="stat", queue=[queue])
    queued = [fact["queues"][queue]["queued"] for fact in answers if queue in fact["queues"]]
    if not queued:
        raise click.ClickException(f"its process does not answer; {_undo(queue)}")
    return int(sum(queued))


def _reasons(asker: Asker, queue: str) -> dict[str, int]:
    """Why what is left is left, the most frequent first."""
    facts = asker(do="list", queue=[queue], limit=_LOOKED_AT)
    return dict(Counter(map(_reason, facts)).most_common())


def _reason(fact: dict[str, Any]) -> str:
    if fact["state"] in {"held", "in-hand"}:
        return "held: qmq release" if fact["state"] == "held" else "in delivery just now"
    return f"{fact['destination']}: {fact['last'] or 'not tried yet'}"
