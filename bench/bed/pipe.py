"""
The whole way of a message in one process: source, primary, QMTP, instance, spool, host.

Two gateways of the shipped defaults, one with the primary and one with an instance, are
joined by the unix socket that joins two processes else; beside them a source and a
host that do as little as can be done. So the instructions of one process are those of
a message's whole way, but for what the kernel does.

    python -m bench.bed.pipe MESSAGES [OCTETS [PER-CONNECTION]]     CPU time, for a look
    python -m bench.bed.pipe --count MESSAGES ...                   under callgrind: see bench/guard
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qmq.reactor import install

install()

from twisted.internet import reactor as _reactor  # noqa: E402 - ours is installed first
from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: E402
from twisted.internet.protocol import Factory, Protocol, connectionDone  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

from qmq.conf.load import load  # noqa: E402
from qmq.service.gateway import Gateway  # noqa: E402

reactor: Any = _reactor
SESSIONS = 40
WARM = 300  # messages before it counts: caches, first uses, specialised bytecode
CONF = """[instances]
1:one
9000:bounces
[qmq]
me = guard.test
spool = {folder}/spool
log = {folder}/log
[primary]
listen = 127.0.0.1:{port}
limit-exempt = 127.0.0.0/8
[one]
domains = one.test
deliver = smtp:127.0.0.1:{host}
qmtp-listen = none
[bounces]
role = bounce
qmtp-listen = none
"""


class Host(Protocol):
    """Takes all mail, and counts it: *taken*; *full* is called after each packet."""

    taken = 0
    full: Callable[[], None] | None = None

    def connectionMade(self) -> None:
        """The banner."""
        self._rest = b""
        self._text = False
        self.transport.setTcpNoDelay(True)
        self.transport.write(b"220 host.test ESMTP\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Commands by their first letter; a text up to its end mark."""
        if self._rest:
            data = self._rest + data
        out = []
        while data:
            mark = b"\r\n.\r\n" if self._text else b"\r\n"
            end = data.find(mark)
            if end < 0:
                break
            first, data = data[:1], data[end + len(mark) :]
            if self._text:
                self._text = False
                out.append(b"250 ok\r\n")
                Host.taken += 1
            elif first == b"E":
                out.append(b"250-host.test\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
            elif first == b"D":
                out.append(b"354 go\r\n")
                self._text = True
            else:
                out.append(b"250 ok\r\n")
        self._rest = data
        if out:
            self.transport.write(b"".join(out))
        if Host.full is not None:
            Host.full()


class Client(Protocol):
    """A session of the source; each reply to a group of pipelined commands is taken to come whole."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._said = self._hello

    def connectionMade(self) -> None:
        """Wait for the banner."""
        self.transport.setTcpNoDelay(True)
        self._left = self._source.per_connection

    def dataReceived(self, data: bytes) -> None:
        """A reply."""
        self._said(data)

    def _hello(self, _: bytes) -> None:
        self._said = self.next
        self.transport.write(b"EHLO source.test\r\n")

    def next(self, _: bytes = b"") -> None:
        """The next message, if there is one for us."""
        source = self._source
        if not source.left:
            source.idle.append(self)
        elif self._left:
            self._left -= 1
            source.left -= 1
            self._said = self._text
            self.transport.write(
                b"MAIL FROM:<a%d@source.test>\r\nRCPT TO:<u%d@one.test>\r\nDATA\r\n" % (source.left, source.left)
            )
        else:
            self.transport.loseConnection()
            source.connect()

    def _text(self, data: bytes) -> None:
        if b"354 " in data:
            self._said = self._taken
            self.transport.write(self._source.text)

    def _taken(self, data: bytes) -> None:
        if not data.startswith(b"250"):
            raise SystemExit(f"the gateway said {data!r}")
        self.next()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """As it was asked."""


class Source(Factory):
    """Clients in closed loop, each with so many messages *per_connection* (0: any)."""

    def __init__(self, port: int, octets: int, per_connection: int) -> None:
        self.text = b"Subject: guard\r\n\r\n" + (b"x" * 70 + b"\r\n") * (octets // 72) + b".\r\n"
        self.per_connection = per_connection or 1 << 60
        self.left = 0
        self.idle: list[Client] = []
        self._port = port

    def connect(self) -> None:
        """One more session."""
        TCP4ClientEndpoint(reactor, "127.0.0.1", self._port).connect(self)

    def buildProtocol(self, addr: Any) -> Client:
        """A session."""
        return Client(self)

    def send(self, messages: int) -> None:
        """So many more."""
        self.left += messages
        idle, self.idle = self.idle, []
        for client in idle:
            client.next()


class Pipe:
    """The gateways, the source, the host; *run* starts them."""

    def __init__(self, octets: int = 4096, per_connection: int = 0) -> None:
        self.folder = tempfile.mkdtemp(prefix="qmq-guard-")
        host = reactor.listenTCP(0, Factory.forProtocol(Host), interface="127.0.0.1")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        conf = Path(self.folder) / "conf-qmq"
        conf.write_text(CONF.format(folder=self.folder, port=port, host=host.getHost().port), encoding="utf-8")
        for only in (("one", "bounces"), ("primary",)):
            gateway = Gateway(reactor, load(str(conf)).at(only), only, dict(os.environ))
            gateway.privilegedStartService()
            gateway.startService()
        self.source = Source(port, octets, per_connection)

    def round(self, messages: int, then: Callable[[], None]) -> None:
        """Send *messages*; *then* when all are at their host, and settled."""
        goal = Host.taken + messages

        def look() -> None:
            if Host.taken >= goal:
                Host.full = None
                reactor.callLater(0.2, then)

        Host.full = look
        self.source.send(messages)

    def run(self, plan: Callable[[], None]) -> None:
        """Connect, then *plan*; until the reactor is stopped."""
        reactor.callLater(1, lambda: [self.source.connect() for _ in range(SESSIONS)])
        reactor.callLater(2.5, plan)
        try:
            reactor.run()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def workload(rounds: int) -> int:
    """
    What a message's cost is compared with: a fixed piece of Python of the same kind.

    Bytes found, cut and joined, small objects made, methods called. It must
    stay as it is, or all figures that were written down mean nothing.
    """
    octets = 0
    seen: dict[bytes, tuple[int, bytes]] = {}
    for number in range(rounds):
        line = b"MAIL FROM:<user%d@source.test> SIZE=4096\r\n" % number
        colon = line.find(b":")
        verb, rest = line[:colon].upper(), line[colon + 1 :]
        local, _, domain = rest[1 : rest.find(b">")].rpartition(b"@")
        words = rest.rstrip().split(b" ")
        seen[local] = (len(words), domain.lower())
        octets += len(b"".join([verb, local, domain, *words]))
        if number % 100 == 99:
            seen.clear()
    return octets


def callgrind(*order: str) -> None:
    """Tell the callgrind that we run under."""
    subprocess.run(["callgrind_control", *order, str(os.getpid())], check=True, stdout=subprocess.DEVNULL)


def main(words: list[str]) -> None:
    """Warm up; then the round that counts."""
    counting = words[:1] == ["--count"]
    messages, *shape = map(int, words[counting:])
    pipe = Pipe(*shape)

    def count() -> None:
        if counting:
            workload(1000)
            callgrind("-i", "on")
            workload(1000)
            callgrind("-d")
        began = time.process_time()

        def done() -> None:
            took = time.process_time() - began
            if counting:
                callgrind("-i", "off")
            sys.stdout.write(f"{took / messages * 1e6:.1f} us a message\n")
            reactor.stop()

        pipe.round(messages, done)

    pipe.run(lambda: pipe.round(WARM, count))


if __name__ == "__main__":
    main(sys.argv[1:])
