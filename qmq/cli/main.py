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
        "list": ("qmq.cli.look:list_", "The messages that match, and why they wait."),
        "read": ("qmq.cli.look:read", "The messages in a queue, each recipient (qmail-qread)."),
        "show": ("qmq.cli.look:show", "All that is known of a message, and its header."),
        "cat": ("qmq.cli.look:cat", "The text of a message."),
    },
    "Act on messages": {
        "now": ("qmq.cli.orders:now", "Try at once what waits in a queue (SIGALRM)."),
        "hold": ("qmq.cli.orders:hold", "Keep messages back until they are released."),
        "release": ("qmq.cli.orders:release", "Let go what is held."),
        "delete": ("qmq.cli.orders:delete", "Remove messages; nobody is told."),
        "bounce": ("qmq.cli.orders:bounce", "Give up messages; their senders are told."),
        "move": ("qmq.cli.orders:move", "Hand messages over to another queue."),
    },
    "Act on queues": {
        "pause": ("qmq.cli.queues:pause", "Stop delivering from a queue; mail is still taken."),
        "resume": ("qmq.cli.queues:resume", "Deliver again."),
        "refuse": ("qmq.cli.queues:refuse", "Take no mail for a queue: its recipients get 452."),
        "accept": ("qmq.cli.queues:accept", "Take mail again."),
        "drain": ("qmq.cli.drain:drain", "Take no mail, and wait until a queue is empty."),
    },
    "Change": {
        "diff": ("qmq.cli.running:diff", "What a reload would change."),
        "reload": ("qmq.cli.running:reload", "Read conf-qmq again (SIGHUP); with errors nothing changes."),
        "restart": ("qmq.cli.running:restart", "Start anew, without a refused connection."),
    },
    "Carry": {
        "export": ("qmq.cli.export:export", "Copy messages into a tar archive, or move them there."),
        "import": ("qmq.cli.importing:import_", "Put an archive's messages, or loose ones, into a queue."),
    },
    "As elsewhere": {
        "sendmail": ("qmq.cli.sendmail:sendmail", "Send the message on standard input (sendmail)."),
        "mailq": ("qmq.cli.dialects:mailq", "The messages in all queues (Postfix's mailq)."),
        "postqueue": ("qmq.cli.dialects:postqueue", "List them, also as JSON, or try them now (Postfix)."),
        "postsuper": ("qmq.cli.dialects:postsuper", "Delete, hold, release, requeue by id (Postfix)."),
        "qstat": ("qmq.cli.dialects:qstat", "How many messages are queued (qmail-qstat)."),
        "qread": ("qmq.cli.dialects:qread", "The messages in all queues (qmail-qread)."),
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
