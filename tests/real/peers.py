"""Other people's mail programs, each private to a test: a Postfix, smtp-sink, smtp-source, swaks; and a small LMTP host."""

import contextlib
import datetime as dt
import os
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.real.gateway import free_port, until

# Debian has them there, which is in root's PATH only.
_SBIN = ["/usr/sbin", "/usr/lib/postfix/sbin"]

_SERVICES = """
127.0.0.1:{port} inet n - n - - smtpd
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
"""

# No DNS, no lookups of names, nothing of the machine's own mail.
_MAIN = """
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
meta_directory = /etc/postfix
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = postfix.test
mydestination =
local_recipient_maps =
alias_maps =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
disable_dns_lookups = yes
smtp_host_lookup = native
smtpd_peername_lookup = no
smtpd_relay_restrictions = permit_auth_destination, reject_unauth_destination
local_transport = error:5.1.1 nothing is local here
in_flow_delay = 0
minimal_backoff_time = 5s
queue_run_delay = 5s
virtual_mailbox_base = {folder}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
{more}
"""

# What `postfix check` would make: who may enter, and how.
_QUEUES = {
    **dict.fromkeys(
        ("active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"),
        ("root", 0o700),
    ),
    "pid": ("root", 0o755),
    "public": ("postdrop", 0o710),
    "maildrop": ("postdrop", 0o730),
}


def program(name):
    """Where it is; the tests need it."""
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN]))
    assert found, f"{name} is not installed: apt-get install postfix swaks libnet-ssleay-perl"
    return found


def certificate(path, name="localhost"):
    """Write a self-signed certificate with its key to one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=10))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    Path(path).write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    os.chmod(path, 0o600)
    return str(path)


class Postfix:
    """
    A whole Postfix in a folder of its own: its own queue, port and log.

    It takes mail for *mailboxes* into a Maildir each and refuses all others;
    *main* is more of main.cf, in which ``{folder}`` is its folder.
    """

    def __init__(self, mailboxes=(), main=""):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-postfix-"))
        os.chmod(self.folder, 0o755)
        self.port = free_port()
        self.process = None
        self.etc = self.folder / "etc"
        for name in ("etc", "queue", "data", "mail"):
            (self.folder / name).mkdir(mode=0o755)
        shutil.chown(self.folder / "data", "postfix")
        for name, (group, mode) in _QUEUES.items():
            folder = self.folder / "queue" / name
            folder.mkdir()
            shutil.chown(folder, "root" if name == "pid" else "postfix", group)
            os.chmod(folder, mode)
        shutil.chown(self.folder / "mail", "postfix", "postfix")
        owner = (self.folder / "mail").stat()
        if mailboxes:
            domains = {box.rpartition("@")[2] for box in mailboxes}
            main += f"\nvirtual_mailbox_domains = {' '.join(sorted(domains))}\n"
            main += "virtual_mailbox_maps = texthash:{folder}/etc/boxes\n"
            boxes = "".join(f"{box} {self._box(box)}/\n" for box in mailboxes)
            (self.etc / "boxes").write_text(boxes)
        facts = {"folder": self.folder, "uid": owner.st_uid, "gid": owner.st_gid, "port": self.port}
        (self.etc / "main.cf").write_text(_MAIN.format(more=main.format(**facts), **facts))
        (self.etc / "master.cf").write_text(_SERVICES.format(**facts))
        for path in self.etc.iterdir():
            # Each program of Postfix waits while a file of its configuration is younger than a second or two.
            os.utime(path, (0, 0))

    @staticmethod
    def _box(mailbox):
        return mailbox.encode().hex()

    def start(self):
        """Start it and wait for its port."""
        with open(self.folder / "out", "ab") as out:
            self.process = subprocess.Popen(
                [program("master"), "-s", "-c", str(self.etc)],  # not postfix start: its checks take a second
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

        def listening():
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True

        until(listening)
        return self

    def log(self):
        """All it has written."""
        return "".join(p.read_text(errors="replace") for p in (self.folder / "out", self.folder / "log") if p.exists())

    def mailbox(self, mailbox):
        """The messages in a mailbox, as Postfix wrote them (line ends are LF)."""
        return [path.read_bytes() for path in (self.folder / "mail" / self._box(mailbox) / "new").glob("*")]

    def sendmail(self, text, *recipients, sender):
        """Hand it a message as a local program does."""
        return subprocess.run(
            [program("sendmail"), "-C", str(self.etc), "-i", "-f", sender, "--", *recipients],
            input=text, check=True, capture_output=True, timeout=30,
        )  # fmt: skip

    def clear(self):
        """End it and remove its folder."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class SmtpSink:
    """Postfix's smtp-sink, which writes each message to a file."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-sink-"))
        shutil.chown(self.folder, "postfix")
        self.port = free_port()
        self.process = subprocess.Popen(
            [program("smtp-sink"), "-u", "postfix", "-d", f"{self.folder}/m.", f"127.0.0.1:{self.port}", "128"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def count(self):
        """How many messages have begun to come."""
        return sum(1 for _ in self.folder.iterdir())

    def messages(self):
        """The files: X-Client-Addr, X-Mail-Args, X-Rcpt-Args, then the message (line ends are LF)."""
        return [path.read_bytes() for path in self.folder.iterdir()]

    def clear(self):
        """End it and remove its files."""
        self.process.terminate()
        self.process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)


class LMTPSink:
    """An LMTP host that answers the end of a message once for each recipient (RFC 2033 4.2), by *verdicts*."""

    def __init__(self, verdicts=None):
        self.messages = []  # (recipient, text)
        self.verdicts = verdicts or {}
        sink = self

        class Session(socketserver.StreamRequestHandler):
            def handle(self):
                with contextlib.suppress(OSError):
                    sink._serve(self.rfile, self.wfile)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Session)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def _serve(self, lines, out):
        out.write(b"220 lmtp.test LMTP\r\n")
        recipients = []
        for line in lines:
            match line[:4].upper().strip():
                case b"LHLO":
                    out.write(b"250-lmtp.test\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME\r\n")
                case b"RCPT":
                    recipients.append(line.partition(b"<")[2].rpartition(b">")[0].decode())
                    out.write(b"250 2.1.5 ok\r\n")
                case b"DATA":
                    out.write(b"354 go\r\n")
                    text = b""
                    for body in lines:
                        if body == b".\r\n":
                            break
                        text += body.removeprefix(b".")
                    for recipient in recipients:
                        verdict = self.verdicts.get(recipient, b"250 2.0.0 stored")
                        if verdict.startswith(b"250"):
                            self.messages.append((recipient, text))
                        out.write(verdict + b"\r\n")
                    recipients = []
                case b"QUIT":
                    out.write(b"221 bye\r\n")
                    return
                case b"EHLO" | b"HELO":
                    out.write(b"500 5.5.1 this is LMTP\r\n")
                case _:
                    out.write(b"250 2.0.0 ok\r\n")

    def close(self):
        """End."""
        self.server.shutdown()
        self.server.server_close()


def run(name, *words, seconds=60, **kw):
    """A program run to its end, with what it said."""
    return subprocess.run(
        [program(name), *map(str, words)], capture_output=True, text=True, check=False, timeout=seconds, **kw
    )
