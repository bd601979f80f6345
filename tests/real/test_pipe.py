"""The main job with real processes: in by SMTP, across by QMTP, out by SMTP, bounces back."""

import email
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import ROOT, TWISTD, Gateway, Sink, free_port, until

pytestmark = pytest.mark.slow


class PipeTests(SynchronousTestCase):
    """A gateway with two customers and a bounce queue, its instances in a worker."""

    def setUp(self):
        self.one, self.two, self.world = Sink(), Sink(), Sink()
        for sink in (self.one, self.two, self.world):
            self.addCleanup(sink.close)
        self.gateway = Gateway(
            {"one.test": f"smtp:127.0.0.1:{self.one.port}", "two.test": f"smtp:127.0.0.1:{self.two.port}"},
            bounce_route=f"smtp:127.0.0.1:{self.world.port}",
            sections={"one": "retry = 1s*3 2s*10", "two": "retry = 1s*3 2s*10"},
        )
        self.addCleanup(self.gateway.clear)
        self.gateway.start()

    def test_delivered(self):
        """A message reaches its customer's host as it was, with one id in reply and trace fields."""
        client = self.gateway.client()

        answer = client.mail(
            "bob@one.test",
            text=b"Subject: x\r\n\r\n..dots\r\n.\r\n8-bit \xe4\r\n".replace(b"\r\n.\r\n", b"\r\n...\r\n"),
        )

        queue_id = answer.split()[-1]
        until(lambda: self.one.messages)
        sender, recipients, text = self.one.messages[0]
        self.assertIn(b"<a@source.test>", sender)
        self.assertEqual(recipients, [b"bob@one.test"])
        self.assertTrue(text.endswith(b"Subject: x\r\n\r\n.dots\r\n..\r\n8-bit \xe4\r\n"), text)
        self.assertGreaterEqual(text.count(queue_id), 2)
        until(lambda: self.gateway.stat()["one"]["queued"] == 0)
        self.assertEqual(self.gateway.stat()["primary"]["queued"], 0)

    def test_two_instances(self):
        """A message for two customers reaches both, each by its own queue."""
        answer = self.gateway.client().mail("bob@one.test", "eve@two.test", mark="m")

        self.assertTrue(answer.startswith(b"250"))
        until(lambda: self.one.marks[b"m"] and self.two.marks[b"m"])
        until(lambda: self.gateway.stat()["primary"]["queued"] == 0)
        self.assertEqual((self.one.marks[b"m"], self.two.marks[b"m"]), (1, 1))

    def test_relaying_denied(self):
        """Mail for foreign domains is refused."""
        client = self.gateway.client()
        client.say("MAIL FROM:<a@b.test>")

        self.assertTrue(client.say("RCPT TO:<x@elsewhere.test>").startswith(b"553 5.7.1"))

    def test_bounce(self):
        """What the customer's host refuses comes back to the sender through the bounce instance, as RFC 3464 says."""
        self.one.answers[b"RCPT"] = b"550 5.1.1 no such user here\r\n"

        self.gateway.client().mail("nobody@one.test", sender="author@source.test")

        until(lambda: self.world.messages)
        sender, recipients, text = self.world.messages[0]
        self.assertIn(b"<>", sender)
        self.assertEqual(recipients, [b"author@source.test"])
        report = email.message_from_bytes(text)
        self.assertEqual(report.get_content_type(), "multipart/report")
        status = report.get_payload()[1].get_payload()[1]
        self.assertEqual(status["Action"], "failed")
        self.assertEqual(status["Status"], "5.1.1")
        self.assertIn("no such user here", status["Diagnostic-Code"])
        self.assertIn("nobody@one.test", status["Final-Recipient"])
        until(lambda: all(q["queued"] == 0 for q in self.gateway.stat().values()))

    def test_deferred_then_delivered(self):
        """A temporary refusal is tried again by the instance's own schedule."""
        self.one.answers[b"RCPT"] = b"451 4.2.1 later\r\n"
        self.gateway.client().mail("bob@one.test", mark="m")
        until(lambda: self.gateway.stat()["one"]["deferred"])
        self.assertIn("451 4.2.1 later", self.gateway.command("read", "one"))

        del self.one.answers[b"RCPT"]
        self.gateway.command("now", "one")

        until(lambda: self.one.marks[b"m"])
        self.assertEqual(self.one.marks[b"m"], 1)

    def test_survives_restart(self):
        """What waits is there after a restart, and so is the operator's word: it is delivered when he says so."""
        self.gateway.command("pause", "one")
        self.gateway.client().mail("bob@one.test", mark="m")
        until(lambda: self.gateway.stat()["one"]["queued"] == 1)

        self.gateway.stop()
        self.gateway.start()

        self.assertTrue(self.gateway.stat()["one"]["paused"])
        self.gateway.command("resume", "one")
        until(lambda: self.one.marks[b"m"])
        self.assertEqual(self.one.marks[b"m"], 1)

    def test_refuse_and_accept(self):
        """A queue told to refuse costs its recipients a 452, and no other's."""
        self.gateway.command("refuse", "one")

        def refused():
            client = self.gateway.client()
            client.say("MAIL FROM:<a@b.test>")
            answer = client.say("RCPT TO:<bob@one.test>")
            other = client.say("RCPT TO:<eve@two.test>")
            client.close()
            return answer.startswith(b"452") and other.startswith(b"250")

        until(refused)
        self.gateway.command("accept", "one")
        until(lambda: self.gateway.client().mail("bob@one.test", mark="m").startswith(b"250"))
        until(lambda: self.one.marks[b"m"])

    def test_reload(self):
        """HUP takes a new route over; a file with an error changes nothing."""
        conf = Path(self.gateway.conf)
        text = conf.read_text()
        conf.write_text(text.replace(f"smtp:127.0.0.1:{self.one.port}", f"smtp:127.0.0.1:{self.two.port}"))
        os.kill(self.gateway.process.pid, signal.SIGHUP)
        until(lambda: "reloaded" in self.gateway.text())
        time.sleep(0.3)

        self.gateway.client().mail("bob@one.test", mark="m")

        until(lambda: self.two.marks[b"m"])
        conf.write_text(text + "\nnonsense = 1\n")
        os.kill(self.gateway.process.pid, signal.SIGHUP)
        until(lambda: "was not reloaded" in self.gateway.text())
        self.assertTrue(self.gateway.client().mail("bob@one.test", mark="n").startswith(b"250"))

    def test_worker_restarted(self):
        """A worker that is killed is started again; what came meanwhile is delivered once."""
        [worker] = self.gateway.workers()
        self.gateway.kill(worker)

        answer = self.gateway.client().mail("bob@one.test", mark="m")

        self.assertTrue(answer.startswith(b"250"), answer)
        until(lambda: self.one.marks[b"m"])
        until(lambda: self.gateway.workers() and self.gateway.workers() != [worker])
        until(lambda: self.gateway.stat()["primary"]["queued"] == 0)
        self.assertEqual(self.one.marks[b"m"], 1)

    def test_no_files_left(self):
        """After the mail is gone nothing but the stores is left, with modes for us alone."""
        self.gateway.client().mail(
            "bob@one.test", text="Subject: big\r\n\r\n" + "x" * 70 + "\r\n" + ("y" * 70 + "\r\n") * 8000
        )
        until(lambda: self.one.messages)
        until(lambda: self.gateway.stat()["one"]["queued"] == 0)

        left = [p for p in Path(self.gateway.spool).rglob("*") if p.is_file()]

        time.sleep(0.2)
        self.assertEqual([p for p in left if p.exists() and ("drafts" in p.parts or "mess" in p.parts)], [])
        self.assertEqual([p for p in left if p.exists() and p.stat().st_mode & 0o077], [])


