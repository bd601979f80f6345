"""
The cord between the main process and a worker: one unix socket, JSON lines both ways.

Descriptors travel with a line (SCM_RIGHTS) and are handed out with it: the
line says how many are its own. Each end keeps what it sends within bounds, so
that a peer that does not read (blocked, stopped) costs nothing but itself: of
facts only the newest wait, and an order that finds no room is refused.

The socket's end means that the peer is gone.
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.internet.interfaces import IReadWriteDescriptor
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from qmq.mail import Octets

# Where a worker finds its end.
DESCRIPTOR = 3
# Marks a child, so that it looks for its parent: the worker's name.
CHILD = "QMQ_CHILD"

# unix(7): the kernel takes 253 descriptors at a time (SCM_MAX_FD).
_RIGHTS = 253
_ROOM = socket.CMSG_SPACE(_RIGHTS * array("i").itemsize)
_READ: Octets = 65536
# Far more than a thousand instances have to say; a peer that goes on is broken.
_LONGEST: Octets = 16 << 20
# What may wait for a peer that does not read.
_WAITING: Octets = 4 << 20

log = Logger()

Heard = Callable[[dict[str, Any], list[int]], None]


@implementer(IReadWriteDescriptor)
class Cord:
    """
    One end of the cord; it owns *end*, a connected unix socket.

    *heard(message, descriptors)* is called for each line, and owns the
    descriptors, which no program we start inherits. *lost()* is called once
    when the peer is gone, not after ``close``.
    """

    def __init__(self, reactor: Any, end: socket.socket, heard: Heard, lost: Callable[[], None]) -> None:
        end.setblocking(False)
        self._reactor = reactor
        self._end = end
        self._heard = heard
        self._lost = lost
        self._buffer = bytearray()
        self._received: deque[int] = deque()
        self._out: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting: Octets = 0
        self._facts: dict[str, Any] = {}
        self.open = True

    def start(self) -> None:
        """Listen to the peer from now on."""
        self._reactor.addReader(self)

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bool:
        """
        Send a line, and copies of *descriptors* with it; False if there is no room for it, or no peer.

        Raises TypeError or ValueError if *message* is not for JSON, OSError if
        a descriptor can't be copied.
        """
        line = json.dumps({**message, "fds": len(descriptors)} if descriptors else message).encode() + b"\n"
        if not self.open or self._waiting + len(line) > _WAITING:
            return False
        self._push(line, _copies(descriptors))
        return True

    def tell(self, facts: Mapping[str, Any]) -> None:
        """
        Tell the present state of each subject, sooner or later; an older one that has not left yet is forgotten.

        The peer hears ``{"facts": {subject: state}}``.
        """
        self._facts.update(facts)
        if not self._out:
            self._newest()

    def close(self) -> None:
        """End it; the peer sees that."""
        if not self.open:
            return
        self.open = False
        self._reactor.removeReader(self)
        self._reactor.removeWriter(self)
        for _, copies in self._out:
            _close(copies)
        _close(self._received)
        self._out.clear()
        self._received.clear()
        self._end.close()

    def fileno(self) -> int:
        """For the reactor."""
        return self._end.fileno()

    def logPrefix(self) -> str:
        """For the reactor's log."""
        return "cord"

    # Any: the interface says Failure, the reactor wants an exception.
    def doRead(self) -> Any:
        """Take what has come; every whole line is heard."""
        try:
            data, ancillary, flags, _ = self._end.recvmsg(_READ, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        for level, kind, octets in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array("i")
                numbers.frombytes(octets[: len(octets) - len(octets) % numbers.itemsize])
                self._received.extend(numbers)
        if flags & socket.MSG_CTRUNC:
            # From here on descriptors would go to the wrong lines. A new worker inherits all of its sockets.
            log.error("descriptors were sent to us that we cannot take: too many are open")
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if len(self._buffer) > _LONGEST:
            log.error("a line of more than {octets} octets came from our own process", octets=_LONGEST)
            return CONNECTION_LOST
        for line in lines:
            if self.open:
                self._hear(json.loads(line))
        return None

    def doWrite(self) -> Any:
        """Send what the peer has room for."""
        try:
            while self._out:
                self._write()
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return CONNECTION_LOST
        if self._facts:
            self._newest()
        else:
            self._reactor.removeWriter(self)
        return None

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has seen the end."""
        if self.open:
            self.close()
            self._lost()

    def _hear(self, message: dict[str, Any]) -> None:
        count = message.pop("fds", 0)
        self._heard(message, [self._received.popleft() for _ in range(count)])

    def _newest(self) -> None:
        if self.open:
            facts, self._facts = self._facts, {}
            self._push(json.dumps({"facts": facts}).encode() + b"\n", [])

    def _push(self, line: bytes, copies: list[int]) -> None:
        self._out.append((memoryview(line), copies))
        self._waiting += len(line)
        self._reactor.addWriter(self)

    def _write(self) -> None:
        # Descriptors are ahead of their line, never behind: they go with its first octets.
        data, copies = self._out[0]
        if copies:
            batch = copies[:_RIGHTS]
            rest = len(copies) > len(batch)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", batch))]
            sent = self._end.sendmsg([data[:1] if rest else data], rights)
            _close(batch)
            del copies[: len(batch)]
        else:
            sent = self._end.send(data)
        self._waiting -= sent
        if sent < len(data):
            self._out[0] = (data[sent:], copies)
        else:
            self._out.popleft()


def _copies(descriptors: Sequence[int]) -> list[int]:
    """Ours until they have left: their owner may close them meanwhile, and their numbers become others'."""
    copies: list[int] = []
    try:
        for descriptor in descriptors:
            copies.append(os.dup(descriptor))  # noqa: PERF401 - those made before one fails are closed
    except OSError:
        _close(copies)
        raise
    return copies


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
