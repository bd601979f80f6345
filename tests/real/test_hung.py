"""A checker that hangs costs its own session alone, in a running gateway."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import ROOT, Gateway, Sink

pytestmark = pytest.mark.slow

BENCH = (ROOT / "bench" / "hung-checker").read_text()
PLUGIN = BENCH.partition('PLUGIN = """\\\n')[2].partition('"""')[0]
WAYS = {
    "hangs": ("raise", "await", "step", "callback", "loop", "sleep", "regex", "swallow"),
    "blocks": ("raise", "sleep", "loop", "swallow"),
}


class HungTests(SynchronousTestCase):
    """Good mail goes through the same checkers all the time."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        self.gateway = Gateway(
            {"one.test": f"smtp:127.0.0.1:{self.sink.port}"},
            primary=f"checks = rcpthosts {' '.join(WAYS)} databytes",
            extra="\n".join(f"[check {name}]\ntimeout = 2s" for name in WAYS),
        )
        self.addCleanup(self.gateway.clear)
        plugins = Path(self.gateway.folder) / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "hung.py").write_text(PLUGIN)
        self.gateway.start()
        self.waited, self.answers, self.over = [], [], threading.Event()

    def send_good_mail(self):
        client = self.gateway.client()
        while not self.over.is_set():
            began = time.monotonic()
            self.answers.append(client.mail("bob@one.test", sender="good@source.test"))
            self.waited.append(time.monotonic() - began)
            time.sleep(0.01)
        client.close()

    def tally(self, name):
        rows = map(json.loads, self.gateway.command("stat", "--checks", "--json").splitlines())
        return next(row for row in rows if row["check"] == name)

    @pytest.mark.limit(120)
    def test_hung(self):
        """However it hangs, its session gets 451, the log its name, and good mail is taken within a second."""
        sending = threading.Thread(target=self.send_good_mail, daemon=True)
        sending.start()
        self.addCleanup(self.over.set)

        for name, ways in WAYS.items():
            for way in ways:
                # One checker does it in the reactor's thread, the other in threads of its own; both have the same code.
                client = self.gateway.client()
                client.say(f"MAIL FROM:<{way}@{name}.test>")
                answer = client.say("RCPT TO:<bob@one.test>")
                client.close()

                self.assertTrue(answer.startswith(b"451"), (name, way, answer))

        self.over.set()
        sending.join(10)
        self.assertGreater(len(self.answers), 100)
        self.assertEqual({answer[:3] for answer in self.answers}, {b"250"})
        self.assertLess(max(self.waited), 1)
        for name in WAYS:
            self.assertIn(f"checker {name} failed", self.gateway.text())
        self.assertGreaterEqual(self.tally("hangs")["stuck"], 5)
        blocks = self.tally("blocks")
        self.assertEqual((blocks["late"], blocks["stuck"] >= 2), (1, True))

    def test_bench(self):
        """The bench that measures it runs."""
        out = subprocess.run(
            [sys.executable, str(ROOT / "bench" / "hung-checker"), "--seconds", "1", "--rate", "20", "--sessions", "10", "raise"],
            capture_output=True, text=True, timeout=60, env=dict(os.environ),
        )  # fmt: skip

        self.assertEqual(out.returncode, 0, out.stderr)
        self.assertIn("451", out.stdout)
