"""A small SMTP client and server for `qmq demo`: they count, and measure from 250 to delivery."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from twisted.internet.protocol import Factory, Protocol

from qmq.mail import Seconds

Now = Callable[[], Seconds]


class Ledger:
    """When each message was acknowledged to the client, and when it reached its sink."""

    def __init__(self, now: Now) -> None:
        self.now = now
        self._acknowledged: dict[bytes, Seconds] = {}
        self._arrived: dict[bytes, Seconds] = {}
        self.doubled = 0
        self.domains: dict[bytes, list[bytes]] = defaultdict(list)

    def acknowledged(self, mark: bytes, domain: bytes) -> None:
        """The gateway said 250."""
        self._acknowledged[mark] = self.now()
        self.domains[domain].append(mark)

    def arrived(self, mark: bytes) -> None:
        """A sink has it."""
        if mark in self._arrived:
            self.doubled += 1
        else:
            self._arrived[mark] = self.now()

    def waits(self, domain: bytes, since: Seconds = 0, until: Seconds = float("inf")) -> list[Seconds]:
        """Seconds from 250 to arrival, of what was acknowledged in a time; at least 0."""
        return [
            max(0.0, self._arrived[mark] - self._acknowledged[mark])
            for mark in self.domains[domain]
            if mark in self._arrived and since <= self._acknowledged[mark] < until
        ]

    def missing(self, domain: bytes) -> int:
        """Acknowledged and not arrived."""
        return sum(1 for mark in self.domains[domain] if mark not in self._arrived)


def percentile(waits: list[Seconds], hundredth: int) -> Seconds | None:
    """The p50 or p99 of a list, None if it is empty."""
    if len(waits) < 2:
        return waits[0] if waits else None
    return statistics.quantiles(waits, n=100, method="inclusive")[hundredth - 1]


class Sink(Protocol):
    """Takes all mail, *delay* seconds after each message's last dot; never answers if *dead*."""

    def __init__(self, ledger: Ledger, reactor: Any, delay: Seconds, dead: bool) -> None:
        self._ledger = ledger
        self._reactor = reactor
        self._delay = delay
        self._dead = dead
        self._buffer = b""
        self._in_text = False
        self._thinking = False  # of the last message: what follows it waits

    def connectionMade(self) -> None:
        """A banner, unless dead."""
        self._say(b"220 sink.example\r\n")

    def dataReceived(self, data: bytes) -> None:
        """Commands and texts; what it needs of SMTP and no more."""
        if self._dead:
            return
        self._buffer += data
        self._go_on()

    def _go_on(self) -> None:
        while not self._thinking:
            if self._in_text:
                end = self._buffer.find(b"\r\n.\r\n")
                if end < 0:
                    return
                text, self._buffer = self._buffer[:end], self._buffer[end + 5 :]
                self._in_text = False
                self._take(text)
                continue
            line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return
            self._buffer = rest
            self._command(line[:4].upper())

    def _command(self, verb: bytes) -> None:
        if verb == b"EHLO":
            self._say(b"250-sink.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n")
        elif verb == b"DATA":
            self._in_text = True
            self._say(b"354 go\r\n")
        elif verb == b"QUIT":
            self._say(b"221 bye\r\n")
            self.transport.loseConnection()  # type: ignore[union-attr]  # connected
        else:
            self._say(b"250 ok\r\n")

    def _take(self, text: bytes) -> None:
        mark = text.partition(b"\r\nX-Mark: ")[2].partition(b"\r\n")[0]
        if self._delay:
            self._thinking = True
            self._reactor.callLater(self._delay, self._done, mark)
        else:
            self._done(mark)

    def _done(self, mark: bytes) -> None:
        self._ledger.arrived(mark)
        self._say(b"250 ok\r\n")
        if self._thinking:
            self._thinking = False
            self._go_on()

    def _say(self, line: bytes) -> None:
        if not self._dead and self.transport is not None:
            self.transport.write(line)


class SinkFactory(Factory):
    """One downstream host."""

    noisy = False

    def __init__(self, ledger: Ledger, reactor: Any, *, delay: Seconds = 0, dead: bool = False) -> None:
        self._make = lambda: Sink(ledger, reactor, delay, dead)

    def buildProtocol(self, addr: Any) -> Protocol:
        """A session."""
        return self._make()


class Source(Protocol):
    """Sends messages one after the other over a kept connection; *next_mail* gives (mark, domain) or None."""

    def __init__(self, ledger: Ledger, idle: Callable[[Source], None]) -> None:
        self._ledger = ledger
        self._idle = idle
        self._buffer = b""
        self._steps: list[Callable[[bytes], None]] = []
        self._mail: tuple[bytes, bytes] = (b"", b"")
        self.refused = 0

    def connectionMade(self) -> None:
        """Say hello when greeted."""
        self.transport.setTcpNoDelay(True)  # type: ignore[union-attr]  # TCP
        self._steps = [self._greeted]

    def send(self, mark: bytes, domain: bytes) -> None:
        """One message of about 1 kB."""
        self._mail = (mark, domain)
        self._write(b"MAIL FROM:<demo@source.example>\r\nRCPT TO:<user@" + domain + b">\r\nDATA\r\n")
        self._steps = [self._ignore, self._ignore, self._go]

    def dataReceived(self, data: bytes) -> None:
        """Replies, in order; the last line of each counts."""
        self._buffer += data
        while b"\r\n" in self._buffer:
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            if line[3:4] != b"-" and self._steps:
                self._steps.pop(0)(line)

    def _greeted(self, line: bytes) -> None:
        self._write(b"EHLO source.example\r\n")
        self._steps = [lambda _: self._idle(self)]

    def _ignore(self, line: bytes) -> None:
        pass

    def _go(self, line: bytes) -> None:
        mark, domain = self._mail
        if not line.startswith(b"354"):
            self._over(line)
            return
        text = b"Subject: demo\r\nX-Mark: " + mark + b"\r\nTo: user@" + domain + b"\r\n\r\n" + b"x" * 70 + b"\r\n"
        self._write(text + (b"y" * 70 + b"\r\n") * 12 + b".\r\n")
        self._steps = [self._over]

    def _over(self, line: bytes) -> None:
        if line.startswith(b"250"):
            self._ledger.acknowledged(*self._mail)
        else:
            self.refused += 1
        self._idle(self)

    def _write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
