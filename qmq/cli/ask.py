"""Talks to the control sockets of a running gateway, all processes at once."""

from __future__ import annotations

import glob
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import click

from qmq.conf.load import load
from qmq.sockets import reachable

_PATIENCE = 30.0


def control_sockets(conf: str) -> list[str]:
    """The control sockets of the gateway that runs this conf-qmq; a click error if none is there."""
    spool = load(conf, rules=False).general.spool
    found = sorted(glob.glob(os.path.join(glob.escape(spool), "run", "*.control")))
    if not found:
        raise click.ClickException(f"no gateway runs on {spool}; start it: twistd -n qmq --conf {conf}")
    return found


def ask(conf: str, **request: Any) -> Iterator[dict[str, Any]]:
    """What each process answers, fact by fact."""
    answered = False
    for path in control_sockets(conf):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
                ours.settimeout(_PATIENCE)
                ours.connect(reachable(path))
                ours.sendall(json.dumps(request).encode() + b"\n")
                yield from _facts(ours)
        except (ConnectionRefusedError, FileNotFoundError):
            continue  # left by a process that was killed
        except PermissionError:
            raise click.ClickException(f"{path}: permission denied; use the gateway's user, or root") from None
        except TimeoutError:
            click.echo(f"{os.path.basename(path)}: no answer within {_PATIENCE:.0f} s", err=True)
            continue
        answered = True
    if not answered:
        raise click.ClickException(f"no gateway answers; start it: twistd -n qmq --conf {conf}")


def _facts(ours: socket.socket) -> Iterator[dict[str, Any]]:
    with ours.makefile("rb") as lines:
        for line in lines:
            fact = json.loads(line)
            if "end" in fact:
                return
            if "error" in fact:
                raise click.ClickException(fact["error"])
            yield fact
