"""A reactor in memory for cords: a clock, a child that is a socket, and turns that are taken when the test says so."""

import json
import os
import signal
import socket
from array import array

from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure


class Reactor(Clock):
    """A clock that also serves descriptors, in `turn`, and starts children that are none."""

    def __init__(self):
        super().__init__()
        self.readers, self.writers = set(), set()
        self.children = []  # all that were started
        self.refuses = None  # an OSError: nothing can be started

    def addReader(self, reader):
        self.readers.add(reader)

    def removeReader(self, reader):
        self.readers.discard(reader)

    def addWriter(self, writer):
        self.writers.add(writer)

    def removeWriter(self, writer):
        self.writers.discard(writer)

    def spawnProcess(self, protocol, executable, args, env, childFDs):
        if self.refuses is not None:
            raise self.refuses
        child = FakeChild(protocol, args, env, childFDs)
        self.children.append(child)
        protocol.makeConnection(child)

    def turn(self):
        """Each descriptor that can, reads and writes once."""
        for writer in list(self.writers):
            self._do(writer, writer.doWrite())
        for reader in list(self.readers):
            if reader in self.readers:
                self._do(reader, reader.doRead())

    def _do(self, descriptor, why):
        if why is not None:
            self.removeReader(descriptor)
            self.removeWriter(descriptor)
            descriptor.connectionLost(Failure(why))


class FakeChild:
    """A process transport; its other end is in the test's hand."""

    def __init__(self, protocol, args, env, descriptors):
        self.protocol, self.args, self.env, self.descriptors = protocol, args, env, descriptors
        self.pid = None  # so that nobody sets limits to a stranger
        self.end = Peer(socket.socket(fileno=os.dup(descriptors[3])))
        self.signals = []

    def signalProcess(self, number):
        self.signals.append(signal.Signals(number).name)

    def ends(self, code=0, number=None):
        """The process is gone."""
        self.end.socket.close()
        reason = ProcessTerminated(code, number, None) if code or number else ProcessDone(0)
        self.protocol.processEnded(Failure(reason))

    def beats(self, **said):
        """One beat."""
        self.end.says({"facts": {"states": {}, "memory": 1, **said}})


class Peer:
    """A cord's other end, over a plain socket."""

    def __init__(self, end):
        end.setblocking(False)
        self.socket = end
        self.buffer = b""

    def says(self, message):
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def read(self):
        """What has come: whole lines, and descriptors."""
        descriptors = array("i")
        while True:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(1024))
            except BlockingIOError:
                break
            if not data:
                break
            self.buffer += data
            for _, _, octets in ancillary:
                descriptors.frombytes(octets)
        *lines, self.buffer = self.buffer.split(b"\n")
        return [json.loads(line) for line in lines], list(descriptors)
