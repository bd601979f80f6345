"""Root is given up for good."""

import pwd
import subprocess
import sys

from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import ROOT, needs

SCRIPT = """
import os
from qmq.privileges import CannotDrop, become, own
become("nobody")
print(os.getresuid(), os.getresgid(), os.getgroups())
for back in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        back()
        print("back")
    except PermissionError:
        pass
become("nobody")
try:
    become("daemon")
except CannotDrop as error:
    print(error)
"""


class PrivilegesTests(SynchronousTestCase):
    """As root, in a process of its own."""

    def test_for_good(self):
        """After `user =` neither root nor its groups can be had again, in any of the three ids."""
        needs(root=True)
        nobody = pwd.getpwnam("nobody")

        done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=30)

        self.assertEqual(done.returncode, 0, done.stderr)
        ids, error = done.stdout.splitlines()
        expected = f"{(nobody.pw_uid,) * 3} {(nobody.pw_gid,) * 3} "
        self.assertTrue(ids.startswith(expected), ids)
        self.assertNotIn("0", ids.removeprefix(expected).strip("[]").split(", "))
        self.assertIn("only root can become another user", error)
