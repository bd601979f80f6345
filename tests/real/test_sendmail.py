import atexit
import functools
import os
import subprocess
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import QMQ, ROOT, Gateway, Sink, free_port, until

TEXT = """\
To: Ann <u@alpha.example>, v@alpha.example
Subject: =?utf-8?q?h=C3=A9?=
From: Shop <shop@source.test>
Date: Thu, 26 Nov 2026 00:08:16 +0000
Message-ID: <1@source.test>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

hé
.
..two dots
last line""".encode()


@functools.cache
def shared():
    """One host and one gateway for all."""
    sink = Sink()
    gateway = Gateway({"alpha.example": f"smtp:127.0.0.1:{sink.port}"})
    atexit.register(gateway.clear)
    gateway.start()
    return sink, gateway


@pytest.mark.slow
class SendmailTests(SynchronousTestCase):
    """Programs call it as they call sendmail."""

    def setUp(self):
        self.sink, self.gateway = shared()
        self.sink.messages.clear()
        self.sink.answers.clear()
        self.conf = self.gateway.conf

    def sendmail(self, *words, text=b"Subject: x\n\nhello\n", code=0):
        """Call it; stdout and stderr as text."""
        done = subprocess.run(
            [*QMQ, "sendmail", "--conf", self.conf, *words], input=text, capture_output=True, timeout=60
        )
        said = done.stdout.decode() + done.stderr.decode()
        self.assertEqual(done.returncode, code, said)
        return said

    def message(self):
        """The one that arrived: sender, recipients, text without our Received fields."""
        until(lambda: self.sink.messages)
        ((sender, recipients, text),) = self.sink.messages
        self.sink.messages.clear()
        head, _, body = text.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        while lines[0].startswith((b"Received:", b"\t")):
            lines.pop(0)
        return sender, recipients, b"\r\n".join(lines) + b"\r\n\r\n" + body

    @pytest.mark.limit(60)
    def test_php(self):
        """What PHP's mail() does, sendmail -t -i, arrives octet for octet."""
        self.sendmail("-t", "-i", "-fshop@source.test", text=TEXT)

        sender, recipients, text = self.message()
        self.assertTrue(sender.startswith(b"MAIL FROM:<shop@source.test>"), sender)
        self.assertIn(b"BODY=8BITMIME", sender)
        self.assertEqual(recipients, [b"u@alpha.example", b"v@alpha.example"])
        self.assertEqual(text, TEXT.replace(b"\n", b"\r\n") + b"\r\n")

    @pytest.mark.limit(60)
    def test_cron(self):
        """What cron writes gets the fields it lacks; Bcc is followed and taken away; a dot ends the text."""
        said = self.sendmail(
            "-v",
            "-FCronDaemon",
            "-t",
            text=b"Subject: job\nTo: u@alpha.example\nBcc: hid@alpha.example\n\nout\n.\nnot this\n",
        )

        self.assertRegex(said, r"^250 2\.0\.0 ok \S+-[0-9a-f]+\n$")
        _, recipients, text = self.message()
        self.assertEqual(recipients, [b"u@alpha.example", b"hid@alpha.example"])
        self.assertRegex(
            text,
            rb"^Subject: job\r\nTo: u@alpha.example\r\nMessage-Id: <\S+@gateway.test>\r\nDate: [^\r]+\r\n"
            rb"From: CronDaemon <\S+@gateway.test>\r\n\r\nout\r\n$",
        )

    @pytest.mark.limit(60)
    def test_refused(self):
        """The exit code says what a program must know, stderr what its owner must do; nobody gets half of it."""
        said = self.sendmail("u@alpha.example", "u@elsewhere.example", code=69)
        self.assertIn("put 127.0.0.1 into relay in [qmq]", said)
        self.assertIn("nothing was sent", said)
        self.sendmail(code=64)
        self.sendmail("-t", text=b"To: (u@alpha.example\n\n", code=65)
        said = self.sendmail("-bv", "u@alpha.example", "u@elsewhere.example", code=67)
        self.assertIn("u@alpha.example: 250", said)
        self.assertEqual(self.sink.messages, [])

    @pytest.mark.limit(60)
    def test_nobody(self):
        """Without a gateway it is "try again later"; without a configuration it is the operator's fault."""
        text = Path(self.gateway.conf).read_text()
        self.conf = os.path.join(self.gateway.folder, "other")
        Path(self.conf).write_text(text.replace(str(self.gateway.port), str(free_port())))

        self.assertIn("no gateway answers", self.sendmail("u@alpha.example", code=75))
        self.assertIn("no gateway answers", self.sendmail("-bs", code=75))
        self.conf += "-not-there"
        self.assertIn("--conf", self.sendmail("u@alpha.example", code=78))

    @pytest.mark.limit(60)
    def test_no_input(self):
        """Called with standard input closed it says so; with nothing on it, it sends an empty message."""
        closed = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *QMQ, "sendmail", "--conf", self.conf]
        for words, code in ((["u@alpha.example"], 66), (["-bs"], 74)):
            done = subprocess.run([*closed, *words], capture_output=True, timeout=60, text=True)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual(done.stderr.count("\n"), 1)

        self.sendmail("u@alpha.example", text=b"")
        self.assertTrue(self.message()[2].startswith(b"Message-Id: "))

    @pytest.mark.limit(60)
    def test_smtp(self):
        """-bs speaks SMTP on standard input and output, as mailing libraries want it."""
        dialogue = (
            b"EHLO lib\r\nMAIL FROM:<a@source.test>\r\nRCPT TO:<u@alpha.example>\r\nDATA\r\n"
            b"Subject: bs\r\n\r\nhello\r\n.\r\nQUIT\r\n"
        )
        said = self.sendmail("-bs", text=dialogue)

        self.assertEqual(
            [line[:3] for line in said.splitlines() if line[3] == " "],
            ["220", "250", "250", "250", "354", "250", "221"],
        )
        self.assertEqual(self.message()[2], b"Subject: bs\r\n\r\nhello\r\n")

    @pytest.mark.limit(60)
    def test_smtp_ends(self):
        """A program that ends without QUIT is waited for no longer than it takes to answer it."""
        said = self.sendmail("-bs", text=b"EHLO lib\r\nNOOP\r\n")

        self.assertTrue(said.splitlines()[-1].startswith("221"), said)

    @pytest.mark.limit(60)
    def test_large(self):
        """A long message, with a line that is too long for SMTP, arrives whole; one over databytes is refused at once."""
        self.sendmail("u@alpha.example", text=b"Subject: big\n\n" + b"y" * 100_000 + b"\n" + b"z" * 69 + b"\n" * 20_000)

        _, _, text = self.message()
        self.assertEqual(text.partition(b"\r\n\r\n")[2].count(b"y"), 100_000)
        self.assertLessEqual(max(map(len, text.split(b"\r\n"))), 65536)
        self.assertTrue(text.endswith(b"z" * 69 + b"\r\n" * 20_000))

        begun = time.monotonic()
        self.assertIn("databytes", self.sendmail("u@alpha.example", text=b"\n" + b"x" * (60 << 20), code=69))
        self.assertLess(time.monotonic() - begun, 20)

    @pytest.mark.limit(60)
    def test_script(self):
        """contrib/sendmail is what is linked to /usr/sbin/sendmail; -bp lists the queues."""
        self.sink.answers[b"RCPT"] = b"451 4.2.0 busy\r\n"
        script = (ROOT / "contrib" / "sendmail").read_text().replace("exec qmq", "exec " + " ".join(map(_quoted, QMQ)))
        environ = {"QMQ_CONF": self.gateway.conf, "PATH": "/usr/bin:/bin"}
        call = lambda *words: subprocess.run(  # noqa: E731
            ["/bin/sh", "-c", script, "sendmail", *words],
            input=b"x\n",
            capture_output=True,
            timeout=60,
            env=environ,
            check=True,
        )

        call("u@alpha.example")
        until(lambda: self.gateway.stat()["alpha"]["deferred"])

        self.assertIn(b"451 4.2.0 busy", call("-bp").stdout)
        self.sink.answers.clear()
        call("-q")
        self.assertTrue(self.message()[2].endswith(b"\r\n\r\nx\r\n"))


def _quoted(word):
    return "'" + word + "'"
