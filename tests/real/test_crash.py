"""kill -9 of real processes under load: nothing acknowledged is lost, and what comes twice was in flight."""

import threading
import time

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Client, Gateway, Sink, until

pytestmark = pytest.mark.slow

ROUNDS = 20
SENDERS = 6


class Load:
    """Clients that send numbered messages until told to stop, and note each 250."""

    def __init__(self, gateway, domains):
        self._gateway = gateway
        self._domains = domains
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.acknowledged = set()
        self._number = 0
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _send(self):
        client = None
        while not self._stop.is_set():
            with self._lock:
                self._number += 1
                mark = f"m{self._number}"
            domain = self._domains[self._number % len(self._domains)]
            try:
                if client is None:
                    client = Client(self._gateway.port)
                if client.mail(f"u@{domain}", mark=mark).startswith(b"250"):
                    self.acknowledged.add(mark.encode())
            except OSError:
                if client is not None:
                    client.close()
                client = None
                time.sleep(0.02)


class CrashTests(SynchronousTestCase):
    """Twenty rounds: the main process, the worker, both in turn."""

    def test_nothing_lost(self):
        """Every message acknowledged with 250 arrives; duplicates are at most what was in flight."""
        sinks = {"one.test": Sink(), "two.test": Sink()}
        for sink in sinks.values():
            self.addCleanup(sink.close)
        gateway = Gateway(
            {domain: f"smtp:127.0.0.1:{sink.port}" for domain, sink in sinks.items()},
            sections={"one": "retry = 1s", "two": "retry = 1s"},
        )
        self.addCleanup(gateway.clear)
        gateway.start()

        with Load(gateway, list(sinks)) as load:
            for number in range(ROUNDS):
                time.sleep(0.25)
                if number % 3 in (1, 2) and (workers := gateway.workers()):
                    gateway.kill(workers[0])
                if number % 3 in (0, 2):
                    gateway.kill()
                    gateway.start()
        until(lambda: all(q["queued"] == 0 for q in gateway.stat().values()), 60, 0.2)

        marks = sinks["one.test"].marks + sinks["two.test"].marks
        lost = load.acknowledged - set(marks)
        twice = {mark: count for mark, count in marks.items() if count > 1}
        print(f"\n{ROUNDS} kills: {len(load.acknowledged)} acknowledged, {len(lost)} lost, {len(twice)} twice")
        self.assertEqual(lost, set())
        self.assertGreater(len(load.acknowledged), 200)
        self.assertLessEqual(len(twice), ROUNDS * SENDERS)

    test_nothing_lost.timeout = 300


CrashTests.test_nothing_lost = pytest.mark.limit(300)(CrashTests.test_nothing_lost)
