"""Processes of a gateway with a Desk each, behind real control sockets in this process; a `qmq` that asks them."""

import contextlib
import json
import os
import socket
import threading

from click.testing import CliRunner
from twisted.internet.defer import CancelledError, ensureDeferred

from qmq.admin.control import Desk
from qmq.cli.main import commands
from tests.admin.fakes import NOW
from tests.conf.folders import ConfTestCase

CONF = """\
[instances]
01:alpha
02:beta
03:gamma
[qmq]
me = mx.example.org
spool = spool
[primary]
listen = 127.0.0.1:2525
"""
SECTION = """\
[{name}]
domains = {name}.example
deliver = smtp:192.0.2.1
"""


class Process:
    """One control socket; *mute*: it takes requests and never answers."""

    def __init__(self, path, desk, mute):
        self.desk = desk
        self.requests = []
        self.hung_up = threading.Event()
        self.cuts = False  # in the middle of its answer
        self._mute = mute
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(path)
        self._listening.listen(10)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(one,), daemon=True).start()

    def _answer(self, one):
        with one, one.makefile("rb") as lines, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for line in lines:
                self.requests.append(json.loads(line))
                if self._mute:
                    continue
                ensureDeferred(self.desk.answer(self.requests[-1], _Wire(one, self.cuts))).addErrback(lambda _: None)
                if self.cuts:
                    return
        self.hung_up.set()

    def close(self):
        """No more requests."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


class _Wire:
    """Say, on a socket."""

    def __init__(self, one, cuts):
        self._one = one
        self._cuts = cuts

    def __call__(self, fact):
        if not (self._cuts and "end" in fact):
            try:
                self._one.sendall(json.dumps(fact).encode() + b"\n")
            except OSError:
                raise CancelledError from None  # as the counter does when they hang up

    async def room(self):
        pass


class ProcessesTestCase(ConfTestCase):
    """A conf-qmq with alpha, beta and gamma, and processes that a test adds."""

    def setUp(self):
        self.conf = self.write(CONF + "".join(SECTION.format(name=name) for name in ("alpha", "beta", "gamma")))
        self.run_folder = os.path.join(os.path.dirname(self.conf), "spool", "run")
        os.makedirs(self.run_folder)

    def process(self, name, queues, doings=None, mute=False, **about):
        """One that runs these queues."""
        desk = Desk(name, lambda: queues, lambda: about, {} if doings is None else doings, wall=lambda: NOW)
        made = Process(os.path.join(self.run_folder, f"{name}.control"), desk, mute)
        self.addCleanup(made.close)
        return made

    def qmq(self, *arguments, code=0, **more):
        """`qmq ARGUMENTS`: stdout, stderr, exit code as awaited."""
        result = CliRunner().invoke(commands, [*arguments, "--conf", self.conf], **more)
        self.assertEqual(result.exit_code, code, result.output + repr(result.exception))
        return result

    def facts(self, *arguments, code=0):
        """The objects that it says with --json."""
        return [json.loads(line) for line in self.qmq(*arguments, "--json", code=code).stdout.splitlines()]
