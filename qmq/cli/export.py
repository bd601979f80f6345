"""
`qmq export`: messages, with all that is known of them, into a tar archive; with --delete out of the queue.

With --delete nothing is both delivered and in the archive, and nothing in
neither: the messages are held first, so that none is tried any more; what is
in delivery just then is left out; the archive is synced to disk under its name;
only then what is in it is deleted, by id, and only while it is still held.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import click

from qmq.cli.act import Asker, progress
from qmq.cli.archive import Carried, Writer, messages_of
from qmq.cli.options import Selection, all_option, conf_option, json_option, patience_option, predicates
from qmq.cli.texts import messages
from qmq.mail import Octets, Seconds

_IN_MEMORY: Octets = 1 << 20
_IDS = 1000  # deleted by one request
Key = tuple[str, int]


@click.command("export")
@predicates
@click.option("--to", "target", required=True, type=click.Path(dir_okay=False), metavar="FILE.tar", help="A new file.")
@click.option("--delete", "away", is_flag=True, help="Delete from the queues what is safely in the archive.")
@all_option
@conf_option
@json_option
@patience_option
def export(
    chosen: Selection, target: str, away: bool, everything: bool, conf: str, as_json: bool, patience: Seconds
) -> None:
    """
    Copy messages into a tar archive: each as ID.eml, with its envelope in ID.json.

    They stay in their queues, and are delivered as ever. With --delete they are
    held first, and deleted once the archive is on disk; what is in delivery
    just then stays, held. `qmq import` puts an archive into a queue.

    \b
      qmq export --queue customer1 --older 2d --to old.tar
      qmq export --sender @spammer.example --to spam.tar --delete
    """  # noqa: D301 - \b is click's: keep these lines
    if not chosen and not everything:
        raise click.UsageError("which messages? Say an ID, or an option such as --queue NAME; --all: all")
    if os.path.exists(target):
        raise click.UsageError(f"{target} is there already; name another, or move it away")
    asker = Asker(conf, as_json, patience)
    held = _held(asker, chosen) if away else chosen
    busy = _busy(asker, chosen) if away else frozenset()
    count, missing = _written(asker, held, target, busy)
    deleted = _deleted(asker, held, target) if away and count else 0
    if as_json:
        click.echo(json.dumps({"exported": count, "deleted": deleted, "archive": target}))
    else:
        click.echo(f"{messages(count)} in {target}" + (f", {deleted} deleted from the queues" if away else ""))
    if away and busy:
        click.echo(
            f"{messages(len(busy))} in delivery just now: not in the archive; held if anything is left", err=True
        )
    if away and deleted < count:
        raise click.ClickException(
            f"{count - deleted} of them could not be deleted: they are in the archive, and may be in a queue, held"
        )
    if missing:
        raise click.ClickException("not everything; what is named above did not take part")


def _held(asker: Asker, chosen: Selection) -> Selection:
    """Hold what is chosen; what is then to be asked for."""
    state = chosen.query.get("state")
    if state not in {None, "held"}:
        raise click.UsageError("--delete holds the messages first, so no other --state can be said with it")
    answers = asker(**chosen.request("hold"))
    for _ in answers:
        pass
    if answers.missing:
        raise click.ClickException("what is named above does not answer; nothing was exported")
    return Selection(chosen.queues, {**chosen.query, "state": "held"})


def _busy(asker: Asker, chosen: Selection) -> frozenset[tuple[str, str]]:
    """Queue and id of what is in delivery: some of it may be held under the same id before we are done."""
    query = {**chosen.query, "state": "in-hand"}
    return frozenset((f["queue"], f["id"]) for f in asker(**Selection(chosen.queues, query).request("list")))


def _written(asker: Asker, chosen: Selection, target: str, busy: frozenset[tuple[str, str]]) -> tuple[int, bool]:
    """Write the archive; it has its name when it is whole and on disk. How many; whether some queue did not answer."""
    part = f"{target}.part"
    answers = asker(**chosen.request("export"))
    count = 0
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            try:
                writer = Writer(file)
                with progress("export", None) as tell:
                    for facts, text in _texts(answers):
                        with text:
                            if (facts["queue"], facts["id"]) not in busy:
                                name = writer.add(facts, text, text.seek(0, os.SEEK_END))
                                count += 1
                                tell(count)
                                if asker.as_json:
                                    click.echo(json.dumps({"queue": facts["queue"], "id": facts["id"], "member": name}))
                writer.finish()
                file.flush()
                os.fsync(file.fileno())
                os.rename(part, target)
                _sync_folder(target)
            finally:
                with contextlib.suppress(FileNotFoundError):  # it has its name
                    os.unlink(part)
    except FileExistsError as error:
        raise click.ClickException(
            f"{error.filename2 or error.filename} is there; is another export running?"
        ) from None
    except OSError as error:
        raise click.ClickException(f"{target}: {error.strerror or error}; nothing was deleted") from None
    return count, bool(answers.missing)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _texts(answers: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], IO[bytes]]]:
    """Each message when its text is whole; several queues tell theirs in turn, so some are begun at once."""
    begun: dict[Key, tuple[dict[str, Any], IO[bytes]]] = {}
    try:
        for fact in answers:
            key = (fact["queue"], fact["number"])
            if "id" in fact:
                begun[key] = (fact, tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115 - closed by whoever gets it
            elif "text" in fact:
                begun[key][1].write(base64.b64decode(fact["text"]))
            elif "gone" in fact:  # delivered meanwhile
                begun.pop(key)[1].close()
            else:
                yield begun.pop(key)
    finally:
        for _, text in begun.values():
            text.close()


def _deleted(asker: Asker, held: Selection, target: str) -> int:
    """Delete what the archive has; how many that were."""
    deleted = 0
    with open(target, "rb") as file, progress("delete", None) as tell:
        for queue, ids in _batches(file):
            query = {**held.query, "id": " ".join(ids)}
            done = 0
            for fact in asker(**Selection((queue,), query).request("delete")):
                done = fact["done"]
            deleted += done
            tell(deleted)
    return deleted


def _batches(file: IO[bytes]) -> Iterator[tuple[str, list[str]]]:
    """The archive's messages by queue, so many at once."""
    gathered: dict[str, list[str]] = {}
    for one in messages_of(file):
        assert isinstance(one, Carried)  # it was written by us just now
        queue = one.facts["queue"]
        ids = gathered.setdefault(queue, [])
        if not ids or ids[-1] != one.facts["id"]:
            ids.append(one.facts["id"])
        if len(ids) >= _IDS:
            yield queue, gathered.pop(queue)
    yield from gathered.items()
