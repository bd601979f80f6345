"""
The faults: what each does to one instance of 50, how it begins, how it ends.

Every fault is a class: *what* says in a line what it is, *section*, *primary*
and *extra* are said in conf-qmq, and `prepare` (before the gateway starts),
`begin`, `keep` (about ten times a second while it lasts), `end` and `clear` do it.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from .parts import BENCH, NAME


class Skip(Exception):
    """A fault that cannot be had here; says why."""


class Fault:
    """None at all: a round of the base."""

    word = "base"
    what = "no fault"
    section = primary = extra = ""
    lasting = False  # it is there from the start

    def prepare(self, bed, sinks, options):
        """Before the gateway starts."""

    def begin(self, bed, sinks):
        """Now."""

    def keep(self, bed, sinks):
        """It goes on."""

    def end(self, bed, sinks):
        """Over: what is well again delivers."""

    def clear(self):
        """Remove what it made; called in any case."""


class Destination(Fault):
    """Its host behaves badly."""

    mode = "well"

    def begin(self, bed, sinks):
        sinks.behave(self.mode)

    def end(self, bed, sinks):
        sinks.behave("well")


class Blackhole(Destination):
    word, mode = "blackhole", "blackhole"
    what = "its host answers no SYN, and nothing on open connections"


class Tarpit(Destination):
    word, mode = "tarpit", "tarpit"
    what = "its host answers after 30 s, an octet a second"


class Defer(Destination):
    word, mode = "defer", "defer"
    what = "its host says 421 to everything"


class FilterHung(Fault):
    """Its own filter, asked before it takes a message, never ends."""

    word = "filter-hung"
    what = "its own filter program never ends"
    section = "filter = ./filter\nfilter-time = 30s"

    def prepare(self, bed, sinks, options):
        self.flag = os.path.join(bed.folder, "hang")
        program = Path(bed.folder) / "filter"
        program.write_text(f"#!/bin/sh\n[ -e {self.flag} ] && exec sleep 3600\nexec cat >/dev/null\n", encoding="utf-8")
        program.chmod(0o755)

    def begin(self, bed, sinks):
        Path(self.flag).touch()

    def end(self, bed, sinks):
        Path(self.flag).unlink()


_CHECKER = """\
import os, time
from zope.interface import implementer
from qmq.interfaces import IBlocking, ICheckerFactory, IRecipientChecker

@implementer(IRecipientChecker, IBlocking)
class Hangs:
    def recipient(self, session, transaction, recipient):
        if recipient.domain == b"%s.test" and os.path.exists("%s"):
            time.sleep(3600)

@implementer(ICheckerFactory)
class Factory:
    name, help = "hangs", "hangs"
    def make(self, context, options):
        return Hangs()

hangs = Factory()
"""


class CheckerHung(Fault):
    """A stranger's checker that blocks, asked for all recipients, hangs for this instance's."""

    word = "checker-hung"
    what = "a blocking checker, asked for every recipient, sleeps for its recipients"
    primary = "checks = rcpthosts hangs databytes"

    def prepare(self, bed, sinks, options):
        self.flag = os.path.join(bed.folder, "hang")
        plugins = Path(bed.folder) / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "hangs.py").write_text(_CHECKER % (NAME, self.flag), encoding="utf-8")

    begin = FilterHung.begin
    end = FilterHung.end


class DiskFull(Fault):
    """Its store on a loop device of its own, filled to the last block."""

    word = "disk-full"
    what = "its store's device (ext4 on a loop device of 512 MB) is full"
    _mounted = ""
    _image = ""

    def prepare(self, bed, sinks, options):
        if os.geteuid() != 0:
            raise Skip("needs root, to mount")
        folder = os.path.join(bed.folder, "device")
        os.mkdir(folder)
        self._image = folder + ".img"
        with open(self._image, "wb") as file:
            file.truncate(512 << 20)
        for command in (["mkfs.ext4", "-q", "-m", "0", self._image], ["mount", "-o", "loop", self._image, folder]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise Skip(f"{command[0]}: {getattr(error, 'stderr', '') or error}".strip()) from None
        self._mounted = folder
        text = Path(bed.conf).read_text(encoding="utf-8")
        text = text.replace(f"[{NAME}]\n", f"[{NAME}]\nspool = {folder}/store\n")
        Path(bed.conf).write_text(text, encoding="utf-8")
        self._ballast = os.path.join(folder, "ballast")

    def begin(self, bed, sinks):
        with open(self._ballast, "wb") as file:
            for size in (1 << 20, 4096):
                at = file.seek(0, 2)
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), at, size)
                        at += size
                except OSError:
                    pass  # no piece of that size is left

    def end(self, bed, sinks):
        os.unlink(self._ballast)

    def clear(self):
        if self._mounted:
            for _ in range(20):
                if not subprocess.run(["umount", self._mounted], capture_output=True, check=False).returncode:
                    break
                time.sleep(0.5)
            else:
                subprocess.run(["umount", "-l", self._mounted], check=False)
        if self._image and os.path.exists(self._image):
            os.unlink(self._image)


class Own(Fault):
    """Its worker is its own."""

    section = "process = own"

    def begin(self, bed, sinks):
        self._last = 0.0
        self._done = set()

    def signal(self, bed, number):
        """To its worker, if it is there; whether it was."""
        pid = bed.worker()
        if pid is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True


class OwnKilled(Own):
    word = "own-killed"
    what = "its own worker is killed (KILL) every 10 s"

    def keep(self, bed, sinks):
        if time.monotonic() - self._last >= 10 and self.signal(bed, signal.SIGKILL):
            self._last = time.monotonic()


class OwnStopped(Own):
    word = "own-stopped"
    what = "its own worker, and every one that takes its place, is stopped (STOP)"

    def keep(self, bed, sinks):
        pid = bed.worker()
        if pid is not None and pid not in self._done and self.signal(bed, signal.SIGSTOP):
            self._done.add(pid)

    def end(self, bed, sinks):
        self.signal(bed, signal.SIGCONT)


_LEAK = """\
import os, threading, time

