"""`qmq init`: a conf-qmq to start from."""

from __future__ import annotations

import os

import click

from qmq.conf.ground import Ground
from qmq.conf.load import load
from qmq.conf.read import parse
from qmq.conf.write import SAMPLE, conf_text
from qmq.conf.written import ConfErrors, Findings

# What is written must be right anywhere, whoever writes it.
_ANYWHERE = Ground()


@click.command()
@click.argument("plan", nargs=-1, metavar="[NUMBER:NAME]...")
@click.option("--dir", "folder", default=".", show_default=True, metavar="FOLDER", help="Where to write it.")
@click.option("--me", default="gateway.example", show_default=True, help="The gateway's host name.")
@click.option("--force", is_flag=True, help="Overwrite a conf-qmq that is there.")
def init(plan: tuple[str, ...], folder: str, me: str, force: bool) -> None:
    """
    Write a conf-qmq with these instances, and make the folder of its stores.

    Names tell what they are for: internet gets every domain that is nobody's,
    bounces sends the bounces, storm is for floods, all others are customers.
    Without any: customer1, customer2, internet, bounces, storm.
    """
    path = os.path.join(folder, "conf-qmq")
    if os.path.exists(path) and not force:
        raise click.ClickException(f"{path} is there already; --force overwrites it")
    findings = Findings()
    parse("instances", "\n".join(plan), findings)
    if findings.errors:
        raise click.ClickException("\n".join(f"{note.text}; {note.remedy}" for note in findings.errors))
    os.makedirs(os.path.join(folder, "var", "spool"), mode=0o700, exist_ok=True)
    fresh = path + ".new"
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(conf_text(plan or SAMPLE, me))
    try:
        load(fresh, _ANYWHERE)
    except ConfErrors as errors:
        os.unlink(fresh)
        raise click.ClickException(str(errors)) from None
    os.replace(fresh, path)
    click.echo(f"{path} is written. Put the customers' domains and hosts into it, then:")
    click.echo(f"  qmq check --conf {path}\n  twistd -n qmq --conf {path}")
