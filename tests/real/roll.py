"""Which processes of a gateway run, and which of them has a store open: as Linux tells, without asking them."""

import glob
import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path


def processes(gateway):
    """Of each process of the gateway, by id: what it was told to run (``--only``); () is a main process."""
    found = {}
    for folder in glob.glob("/proc/[0-9]*"):
        pid = int(folder.removeprefix("/proc/"))
        words = _words(pid)
        if gateway.conf in words and "qmq" in words and alive(pid):
            only = words[words.index("--only") + 1] if "--only" in words else ""
            found[pid] = tuple(only.replace(",", " ").split())
    return found


def main_of(gateway):
    """The ids of the main processes: usually one."""
    return [pid for pid, roles in processes(gateway).items() if not roles]


def worker_of(gateway, role):
    """The ids of the processes that run *role*: at most one, but for those that are about to end."""
    return [pid for pid, roles in processes(gateway).items() if role in roles]


def alive(pid):
    """Whether there is such a process, and no mere zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(pid):
    """When it was, in ticks since the machine was."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def kill(*pids):
    """Kill -9; whether all were there to be killed."""
    there = True
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            there = False
    return there


def end_all(gateway):
    """Kill what is left of the gateway."""
    while left := list(processes(gateway)):
        kill(*left)
        time.sleep(0.05)


def stores(gateway):
    """Which processes have which store's database open."""
    holders = defaultdict(set)
    for pid in processes(gateway):
        if _forked(pid):
            continue
        for link in glob.glob(f"/proc/{pid}/fd/*"):
            try:
                path = os.readlink(link)
            except OSError:
                continue
            if path.startswith(gateway.spool) and path.endswith("/spool.db"):
                holders[path].add(pid)
    return holders


class Watch:
    """Looks all the time whether two processes have one store open; what it has seen is in *shared*."""

    def __init__(self, gateway, pause=0.1):
        self.shared = []
        self.looks = 0
        self._gateway = gateway
        self._pause = pause
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        self._thread.join(30)

    def _run(self):
        while not self._stopping.wait(self._pause):
            self.looks += 1
            for path, pids in stores(self._gateway).items():
                # One look is not one moment: it may have gone from one to the other meanwhile.
                if len(pids) > 1 and len(stores(self._gateway)[path] & pids) > 1:
                    self.shared.append((os.path.relpath(path, self._gateway.spool), sorted(pids)))


def _forked(pid):
    """Whether it has just been forked, and has its parent's files until it becomes another program."""
    try:
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return _words(pid) == _words(parent) != []


def _words(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
