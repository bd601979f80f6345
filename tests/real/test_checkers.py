"""The door for anyone's checker: one file and one word in conf-qmq; one file less and its check is gone."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import ROOT, Gateway, Sink, until

pytestmark = pytest.mark.slow


class CheckersTests(SynchronousTestCase):
    """A gateway that finds its plug-ins in a folder of this test."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-test-"))
        self.addCleanup(shutil.rmtree, self.folder)

    def gateway(self, checks):
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{self.sink.port}"}, primary=f"checks = {checks}")
        self.addCleanup(gateway.clear)
        gateway.environ["PYTHONPATH"] = str(self.folder)
        return gateway

    def take_away(self, name):
        ignore = shutil.ignore_patterns("dropin.cache", "__pycache__", name)
        for part in ("qmq", "twisted"):
            shutil.copytree(ROOT / part, self.folder / part, ignore=ignore)

    def test_strangers(self):
        """The example of the documentation, dropped beside conf-qmq and named, is shown and refuses what it says."""
        gateway = self.gateway("rcpthosts nonoreply databytes")
        del gateway.environ["PYTHONPATH"]
        text = (ROOT / "docs" / "checkers.md").read_text()
        plugins = Path(gateway.folder) / "twisted" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "no_noreply.py").write_text(text.partition("```python\n")[2].partition("```")[0])
        self.assertIn("refuses senders that cannot be answered", gateway.command("checkers"))

        client = gateway.start().client()

        client.say("MAIL FROM:<noreply@shop.test>")
        self.assertTrue(client.say("RCPT TO:<bob@one.test>").startswith(b"5"))
        client.say("RSET")
        self.assertTrue(client.mail("bob@one.test", mark="m").startswith(b"250"))
        until(lambda: self.sink.marks[b"m"])
        tallies = {
            row["check"]: row for row in map(json.loads, gateway.command("stat", "--checks", "--json").splitlines())
        }
        self.assertEqual((tallies["nonoreply"]["asked"], tallies["nonoreply"]["refused"]), (2, 1))

    def test_without_rcpthosts(self):
        """Without the file of rcpthosts everything is refused, and the gateway runs."""
        self.take_away("rcpthosts.py")

        client = self.gateway("rcpthosts databytes").start().client()

        self.assertTrue(client.say("MAIL FROM:<a@b.test>").startswith(b"250"))
        self.assertTrue(client.say("RCPT TO:<bob@one.test>").startswith(b"5"))

    def test_without_databytes(self):
        """Without the file of databytes the rest goes on."""
        self.take_away("databytes.py")

        answer = self.gateway("rcpthosts databytes").start().client().mail("bob@one.test", mark="m")

        self.assertTrue(answer.startswith(b"250"))
        until(lambda: self.sink.marks[b"m"])