def leak():
    held = []
    while True:
        if os.path.exists("{flag}"):
            try:
                held.append(b"x" * (1 << 20))
            except MemoryError:
                pass
        elif held:
            held = []
        time.sleep(0.02)

if os.environ.get("QMQ_CHILD") == "worker-{name}":
    threading.Thread(target=leak, daemon=True).start()
"""


class OwnMemory(Own):
    """A leak in its worker, of 50 MB a second; what bounds it is its `memory`, and RLIMIT_AS where that is not kept."""

    word = "own-memory"
    what = "its own worker leaks 50 MB a second, to its memory limit of 128 MB"
    section = "process = own\nmemory = 128M"

    def prepare(self, bed, sinks, options):
        self.flag = os.path.join(bed.folder, "leak")
        (Path(bed.folder) / "sitecustomize.py").write_text(_LEAK.format(flag=self.flag, name=NAME), encoding="utf-8")
        bed.environ["PYTHONPATH"] += os.pathsep + bed.folder

    def begin(self, bed, sinks):
        super().begin(bed, sinks)
        Path(self.flag).touch()

    def keep(self, bed, sinks):
        pid = bed.worker()
        if pid is not None and pid not in self._done:
            _bound(pid, 512 << 20)
            self._done.add(pid)

    def end(self, bed, sinks):
        Path(self.flag).unlink()
        if (pid := bed.worker()) is not None:
            _bound(pid, resource.RLIM_INFINITY)


def _bound(pid, octets):
    """Address space of a process, threads' stacks included; one that has just ended needs none."""
    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_AS, (octets, resource.RLIM_INFINITY))


class Preloaded(Destination):
    word, mode = "preloaded", "slow"
    what = "its queue holds {preload:,} messages that are due; its host takes 100 ms for each"

    def prepare(self, bed, sinks, options):
        self.what = self.what.format(preload=options.preload)
        sinks.behave(self.before)
        subprocess.run(
            [sys.executable, str(BENCH / "bed" / "preload.py"), os.path.join(bed.spool, NAME), str(options.preload),
             f"smtp:127.0.0.1:{sinks.ports[24]}", NAME],
            check=True, env={**os.environ, "PYTHONPATH": str(options.root)},
        )  # fmt: skip

    before = "slow"
    lasting = True


class Drained(Preloaded):
    word, mode, before = "drained", "well", "defer"
    what = "its queue holds {preload:,} messages; its host, which said 421, is back and takes all at once"

    def begin(self, bed, sinks):
        super().begin(bed, sinks)
        bed.hasten()


class Deferred(Preloaded):
    word, mode, before = "deferred", "defer", "defer"
    what = "its queue holds {preload:,} messages that are due; its host says 421"


FAULTS = {
    fault.word: fault
    for fault in (
        Blackhole, Tarpit, Defer, FilterHung, CheckerHung, DiskFull, OwnKilled, OwnStopped, OwnMemory, Preloaded,
        Deferred, Drained,
    )
}  # fmt: skip
