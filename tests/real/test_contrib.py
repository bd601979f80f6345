"""contrib/ and Dockerfile, tried as far as it goes without systemd and without an engine."""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import ROOT, TWISTD, Gateway, Sink, needs, until
from tests.real.hostile import pem
from tests.real.image import Engine

CONF = """
[instances]
1:a
90:bounces
[qmq]
me = gateway.test
spool = /var/spool/qmq
[primary]
listen = tcp:25
[a]
domains = a.test
deliver = smtp:127.0.0.1:2601
"""


def unit(key, name="qmq.service"):
    """All values of a key of a unit."""
    lines = (ROOT / "contrib" / "systemd" / name).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(key + "=")]


def calls(group):
    """The system calls of one of systemd's groups; a call alone is itself."""
    if not group.startswith("@"):
        return {group}
    text = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", group], capture_output=True, text=True, check=True
    ).stdout
    words = [line.strip() for line in text.splitlines()[1:] if line.strip() and "#" not in line]
    return {call for word in words for call in calls(word)}


@functools.cache
def traced():
    """
    What a gateway called that did all it does: lines of strace.

    A TLS session, a check's program, a delivery over TLS, a reload, `qmq now`.
    """
    folder = Path(tempfile.mkdtemp(prefix="qmq-test-"))
    program = folder / "queue"
    program.write_text("#!/bin/sh\ncat >/dev/null\nexit 0\n")
    program.chmod(0o755)
    (folder / "tcp.smtp").write_text(f':allow,QMAILQUEUE="{program}"\n')
    sink = Sink()
    next_hop = Gateway({"a.test": f"smtp:127.0.0.1:{sink.port}"}, qmq="workers = 0", primary=f"certificate = {pem()}")
    ours = Gateway(
        {"a.test": f"smtp:127.0.0.1:{next_hop.port}"},
        primary=f"certificate = {pem()}\nrules = {folder}/tcp.smtp",
    )
    trace = folder / "trace"
    try:
        next_hop.start()
        with mock.patch("tests.real.gateway.TWISTD", ["strace", "-D", "-f", "-q", "-o", str(trace), *TWISTD]):
            ours.start(60)
        client = ours.client()
        client.say("STARTTLS")
        tls = ssl.create_default_context()
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        client.socket = tls.wrap_socket(client.socket)
        client.lines = client.socket.makefile("rb")
        client.say("EHLO client.test")
        assert client.mail("bob@a.test").startswith(b"250")
        until(lambda: sink.messages, 60)
        assert "reloaded" in ours.command("reload")
        ours.command("now")
        client.close()
        ours.stop()
        # strace pads short process ids.
        until(
            lambda: re.search(
                rf"^{ours.process.pid} +\+\+\+ exited with 0", trace.read_text(errors="replace"), re.MULTILINE
            ),
            60,
        )
    finally:
        ours.clear()
        next_hop.clear()
        sink.close()
    assert sink.messages[0][2].count(b"with ESMTPS") == 2
    return trace.read_text(errors="replace").splitlines()


