"""The first moments: what comes while the instances are still starting."""

import os
import signal
import threading
import time

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Client, Gateway, Sink, until

pytestmark = pytest.mark.slow


class FirstMessageTests(SynchronousTestCase):
    """A client that connects as soon as the socket listens."""

    def test_straight_through(self):
        """The very first message goes straight to its instance, and is not kept by the primary before."""
        host = Sink()
        self.addCleanup(host.close)
        gateway = Gateway({"one.test": f"smtp:127.0.0.1:{host.port}"})
        self.addCleanup(gateway.clear)
        answers = []

        def first():
            client = until(lambda: _connected(gateway.port), every=0.005)
            answers.append(client.mail("bob@one.test"))

        early = threading.Thread(target=first)
        early.start()
        gateway.start()
        early.join(20)

        self.assertTrue(answers and answers[0].startswith(b"250"), answers)
        until(lambda: host.messages)
        self.assertNotIn("kept id=", gateway.text())

    def test_no_instance(self):
        """An instance that does not come up delays nobody for long: its mail is kept."""
        gateway = Gateway({"one.test": "smtp:127.0.0.1:9"})
        self.addCleanup(gateway.clear)
        starting = threading.Thread(target=gateway.start)
        starting.start()
        (worker,) = until(lambda: gateway.process and gateway.workers(), every=0.005)
        os.kill(worker, signal.SIGSTOP)
        self.addCleanup(starting.join, 30)
        self.addCleanup(os.kill, worker, signal.SIGCONT)

        began = time.monotonic()
        answer = until(lambda: _connected(gateway.port)).mail("bob@one.test")

        self.assertTrue(answer.startswith(b"250"), answer)
        self.assertLess(time.monotonic() - began, 6)


def _connected(port):
    try:
        return Client(port)
    except OSError:
        return None
