"""Clients that go on sending all the while something is done to the gateway, and keep an account of it."""

import contextlib
import threading
import time
from collections import Counter

from tests.real.gateway import Client


class Load:
    """
    *sessions* clients, each on one connection that it keeps, and as many that come anew for each message.

    What was acknowledged is in `owed`; what a client should never see is in `troubles`: a
    connection that is refused or closed, a reply that is no 250.
    """

    def __init__(self, port, recipients, sessions=4, pause=0.01):
        self.port = port
        self.recipients = list(recipients)
        self.said = {}  # by mark, as sinks have it: the recipient of all that was ever begun
        self.owed = {}  # and of what was acknowledged
        self.troubles = []
        self.lock = threading.Lock()
        self.count = Counter()
        self.stopping = threading.Event()
        self.pause = pause
        self.threads = [
            threading.Thread(target=self._run, args=(f"{kind}{n}", kind == "kept"), daemon=True)
            for kind in ("kept", "fresh")
            for n in range(sessions)
        ]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """All have ended when this returns."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, name, kept):
        client = None
        number = 0
        while not self.stopping.is_set():
            recipients = self.recipients
            recipient = recipients[number % len(recipients)]
            number += 1
            mark = f"{name}-{number}"
            self.said[mark.encode()] = recipient
            try:
                client = client or Client(self.port, timeout=60)
                answer = client.mail(recipient, mark=mark)
            except OSError as error:
                answer = repr(error).encode()
                client = None
            with self.lock:
                if answer.startswith(b"250"):
                    self.owed[mark.encode()] = recipient
                    self.count[recipient] += 1
                else:
                    self.troubles.append((time.strftime("%H:%M:%S"), mark, recipient, answer, time.monotonic()))
                    client = None
            if client is not None and not kept:
                _hang_up(client)
                client = None
            time.sleep(self.pause)
        if client is not None:
            _hang_up(client)


def _hang_up(client):
    """In order, if the other end is still there; it owes us nothing any more."""
    with contextlib.suppress(OSError):
        client.say("QUIT")
    client.close()


def lost_and_doubled(load, *sinks):
    """Marks acknowledged that no sink has, and marks that sinks have more than once."""
    got = Counter()
    for sink in sinks:
        got.update(sink.marks)
    lost = [mark for mark in load.owed if not got[mark]]
    doubled = [mark for mark, times in got.items() if times > 1]
    return lost, doubled
