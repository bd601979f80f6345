"""A real gateway in real processes, a client and a downstream host, all over blocking sockets: runs under pytest and trial."""

import contextlib
import json
import os
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
QMQ = [sys.executable, "-c", "from qmq.cli.main import main; main()"]


def needs(*programs, root=False):
    """
    Skip the test where a peer is missing, saying which; on CI, which installs all of them, fail instead.

    `.ci/run` sets QMQ_CI: there nothing may be skipped.
    """
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if root and os.geteuid() != 0:
        missing.append("root")
    if missing and not os.environ.get("QMQ_CI"):
        raise unittest.SkipTest(f"needs {', '.join(missing)}; apt-get install the Debian packages named in .ci/run")


def free_port():
    """A TCP port of 127.0.0.1 that nobody has now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(condition, seconds=20, every=0.02):
    """Wait for something to become true; its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {condition}")


class Sink:
    """A downstream host: takes all mail and notes it; `answers` may change what it says to a verb."""

    def __init__(self, delay=0.0):
        self.messages = []  # (sender, [recipients], text)
        self.marks = Counter()  # the X-Mark of each message taken
        self.times = defaultdict(list)  # and when, on the monotonic clock
        self.answers = {}
        self.delay = delay
        self.connections = 0
        sink = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self):
                sink.connections += 1
                with contextlib.suppress(OSError):
                    sink._serve(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Session)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _serve(self, lines, out):
        out.write(b"220 sink.test ESMTP\r\n")
        sender, recipients = None, []
        for line in lines:
            verb = line[:4].upper().strip()
            answer = self.answers.get(verb)
            if callable(answer):
                answer = answer(line)
            if verb == b"EHLO":
                out.write(answer or b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 200000000\r\n")
            elif verb == b"MAIL":
                sender, recipients = line.rstrip(), []
                out.write(answer or b"250 ok\r\n")
            elif verb == b"RCPT":
                if answer is None or answer.startswith(b"250"):
                    recipients.append(line.partition(b"<")[2].rpartition(b">")[0])
                out.write(answer or b"250 ok\r\n")
            elif verb == b"DATA" and not recipients:
                out.write(b"503 no recipients\r\n")
            elif verb == b"DATA":
                out.write(b"354 go\r\n")
                text = []
                for body in lines:
                    if body == b".\r\n":
                        break
                    text.append(body[1:] if body.startswith(b".") else body)
                else:
                    return
                if self.delay:
                    time.sleep(self.delay)
                verdict = self.answers.get(b".")
                if verdict is None or verdict.startswith(b"250"):
                    whole = b"".join(text)
                    self.messages.append((sender, recipients, whole))
                    mark = whole.partition(b"X-Mark: ")[2].partition(b"\r\n")[0]
                    if mark:
                        self.marks[mark] += 1
                        self.times[mark].append(time.monotonic())
                out.write(verdict or b"250 ok\r\n")
            elif verb == b"QUIT":
                out.write(b"221 bye\r\n")
                return
            else:
                out.write(answer or b"250 ok\r\n")

    def close(self):
        """End."""
        self.server.shutdown()
        self.server.server_close()


class Client:
    """A blocking SMTP client that says what it is told and keeps the replies."""

    def __init__(self, port, host="127.0.0.1", hello=True, timeout=20, source="", early=b""):
        self.socket = socket.create_connection((host, port), timeout, (source, 0) if source else None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.lines = self.socket.makefile("rb")
        if early:
            self.write(early)
        self.banner = self.reply()
        if hello and self.banner.startswith(b"220"):
            self.ehlo = self.say("EHLO client.test" if hello is True else f"EHLO {hello}")

    def reply(self):
        """One reply, all its lines; empty at the end of the connection."""
        whole = b""
        while line := self.lines.readline():
            whole += line
            if line[3:4] != b"-":
                break
        return whole

    def write(self, data):
        """Raw octets."""
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())

    def say(self, line):
        """A command and its reply."""
        self.write(line + "\r\n" if isinstance(line, str) else line + b"\r\n")
        return self.reply()

    def mail(self, *recipients, sender="a@source.test", text="Subject: x\r\n\r\nhello\r\n", mark=None):
        """A whole transaction; the last reply."""
        self.write(f"MAIL FROM:<{sender}>\r\n" + "".join(f"RCPT TO:<{r}>\r\n" for r in recipients) + "DATA\r\n")
        for _ in range(1 + len(recipients)):
            self.reply()
        answer = self.reply()
        if not answer.startswith(b"354"):
            return answer
        head = f"X-Mark: {mark}\r\n" if mark else ""
        self.write((head + text).encode() if isinstance(text, str) else head.encode() + text)
        self.write(b".\r\n")
        return self.reply()

    def close(self):
        """Hang up."""
        self.lines.close()
        self.socket.close()


class Gateway:
    """qmq in a folder of its own."""

    def __init__(self, domains, *, qmq="", primary="", extra="", sections=None, bounces=True, bounce_route=None):
        self.folder = tempfile.mkdtemp(prefix="qmq-test-")
        os.chmod(self.folder, 0o755)
        self.port = free_port()
        self.process = None
        self.environ = {}  # what it gets in addition to ours
        self.log = os.path.join(self.folder, "log")
        self.conf = os.path.join(self.folder, "conf-qmq")
        self.spool = os.path.join(self.folder, "spool")
        sections = sections or {}
        names = [domain.split(".")[0] for domain in domains]
        lines = ["[instances]", *(f"{n}:{name}" for n, name in enumerate(names, 1))]
        lines += ["90:bounces"] if bounces else []
        lines += ["[qmq]", "me = gateway.test", f"spool = {self.spool}", qmq]
        lines += ["[primary]", f"listen = 127.0.0.1:{self.port}", "limit-exempt = 127.0.0.0/8", primary]
        for name, (domain, route) in zip(names, domains.items(), strict=True):
            lines += [f"[{name}]", f"domains = {domain}", f"deliver = {route}"]
            more = sections.get(name, "")
            lines += [more] if "qmtp-listen" in more else ["qmtp-listen = none", more]
        if bounces:
            lines += ["[bounces]", "role = bounce", "qmtp-listen = none"]
            lines += [f"deliver = {bounce_route}"] if bounce_route else []
            lines += [sections.get("bounces", "")]
        Path(self.conf).write_text("\n".join([*lines, extra, ""]))

    def start(self, seconds=30, *options):
        """Start it, with twistd's further options, and wait for the line that says it is ready."""
        out = open(self.log, "ab")  # noqa: SIM115 - the child's
        before = os.path.getsize(self.log)
        environ = {k: v for k, v in os.environ.items() if k != "QMQ_STRICT"} | self.environ
        self.process = subprocess.Popen(
            [*TWISTD, "-n", "--pidfile=", "qmq", "--conf", self.conf, *options],
            stdout=out, stderr=out, cwd=self.folder, env=environ, start_new_session=True,
        )  # fmt: skip
        out.close()

        def ready():
            assert self.process.poll() is None, self.text()[-3000:]
            return " ready" in self.text()[before:]

        until(ready, seconds)
        return self

    def text(self):
        """All it has written."""
        return Path(self.log).read_text(errors="replace")

    def client(self, **kw):
        """A new session."""
        return Client(self.port, **kw)

    def whole(self, *words):
        """`qmq WORDS`: all that came of it."""
        return subprocess.run([*QMQ, *words, "--conf", self.conf], capture_output=True, text=True, timeout=60)

    def command(self, *words):
        """`qmq WORDS`: its output."""
        done = self.whole(*words)
        done.check_returncode()
        return done.stdout

    def stat(self):
        """Each queue's numbers, by name."""
        queues = {}
        for line in self.command("stat", "--json").splitlines():
            queues.update(json.loads(line)["queues"])
        return queues

    def workers(self):
        """The worker processes' ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def kill(self, pid=None):
        """Kill -9 of the main process, or of the one given."""
        os.kill(pid or self.process.pid, signal.SIGKILL)
        if pid is None:
            self.process.wait(10)

    def stop(self):
        """TERM, and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError("did not stop within 30 s: " + self.text()[-2000:]) from None

    def clear(self):
        """Stop it and remove its folder."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
