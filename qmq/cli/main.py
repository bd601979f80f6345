"""
The `qmq` command: a table of commands, each imported when it is asked for.

So `qmq --help` is quick and can teach without Twisted being loaded.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

# Heading, then name -> (module:function, one line).
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Set up": {
        "init": ("qmq.cli.init:init", "Write a conf-qmq to start from."),
        "check": ("qmq.cli.check:check", "Read conf-qmq; every error with its line and what to write."),
        "explain": ("qmq.cli.explain:explain", "What happens to mail for an address, and which line says so."),
        "checkers": ("qmq.cli.checkers:checkers", "Which checkers are installed, and what they can be told."),
    },
    "Look in": {
        "stat": ("qmq.cli.queues:stat", "What each queue holds and does (qmail-qstat)."),
        "read": ("qmq.cli.queues:read", "The messages in a queue, and why they wait (qmail-qread)."),
    },
    "Act": {
        "now": ("qmq.cli.queues:now", "Try at once what waits in a queue (SIGALRM)."),
        "pause": ("qmq.cli.queues:pause", "Stop delivering from a queue; mail is still taken."),
        "resume": ("qmq.cli.queues:resume", "Deliver again."),
        "refuse": ("qmq.cli.queues:refuse", "Take no mail for a queue: its recipients get 452."),
        "accept": ("qmq.cli.queues:accept", "Take mail again."),
        "reload": ("qmq.cli.queues:reload", "Read conf-qmq again (SIGHUP); with errors nothing changes."),
    },
    "Try": {
        "demo": ("qmq.cli.demo:demo", "Five domains, one slow, one dead: who feels it?"),
    },
}

_BY_NAME = {name: entry for group in COMMANDS.values() for name, entry in group.items()}


class Commands(click.Group):
    """Finds commands in the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the table's order."""
        return list(_BY_NAME)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import it now; None if there is none of that name."""
        if cmd_name not in _BY_NAME:
            return None
        module, _, function = _BY_NAME[cmd_name][0].partition(":")
        command = getattr(import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """From the table, importing nothing."""
        width = max(map(len, _BY_NAME))
        for heading, group in COMMANDS.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), text) for name, (_, text) in group.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def commands() -> None:
    """
    A mail gateway with a queue of its own for every customer.

    \b
    The primary takes mail by ESMTP and hands each message over to the instance
    that has its recipient's domain. So a customer whose host is slow or dead
    holds up nobody else.

    \b
      qmq init 01:alpha 02:beta 90:bounces     write conf-qmq
      qmq check                                is it right?
      twistd -n qmq --conf conf-qmq            start the gateway
      qmq explain user@alpha.example           who gets this, and why
      qmq stat                                 what the queues do
    """  # noqa: D301 - \b is click's: keep these lines


def main() -> None:
    """Run the command that the arguments name; a configuration that cannot be used ends it with its errors."""
    from qmq.conf.written import ConfErrors  # noqa: PLC0415 - nothing but click until a command needs it

    try:
        commands(prog_name="qmq")
    except ConfErrors as errors:
        click.echo(str(errors), err=True)
        sys.exit(1)
