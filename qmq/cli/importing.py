"""`qmq import`: messages of an archive, or loose ones, into a queue of the running gateway."""

from __future__ import annotations

import json
import os
import tarfile
import time
from collections.abc import Iterator
from typing import IO

import click

from qmq.cli.archive import BadArchive, Unread, envelope_of, messages_of
from qmq.cli.hand_over import hand_over, message
from qmq.cli.loose import loose_messages
from qmq.cli.options import conf_option, json_option
from qmq.cli.texts import age, messages, size
from qmq.conf.load import load
from qmq.mail import Address, Envelope, Octets, address, path
from qmq.service.instance import unix_path

Coming = tuple[str, Envelope, IO[bytes], Octets]


class _Tally:
    """What came of it; lines are told as it goes."""

    def __init__(self, *, as_json: bool) -> None:
        self.taken = 0
        self.refused = 0
        self._as_json = as_json

    def tell(self, name: str, said: str, **facts: object) -> None:
        """A line of it."""
        click.echo(json.dumps({"message": name, **facts}) if self._as_json else f"{name}: {said}")

    def unread(self, name: str, why: str) -> None:
        """A message, or a file, that cannot be one."""
        self.refused += 1
        self.tell(name, f"not taken: {why}", error=why)


def _one(ctx: click.Context, param: click.Parameter, value: str | tuple[str, ...] | None) -> object:
    def parsed(text: str) -> Address:
        found = address(text.strip("<>").encode())
        if text.strip("<>") and not (found.local and found.domain):
            raise click.BadParameter(f"{text!r} is no address", ctx, param)
        return found

    return None if value is None else parsed(value) if isinstance(value, str) else tuple(map(parsed, value))


@click.command("import")
@click.argument("source", type=click.Path(exists=True), metavar="FILE.tar|FILE.eml|MBOX|FOLDER")
@click.option("--queue", required=True, metavar="NAME", help="The queue that gets them.")
@click.option("--yes", is_flag=True, help="Do it; else it is shown what would be done.")
@click.option("--sender", callback=_one, metavar="ADDRESS", help="Of loose messages; <> by default.")
@click.option("--recipient", "recipients", multiple=True, callback=_one, metavar="ADDRESS", help="Of loose messages.")
@conf_option
@json_option
def import_(
    source: str, queue: str, yes: bool, sender: Address | None, recipients: tuple[Address, ...], conf: str,
    as_json: bool,
) -> None:  # fmt: skip
    """
    Put messages into a queue, as if they had just been handed over to it.

    From an archive of `qmq export` each comes with its sender, its recipients
    and its age. Loose messages, .eml files, a folder of them or a mailbox file,
    need --recipient. To import the same again doubles nothing: the queue knows
    what it has taken. Without --yes nothing is done.

    \b
      qmq import old.tar --queue customer1
      qmq import old.tar --queue customer1 --yes
    """  # noqa: D301 - \b is click's: keep these lines
    way = _way(conf, queue)
    archive = not os.path.isdir(source) and tarfile.is_tarfile(source)
    if archive and (sender or recipients):
        raise click.UsageError("the archive says who sends to whom: --sender and --recipient are for loose messages")
    if not archive and not recipients:
        raise click.UsageError(f"{source} is no archive of qmq export: for loose messages say --recipient ADDRESS")
    tally = _Tally(as_json=as_json)
    found = _carried(source, tally) if archive else loose_messages(source, sender or address(b""), recipients)
    readable = _readable(found, source, tally)
    if yes:
        _import(readable, way, queue, tally)
    else:
        _show(readable, queue, tally)
    if tally.refused:
        raise click.ClickException(f"{messages(tally.refused)} not taken; what is named above says why")


def _way(conf: str, queue: str) -> str:
    """The unix socket of that queue's instance."""
    settings = load(conf, rules=False)
    known = [
        one for one in settings.instances
        if one.handover.protocol == "qmtp" and not (one.handover.host or one.retired)
    ]  # fmt: skip
    if queue not in {one.name for one in known}:
        names = ", ".join(sorted(one.name for one in known))
        raise click.UsageError(f"there is no queue {queue} here to import into; there are {names}")
    return unix_path(settings, queue)


def _readable(found: Iterator[Coming], source: str, tally: _Tally) -> Iterator[Coming]:
    """What can be read; that there is no more of it is told as what cannot be taken."""
    try:
        yield from found
    except BadArchive as error:
        tally.unread(source, str(error))
    except OSError as error:
        tally.unread(error.filename or source, error.strerror or str(error))


def _carried(source: str, tally: _Tally) -> Iterator[Coming]:
    with open(source, "rb") as file:
        for one in messages_of(file):
            if isinstance(one, Unread):
                tally.unread(one.name, one.why)
                continue
            try:
                envelope = envelope_of(one)
            except ValueError as error:
                tally.unread(one.name, str(error))
                continue
            yield one.name, envelope, one.text, one.octets


def _show(found: Iterator[Coming], queue: str, tally: _Tally) -> None:
    """What would be imported."""
    now = time.time()
    for name, envelope, _, octets in found:
        tally.taken += 1
        sender = path(envelope.sender).decode("utf-8", "replace")
        recipients = [path(one).decode("utf-8", "replace") for one in envelope.recipients]
        old = age(max(0.0, now - envelope.origin.born)) if envelope.origin.born else "new"
        tally.tell(
            name, f"{size(octets)}, {old}, <{sender}> to {', '.join(recipients)}",
            sender=sender, recipients=recipients, size=octets, born=envelope.origin.born, queue=queue,
        )  # fmt: skip
    click.echo(f"nothing was done; to put {messages(tally.taken)} into {queue} say --yes too", err=True)


def _import(found: Iterator[Coming], way: str, queue: str, tally: _Tally) -> None:
    for name, one, replies in hand_over(way, ((name, message(e, text, octets)) for name, e, text, octets in found)):
        bad = [(r, reply) for r, reply in zip(one.envelope.recipients, replies, strict=True) if not reply.ok]
        tally.taken += not bad
        tally.refused += bool(bad)
        for recipient, reply in bad:
            shown = path(recipient).decode("utf-8", "replace")
            tally.tell(
                name, f"<{shown}>: {reply.code} {reply.status} {reply.text}",
                recipient=shown, code=reply.code, status=reply.status, text=reply.text,
            )  # fmt: skip
    tally.tell(queue, f"{messages(tally.taken)} taken", taken=tally.taken, refused=tally.refused)
