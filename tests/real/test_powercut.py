"""
The power cut under load, as a disk sees it: what was synced is there, what was not is gone.

The spool is an ext4 file system in an image on an XFS that shares blocks, so
that a copy of the image is made at one moment, while it is written to: what
the disk would hold had the power gone then. The copy lacks all that the
kernel still had in memory, files, directories and journal alike; the gateway
must find in it everything that it had acknowledged. (What a disk with a
volatile cache would do to writes it was told to flush, this can't show.)
"""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, needs, until
from tests.real.test_crash import Load

pytestmark = pytest.mark.slow

CUTS = 6
FICLONE = 0x40049409
MIB = 1 << 20


def run(*words):
    """A command of the system's; what it complains of fails the test."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise AssertionError(
            f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}\n"
            "This test needs root, loop devices, and e2fsprogs and xfsprogs."
        )


class Disk:
    """A disk to be mounted at *place*, and its copies."""

    def __init__(self, test, place):
        # In memory where possible: it is the syncs that count, not what they cost.
        self._folder = tempfile.mkdtemp(prefix="qmq-power-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        test.addCleanup(shutil.rmtree, self._folder, ignore_errors=True)
        self._store = os.path.join(self._folder, "store")
        self._place = place
        self._number = 0
        backing = os.path.join(self._folder, "xfs")
        for folder in (self._store, place):
            os.makedirs(folder, exist_ok=True)
        with open(backing, "wb") as file:
            file.truncate(1024 * MIB)
        run("mkfs.xfs", "-q", "-m", "reflink=1", backing)
        run("mount", "-o", "loop", backing, self._store)
        test.addCleanup(self._unmount, self._store)
        with open(self._image(), "wb") as file:
            file.truncate(192 * MIB)
        run("mkfs.ext4", "-q", "-F", self._image())
        self.mount()
        test.addCleanup(self._unmount, place)

    def _image(self):
        return os.path.join(self._store, f"disk-{self._number}")

    def mount(self):
        """The journal is replayed, as after any power cut."""
        run("mount", "-o", "loop", self._image(), self._place)

    def copy(self):
        """All that is on the disk at this moment, from then on the next disk to be mounted."""
        with open(self._image(), "rb") as now:
            self._number += 1
            with open(self._image(), "wb") as then:
                fcntl.ioctl(then, FICLONE, now.fileno())

    def pull_out(self):
        """The old disk goes, with what the kernel had not written to it."""
        self._unmount(self._place)
        os.unlink(os.path.join(self._store, f"disk-{self._number - 1}"))

    def _unmount(self, place):
        if os.path.ismount(place):
            for _ in range(50):  # until the last killed process has let go of it
                if not subprocess.run(["umount", place], capture_output=True, check=False).returncode:
                    return
                time.sleep(0.1)
            run("umount", place)


class PowerCutTests(SynchronousTestCase):
    """Two customers: one takes its mail at once, the other's waits in the queue over each cut."""

    def setUp(self):
        needs("mkfs.xfs", "mkfs.ext4", root=True)
        self.one, self.two = Sink(), Sink()
        self.gateway = Gateway(
            {"one.test": f"smtp:127.0.0.1:{self.one.port}", "two.test": f"smtp:127.0.0.1:{self.two.port}"},
            sections={"one": "retry = 1s", "two": "retry = 2s"}, primary="inline = 128K",
        )  # fmt: skip
        self.addCleanup(self.gateway.clear)
        for sink in (self.one, self.two):
            self.addCleanup(sink.close)
        self.disk = Disk(self, self.gateway.spool)
        self.addCleanup(self.gateway.stop)

    def arrived(self):
        """How often each mark has arrived."""
        return self.one.marks + self.two.marks

    def store_as(self, files):
        """From the next start on, bodies are files, or rows."""
        conf = Path(self.gateway.conf)
        before, after = ("inline = 128K", "inline = 1B") if files else ("inline = 1B", "inline = 128K")
        conf.write_text(conf.read_text().replace(before, after))

    def die(self):
        """All processes of the gateway at once."""
        workers = self.gateway.workers()
        os.killpg(self.gateway.process.pid, signal.SIGKILL)  # a session of its own
        self.gateway.process.wait(10)
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers))

    def test_nothing_lost(self):
        """Everything acknowledged before a cut, and not delivered by then, arrives after it."""
        cuts = []
        gone = set()
        self.gateway.start()
        with Load(self.gateway, ["one.test", "two.test"]) as load:
            for number in range(CUTS):
                self.two.answers[b"RCPT"] = b"451 not now\r\n"
                time.sleep(0.7)
                acknowledged = set(load.acknowledged)
                self.disk.copy()
                owed = acknowledged - gone - set(self.arrived())
                self.die()
                time.sleep(0.05)  # for the last answers to be read
                gone |= load.acknowledged - acknowledged - set(self.arrived())
                cuts.append((owed, self.arrived()))
                self.disk.pull_out()
                self.disk.mount()
                self.two.answers.clear()
                self.store_as(files=number % 2 == 0)
                self.gateway.start()
        until(lambda: all(q["queued"] == 0 for q in self.gateway.stat().values()), 60, 0.2)

        arrived = self.arrived()
        lost = [[mark for mark in owed if arrived[mark] == before[mark]] for owed, before in cuts]
        gone -= set(arrived)
        twice = sum(count > 1 for count in arrived.values())
        print(
            f"\n{CUTS} power cuts: {len(load.acknowledged)} acknowledged; owed at the cuts {[len(o) for o, _ in cuts]}, "
            f"of these lost {[len(each) for each in lost]}; acknowledged between copy and kill, so gone with the disk: {len(gone)}; "
            f"{twice} twice"
        )
        self.assertEqual(lost, [[]] * CUTS)
        self.assertEqual(load.acknowledged - set(arrived), gone)
        for owed, _ in cuts:
            self.assertGreater(len(owed), 20)
        self.assertNotIn("DAMAGED", self.gateway.text())

    test_nothing_lost.timeout = 120


PowerCutTests.test_nothing_lost = pytest.mark.limit(120)(PowerCutTests.test_nothing_lost)
