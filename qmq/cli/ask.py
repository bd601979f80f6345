"""
Talks to the control sockets of a running gateway, all processes at once.

Each process answers for its own queues, and what they say comes as it comes. A
process that says nothing for a while (it beats as long as it lives) is left
out and named: one that hangs does not keep the operator from the others.
"""

from __future__ import annotations

import glob
import json
import os
import selectors
import socket
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import click

from qmq.conf.read import SPOOL, read
from qmq.conf.written import Findings
from qmq.mail import Seconds
from qmq.paths import reachable

PATIENCE: Seconds = 10
_OCTETS = 1 << 16

Fact = dict[str, Any]


def control_sockets(conf: str) -> list[str]:
    """The control sockets of the gateway that runs this conf-qmq; a click error if none is there."""
    spool = _spool(conf)
    found = sorted(glob.glob(os.path.join(glob.escape(spool), "run", "*.control")))
    if not found:
        raise click.ClickException(f"no gateway runs on {spool}; start it: twistd -n qmq --conf {conf}")
    return found


def _spool(conf: str) -> str:
    """
    Without reading the rest: errors there must not keep anybody from looking into the gateway that still runs.

    And it is quick: nothing of what the gateway is made of is imported.
    """
    path = os.path.abspath(conf)
    if not os.path.exists(path):
        raise click.ClickException(f"there is no {conf}; say --conf FILE, or write one: qmq init")
    section = read(path, Findings()).sections.get("qmq")
    written = section.settings.get("spool") if section else None
    return os.path.join(os.path.dirname(path), SPOOL if written is None else written.text)


def ask(conf: str, *, patience: Seconds = PATIENCE, **request: Any) -> Answers:
    """What each process answers to *request*, fact by fact."""
    return Answers(conf, request, patience)


class Answers:
    """
    The facts of one request, to be read once; whoever stops reading calls `close`.

    A request that is wrong, a queue that nobody has, and no process at all are
    click errors. *missing* says of whom there was no whole answer, and why: a
    process, or a queue in trouble; it was told on stderr too.
    """

    def __init__(self, conf: str, request: Fact, patience: Seconds) -> None:
        self.missing: dict[str, str] = {}
        self._conf = conf
        self._request = request
        self._patience = patience
        self._known: set[str] = set()
        self._answered = False
        self._gone: set[str] = set()
        self._facts = self._run()

    def __iter__(self) -> Iterator[Fact]:
        return self._facts

    def __next__(self) -> Fact:
        return next(self._facts)

    def close(self) -> None:
        """Hang up; the processes stop working for it."""
        self._facts.close()

    def _run(self) -> Generator[Fact]:
        with selectors.DefaultSelector() as selector:
            try:
                for path in control_sockets(self._conf):
                    if (line := self._call(path)) is not None:
                        selector.register(line.socket, selectors.EVENT_READ, line)
                while selector.get_map():
                    for line in self._ready(selector):
                        yield from self._take(line, selector)
            finally:
                for key in list(selector.get_map().values()):
                    key.data.socket.close()
        self._check()

    def _call(self, path: str) -> _Line | None:
        name = os.path.basename(path).removesuffix(".control")
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(self._patience)
        try:
            ours.connect(reachable(path))
            ours.sendall(json.dumps(self._request).encode() + b"\n")
        except (ConnectionRefusedError, FileNotFoundError):
            self._gone.add(name)
            self._miss(name, f"does not run; it has left {path}")  # it was killed, and is not back yet
        except PermissionError:
            ours.close()
            raise click.ClickException(f"{path}: permission denied; use the gateway's user, or root") from None
        except BrokenPipeError:
            self._miss(name, "takes no such long request: name fewer ids")
        except TimeoutError:
            self._silent(name)
        else:
            ours.setblocking(False)
            return _Line(name, ours)
        ours.close()
        return None

    def _ready(self, selector: selectors.BaseSelector) -> Sequence[_Line]:
        """Those with something to read. The time in which nobody asked us for more is nobody's silence."""
        before = time.monotonic()
        ready = [key.data for key, _ in selector.select(min(1, self._patience))]
        spent = time.monotonic() - before
        for key in list(selector.get_map().values()):
            line: _Line = key.data
            line.silent = 0 if line in ready else line.silent + spent
            if line.silent >= self._patience:
                self._silent(line.name)
                selector.unregister(line.socket)
                line.socket.close()
        return ready

    def _take(self, line: _Line, selector: selectors.BaseSelector) -> Iterator[Fact]:
        for fact in line.read():
            if fact is None or "end" in fact:
                selector.unregister(line.socket)
                line.socket.close()
            if fact is None:
                self._miss(line.name, "broke off its answer")
            elif "end" in fact:
                self._answered = True
                self._known.update(fact.get("known", ()))
            elif "error" in fact:
                if fact.get("wrong"):
                    raise click.ClickException(fact["error"])
                self._miss(line.name, fact["error"])
            elif "trouble" in fact:
                self._miss(f"queue {fact['queue']}", fact["trouble"])
            elif "beat" not in fact:
                yield fact

    def _silent(self, name: str) -> None:
        self._miss(name, f"no answer within {self._patience:g} s")

    def _miss(self, name: str, why: str) -> None:
        self.missing[name] = why
        click.echo(f"{name}: {why}", err=True)

    def _check(self) -> None:
        """Whether anybody was there, and every queue that was named."""
        if not self._answered and self.missing.keys() <= self._gone:
            raise click.ClickException(f"no gateway answers; start it: twistd -n qmq --conf {self._conf}")
        wanted = self._request.get("queue") or ()
        unknown = {wanted} if isinstance(wanted, str) else set(wanted)
        if unknown := unknown - self._known:
            known = ", ".join(sorted(self._known)) or "none"
            raise click.ClickException(f"there is no queue {', '.join(sorted(unknown))}; known are {known}")


class _Line:
    """The connection to one process."""

    def __init__(self, name: str, ours: socket.socket) -> None:
        self.name = name
        self.socket = ours
        self.silent: Seconds = 0
        self._buffer = b""

    def read(self) -> Iterator[Fact | None]:
        """What is there, fact by fact; None: it hung up."""
        try:
            data = self.socket.recv(_OCTETS)
        except ConnectionError:
            data = b""
        if not data:
            yield None
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            yield json.loads(line)