class Supervisor:
    """The socket that NOTIFY_SOCKET names; what was said to it, each with the process that said it."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-test-"))
        self.path = str(self.folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind(self.path)
        self.said = []
        self.seen = 0
        # All the time, as systemd does: few datagrams find room.
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        while True:
            text, ancillary, *_ = self.socket.recvmsg(4096, 64)
            if text == b"end":
                return
            self.said.append((int.from_bytes(ancillary[0][2][:4], sys.byteorder), text.decode()))

    def hear(self, pattern):
        """Wait until this is said, after what was heard before; the process that said it, and the match."""

        def said():
            for n, (pid, text) in enumerate(self.said[self.seen :], self.seen + 1):
                if match := re.search(pattern, text):
                    self.seen = n
                    return pid, match
            return None

        return until(said)

    def close(self):
        """End."""
        self.socket.connect(self.path)
        self.socket.send(b"end")
        self.reader.join()
        self.socket.close()
        shutil.rmtree(self.folder)


@pytest.mark.slow
class SupervisorTests(SynchronousTestCase):
    def setUp(self):
        needs("systemd-socket-activate")
        self.supervisor = Supervisor()
        self.addCleanup(self.supervisor.close)
        self.gateway = Gateway({"a.test": "smtp:127.0.0.1:9"})
        self.addCleanup(self.gateway.clear)

    def test_life(self):
        """Ready, watchdog, reload, a restart by hand-over and the end are told by the process that is the main one then."""
        self.gateway.environ = {"NOTIFY_SOCKET": self.supervisor.path, "WATCHDOG_USEC": "1000000"}
        hear = self.supervisor.hear

        self.gateway.start()
        first = self.gateway.process.pid
        for pattern in ("^READY=1$", "^STATUS=.* 0 messages in 2 queues", "^WATCHDOG=1$", "^WATCHDOG=1$"):
            self.assertEqual(hear(pattern)[0], first)
        self.gateway.command("reload")
        for pattern in (r"^RELOADING=1\nMONOTONIC_USEC=\d+$", "^READY=1$"):
            self.assertEqual(hear(pattern)[0], first)

        self.gateway.command("restart")
        self.assertEqual(self.gateway.process.wait(30), 0)
        teller, match = hear(r"^MAINPID=(\d+)\nREADY=1\nWATCHDOG=1$")
        second = int(match[1])
        self.addCleanup(until, lambda: not Path(f"/proc/{second}").exists())
        self.assertEqual(teller, first)
        self.assertEqual(hear("^WATCHDOG=1$")[0], second)
        os.kill(second, signal.SIGTERM)
        self.assertEqual(hear("^STOPPING=1$")[0], second)
        self.assertEqual({pid for pid, _ in self.supervisor.said}, {first, second})

    def test_socket_activation(self):
        """A client that came to systemd's socket before there was a gateway is served by the one that it starts."""
        activate = ["systemd-socket-activate", f"--listen=127.0.0.1:{self.gateway.port}", "--fdname=smtp"]
        kept = [f"--setenv={name}" for name in ("PYTHONPATH", "PATH") if name in os.environ]
        with mock.patch("tests.real.gateway.TWISTD", [*activate, *kept, *TWISTD]):
            clients = []
            early = threading.Thread(target=lambda: clients.append(until(self.come)))
            early.start()
            self.gateway.start()
        early.join()

        self.assertTrue(clients[0].mail("bob@a.test").startswith(b"250"))
        self.assertNotIn("conf-qmq does not listen on", self.gateway.text())

    def come(self):
        with contextlib.suppress(ConnectionRefusedError):
            return self.gateway.client()


@pytest.mark.slow
class SandboxTests(SynchronousTestCase):
    def setUp(self):
        needs("strace", "systemd-analyze")

    def test_system_calls(self):
        """The unit lets through all that a gateway calls."""
        allowed = calls("@default")
        for value in unit("SystemCallFilter"):
            groups = value.removeprefix("~").split()
            named = {call for group in groups for call in calls(group)}
            allowed = allowed - named if value.startswith("~") else allowed | named

        called = {match[1] for line in traced() if (match := re.match(r"\d+ +(\w+)\(", line))}

        self.assertGreater(len(called), 50)
        # Only where root has it give files away, which the unit's account is not.
        self.assertEqual(called - allowed - {"chown", "fchown"}, set())

    def test_address_families(self):
        """The unit lets through all kinds of sockets that a gateway opens; without netlink names are found as well."""
        called = {match[1] for line in traced() if (match := re.search(r" socket\((AF_\w+)", line))}

        self.assertIn("AF_INET", called)
        self.assertEqual(called - {"AF_NETLINK"} - set(unit("RestrictAddressFamilies")[0].split()), set())

    def test_new_code(self):
        """The unit forbids memory that can be written and run, if and only if nothing asks for it."""
        asked = [
            line for line in traced()
            if re.search(r" (mmap|mprotect|pkey_mprotect)\(", line) and "PROT_EXEC" in line
            and ("PROT_WRITE" in line or "mprotect(" in line)
        ]  # fmt: skip

        self.assertEqual(unit("MemoryDenyWriteExecute"), [] if asked else ["yes"])


@pytest.mark.slow
class ImageTests(SynchronousTestCase):
    @pytest.mark.limit(250)
    def test_image(self):
        """The Dockerfile's steps, carried out as they stand, make a gateway that is healthy, greets at port 25 and is not root."""
        needs("unshare", "chroot", root=True)

        seen = Engine((ROOT / "Dockerfile").read_text(), CONF).result(240)

        self.assertEqual(seen["code"], 0, seen["stderr"][-3000:])
        self.assertIn("qmq ready: smtp=*:25", seen["log"])
        self.assertIn("messages in queue: 0", seen["health"])
        self.assertEqual(seen["greeting"], "220 gateway.test ESMTP")
        self.assertEqual((seen["owner"], seen["status"]), ("2025", "0"))
        self.assertNotIn("plugin cache", seen["log"])
