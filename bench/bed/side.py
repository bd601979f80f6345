"""One gateway with a configuration of its own, and the hosts behind it: loads are sent through it one after another."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import MappingProxyType

from . import cpu
from .load import BENCH, Sink, Source, counted, joined
from .peers import base
from .speeds import free_port
from .target import Target, write

# Of all loads of one gateway: sinks count so many recipients.
_MOST = 4_000_000
# In which second copies would come.
_AFTER = 0.3


@dataclass(frozen=True)
class Load:
    """What is sent, as fast as it is taken."""

    messages: int
    sessions: int = 40
    octets: int = 4096
    recipients: int = 1
    domains: tuple[str, ...] = ("i1.test",)


class Configured(Target):
    """
    qmq of the shipped defaults; *sections* are (name, lines) of its instances.

    *primary* are further lines of that section; *workers*: processes, or nothing for the default.
    """

    word = "qmq"
    root = False
    ready = "qmq ready"
    settings = MappingProxyType({"root": str(BENCH.parent), "workers": ""})

    def __init__(self, folder, port, sections, primary=(), **settings):
        super().__init__(folder, port, (), **settings)
        self.sections, self.primary = sections, primary

    @property
    def conf(self):
        """Where its configuration is."""
        return f"{self.etc}/conf-qmq"

    def prepare(self):
        """One that is as short as can be."""
        workers = self.settings["workers"]
        lines = ["[instances]", *(f"{n}:{name}" for n, (name, _) in enumerate(self.sections, 1))]
        lines += [f"{len(self.sections) + 1}:bounces", "[qmq]", "me = gateway.test", f"spool = {self.spool}"]
        lines += [f"base = {base(range(1, len(self.sections) + 2))}", *([f"workers = {workers}"] if workers else [])]
        lines += ["[primary]", f"listen = 127.0.0.1:{self.port}", "limit-exempt = 127.0.0.0/8", *self.primary]
        for name, section in self.sections:
            lines += [f"[{name}]", *section]
        write(self.conf, "\n".join([*lines, "[bounces]", "role = bounce", ""]))
        root = self.settings["root"]
        self.environ = {"PYTHONPATH": root}
        twistd = "from twisted.scripts.twistd import run; run()"
        return [sys.executable, "-c", twistd, "-n", "--pidfile=", "qmq", "--conf", self.conf]


class Side:
    """
    A gateway, its hosts, what it costs.

    *sections* is called with the hosts' addresses; *hosts* are as of `Sink`. *queue* is (instance, messages, words
    of preload.py) for a queue that is not empty. After `start`: *started*, *filled*: seconds that it took; *rest*:
    memory before any load; *idle*: cores kept busy then.
    """

    def __init__(self, place, sections, *, hosts=("127.0.0.1:0=ok",), primary=(), queue=None, settings=None):
        self.folder = tempfile.mkdtemp(prefix="growth-", dir=place)
        self._tree = cpu.tree()
        self._stack = ExitStack()
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._stack.callback(self._tree.close)
        self._sections, self._hosts, self._primary, self._queue = sections, hosts, primary, queue
        self._settings = settings or {}
        self._first = 0  # message of the next load
        self._expected = 0  # deliveries of all loads so far
        self._idlers = []
        self.started = self.filled = self.idle = 0.0
        self.rest = 0

    def start(self, say, looked=1.0):
        """Fill its queue, start it, look at it at rest for *looked* seconds."""
        self.sink = self._stack.enter_context(Sink(recipients=_MOST, hosts=self._hosts, seconds=3600))
        sections = self._sections(self.sink.addresses)
        self.target = Configured(self.folder, free_port(), sections, self._primary, **self._settings)
        if self._queue:
            say(f"filling a queue with {self._queue[1]:,} messages")
            self.filled = self._fill(*self._queue)
        say("starting")
        began = time.monotonic()
        self.target.start(self._tree)
        self.started = time.monotonic() - began
        time.sleep(looked)
        self.rest, used = self._tree.memory(), self._tree.cpu()
        time.sleep(looked)
        self.idle = (self._tree.cpu() - used) / looked
        self._tree.sample()
        return self

    def _fill(self, instance, messages, words):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, str(BENCH / "bed" / "preload.py"), f"{self.target.spool}/{instance}", str(messages),
             *words[:1], instance, *words[1:]],
            check=True, env={**os.environ, "PYTHONPATH": self.target.settings["root"]},
        )  # fmt: skip
        return time.monotonic() - began

    @property
    def memory(self):
        """Octets at most since it started."""
        return max(self._tree.peak, self._tree.memory())

    def open(self, sessions):
        """Keep so many sessions open that have said EHLO and say no more; octets of memory that they take."""
        before = self._tree.memory()
        for _ in range(sessions):
            ours = socket.create_connection(("127.0.0.1", self.target.port), 10)
            self._idlers.append(ours)
            self._stack.callback(ours.close)
            ours.recv(1000)
            ours.sendall(b"EHLO idle.test\r\n")
            ours.recv(1000)
        return self._tree.memory() - before

    def run(self, load, limit=120.0, stall=20.0):
        """One load: its figures, with CPU in seconds of all processes."""
        used = self._tree.cpu()
        source = Source(
            to=f"127.0.0.1:{self.target.port}", messages=load.messages, sessions=load.sessions, octets=load.octets,
            recipients=load.recipients, domains=load.domains, first=self._first, seconds=limit,
        )  # fmt: skip
        with source:
            source.wait()
            self._first += load.messages
            self._expected += source.head().accepted * load.recipients
            self.sink.settle(self._expected, stall, limit)
            spent = self._tree.cpu() - used
            found = counted(joined(source, self.sink), source.head().failed)
        self._expected -= found.lost  # nobody waits for them again
        return found, spent

    def close(self):
        """How many second copies came in all; nothing is left."""
        time.sleep(_AFTER)
        doubled = self.sink.head().doubled if hasattr(self, "sink") else 0
        self._stack.close()
        return doubled

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()
