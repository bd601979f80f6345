"""What the commands of bench/ share: lists of words, JSON lines, a word about the machine."""

import json
import os
import platform
import time
from contextlib import contextmanager

import click


def words_of(text, known, what):
    """A comma-separated option; raises click.BadParameter."""
    words = [word for word in text.split(",") if word]
    for word in words:
        if word not in known:
            raise click.BadParameter(f"no {what} {word}; there are {', '.join(known)}")
    return words


@contextmanager
def notes(path):
    """Facts to be noted, a JSON line each, in a file that is begun anew; None: nowhere."""
    with open(path or os.devnull, "w", encoding="utf-8") as file:

        def note(**facts):
            file.write(json.dumps(facts) + "\n")
            file.flush()

        yield note


def noted(path, key):
    """Of what was noted, the facts that have that key."""
    with open(path, encoding="utf-8") as file:
        return [facts for facts in map(json.loads, file) if key in facts]


def here(place):
    """The machine, and where its queues are."""
    return {"machine": platform.machine(), "cores": os.cpu_count(), "kernel": platform.release(), "spool": place,
            "at": time.time()}  # fmt: skip
