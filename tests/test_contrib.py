import os
import pwd
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.load import load
from tests.real.gateway import ROOT, needs
from tests.real.image import context, last, stages

CONTRIB = ROOT / "contrib"
UNITS = ("qmq.service", "qmq@.service")


def run(*command):
    """What it says, on both channels; it must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stdout + done.stderr)
    return done.stdout + done.stderr


def settings(name):
    """A unit's lines, without comments."""
    text = (CONTRIB / "systemd" / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


class Folder(SynchronousTestCase):
    def setUp(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-test-"))
        self.addCleanup(shutil.rmtree, self.folder)


class UnitTests(Folder):
    def unit(self, name, instance=""):
        """A copy that names programs of this machine; qmq's need not be installed."""
        text = (CONTRIB / "systemd" / name).read_text().replace("/opt/qmq/bin/", f"{self.folder}/")
        for program in ("twistd", "qmq"):
            path = self.folder / program
            path.write_text("#!/bin/sh\n")
            path.chmod(0o755)
        copy = self.folder / name.replace("@", f"@{instance}")
        copy.write_text(text)
        return str(copy)

    def test_verified(self):
        """The units are such that systemd has nothing to say about them."""
        needs("systemd-analyze")
        for name in (*UNITS, "qmq.socket"):
            self.unit("qmq.service")
            self.assertEqual(run("systemd-analyze", "verify", self.unit(name, "primary")), "", name)

    def test_exposure(self):
        """Both services are exposed to 2.0 at most, as systemd reckons it."""
        needs("systemd-analyze")
        for name in UNITS:
            text = run("systemd-analyze", "security", "--offline=true", "--no-pager", self.unit(name))
            self.assertLessEqual(float(re.search(r"exposure level for \S+: ([\d.]+)", text)[1]), 2.0)

    def test_alike(self):
        """The service of one role is that of all, but for what makes it one role's."""
        one, other = (set(settings(name)) for name in UNITS)

        self.assertEqual(
            sorted({line.partition("=")[0] for line in one ^ other}),
            ["Conflicts", "Description", "ExecReload", "ExecStart", "SyslogIdentifier"],
        )
        self.assertIn("ExecStart=/opt/qmq/bin/twistd -n --pidfile= qmq --conf /etc/qmq/conf-qmq --only %i", other)

    def test_stop(self):
        """The time that systemd gives for stopping is more than the default of `stop` and what workers get on top."""
        text = (
            "[instances]\n1:a\n[qmq]\nme = mx.test\n[primary]\nlisten = tcp:2525\n[a]\ndomains = a.test\ndeliver = mx\n"
        )
        (self.folder / "conf-qmq").write_text(text)

        self.assertIn("TimeoutStopSec=1min", settings("qmq.service"))
        self.assertLess(load(str(self.folder / "conf-qmq")).general.stop + 15, 60)

    def test_socket(self):
        """With socket activation, systemd listens where `listen = tcp:25 [::]:25` does, on sockets of one protocol each."""
        lines = settings("qmq.socket")

        self.assertEqual(
            [line for line in lines if "Listen" in line], ["ListenStream=0.0.0.0:25", "ListenStream=[::]:25"]
        )
        self.assertIn("BindIPv6Only=ipv6-only", lines)


class AccountTests(Folder):
    def test_account_and_folders(self):
        """The account is made without a shell; the spool is its own and closed, the configuration is root's."""
        needs("systemd-sysusers", "systemd-tmpfiles", root=True)
        (self.folder / "etc").mkdir()

        run("systemd-sysusers", f"--root={self.folder}", str(CONTRIB / "sysusers.d" / "qmq.conf"))
        run("systemd-tmpfiles", "--create", f"--root={self.folder}", str(CONTRIB / "tmpfiles.d" / "qmq.conf"))

        name, _, uid, gid, _, home, shell = (self.folder / "etc/passwd").read_text().strip().split(":")
        self.assertEqual((name, home, shell), ("qmq", "/var/spool/qmq", "/usr/sbin/nologin"))
        for path, owner, group, mode in (("var/spool/qmq", int(uid), int(gid), 0o700), ("etc/qmq", 0, int(gid), 0o750)):
            found = (self.folder / path).stat()
            self.assertEqual((found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)), (owner, group, mode))
        self.assertIn(f"ReadWritePaths={home}", settings("qmq.service"))
        self.assertIn(f"User={name}", settings("qmq.service"))


class LogTests(Folder):
    def test_rotated(self):
        """The log is moved away by logrotate, which makes no file of its own, and has the gateway open it again."""
        needs("logrotate")
        me = pwd.getpwuid(os.getuid()).pw_name
        text = (CONTRIB / "logrotate.d" / "qmq").read_text()
        self.assertIn("/opt/qmq/bin/qmq reload --conf /etc/qmq/conf-qmq", text)
        text = text.replace("/var/log/qmq", str(self.folder)).replace(
            "su qmq qmq", "" if os.getuid() else f"su {me} {me}"
        )
        text = re.sub(r"/opt/qmq/bin/qmq .*", f"echo reloaded >{self.folder}/told", text)
        rules = self.folder / "rules"
        rules.write_text(text)
        rules.chmod(0o644)
        (self.folder / "qmq.log").write_text("a line\n")

        run("logrotate", "-f", "-s", str(self.folder / "state"), str(rules))

        self.assertEqual((self.folder / "qmq.log.1").read_text(), "a line\n")
        self.assertFalse((self.folder / "qmq.log").exists())
        self.assertEqual((self.folder / "told").read_text(), "reloaded\n")


class DaemontoolsTests(SynchronousTestCase):
    def test_scripts(self):
        """Both scripts can be started by svscan, and become what they name: no shell stays between."""
        for name in ("run", "log/run"):
            path = CONTRIB / "daemontools" / name
            self.assertTrue(os.access(path, os.X_OK), name)
            run("sh", "-n", str(path))
            self.assertTrue(path.read_text().splitlines()[-1].startswith("exec "), name)
        start = next(line for line in settings("qmq.service") if line.startswith("ExecStart="))
        self.assertIn(start.partition("=")[2], (CONTRIB / "daemontools" / "run").read_text())


class DockerfileTests(SynchronousTestCase):
    def setUp(self):
        self.text = (ROOT / "Dockerfile").read_text()
        self.stages = stages(self.text)
        self.image = self.stages[""]

    def test_linted(self):
        """The Dockerfile is such that hadolint has nothing to say about it."""
        hadolint = os.path.join(os.path.dirname(sys.executable), "hadolint")
        needs(hadolint)

        self.assertEqual(run(hadolint, str(ROOT / "Dockerfile")), "")

    def test_context(self):
        """What is copied is there, and .dockerignore lets it through and little else."""
        names = context()
        for steps in self.stages.values():
            for word, rest in steps:
                if word == "COPY" and "--from" not in rest:
                    for source in rest.split()[:-1]:
                        self.assertTrue([n for n in names if n == source or n.startswith(source + "/")], source)
        self.assertEqual({n.split("/")[0] for n in names} - set(self.text.split()), set())
        self.assertFalse([n for n in names if n.startswith((".", "tests", "var"))])

    def test_pinned(self):
        """Each stage begins from the same slim Debian image of one minor version of Python."""
        begun = re.findall(r"^FROM (\S+)", self.text, re.MULTILINE)

        self.assertEqual(set(begun), {"python:${PYTHON}-slim-bookworm"})
        self.assertRegex(self.text, r"(?m)^ARG PYTHON=3\.\d+$")

    def test_account(self):
        """It does not run as root, and its account owns the spool, which is a volume."""
        number = last(self.image, "USER").partition(":")[0]

        self.assertGreater(int(number), 0)
        self.assertIn(f"useradd --uid {number}", last(self.image, "RUN"))
        self.assertIn(f"-o {number} -g {number} /var/spool/qmq", last(self.image, "RUN"))
        self.assertEqual(last(self.image, "VOLUME"), '["/var/spool/qmq"]')
        self.assertEqual(last(self.image, "EXPOSE"), "25")
