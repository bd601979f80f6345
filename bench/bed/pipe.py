"""
The whole path of a message in one process: source, primary, QMTP, instance, spool, host.

Two gateways with the shipped defaults, one for the primary and one for an instance, are
joined by the unix socket that joins two processes; beside them a source and a host
that do as little as can be done. All on one thread's clock and real sockets, so that the
instructions of this one process are those of a message's whole way.

    python -m bench.bed.pipe MESSAGES [OCTETS] [PER-CONNECTION]
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qmq.reactor import install

install()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.protocol import Factory, Protocol, connectionDone  # noqa: E402
from twisted.python.failure import Failure  # noqa: E402

from qmq.conf.load import load  # noqa: E402
from qmq.service.gateway import Gateway  # noqa: E402

reactor: Any = _reactor
SESSIONS = 40
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
    """Takes all mail; counts its ends."""

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
        data = self._rest + data
        out = []
        while data:
            if self._text:
                end = data.find(b"\r\n.\r\n")
                if end < 0:
                    break
                data, self._text = data[end + 5 :], False
                out.append(b"250 ok\r\n")
                Host.taken += 1
                continue
            end = data.find(b"\r\n")
            if end < 0:
                break
            first, data = data[:1], data[end + 2 :]
            if first == b"E":
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
    """A session of the source: what the source's next() gives, one message after the other, pipelined."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._state = 0  # 0: banner, 1: EHLO, 2: 354, 3: final reply

    def connectionMade(self) -> None:
        """Wait for the banner."""
        self.transport.setTcpNoDelay(True)
        self._left = self._source.per_connection

    def dataReceived(self, data: bytes) -> None:
        """Whatever was said, its last line decides; replies are short, and come whole."""
        if self._state == 0:
            self._state = 1
            self.transport.write(b"EHLO source.test\r\n")
        elif self._state == 2:
            if b"354 " in data:
                self._state = 3
                self.transport.write(self._source.text)
        else:
            if self._state == 3:
                if not data.startswith(b"250"):
                    raise SystemExit(f"the gateway said {data!r}")
                self._source.taken += 1
                self._left -= 1
            self._next()

    def _next(self) -> None:
        source = self._source
        if self._left and source.left:
            source.left -= 1
            self._state = 2
            self.transport.write(b"MAIL FROM:<a%d@source.test>\r\nRCPT TO:<u%d@one.test>\r\nDATA\r\n" % (source.left, source.left))
        elif source.left:
            self.transport.loseConnection()
            source.connect()
        else:
            self._state = 4
            source.idle.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """As it was asked."""

    def go_on(self) -> None:
        """There is more."""
        self._next()


class Source(Factory):
    """*SESSIONS* clients in closed loop."""

    def __init__(self, port: int, octets: int, per_connection: int) -> None:
        self.text = b"Subject: guard\r\n\r\n" + (b"x" * 70 + b"\r\n") * (octets // 72) + b".\r\n"
        self.per_connection = per_connection or 1 << 60
        self.left = self.taken = 0
        self.idle: list[Client] = []
        self._port = port

    def connect(self) -> None:
        """One more session."""
        from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: PLC0415

        TCP4ClientEndpoint(reactor, "127.0.0.1", self._port).connect(self)

    def buildProtocol(self, addr: Any) -> Client:
        """A session."""
        return Client(self)

    def send(self, messages: int) -> None:
        """So many more."""
        self.left += messages
        idle, self.idle = self.idle, []
        for client in idle:
            client.go_on()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Pipe:
    """Runs rounds: ``rounds`` is a list of (messages, before, after)."""

    def __init__(self, octets: int = 4096, per_connection: int = 0) -> None:
        self.folder = tempfile.mkdtemp(prefix="qmq-guard-")
        host = reactor.listenTCP(0, Factory.forProtocol(Host), interface="127.0.0.1")
        self.port = free_port()
        conf = Path(self.folder) / "conf-qmq"
        conf.write_text(CONF.format(folder=self.folder, port=self.port, host=host.getHost().port), encoding="utf-8")
        self.gateways = []
        for only in (("one", "bounces"), ("primary",)):
            gateway = Gateway(reactor, load(str(conf)).at(only), only, dict(os.environ))
            gateway.privilegedStartService()
            gateway.startService()
            self.gateways.append(gateway)
        self.source = Source(self.port, octets, per_connection)

    def round(self, messages: int, then: Callable[[], None]) -> None:
        """Send *messages*; *then* when all are at their host."""
        goal = Host.taken + messages

        def look() -> None:
            if Host.taken >= goal:
                Host.full = None
                reactor.callLater(0.2, then)  # what is settled is written

        Host.full = look
        self.source.send(messages)

    def run(self, plan: Callable[[Pipe], None]) -> None:
        """Connect, then *plan*; until the reactor is stopped."""
        reactor.callLater(1, lambda: [self.source.connect() for _ in range(SESSIONS)])
        reactor.callLater(2.5, plan, self)
        try:
            reactor.run()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def main() -> None:
    """Warm up, count a round."""
    messages = int(sys.argv[1])
    octets = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    per_connection = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    toggle = os.environ.get("TOGGLE")
    if os.environ.get("WARM"):
        warm = int(os.environ["WARM"])
    else:
        warm = 400

    def plan(pipe: Pipe) -> None:
        pipe.round(warm, lambda: count(pipe))

    def count(pipe: Pipe) -> None:
        if toggle:
            os.system(f"callgrind_control -i on {os.getpid()} >/dev/null 2>&1")
        began, wall = time.process_time(), time.perf_counter()

        def done() -> None:
            took, real = time.process_time() - began, time.perf_counter() - wall
            if toggle:
                os.system(f"callgrind_control -i off {os.getpid()} >/dev/null 2>&1")
            print(f"{took / messages * 1e6:.1f} us a message, {messages / real:.0f}/s")
            reactor.stop()

        pipe.round(messages, done)

    Pipe(octets, per_connection).run(plan)


if __name__ == "__main__":
    main()
