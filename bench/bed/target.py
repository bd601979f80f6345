"""
A relay that is measured: how it is fetched, started and known to be there.

Peers run as root with private mounts: of the machine's files they change none,
they look nothing up in the DNS, and their queues lie in the folder that is given.
"""

import os
import pwd
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

from .load import Unavailable, cache


def debian(package, program):
    """
    A Debian package unpacked, not installed: the three MTAs exclude each other; the path of one of its programs.

    Fetched once, by apt-get; raises Unavailable.
    """
    folder = cache() / package
    if not (folder / program).exists():
        with tempfile.TemporaryDirectory(prefix="qmq-deb-") as place:
            try:
                subprocess.run(["apt-get", "download", "-qq", package], cwd=place, check=True, capture_output=True)
                subprocess.run(["dpkg", "-x", *map(str, Path(place).glob("*.deb")), str(folder)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                why = (getattr(error, "stderr", b"") or b"").decode().strip() or str(error)
                raise Unavailable(f"apt-get cannot fetch {package}: {why}") from None
    needs = subprocess.run(["ldd", str(folder / program)], capture_output=True, text=True, check=False).stdout
    if missing := re.findall(r"(\S+) => not found", needs):
        raise Unavailable(f"{package} needs {', '.join(missing)}; say: apt-get install {LIBRARIES}")
    return str(folder / program)


# What exim4-daemon-light and opensmtpd are linked with, and a small Debian lacks.
LIBRARIES = "libevent-2.1-7 libidn12 libgnutls-dane0 libnsl2"


def write(path, text, mode=0o644):
    """A file, and the folders above it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return str(path)


class Target:
    """
    A relay on 127.0.0.1:*port* with *routes*, (domain, host, port) each; *folder* is its own and empty.

    `start` raises Unavailable if it cannot be had here.
    """

    word = ""
    pace = 1  # so many times the messages of a run, so that each takes some seconds
    root = True
    users = ()  # that its programs were built for
    ready = ""  # it says so in its log once all of it is there; what does not is there when it greets
    settings = MappingProxyType({})

    def __init__(self, folder, port, routes, **settings):
        if unknown := set(settings) - set(self.settings):
            raise Unavailable(f"{self.word} has no setting {', '.join(unknown)}; it has {', '.join(self.settings)}")
        self.settings = {**self.settings, **settings}
        self.port, self.routes = port, routes
        self.etc, self.spool = os.path.join(folder, "etc"), os.path.join(folder, "spool")
        self.environ = {}
        self.mounts = []  # shell commands, in its private mounts

    def prepare(self):
        """Write its configuration; its command."""
        raise NotImplementedError

    def start(self, tree, patience=30.0):
        """Its first process, in *tree*; returns when it greets, and says that it is ready."""
        if self.root and os.geteuid() != 0:
            raise Unavailable(f"{self.word} must be started by root")
        for folder in (self.etc, self.spool):
            os.makedirs(folder, exist_ok=True)
        command = self.prepare()
        if self.root:
            command = self._private(command)
        with open(os.path.join(self.etc, "log"), "ab") as log:
            process = subprocess.Popen(
                tree.within(command), env={**os.environ, **self.environ}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True, cwd=self.etc,
            )  # fmt: skip
        tree.root(process.pid)
        self._greeted(process, patience)
        return process

    def _private(self, command):
        """In mounts of its own: files alone to look in, and the users that it was built for."""
        files = {
            "/etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            # Debian's asks a database for services that is not there: sixty files not found, each time Exim starts.
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\n",
            "/etc/passwd": Path("/etc/passwd").read_text(encoding="utf-8"),
            "/etc/group": Path("/etc/group").read_text(encoding="utf-8"),
        }
        for user in self.users:
            number = identity(user)
            if f"\n{user}:" not in files["/etc/passwd"]:
                files["/etc/passwd"] += f"{user}:x:{number}:{number}::/var/empty:/bin/false\n"
            if f"\n{user}:" not in files["/etc/group"]:
                files["/etc/group"] += f"{user}:x:{number}:\n"
        mounts = []
        for path, text in files.items():
            ours = write(os.path.join(self.etc, os.path.basename(path)), text)
            mounts.append(f"mount --bind {ours} {path}")
        script = " && ".join([*mounts, *self.mounts, 'exec "$@"'])
        return ["unshare", "-m", "sh", "-c", script, "sh", *command]

    def _greeted(self, process, patience):
        """Raises Unavailable."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 5) as ours:
                    ours.settimeout(5)
                    if ours.recv(100).startswith(b"220") and self.ready in self.log():
                        ours.sendall(b"QUIT\r\n")
                        return
            except OSError:
                pass
            if process.poll() is not None:
                break
            time.sleep(0.1)
        raise Unavailable(f"{self.word} does not greet: {self.log()[-600:]}")

    def log(self):
        """What it has said."""
        return Path(self.etc, "log").read_text(encoding="utf-8", errors="replace").strip()


def identity(user):
    """A user's number: the machine's, or one of ours for a user that it lacks."""
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        return 61_000 + sum(user.encode()) % 1000
