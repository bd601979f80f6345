"""qmq demo: five domains, one slow, one dead. Do the healthy ones feel it?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from qmq.cli.ask import ask
from qmq.cli.sinks import Ledger, SinkFactory, Source, percentile
from qmq.mail import Seconds

HEALTHY = ("alpha", "beta", "gamma")
ALL = (*HEALTHY, "slow", "dead")
_SLOW: Seconds = 2.0
_SESSIONS = 10
# More than this, and at least twice what it was: that would be felt.
_FELT: Seconds = 0.05


@click.command()
@click.option("--seconds", default=24, show_default=True, help="How long mail is sent, in two halves.")
@click.option("--rate", default=120, show_default=True, help="Messages a second.")
@click.option("--keep", is_flag=True, help="Leave the demo's folder, to look into it.")
def demo(seconds: int, rate: int, keep: bool) -> None:
    """
    Five domains, one slow, one dead: do the healthy ones feel it?

    Starts a gateway on free ports with built-in hosts behind it, sends a few
    thousand messages, first to the healthy domains alone, then to all, and
    says what came of it. Nothing else is needed, nothing outside is touched.
    """
    folder = tempfile.mkdtemp(prefix="qmq-demo-")
    try:
        _Demo(folder, seconds, rate).run()
    finally:
        if keep:
            click.echo(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


class _Demo:
    """The whole show: hosts and client in this process, the gateway in its own."""

    def __init__(self, folder: str, seconds: int, rate: int) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - a program of its own, not a part of the gateway

        self._reactor: Any = reactor
        self._folder = folder
        self._seconds = seconds
        self._rate = rate
        self._ledger = Ledger(time.monotonic)
        self._conf = os.path.join(folder, "conf-qmq")
        self._log = os.path.join(folder, "log")
        self._console = Console()
        self._sent = 0
        self._idle: list[Source] = []
        self._sources: list[Source] = []
        self._queues: dict[str, dict[str, Any]] = {}
        self._start: Seconds = 0
        self._middle: Seconds = 0
        self._gateway: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Until the end, or Ctrl-C."""
        ports = {name: self._listen(name) for name in ALL}
        smtp = self._listen_nowhere()
        with open(self._conf, "w", encoding="utf-8") as file:
            file.write(_configuration(self._folder, smtp, ports, self._listen_nowhere()))
        log = open(self._log, "wb")  # noqa: SIM115 - the gateway's, for its life
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        command += ["-n", "--pidfile=", "qmq", "--conf", self._conf]
        self._gateway = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        failed: list[BaseException] = []
        try:
            from twisted.internet.defer import ensureDeferred  # noqa: PLC0415 - as above

            self._reactor.callWhenRunning(lambda: ensureDeferred(self._show(smtp)).addErrback(self._fail, failed))
            self._reactor.run()
        finally:
            self._gateway.send_signal(signal.SIGTERM)
            try:
                self._gateway.wait(20)
            except subprocess.TimeoutExpired:
                self._gateway.kill()
            log.close()
        if failed:
            with open(self._log, encoding="utf-8", errors="replace") as text:
                tail = "".join(text.readlines()[-15:])
            raise click.ClickException(f"{failed[0]}\nthe gateway's log ends with:\n{tail}")

    def _fail(self, failure: Failure, failed: list[BaseException]) -> None:
        failed.append(failure.value or RuntimeError("the demo broke"))
        self._stop()

    def _stop(self) -> None:
        if self._reactor.running:
            self._reactor.stop()

    def _listen(self, name: str) -> int:
        factory = SinkFactory(self._ledger, self._reactor, delay=_SLOW if name == "slow" else 0, dead=name == "dead")
        port: int = self._reactor.listenTCP(0, factory, interface="127.0.0.1").getHost().port
        return port

    def _listen_nowhere(self) -> int:
        import socket  # noqa: PLC0415 - only to find a free port

        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port: int = s.getsockname()[1]
            return port

    async def _show(self, smtp: int) -> None:
        self._console.print(
            "A gateway with five queues: alpha, beta, gamma are healthy; "
            f"the host of [yellow]slow[/] takes {_SLOW:.0f} s a message, the host of [red]dead[/] never answers."
        )
        await self._connect(smtp)
        half = self._seconds / 2
        self._start = time.monotonic()
        self._middle = self._start + half
        end = self._start + self._seconds
        with Live(self._table(), console=self._console, refresh_per_second=4) as live:
            while (now := time.monotonic()) < end:
                self._send(now, (now - self._start) * self._rate)
                if int(now * 20) % 10 == 0:
                    await self._look()
                    live.update(self._table())
                await self._sleep(0.005)
            for _ in range(40):
                if not any(self._ledger.missing(name.encode() + b".example") for name in HEALTHY):
                    break
                await self._sleep(0.1)
            await self._sleep(0.3)  # the stores note what was delivered with their next commit
            await self._look()
            live.update(self._table())
        self._verdict()
        self._stop()

    def _send(self, now: Seconds, wanted: float) -> None:
        names = HEALTHY if now < self._middle else ALL
        while self._sent < wanted and self._idle:
            self._sent += 1
            self._idle.pop().send(b"%d" % self._sent, names[self._sent % len(names)].encode() + b".example")

    async def _connect(self, smtp: int) -> None:
        from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol  # noqa: PLC0415 - as above

        await self._ready()
        while len(self._sources) < _SESSIONS:
            source = Source(self._ledger, self._idle.append)
            await connectProtocol(TCP4ClientEndpoint(self._reactor, "127.0.0.1", smtp), source)
            self._sources.append(source)

    async def _ready(self) -> None:
        """Its workers run: what comes before is taken too, but waits for them, and that is not what we measure."""
        for _ in range(200):
            with open(self._log, "rb") as log:
                if b"\nqmq ready: " in b"\n" + log.read():
                    return
            if self._gateway is not None and self._gateway.poll() is not None:
                raise click.ClickException("the gateway did not start")
            await self._sleep(0.1)
        raise click.ClickException("the gateway did not come up within 20 s")

    async def _look(self) -> None:
        from twisted.internet.threads import deferToThreadPool  # noqa: PLC0415 - as above

        pool = self._reactor.getThreadPool()
        facts = await deferToThreadPool(self._reactor, pool, lambda: list(ask(self._conf, do="stat")))
        for fact in facts:
            self._queues.update(fact["queues"])

    def _sleep(self, seconds: Seconds) -> Deferred[None]:
        from twisted.internet.task import deferLater  # noqa: PLC0415 - as above

        return deferLater(self._reactor, seconds)

    def _table(self) -> Table:
        table = Table(title=f"{self._sent} messages sent", title_justify="left")
        table.add_column("queue")
        for column in ("queued", "delivered", "deferred", "bounced", "p50", "p99"):
            table.add_column(column, justify="right")
        for name in ALL:
            q = self._queues.get(name, {})
            waits = self._ledger.waits(name.encode() + b".example")
            style = {"slow": "yellow", "dead": "red"}.get(name, "green")
            table.add_row(
                name, *(str(q.get(key, 0)) for key in ("queued", "delivered", "deferred", "bounced")),
                _milliseconds(percentile(waits, 50)), _milliseconds(percentile(waits, 99)), style=style,
            )  # fmt: skip
        return table

    def _verdict(self) -> None:
        before = [w for name in HEALTHY for w in self._ledger.waits(name.encode() + b".example", 0, self._middle)]
        beside = [w for name in HEALTHY for w in self._ledger.waits(name.encode() + b".example", self._middle)]
        alone, with_dead = percentile(before, 99), percentile(beside, 99)
        missing = sum(self._ledger.missing(name.encode() + b".example") for name in HEALTHY)
        waiting = self._queues.get("dead", {}).get("queued", 0)
        self._console.print(
            f"\nHealthy domains alone: {len(before)} messages, from 250 to delivery "
            f"p50 {_milliseconds(percentile(before, 50))}, p99 {_milliseconds(alone)}.\n"
            f"Beside the slow and the dead one: {len(beside)} messages, "
            f"p50 {_milliseconds(percentile(beside, 50))}, p99 {_milliseconds(with_dead)}.\n"
            f"Lost: {missing}. Delivered twice: {self._ledger.doubled}. Waiting for the dead host: {waiting}."
        )
        felt = alone is None or with_dead is None or missing or with_dead > max(2 * alone, alone + _FELT)
        if felt:
            self._console.print("[bold red]The healthy domains felt the dead one.[/]")
        else:
            self._console.print("[bold green]The healthy domains did not feel the dead one.[/]")


def _milliseconds(seconds: Seconds | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"


def _configuration(folder: str, smtp: int, ports: dict[str, int], base: int) -> str:
    numbered = "\n".join(f"{n}:{name}" for n, name in enumerate(ALL, 1))
    sections = "\n".join(
        f"[{name}]\ndomains = {name}.example\ndeliver = smtp:127.0.0.1:{port}\nqmtp-listen = none\n"
        for name, port in ports.items()
    )
    return (
        f"[instances]\n{numbered}\n90:bounces\n\n"
        f"[qmq]\nme = gateway.example\nspool = {folder}/spool\nbase = {base if base < 60000 else 11000}\n\n"
        f"[primary]\nlisten = 127.0.0.1:{smtp}\n\n{sections}\n"
        "[bounces]\nrole = bounce\nqmtp-listen = none\n"
    )
