"""
The commands that postmasters of other systems have in their fingers: mailq, postqueue, postsuper, qmail-qstat, qread.

Each says what its model says, to the octet where programs read it, over all
queues of all processes at once. A queue's name stands where the model has a
place for more: programs that know the model read on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click

from qmq.cli.ask import ask
from qmq.cli.options import conf_option, looks_like_id

Fact = dict[str, Any]

# Postfix's forms for long queue ids, which ours are (showq_compat.c).
_ROW = "{:<17} {:>8} {:<19} {}"
_HEADINGS = ("----Queue ID-----", "--Size--", "---Arrival Time----", "--Sender/Recipient------")
_REASON_WIDTH = 76
_QUEUES = {"in-hand": "active", "held": "hold"}  # all else is deferred
_MARKS = {"active": "*", "hold": "!", "deferred": ""}
_STATES = {
    "active": ("in-hand",),
    "incoming": ("in-hand",),
    "hold": ("held",),
    "deferred": ("waiting", "bouncing", "moving"),
}
_IDS = 2000  # a request's; it has 256 KiB

_verbose = click.option("-v", count=True, expose_value=False, help="Taken, and changes nothing.")
_config = click.option("-c", metavar="DIR", expose_value=False, help="Taken, and changes nothing: say --conf.")


def postfix_queue(state: str) -> str:
    """In which of Postfix's queues a message of that state would be."""
    return _QUEUES.get(state, "deferred")


def messages(facts: Iterable[Fact]) -> Iterator[Fact]:
    """
    Entries joined to messages: one that goes to several hosts is an entry for each.

    The entries of a message follow each other in a queue, while those of
    several queues may come in turn.
    """
    pending: dict[str, Fact] = {}
    for fact in facts:
        before = pending.get(fact["queue"])
        if before is None or before["id"] != fact["id"]:
            if before is not None:
                yield before
            pending[fact["queue"]] = fact
            continue
        states = {before["state"], fact["state"]}
        pending[fact["queue"]] = {
            **before,
            "recipients": before["recipients"] + fact["recipients"],
            "bouncing": before["bouncing"] + fact["bouncing"],
            "state": "in-hand" if "in-hand" in states else states.pop() if len(states) == 1 else "waiting",
        }
    yield from pending.values()


def mailq_lines(facts: Iterable[Fact]) -> Iterator[str]:
    """Messages as Postfix's mailq lists them."""
    count = octets = 0
    for fact in facts:
        yield "" if count else _ROW.format(*_HEADINGS)
        count += 1
        octets += fact["size"] or 0
        mark = fact["id"] + _MARKS[postfix_queue(fact["state"])]
        when = time.asctime(time.localtime(fact["born"]))[:19]
        yield _ROW.format(mark, fact["size"] or 0, when, _printable(fact["sender"]) or "MAILER-DAEMON")
        said = ""
        for recipient in _recipients(fact):
            if recipient["reply"] != said:
                said = recipient["reply"]
                yield f"({_printable(said) or 'reason unavailable'})".rjust(_REASON_WIDTH + 2)
            yield _ROW.format("", "", "", _printable(recipient["address"]))
    if count:
        yield f"\n-- {octets // 1024} Kbytes in {count} Request{'' if count == 1 else 's'}."
    else:
        yield "Mail queue is empty"


def json_line(fact: Fact) -> str:
    """A message as `postqueue -j` says it, and *queue*, the name of ours."""
    recipients = [
        {"address": r["address"], **({"delay_reason": r["reply"]} if r["reply"] else {})} for r in _recipients(fact)
    ]
    return json.dumps(
        {
            "queue_name": postfix_queue(fact["state"]),
            "queue_id": fact["id"],
            "arrival_time": int(fact["born"]),
            "message_size": fact["size"] or 0,
            "forced_expire": False,
            "sender": fact["sender"] or "MAILER-DAEMON",
            "recipients": recipients,
            "queue": fact["queue"],
        },
        ensure_ascii=False,
    )


def qread_lines(fact: Fact) -> Iterator[str]:
    """A message as qmail-qread lists it; recipients it was delivered to are not known any more."""
    born = time.gmtime(fact["born"])
    bouncing = " bouncing" if fact["bouncing"] else ""
    when = f"{born.tm_mday} {time.strftime('%b %Y %H:%M:%S', born)} GMT"
    yield _printable(f"{when}  #{fact['id']}  {fact['size'] or 0}  <{fact['sender']}> {bouncing}", "_")
    for recipient in _recipients(fact):
        yield f"\tremote\t{_printable(recipient['address'], '_')}"


def _recipients(fact: Fact) -> list[dict[str, str]]:
    return [*fact["recipients"], *fact["bouncing"]]


def _printable(text: str, instead: str = "?") -> str:
    """As the models do: a terminal obeys nothing that a stranger wrote."""
    return "".join(c if c.isprintable() and (c.isascii() or instead == "?") else instead for c in text)


def _listed(conf: str) -> Iterator[Fact]:
    return messages(ask(conf, do="list"))


@click.command()
@conf_option
@_verbose
@_config
def mailq(conf: str) -> None:
    """List the messages in all queues, as Postfix's mailq does."""
    for line in mailq_lines(_listed(conf)):
        click.echo(line)


