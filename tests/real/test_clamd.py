"""ClamAV's own clamd and clamdscan as the scanner of QHPSI, with a signature of ours: no virus is needed."""

import base64
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, needs, until
from tests.real.peers import program

pytestmark = pytest.mark.slow

SIGN = b"qmq-test-signature-0123456789"


class Clamd:
    """One of our own, with one signature."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qmq-clamd-"))
        os.chmod(self.folder, 0o755)
        (self.folder / "db").mkdir()
        (self.folder / "db" / "test.ndb").write_text(f"Qmq.Test:0:*:{SIGN.hex()}\n")
        self.conf = self.folder / "clamd.conf"
        self.socket = self.folder / "socket"
        self.conf.write_text(
            f"LocalSocket {self.socket}\nLocalSocketMode 666\nDatabaseDirectory {self.folder}/db\nForeground yes\n"
        )
        self.log = self.folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [program("clamd"), f"--config-file={self.conf}"], stdout=log, stderr=log, start_new_session=True
            )
        until(self.ready, 60)

    def ready(self):
        assert self.process.poll() is None, self.log.read_text(errors="replace")[-2000:]
        return self.socket.exists()

    def stop(self):
        """End it."""
        self.process.terminate()
        self.process.wait(20)

    def clear(self):
        """End it, and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class ClamdTests(SynchronousTestCase):
    def test_real_scanner(self):
        """
        What ClamAV finds is refused, plain, encoded and in a long message; what it does not find is taken.

        Without clamd a message is deferred, not taken; no file of a scan stays.
        """
        needs("clamd", "clamdscan")
        clamd = Clamd()
        self.addCleanup(clamd.clear)
        sink = Sink()
        self.addCleanup(sink.close)
        words = f"qhpsi = {program('clamdscan')}\nqhpsiarg1 = --config-file={clamd.conf}\nqhpsiarg2 = --fdpass\nqhpsiarg3 = --no-summary\n"
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{sink.port}"}, primary=f"checks = rcpthosts qhpsi\n{words}")
        self.addCleanup(gateway.clear)
        client = gateway.start().client()
        head = b"From: a@source.test\r\nTo: bob@one.test\r\nSubject: x\r\nMIME-Version: 1.0\r\n"
        encoded = head + b"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        long = b"\r\nhello\r\n" * 500_000

        self.assertTrue(client.mail("bob@one.test", text=head + b"\r\nhello\r\n", mark="clean").startswith(b"250"))
        self.assertTrue(client.mail("bob@one.test", text=head + long, mark="long").startswith(b"250"))
        for text in (
            head + b"\r\n" + SIGN + b"\r\n",
            encoded + base64.encodebytes(bytes(99) + SIGN).replace(b"\n", b"\r\n"),
            head + long + SIGN + b"\r\n",
        ):
            self.assertTrue(client.mail("bob@one.test", text=text).startswith(b"554"))
        until(lambda: gateway.text().count("Reject::DATA::Virus_Infected") == 3)
        clamd.stop()
        self.assertTrue(client.mail("bob@one.test", text=head + b"\r\nhello\r\n").startswith(b"451"))
        until(lambda: sink.marks[b"clean"] and sink.marks[b"long"])
        self.assertEqual(list(Path(gateway.spool).rglob("qhpsi-*")), [])
