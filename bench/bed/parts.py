"""The processes of the bed, as whoever conducts it sees them: hosts, load, gateway."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.real.gateway import Gateway

BENCH = Path(__file__).resolve().parent.parent
INSTANCES = 50
FAULTY = 24  # of 0 to 49
NAME = f"d{FAULTY + 1}"
_TICK = os.sysconf("SC_CLK_TCK")


def child(module, *words):
    """A process of ours that is asked on its standard input and ends with it."""
    return subprocess.Popen(
        [sys.executable, "-m", f"bed.{module}", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(BENCH)}, start_new_session=True,
    )  # fmt: skip


def end(process):
    """End one of them."""
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def hurry(pid, niceness):
    """Let a process of ours, its children to come and its session go before (or behind) others of this machine."""
    if niceness:
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        # Linux weighs sessions first, and processes within them; each of ours has a session of its own.
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as group:
            group.write(f"{niceness}\n")


def cpu(pid):
    """Seconds of CPU that a process has used; 0 if it is gone."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / _TICK


def machine():
    """Seconds of CPU that all processes of this machine, and its kernel, have used, on all cores."""
    words = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n")[0].split()[1:9]]
    return (sum(words) - words[3] - words[4]) / _TICK  # all but idle and waiting for disks


class Sinks:
    """
    The hosts: one for each instance, one for bounces; the faulty instance's in a process of its own.

    What that host does then costs the other 49 hosts nothing.
    """

    def __init__(self, folder):
        self._folder = folder
        self.others, self.faulty = child("sink", str(INSTANCES + 1)), child("sink", "1")
        ports = [json.loads(process.stdout.readline())["ports"] for process in (self.others, self.faulty)]
        self.ports = ports[0][:INSTANCES]
        self.ports[FAULTY] = ports[1][0]
        self.bounces = ports[0][INSTANCES]

    def _ask(self, process, **what):
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    def behave(self, mode):
        """What the faulty instance's host does from now on: sink.MODES."""
        self._ask(self.faulty, do="mode", host=0, mode=mode)

    def taken(self):
        """How many messages the 49, the faulty instance's host and that for bounces have taken."""
        others = self._ask(self.others, do="count")["taken"]
        return sum(others[:INSTANCES]), self._ask(self.faulty, do="count")["taken"][0], others[INSTANCES]

    def receipts(self):
        """Each mark's times of receipt; bounces apart."""
        got = ({}, {})
        for process in (self.others, self.faulty):
            path = os.path.join(self._folder, "taken")
            self._ask(process, do="dump", path=path)
            for host, marks in enumerate(json.loads(Path(path).read_text(encoding="ascii"))):
                for mark, at in marks:
                    got[host == INSTANCES].setdefault(mark, []).append(at)
        return got

    def usage(self):
        """Seconds of CPU of both processes so far."""
        return {"hosts": cpu(self.others.pid), "its host": cpu(self.faulty.pid)}

    def close(self):
        """End both processes."""
        end(self.others)
        end(self.faulty)


class Load:
    """One run of the load generator."""

    def __init__(self, folder, **plan):
        self._file = os.path.join(folder, "jobs")
        plan |= {"file": self._file, "instances": INSTANCES, "faulty": FAULTY}
        self.process = child("source", json.dumps(plan))
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the load generator could not open its sessions")

    def begin(self, at):
        """At that time of CLOCK_MONOTONIC."""
        self.process.stdin.write(f"{at}\n")
        self.process.stdin.flush()

    def jobs(self):
        """What became of each message (source.Source), once all is over; and how many sessions were open at most."""
        self.process.wait()
        if self.process.returncode:
            raise RuntimeError("the load generator failed")
        found = json.loads(Path(self._file).read_text(encoding="ascii"))
        return found["jobs"], found["sessions"]

    def close(self):
        """End it, whatever it is at."""
        if self.process.poll() is None:
            self.process.kill()
        end(self.process)


class Bed(Gateway):
    """
    The gateway: 50 instances, d1.test to d50.test, of shipped defaults; *section* is said of the faulty one.

    *root* is the checkout that runs.
    """

    def __init__(self, sinks, root, *, section="", primary="", extra="", workers=None):
        super().__init__(
            {f"d{n + 1}.test": f"smtp:127.0.0.1:{port}" for n, port in enumerate(sinks.ports)},
            qmq=f"workers = {workers}" if workers else "", primary="reverse = no\n" + primary, extra=extra,
            sections={NAME: section}, bounce_route=f"smtp:127.0.0.1:{sinks.bounces}",
        )  # fmt: skip
        self.environ = {"PYTHONPATH": str(root)}

    def pids(self):
        """Each worker's process id, by its name: the children that are there now."""
        found = {}
        for pid in self.workers():
            try:
                environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            for word in environ:
                if word.startswith(b"QMQ_CHILD="):
                    found[word.partition(b"=")[2].decode()] = pid
        return found

    def worker(self):
        """The process id of the faulty instance's own worker; None if there is none now."""
        return self.pids().get(f"worker-{NAME}")

    def usage(self):
        """Seconds of CPU of each process so far."""
        return {"main": cpu(self.process.pid), **{name: cpu(pid) for name, pid in self.pids().items()}}

    def hasten(self):
        """As `qmq now`: all is due."""
        os.kill(self.process.pid, signal.SIGALRM)

    def clear(self):
        """Stop it, by force if need be, and remove its folder."""
        try:
            super().clear()
        except AssertionError:
            time.sleep(1)  # killed by now; its workers end with it
