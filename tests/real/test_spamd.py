"""SpamAssassin's own spamd, asked by a gateway about real messages."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, free_port, needs, until
from tests.real.peers import program

pytestmark = pytest.mark.slow

# SpamAssassin's own test message: 1000 points.
GTUBE = "XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
HEAD = "From: ann@source.test\r\nTo: bob@one.test\r\nSubject: tomorrow\r\nDate: Wed, 25 Nov 2026 21:00:00 +0000\r\nMessage-ID: <1@source.test>\r\n\r\n"


class Spamd:
    """One of our own: local tests only, nothing remembered, on a port of its own."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-spamd-"))
        os.chmod(self.folder, 0o755)
        for name in ("etc", "home"):
            (self.folder / name).mkdir(mode=0o755)
        for path in Path("/etc/spamassassin").glob("*.pre"):
            shutil.copy(path, self.folder / "etc")
        (self.folder / "etc" / "local.cf").write_text("use_bayes 0\n")
        self.port = free_port()
        user = []
        if os.geteuid() == 0:
            shutil.chown(self.folder / "home", "nobody")
            user = ["--username=nobody"]
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program("spamd"), "--local", f"--listen=127.0.0.1:{self.port}", "--nouser-config", "--max-children=2",
                 "--min-children=1", "--syslog=stderr", f"--siteconfigpath={self.folder}/etc",
                 f"--helper-home-dir={self.folder}/home", f"--pidfile={self.folder}/pid", *user],
                stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        until(self.ready, 60)

    def ready(self):
        text = self.log.read_text(errors="replace")
        assert self.process.poll() is None, text[-2000:]
        return "successfully spawned child process" in text

    def stop(self):
        """End it and its children."""
        self.process.terminate()
        self.process.wait(20)

    def clear(self):
        """End it, and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class SpamdTests(SynchronousTestCase):
    def test_real_scores(self):
        """
        By SpamAssassin's score, spam is refused for who has a threshold, and ham taken; without spamd all is taken.

        Who is not scanned and who is cannot have one message together.
        """
        needs("spamd")
        spamd = Spamd()
        self.addCleanup(spamd.clear)
        sink = Sink()
        self.addCleanup(sink.close)
        domains = {f"{name}.test": f"smtp:127.0.0.1:{sink.port}" for name in ("one", "two")}
        options = (
            f"[check spamdomains]\nspamd = 127.0.0.1:{spamd.port}\nfile = spamdomains\nheader = yes\nrelay = yes\n"
        )
        gateway = Gateway(domains, primary="checks = rcpthosts spamdomains", extra=options)
        self.addCleanup(gateway.clear)
        Path(gateway.folder, "spamdomains").write_text("*:-1\none.test:6\n")
        client = gateway.start().client()
        ham, spam = (f"{HEAD}{text}\r\n" for text in ("See you at nine.", GTUBE))

        self.assertTrue(client.mail("bob@one.test", text=spam).startswith(b"554"))
        self.assertTrue(client.mail("bob@one.test", text=ham, mark="ham").startswith(b"250"))
        self.assertTrue(client.mail("bob@two.test", text=spam, mark="unscanned").startswith(b"250"))
        client.say("MAIL FROM:<a@source.test>")
        self.assertTrue(client.say("RCPT TO:<bob@one.test>").startswith(b"250"))
        self.assertTrue(client.say("RCPT TO:<bob@two.test>").startswith(b"452"))
        client.say("RSET")
        until(lambda: "Reject::DATA::Spam_Message" in gateway.text())
        spamd.stop()
        self.assertTrue(client.mail("bob@one.test", text=spam, mark="open").startswith(b"250"))
        until(lambda: sink.marks[b"ham"] and sink.marks[b"unscanned"] and sink.marks[b"open"])
        taken = next(text for _, _, text in sink.messages if b"X-Mark: ham" in text)
        self.assertRegex(taken, rb"\r\nX-Spam-Score: -?[0-9]+\.[0-9]\r\n")
        until(lambda: "no score by spamd" in gateway.text())
