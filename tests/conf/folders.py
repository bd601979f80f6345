"""Folders with a conf-qmq, and classic files beside it, for the tests of configuration."""

import os
import shutil
import tempfile

from twisted.trial.unittest import SynchronousTestCase

from qmq.conf.ground import Ground
from qmq.conf.load import load
from qmq.conf.written import ConfErrors

USER = Ground()  # an ordinary account
ROOT = Ground(root=True, lowest_port=1, accounts=frozenset({"qmq", "qmails"}))

HEAD = """\
[instances]
01:alpha
[qmq]
me = mx.example.org
[primary]
listen = 127.0.0.1:2525
[alpha]
domains = alpha.example
deliver = smtp:192.0.2.1
"""  # nine lines, and right


class ConfTestCase(SynchronousTestCase):
    """Writes files, loads them, compares what is said of them."""

    def folder(self):
        """A folder that is gone after the test."""
        folder = tempfile.mkdtemp(prefix="qmq-test-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        return folder

    def write(self, conf, files=None):
        """A folder with that conf-qmq and those files; conf-qmq's path."""
        folder = self.folder()
        for name, text in {"conf-qmq": conf, **(files or {})}.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="") as file:
                file.write(text)
        return os.path.join(folder, "conf-qmq")

    def load(self, conf, files=None, here=USER):
        """The Conf of that text."""
        return load(self.write(conf, files), here)

    def errors(self, conf, files=None, here=USER):
        """(file's name, line, text, remedy) of each error."""
        path = self.write(conf, files)
        with self.assertRaises(ConfErrors) as caught:
            load(path, here)
        folder = os.path.dirname(path)
        return [(os.path.relpath(e.path, folder), e.line, e.text, e.remedy) for e in caught.exception.errors]

    def warnings(self, conf, files=None, here=USER):
        """(file's name, line, text) of each warning."""
        found = self.load(conf, files, here)
        folder = os.path.dirname(found.path)
        return [(os.path.relpath(w.path, folder), w.line, w.text) for w in found.warnings]
