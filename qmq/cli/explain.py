"""`qmq explain`: what happens to mail for an address, and which line of which file says so."""

from __future__ import annotations

import json
import os

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qmq.cli.options import conf_option, json_option
from qmq.conf.explain import explain as facts_of
from qmq.conf.load import load
from qmq.mail import Address, address


@click.command()
@click.argument("recipient", metavar="ADDRESS")
@conf_option
@json_option
def explain(recipient: str, conf: str, as_json: bool) -> None:
    """
    What happens to mail for ADDRESS (or for a domain), and why.

    Which instance gets it, by which line of which file, where it is delivered
    to, within what limits, and when it is tried again. Nothing is asked of the
    network or of a running gateway.
    """
    facts = list(facts_of(load(conf, rules=False), _address(recipient)))
    if as_json:
        for fact in facts:
            click.echo(json.dumps({"name": fact.name, "value": fact.value, "place": fact.place}))
        return
    table = Table(box=None, show_header=False)
    for fact in facts:
        table.add_row(Text(fact.name, style="bold"), Text(fact.value), Text(_near(fact.place), style="dim"))
    Console().print(table)


def _address(text: str) -> Address:
    raw = text.strip("<>").encode()
    return address(raw if b"@" in raw or b"." not in raw else b"postmaster@" + raw)


def _near(place: str) -> str:
    """The place, from here if that is shorter."""
    if not place:
        return "default"
    return min(place, os.path.relpath(place), key=len)