class OneProcessTests(SynchronousTestCase):
    """`workers = 0`: everything in one process."""

    def test_delivered(self):
        """The same mail takes the same way, with calls in place of QMTP."""
        sink = Sink()
        self.addCleanup(sink.close)
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"}, qmq="workers = 0")
        self.addCleanup(gateway.clear)
        gateway.start()

        gateway.client().mail("bob@one.test", mark="m")

        until(lambda: sink.marks[b"m"])
        self.assertEqual(gateway.workers(), [])


class StartTests(SynchronousTestCase):
    """twistd's options and what goes wrong at a start."""

    def run_qmq(self, *words, cwd=ROOT):
        return subprocess.run(
            [*TWISTD, "-n", "--pidfile=", "qmq", *words], cwd=cwd, capture_output=True, text=True, timeout=60
        )

    def test_check(self):
        """--check reads the shipped conf-qmq, says it is fine, and leaves."""
        done = self.run_qmq("--conf", "conf-qmq", "--check")

        self.assertEqual(done.returncode, 0, done.stderr)

    def test_all_errors_at_once(self):
        """Mistakes are reported all at once, each with its file, line and remedy."""
        folder = tempfile.mkdtemp(prefix="qmq-test-")
        self.addCleanup(shutil.rmtree, folder)
        path = Path(folder, "conf-qmq")
        path.write_text("[instances]\n1:a\n1:b\n[a]\nlifetyme = 3d\nlifetime = 3\n")

        done = self.run_qmq("--conf", str(path), "--check")

        self.assertEqual(done.returncode, 1)
        for line in (3, 5, 6):
            self.assertRegex(done.stderr, rf"{re.escape(str(path))}:{line}\b")
        self.assertIn("lifetime", done.stderr)
        self.assertNotIn("Traceback", done.stderr + done.stdout)

    def test_second_gateway(self):
        """A second gateway on the same port or spool is refused and told why; the first goes on."""
        sink = Sink()
        self.addCleanup(sink.close)
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"})
        self.addCleanup(gateway.clear)
        gateway.start()
        other = Path(gateway.folder, "other")
        text = Path(gateway.conf).read_text()
        other.write_text(text)

        done = self.run_qmq("--conf", str(other))

        self.assertNotEqual(done.returncode, 0)
        self.assertIn("is another mail server, or another qmq, running there?", done.stdout)
        self.assertNotIn("Traceback", done.stdout + done.stderr)
        other.write_text(text.replace(str(gateway.port), str(free_port())))
        done = self.run_qmq("--conf", str(other))
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(f"another qmq (process {gateway.process.pid})", done.stdout)
        self.assertTrue(gateway.client().mail("bob@one.test", mark="m").startswith(b"250"))
        until(lambda: sink.marks[b"m"])
