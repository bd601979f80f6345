"""
What a target costs: CPU and memory of all its processes, syncs and octets at the device of its spool.

As root the target's processes are put into a control group of their own (version
1 or 2), which counts those that have ended as well. Elsewhere the descendants of
its first process are summed; those that ended are in their parents' sums.
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import NamedTuple

_TICK = os.sysconf("SC_CLK_TCK")
_V1 = Path("/sys/fs/cgroup")


def _read(path):
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _field(text, name):
    """A number of `name 123` lines; None if there is none."""
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [name]), None)


class Tree:
    """The processes of one target; without root: the descendants of the process that is given to `root`."""

    def __init__(self):
        self.peak = 0  # octets of anonymous memory, sampled
        self._first = None
        self._stop = threading.Event()
        self._sampler = None

    def within(self, command):
        """The command that runs this one as the target's first process."""
        return command

    def root(self, pid):
        """The target's first process."""
        self._first = pid

    def pids(self):
        """All that are there now."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            words = _read(path).rpartition(")")[2].split()
            if words:
                parents.setdefault(int(words[1]), []).append(int(path.parent.name))
        found, look = [], [self._first] if self._first else []
        while look:
            pid = look.pop()
            found.append(pid)
            look += parents.get(pid, ())
        return [pid for pid in found if os.path.exists(f"/proc/{pid}")]

    def cpu(self):
        """Seconds so far."""
        ticks = 0
        for pid in self.pids():
            words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))  # its own and those of children it has waited for
        return ticks / _TICK

    def memory(self):
        """Octets of anonymous memory now; what processes share counts once."""
        return 1024 * sum(
            _field(_read(f"/proc/{pid}/smaps_rollup").replace(":", ""), "Pss_Anon") or 0 for pid in self.pids()
        )

    def sample(self, every=0.25):
        """Look at the memory from now on, for its peak."""

        def look():
            while not self._stop.wait(every):
                self.peak = max(self.peak, self.memory())

        self._sampler = threading.Thread(target=look, daemon=True)
        self._sampler.start()

    def end(self, patience=10.0):
        """End all of them: politely, then not."""
        self._stop.set()
        if self._sampler:
            self._sampler.join()
        began, sign = time.monotonic(), signal.SIGTERM
        told = set()
        while pids := [
            pid for pid in self.pids() if not _read(f"/proc/{pid}/stat").rpartition(")")[2].startswith(" Z")
        ]:
            if time.monotonic() - began > patience:
                sign, told = signal.SIGKILL, set()
            for pid in pids:
                if pid not in told:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, sign)
                    told.add(pid)
            time.sleep(0.05)
            if time.monotonic() - began > 2 * patience:
                raise RuntimeError(f"processes that do not end: {pids}")

    def close(self):
        """End them and leave nothing."""
        self.end()


class _Group(Tree):
    """A control group in each of some hierarchies; the first of *folders* has the processes."""

    def __init__(self, folders):
        super().__init__()
        self._folders = folders
        for folder in folders:
            folder.mkdir()

    def within(self, command):
        """The command that runs this one as the target's first process."""
        joins = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in self._folders)
        return ["sh", "-c", joins + 'exec "$@"', "sh", *command]

    def pids(self):
        """All that are there now."""
        return [int(word) for word in _read(self._folders[0] / "cgroup.procs").split()]

    def cpu(self):
        """Seconds so far, of those that have ended too."""
        if text := _read(self._folders[0] / "cpuacct.usage"):
            return int(text) / 1e9
        return (_field(_read(self._folders[0] / "cpu.stat"), "usage_usec") or 0) / 1e6

    def memory(self):
        """Octets of anonymous memory now."""
        text = _read(self._folders[-1] / "memory.stat")
        found = _field(text, "anon")
        found = _field(text, "rss") if found is None else found
        return super().memory() if found is None else found

    def close(self):
        """End them and leave nothing."""
        super().close()
        for folder in self._folders:
            for _ in range(50):
                try:
                    folder.rmdir()
                    break
                except OSError:  # the kernel has not forgotten the last process yet
                    time.sleep(0.02)


def tree():
    """For one target; whichever way of counting works here."""
    name = f"qmq-bench-{os.getpid()}-{time.monotonic_ns()}"
    if (_V1 / "cpuacct").is_dir():
        places = [_V1 / "cpuacct" / name, *([_V1 / "memory" / name] if (_V1 / "memory").is_dir() else [])]
    else:
        own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
        places = [Path(f"{_V1}{own}") / name]
    try:
        return _Group(places)
    except OSError:
        return Tree()


class Device(NamedTuple):
    """What a block device has done so far."""

    writes: int
    octets: int
    flushes: int


def device(folder):
    """Of the device on which a folder is; None if it is on none (tmpfs, overlay)."""
    number = os.stat(folder).st_dev
    place = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    if (place / "partition").exists():  # flushes are counted by the whole disk
        place = place.parent
    words = [int(word) for word in _read(place / "stat").split()]
    return Device(words[4], words[6] * 512, words[15]) if len(words) > 15 else None
