"""A filter program of one instance, and what the others feel of it."""

import os
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, until

FILTER = """#!/bin/sh
case "$MAILFROM" in
  virus@*) exit 32 ;;
  hang@*) sleep 1000 ;;
  broken@*) kill -9 $$ ;;
esac
cat > /dev/null
exit 0
"""


class FilterTests(SynchronousTestCase):
    """Instance one has a filter, two has none."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        route = f"smtp:127.0.0.1:{self.sink.port}"
        one = "filter = ./filter\nfilter-time = 2s\nfilter-processes = 2"
        self.gateway = Gateway({"one.test": route, "two.test": route}, qmq="workers = 1", sections={"one": one})
        program = os.path.join(self.gateway.folder, "filter")
        Path(program).write_text(FILTER)
        Path(program).chmod(0o755)
        self.addCleanup(self.gateway.clear)
        self.gateway.start()

    def say(self, sender, recipient, mark):
        client = self.gateway.client()
        self.addCleanup(client.close)
        return client.mail(recipient, sender=sender, mark=mark)

    @pytest.mark.limit(60)
    def test_verdicts(self):
        """What it refuses the client hears in the session; what it cannot judge is 451; the other domain's is not asked."""
        self.assertEqual(self.say("a@b.test", "bob@one.test", "good")[:3], b"250")
        self.assertEqual(self.say("virus@b.test", "bob@one.test", "bad")[:3], b"554")
        self.assertEqual(self.say("broken@b.test", "bob@one.test", "odd")[:3], b"451")
        self.assertEqual(self.say("virus@b.test", "bob@two.test", "other")[:3], b"250")
        until(lambda: self.sink.marks[b"good"] and self.sink.marks[b"other"])
        self.assertEqual(len(self.sink.messages), 2)

    @pytest.mark.limit(60)
    def test_hangs(self):
        """One that hangs costs its own mail 451 after its time, and the other domain's mail nothing."""
        began = time.monotonic()
        hung = self.gateway.client()
        self.addCleanup(hung.close)
        hung.write("MAIL FROM:<hang@b.test>\r\nRCPT TO:<bob@one.test>\r\nDATA\r\n")
        for _ in range(3):
            hung.reply()
        hung.write("x: y\r\n\r\n.\r\n")
        for n in range(20):
            before = time.monotonic()
            self.assertEqual(self.say("a@b.test", "bob@two.test", f"two{n}")[:3], b"250")
            self.assertLess(time.monotonic() - before, 1)
        self.assertEqual(hung.reply()[:3], b"451")
        self.assertLess(time.monotonic() - began, 15)
        self.assertEqual(self.say("a@b.test", "bob@one.test", "again")[:3], b"250")
