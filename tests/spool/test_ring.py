"""Writes by the kernel, for real; and a kernel that has none to offer."""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from qmq.spool import ring as module
from qmq.spool.ring import Ring, suits
from qmq.spool.writer import Writers


class Reactor:
    """Its readers, and a look at them."""

    def __init__(self) -> None:
        self.readers: list[Any] = []
        self.addReader, self.removeReader = self.readers.append, self.readers.remove

    def turn(self, enough: Callable[[], Any]) -> None:
        """Read until *enough* is true."""
        while not enough():
            readable, _, _ = select.select(self.readers, [], [], 10)
            assert readable, "nothing happens"
            for reader in readable:
                reader.doRead()


class RingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = Reactor()
        self.ring = Ring(self.reactor)  # type: ignore[arg-type]  # what it uses of one
        self.addCleanup(self.ring.close)
        self.path = self.mktemp()
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_DSYNC)
        self.addCleanup(os.close, self.fd)
        self.told: list[int] = []

    def octets(self) -> bytes:
        with open(self.path, "rb") as file:
            return file.read()

    def test_written(self) -> None:
        """What is given is written where it is to be, and whoever waits hears how much that was."""
        for at, octets in ((5, b"later"), (0, b"first"), (10, b"x" * 300_000)):
            self.assertTrue(self.ring.write((self.fd, octets, at), self.told.append))
        self.assertEqual(self.told, [], "not before the loop has turned")
        self.reactor.turn(lambda: len(self.told) == 3)

        self.assertEqual(sorted(self.told), [5, 5, 300_000])
        self.assertEqual(self.octets(), b"firstlater" + b"x" * 300_000)

    def test_between(self) -> None:
        """A reactor that asks between two events hears of a write before it looks again; of nothing nobody asks."""
        self.reactor.between = None  # type: ignore[attr-defined]  # as MonotonicEPollReactor's
        for _ in range(2):
            self.ring.write((self.fd, b"a", 0), self.told.append)
            until = monotonic() + 10
            while (ask := self.reactor.between) is not None and monotonic() < until:  # type: ignore[attr-defined]
                ask()
            self.assertEqual(self.told.pop(), 1)
        self.ring.write((self.fd, b"a", 0), self.told.append)
        self.ring.close()

        self.assertIsNone(self.reactor.between)  # type: ignore[attr-defined]

    def test_failed(self) -> None:
        """Whoever waits for what cannot be written hears why."""
        fd = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, fd)
        self.ring.write((fd, b"no", 0), self.told.append)
        self.reactor.turn(lambda: self.told)

        self.assertEqual(self.told, [-errno.EBADF])

    def test_fault(self) -> None:
        """What one store does with it does not keep the others from hearing of theirs."""
        self.ring.write((self.fd, b"a", 0), lambda _: self.told.append(1 // 0))
        self.ring.write((self.fd, b"b", 1), self.told.append)
        self.reactor.turn(lambda: self.told)

        self.assertEqual(self.told, [1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_close(self) -> None:
        """It leaves nothing in the reactor; a later write begins anew."""
        self.ring.close()
        self.assertEqual(self.reactor.readers, [])
        for _ in range(2):
            self.ring.write((self.fd, b"a", 0), self.told.append)
            self.reactor.turn(lambda: self.told.pop() if self.told else 0)
            self.ring.close()
            self.assertEqual(self.reactor.readers, [])

    def test_inherited(self) -> None:
        """A program that we start does not get its descriptors."""
        before = set(os.listdir("/proc/self/fd"))
        self.ring.write((self.fd, b"a", 0), self.told.append)
        self.reactor.turn(lambda: self.told)
        found = set()
        for name in set(os.listdir("/proc/self/fd")) - before:
            try:
                found.add(os.get_inheritable(int(name)))
            except OSError:
                continue  # of the listing itself

        self.assertEqual(found, {False})

    def test_suits(self) -> None:
        """It serves an ext4, and nothing else; of what is mounted nowhere nothing is known."""
        lines = ("35 1 7:0 / /a rw shared:1 - ext4 /dev/loop0 rw", "36 1 8:1 / /b rw - xfs /dev/sda1 rw")
        mounts = self.mktemp()
        with open(mounts, "w", encoding="utf-8") as file:
            file.write("\n".join(lines))
        self.patch(module, "_MOUNTS", mounts)
        found = [suits(os.makedev(*numbers)) for numbers in ((7, 0), (8, 1), (9, 9))]
        self.patch(module, "_MOUNTS", "/nowhere")

        self.assertEqual(found, [True, False, False])
        self.assertFalse(suits(os.makedev(7, 0)))

    def forbidden(self) -> list[bool]:
        """What became of three writes."""
        return [self.ring.write((self.fd, b"a", 0), self.told.append) for _ in range(3)]

    def test_none(self) -> None:
        """Without io_uring nothing is written here, and the reactor hears nothing of it."""
        self.patch(module, "linux_uring", None)
        self.ring = Ring(self.reactor)  # type: ignore[arg-type]  # as above

        self.assertEqual(self.forbidden(), [False] * 3)
        self.assertEqual(self.reactor.readers, [])

    def test_forbidden(self) -> None:
        """Where it is forbidden the kernel is asked once."""
        asked = []

        class Forbidding:
            def Context(self, _: int) -> None:
                asked.append(True)
                raise SystemError("Operation not permitted")

        self.patch(module, "linux_uring", Forbidding())
        self.assertEqual(self.forbidden(), [False] * 3)
        self.assertEqual(len(asked), 1)

    def test_not_taken(self) -> None:
        """A write that the kernel did not take is never sent to it later."""
        real = module.linux_uring

        class Context:
            """A kernel that has no memory once."""

            def __init__(self, most: int) -> None:
                self.real, self.flushes = real.Context(most), 0
                self.fileno, self.submit, self.poll = self.real.fileno, self.real.submit, self.real.poll
                self.process_events = self.real.process_events

            def flush(self) -> None:
                self.flushes += 1
                if self.flushes == 1:
                    raise SystemError("Cannot allocate memory")
                self.real.flush()

        self.patch(module, "linux_uring", type("uring", (), {"Context": Context, "Operation": real.Operation}))
        self.assertEqual(self.forbidden(), [False] * 3)
        self.assertEqual(self.octets(), b"")

    def test_writers(self) -> None:
        """A write by the kernel counts as a busy thread until it is done, one that it does not do not at all."""
        begun: list[str] = []
        writers = Writers(1, call_from_thread=lambda call, *rest: call(*rest), ring=self.ring)
        self.assertTrue(writers.write((self.fd, b"a", 0), self.told.append))
        writers.turn(lambda: begun.append("after"))
        self.assertEqual(begun, [])
        self.reactor.turn(lambda: self.told)
        self.assertEqual((self.told, begun), ([1], ["after"]))

        writers.stop()
        self.patch(self.ring, "_useless", True)
        self.assertFalse(writers.write((self.fd, b"a", 0), self.told.append))
        writers.turn(lambda: begun.append("at once"))
        self.assertEqual(begun, ["after", "at once"])