@click.command(no_args_is_help=True)
@click.option("-p", "listing", is_flag=True, help="List the messages, as mailq.")
@click.option("-j", "as_json", is_flag=True, help="List them as JSON, one object a line.")
@click.option("-f", "flush", is_flag=True, help="Try everything now.")
@click.option("-i", "queue_id", metavar="ID", help="Try this message now.")
@click.option("-s", "site", metavar="SITE", help="Try now what is for this domain, or on its way to this host.")
@_verbose
@_config
@conf_option
def postqueue(listing: bool, as_json: bool, flush: bool, queue_id: str | None, site: str | None, conf: str) -> None:
    """
    Postfix's postqueue, over all queues.

    queue_name is active (in delivery), hold or deferred; queue is the name of
    ours. What is on hold is tried by `postsuper -H` alone.
    """
    if sum(map(bool, (listing, as_json, flush, queue_id, site))) != 1:
        raise click.UsageError("one of -p, -j, -f, -i ID and -s SITE")
    if queue_id and not looks_like_id(queue_id):
        raise click.UsageError(f"{queue_id!r} is no queue id")
    if listing:
        for line in mailq_lines(_listed(conf)):
            click.echo(line)
    elif as_json:
        for fact in _listed(conf):
            click.echo(json_line(fact))
    elif site:
        name = site.removeprefix("[").removesuffix("]")
        _ordered(conf, "now", {"domain": name})
        _ordered(conf, "now", {"destination": name})
    else:
        _ordered(conf, "now", {"id": queue_id} if queue_id else {})


# As Postfix says what was done: the orders in turn, each message's words, and the sum's.
_SUPER = {
    "delete": (("delete",), "removed", "Deleted"),
    "hold": (("hold",), "placed on hold", "Placed on hold"),
    "release": (("release",), "released from hold", "Released from hold"),
    "requeue": (("release", "now"), "requeued", "Requeued"),
    "expire": (("bounce",), "expired", "Expired"),
}


def _ids(flag: str, name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(flag, name, multiple=True, metavar="ID", help=text)


@click.command(no_args_is_help=True, context_settings={"help_option_names": ["--help"]})
@_ids("-d", "delete", "Delete it: nobody is told.")
@_ids("-h", "hold", "Put it on hold.")
@_ids("-H", "release", "Release it from hold.")
@_ids("-r", "requeue", "Release it, and try it now.")
@_ids("-e", "expire", "Bounce it: its sender is told.")
@click.argument("queues", nargs=-1, type=click.Choice(sorted(_STATES)))
@_verbose
@_config
@conf_option
def postsuper(queues: tuple[str, ...], conf: str, **given: Any) -> None:
    """
    Postfix's postsuper, over all queues: ID is a queue id, ALL, or - for ids on standard input.

    With the names of Postfix's queues (active, deferred, hold) only what is in
    such a state. Nothing is asked: `qmq delete` and its like show first what
    they would do.
    """
    states = [state for name in queues for state in _STATES[name]] or [""]
    if not any(given.values()):
        raise click.UsageError("one of -d, -h, -H, -r and -e, with a queue id, ALL or -")
    for name, (orders, one, together) in _SUPER.items():
        wanted: tuple[str, ...] = given[name]
        count = 0
        for ids in (ids for word in wanted for ids in _batches(word)):
            done = sum(_super(conf, orders, ids, state) for state in states)
            count += done
            if done and len(ids.split()) == 1:
                click.echo(f"postsuper: {ids}: {one}", err=True)
        if wanted:
            click.echo(f"postsuper: {together}: {count} message{'' if count == 1 else 's'}", err=True)


def _batches(word: str) -> Iterator[str]:
    """The ids of an argument, so many at once; empty is all, and only ALL is that."""
    if word == "ALL":
        yield ""
        return
    if word != "-" and not looks_like_id(word):
        raise click.UsageError(f"{word!r} is no queue id; say an id, ALL, or -")
    ids: list[str] = []
    for line in sys.stdin if word == "-" else [word]:
        one = line.strip()
        if looks_like_id(one):
            ids.append(one)
        elif one:
            click.echo(f"postsuper: {one[:80]!r} is no queue id: passed over", err=True)
        if len(ids) >= _IDS:
            yield " ".join(ids)
            ids = []
    if ids:
        yield " ".join(ids)


def _super(conf: str, orders: tuple[str, ...], ids: str, state: str) -> int:
    """How many it was done to; by the last order all that were held by the first, too."""
    query = {word: text for word, text in (("id", ids), ("state", state)) if text}
    return max([_ordered(conf, order, query) for order in orders])


def _ordered(conf: str, order: str, query: dict[str, str]) -> int:
    """How many entries an order was done to, or will be when their attempt is over."""
    done: dict[str, int] = {}
    for fact in ask(conf, do=order, query=query):
        done[fact["queue"]] = fact["done"] + fact.get("later", 0)
    return sum(done.values())


@click.command()
@conf_option
def qstat(conf: str) -> None:
    """
    How much mail is queued, in qmail-qstat's two lines.

    A message that goes to several hosts counts for each. There is no
    preprocessing here: the second number is 0.
    """
    queued = sum(queue["queued"] for fact in ask(conf, do="stat") for queue in fact["queues"].values())
    click.echo(f"messages in queue: {queued}\nmessages in queue but not yet preprocessed: 0")


@click.command()
@conf_option
def qread(conf: str) -> None:
    """List the messages in all queues, as qmail-qread does."""
    for fact in _listed(conf):
        for line in qread_lines(fact):
            click.echo(line)
