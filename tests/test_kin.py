import os
import socket
import struct
import subprocess

from twisted.trial.unittest import SynchronousTestCase

from qmq.kin import is_kin


class Peer:
    """A socket that this process has connected to us."""

    def __init__(self, process: int) -> None:
        self.process = process

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option, size) == (socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return struct.pack("3i", self.process, 0, 0)


class KinTests(SynchronousTestCase):
    def test_ourselves(self) -> None:
        """What this process has connected is its own."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)

        self.assertTrue(is_kin(ours, 0))

    def test_main_process_and_its_workers(self) -> None:
        """The main process and whatever it has started are kin; init's children, and a stranger's, are not."""
        child = subprocess.Popen(["sleep", "60"])
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)

        for process, main, kin in (
            (os.getppid(), os.getppid(), True),
            (child.pid, os.getpid(), True),
            (child.pid, os.getppid(), False),
            (child.pid, 0, False),
            (1, 0, False),
            (1, 1, True),
            (os.getppid(), 0, False),
        ):
            self.assertEqual(is_kin(Peer(process), main), kin, (process, main))  # type: ignore[arg-type]

    def test_nobody_knows(self) -> None:
        """Of a process in another namespace, or one that is gone, nothing is known."""
        self.assertFalse(is_kin(Peer(0), 0))  # type: ignore[arg-type]
        self.assertFalse(is_kin(Peer(0), os.getpid()))  # type: ignore[arg-type]
        self.assertFalse(is_kin(Peer(2**31 - 1), os.getpid()))  # type: ignore[arg-type]
