"""The options that commands share: each is written here, once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import click

from qmq.conf.units import BadValue, duration, octets

_STATES = ("waiting", "held", "in-hand", "bouncing", "moving")
# The peer's tag and a number, as in replies, Received fields and log lines.
_ID = re.compile(r"\S+-[0-9a-f]+")
SYSTEM = "/etc/qmq/conf-qmq"


def default_conf() -> str:
    """conf-qmq in this folder if it is there, else the machine's."""
    return "conf-qmq" if os.path.exists("conf-qmq") else SYSTEM


conf_option = click.option(
    "--conf", envvar="QMQ_CONF", default=default_conf, show_envvar=True, metavar="FILE",
    show_default=f"conf-qmq if it is here, else {SYSTEM}", help="The gateway's configuration.",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


def in_units(parse: Callable[[str], float]) -> Callable[..., float | None]:
    """The callback of an option whose text has a unit, as in conf-qmq; an error tells the remedy."""

    def convert(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
        try:
            return None if value is None else parse(value)
        except BadValue as bad:
            raise click.BadParameter(f"{bad}; {bad.remedy}", ctx, param) from None

    return convert


patience_option = click.option(
    "--patience", callback=in_units(duration), default="10s", show_default=True, metavar="TIME",
    help="A process that says nothing for so long is left out, and named.",
)  # fmt: skip
all_option = click.option("--all", "everything", is_flag=True, help="All messages, if nothing else is said.")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages are meant: what matches *query* in these *queues* (none: all)."""

    queues: tuple[str, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return bool(self.queues or self.query)

    @property
    def ids(self) -> list[str]:
        """The messages that were named; empty if others than these may be meant, or fewer."""
        return self.query["id"].split() if self.query.keys() == {"id"} and not self.queues else []

    def request(self, do: str, **more: Any) -> dict[str, Any]:
        """What to ask the processes."""
        return {"do": do, "queue": list(self.queues), "query": dict(self.query), **more}


_OPTIONS = (
    click.option("--queue", "queues", multiple=True, metavar="NAME", help="Only in this queue; may be said again."),
    click.option("--sender", metavar="ADDRESS", help="From this address; @DOMAIN: any there; <>: the null sender."),
    click.option("--recipient", metavar="ADDRESS", help="Not yet delivered to this address; @DOMAIN: any there."),
    click.option("--domain", metavar="DOMAIN", help="For a recipient of it; .example.org: of those below."),
    click.option("--destination", metavar="HOST", help="On its way to that host or domain; several: a comma between."),
    click.option("--site", metavar="SITE", help="On its way to exactly this, as `qmq show` says it."),
    click.option("--older", callback=in_units(duration), metavar="TIME", help="Here for at least so long: 2h, 3d."),
    click.option("--younger", callback=in_units(duration), metavar="TIME", help="Here for less than that."),
    click.option("--larger", callback=in_units(octets), metavar="SIZE", help="Of at least that size: 64K, 1M."),
    click.option("--smaller", callback=in_units(octets), metavar="SIZE", help="Smaller than that."),
    click.option("--attempts", type=click.IntRange(0), metavar="N", help="Tried at least N times."),
    click.option("--attempts-below", type=click.IntRange(0), metavar="N", help="Tried less than N times."),
    click.option("--error", metavar="TEXT", help="With this within its latest answer: '451', 'greylist'."),
    click.option("--state", type=click.Choice(_STATES), help="In that state."),
)
_NAMES = (
    "sender", "recipient", "domain", "destination", "site", "older", "younger", "larger", "smaller", "attempts",
    "attempts_below", "error", "state",
)  # fmt: skip


def predicates(command: Callable[..., Any]) -> Callable[..., Any]:
    """IDs and the options that choose messages; the command gets them as one `Selection` *chosen*."""
    return click.argument("ids", nargs=-1, metavar="[ID]...", callback=_ids)(options(command))


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """As predicates, but that *ids* come from an argument of the command's own."""

    @wraps(command)
    def wrapped(ids: Sequence[str], queues: Sequence[str], **given: Any) -> Any:
        query = {} if not ids else {"id": " ".join(ids)}
        for name in _NAMES:
            value = given.pop(name)
            if value is not None:
                query[name.replace("_", "-")] = str(value)
        return command(chosen=Selection(tuple(queues), query), **given)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def is_primary(queue: str) -> bool:
    """Whether it is a primary's own queue: primary, primary-2 and so on."""
    return re.fullmatch(r"primary(-\d+)?", queue) is not None


def looks_like_id(text: str) -> bool:
    """Whether it may be a queue id."""
    return _ID.fullmatch(text) is not None


def _ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    for word in value:
        if not looks_like_id(word):
            raise click.BadParameter(f"{word!r} is no queue id; for a queue say --queue {word}", ctx, param)
    return value
