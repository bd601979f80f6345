"""qmq reload, diff, restart: what the main process of a running gateway does with conf-qmq, and with itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import click

from qmq.cli.ask import Answers, ask
from qmq.cli.options import conf_option, json_option, patience_option
from qmq.mail import Seconds

_COLOURS = {"+": "green", "-": "red", "~": "yellow"}


@click.command()
@conf_option
@json_option
@patience_option
def reload(conf: str, as_json: bool, patience: Seconds) -> None:
    """
    Read conf-qmq again; a file with errors changes nothing.

    As SIGHUP does, or postfix reload. Tells what has changed: + came, - went,
    ~ is otherwise. Nobody's connection is closed.

    \b
      qmq diff && qmq reload
    """  # noqa: D301 - \b is click's: keep these lines
    done = True
    for fact in _main(ask(conf, patience=patience, do="reload", main=True)):
        for trouble in fact.get("troubles", ()):
            done = False
            click.echo(trouble, err=True)
        if as_json:
            click.echo(json.dumps(fact))
            continue
        click.echo(f"{fact['process']}: {fact['reload']}")
        _lines(fact.get("changes", ()))
        if fact.get("restart"):
            click.echo("only after qmq restart:")
            _lines(fact["restart"])
    if not done:
        sys.exit(1)


@click.command()
@conf_option
@json_option
@patience_option
def diff(conf: str, as_json: bool, patience: Seconds) -> None:
    """
    What `qmq reload` would change in the gateway that runs.

    Like diff, it ends with 0 if nothing differs and with 1 if something does.
    What a reload would refuse, and what needs `qmq restart`, is told apart.

    \b
      qmq diff
    """  # noqa: D301 - as above
    found = False
    for fact in _main(ask(conf, patience=patience, do="diff", main=True)):
        found = found or any(fact.get(word) for word in ("changes", "refused", "restart"))
        if as_json:
            click.echo(json.dumps(fact))
            continue
        _lines(fact.get("changes", ()))
        for word, heading in (("restart", "only after qmq restart:"), ("refused", "refused:")):
            if fact.get(word):
                click.echo(heading)
                _lines(fact[word])
    if not found and not as_json:
        click.echo("nothing differs from what runs")
    sys.exit(1 if found else 0)


@click.command()
@conf_option
@json_option
@patience_option
def restart(conf: str, as_json: bool, patience: Seconds) -> None:
    """
    Start anew, after an upgrade or for a setting that needs it; no connection is refused.

    The new main process gets the listening sockets; sessions of the old one
    finish. Where postfix stop and start would leave a gap there is none. If the
    new one does not come up, the old one goes on.

    \b
      qmq restart
    """  # noqa: D301 - as above
    for fact in _main(ask(conf, patience=patience, do="restart", main=True)):
        click.echo(json.dumps(fact) if as_json else fact.get("step", ""))


def _main(answers: Answers) -> Iterable[dict[str, Any]]:
    """Of the main process alone: the others end their answers without a word."""
    told = False
    for fact in answers:
        told = True
        yield fact
    if answers.missing and not told:
        sys.exit(1)
    if not told:
        raise click.ClickException("no main process answers; those that run were started by hand, with --only")


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(f"  {click.style(line, fg=_COLOURS.get(line[:1]))}")
