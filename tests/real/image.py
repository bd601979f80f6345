"""
A Dockerfile without an engine: this system under an overlay stands for the image that it begins from.

Every RUN is carried out as written, by root, in a root folder of its own; the
result is started as an engine would start it, by its account, without
capabilities, in a network of its own in which anyone may open port 25 (as
Docker and Podman have it). What is written goes to a tmpfs that ends with the
script.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.real.gateway import ROOT

# The python that stands for the image's, and the PATH on which it is found.
_PYTHON = os.path.realpath(sys._base_executable)
_PATH = f"{os.path.dirname(_PYTHON)}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def instructions(text):
    """The words and arguments of a Dockerfile; hadolint has checked its grammar."""
    lines = "".join(f"{line}\n" for line in text.split("\n") if not line.startswith("#"))
    found = []
    for line in re.sub(r"\\\n\s*", "", lines).splitlines():
        if line.strip():
            word, _, rest = line.partition(" ")
            found.append((word, rest.strip()))
    return found


def stages(text):
    """The instructions of each stage, by its name; the last one's is ""."""
    found = []
    for word, rest in instructions(text):
        if word == "FROM":
            name = rest.partition(" AS ")[2]
            found.append((name, []))
        elif found:
            found[-1][1].append((word, rest))
    return dict(found)


def last(steps, word):
    """The argument of the last such instruction, or None."""
    return next((rest for w, rest in reversed(steps) if w == word), None)


def context():
    """The files that an engine would be given: what git knows, without what .dockerignore keeps out."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    names = [name for name in listed.decode().split("\0") if name and (ROOT / name).is_file()]
    return [name for name in names if any(name == k or name.startswith(k + "/") for k in kept)]


class Engine:
    """Makes the script that builds the image and tries it; `result` runs it."""

    def __init__(self, dockerfile, conf):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-image-"))
        self.files = context()
        self.conf = conf
        self.lines = ["set -eu", f"cd {self.folder}", "mkdir m", "mount -t tmpfs -o size=2g none m"]
        self.stages = stages(dockerfile)
        for name, steps in self.stages.items():
            self._stage(name or "image", steps)

    def root(self, stage):
        """Where that stage's root folder is, while the script runs."""
        return self.folder / "m" / (stage or "image") / "root"

    def _stage(self, stage, steps):
        root, top = self.root(stage), self.root(stage).parent
        self.lines += [
            f"mkdir -p {top}/up {top}/work {root}",
            f"mount -t overlay none -o lowerdir=/,upperdir={top}/up,workdir={top}/work {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"ln -sf {_PYTHON} {root}{os.path.dirname(_PYTHON)}/python",
            # The python of whoever tests may lie in a home folder that is closed to others.
            *(f"chmod o+x {root}{parent}" for parent in Path(_PYTHON).parents if parent != Path("/")),
        ]
        folder = "/"
        for word, rest in steps:
            if word == "WORKDIR":
                folder = rest
                self.lines.append(f"mkdir -p {root}{folder}")
            elif word == "COPY":
                self._copy(root, folder, rest)
            elif word == "RUN":
                inside = f"cd {folder} && {rest}"
                self.lines.append(f"PATH={_PATH} HOME=/root chroot {root} sh -ec {shlex.quote(inside)} >&2")

    def _copy(self, root, folder, rest):
        *sources, target = rest.split()
        if sources[0].startswith("--from="):
            stage = sources.pop(0).partition("=")[2]
            (source,) = sources
            self.lines += [f"mkdir -p {root}{Path(target).parent}", f"cp -a {self.root(stage)}{source} {root}{target}"]
            return
        for source in sources:
            names = [name for name in self.files if name == source or name.startswith(source + "/")]
            assert names, f"COPY {source}: an engine would find nothing there"
            for name in names:
                into = name if target == "./" else name.replace(source, target.removeprefix("./"), 1)
                path = f"{root}{folder}/{into}"
                self.lines += [f"mkdir -p {os.path.dirname(path)}", f"cp {shlex.quote(str(ROOT / name))} {path}"]

    def result(self, seconds):
        """Build it, start its ENTRYPOINT, ask its HEALTHCHECK until it is content, greet it, stop it: a dict of what was seen."""
        steps = self.stages[""]
        root = self.root("")
        start = shlex.join(json.loads(last(steps, "ENTRYPOINT")))
        health = shlex.join(json.loads(last(steps, "HEALTHCHECK").partition(" CMD ")[2]))
        path = last(steps, "ENV").partition("=")[2].replace("$PATH", _PATH)
        begin = f"env -i PATH={path} chroot --userspec={last(steps, 'USER')} {root} sh -c"
        folder = last(steps, "WORKDIR")
        inside = shlex.quote(f"cd {folder} && exec {start}")
        probe = shlex.quote(f"cd {folder} && exec {health}")
        greet = "import socket; print('greeting', socket.create_connection(('127.0.0.1', 25), 5).recv(99).decode())"
        trial = [
            "set -u", "ip link set lo up", "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start",
            f"{begin} {inside} >{self.folder}/log 2>&1 &", "main=$!", "tries=0",
            f"until {begin} {probe} >{self.folder}/health 2>&1; do [ $tries -lt 30 ] || break",
            "tries=$((tries+1)); sleep 0.5; done",
            f"until grep -q 'qmq ready' {self.folder}/log || [ $tries -ge 60 ]; do tries=$((tries+1)); sleep 0.5; done",
            "echo tries $tries", f"{sys.executable} -c {shlex.quote(greet)}",
            "echo owner $(stat -c %u /proc/$main)", "kill -TERM $main", "wait $main", "echo status $?",
        ]  # fmt: skip
        self.lines += [
            f"printf %s {shlex.quote(self.conf)} >{root}/etc/qmq/conf-qmq",
            f"exec unshare -n sh -c {shlex.quote(chr(10).join(trial))}",
        ]
        try:
            run = subprocess.run(
                ["unshare", "-m", "--propagation", "private", "sh", "-c", "\n".join(self.lines)],
                capture_output=True, text=True, timeout=seconds,
            )  # fmt: skip
            seen = dict(line.split(" ", 1) for line in run.stdout.splitlines() if " " in line)
            for name in ("log", "health"):
                file = self.folder / name
                seen[name] = file.read_text(errors="replace") if file.exists() else ""
            return seen | {"stderr": run.stderr, "code": run.returncode}
        finally:
            shutil.rmtree(self.folder)
