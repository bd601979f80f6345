"""Several processes that take mail on one port: one address for clients, a store for each."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real import roll
from tests.real.gateway import Client, Gateway, Sink, until
from tests.real.load import Load, lost_and_doubled

pytestmark = pytest.mark.slow
STORES = ("primary", "primary-2", "primary-3")


class PrimaryTests(SynchronousTestCase):
    """Three processes that take mail, two workers."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        self.route = f"smtp:127.0.0.1:{self.sink.port}"
        self.gateway = Gateway(
            {"one.test": self.route, "two.test": self.route}, qmq="workers = 2\nstop = 3s", primary="processes = 3",
            sections={"two": "limit-messages = 5"}, bounces=False,
        )  # fmt: skip
        self.addCleanup(self.gateway.clear)
        self.addCleanup(roll.end_all, self.gateway)
        self.gateway.start(60)

    def session_in_each(self, stores=STORES):
        """A session with each of the processes, by its store."""
        found = {}

        def look():
            client = Client(self.gateway.port)
            store = self.served_by(client)
            if store in stores and store not in found:
                found[store] = client
                self.addCleanup(client.close)
            else:
                client.close()
            return len(found) == len(stores)

        until(look, 60, 0)
        return found

    def served_by(self, client):
        """Which process has accepted the connection: the one that has a socket whose peer is ours."""
        port = f"{client.socket.getsockname()[1]:04X}"
        inodes = set()
        for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[2].endswith(":" + port):
                inodes.add(f"socket:[{words[9]}]")
        for pid, roles in roll.processes(self.gateway).items():
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    if os.readlink(link) in inodes:
                        return roles[0] if roles else ""
                except OSError:
                    continue
        return ""

    def edit(self, *change):
        """Change conf-qmq."""
        path = Path(self.gateway.conf)
        path.write_text(path.read_text().replace(*change))

    def stop_worker(self, name):
        """It speaks no more, but lives; when this returns it is known to be away, at least to the main process."""
        (pid,) = roll.worker_of(self.gateway, name)
        os.kill(pid, signal.SIGSTOP)
        return pid

    def keep(self, clients, prefix):
        """Have each process keep a message for one, whose worker is away; the marks."""
        marks = [f"{prefix}-{store}" for store in clients]
        for store, client in clients.items():
            self.assertTrue(client.mail("a@one.test", mark=f"{prefix}-{store}").startswith(b"250"))
        until(lambda: all(self.gateway.stat()[store]["queued"] for store in clients), 20)
        return [mark.encode() for mark in marks]

    def test_states(self):
        """Each has its store, and each knows within two seconds what a queue takes; new domains come to all of them."""
        clients = self.session_in_each()
        stat = self.gateway.stat()
        self.assertLessEqual({*STORES, "one", "two"}, set(stat))
        for store, client in clients.items():
            self.assertTrue(client.mail("a@one.test", mark=f"to-{store}").startswith(b"250"))
        until(lambda: all(self.sink.marks[b"to-" + store.encode()] for store in STORES))

        self.gateway.command("refuse", "one")
        self.assertLess(self.all_say(clients, "a@one.test", b"452"), 2.0)
        self.assertEqual(self.rcpt(clients["primary"], "a@two.test")[:3], b"250")
        self.gateway.command("accept", "one")
        self.assertLess(self.all_say(clients, "a@one.test", b"250"), 2.0)

        self.gateway.command("pause", "two")
        for n in range(5):
            clients["primary-2"].mail("a@two.test", mark=f"full{n}")
        self.assertLess(self.all_say(clients, "a@two.test", b"452"), 2.0)
        self.gateway.command("resume", "two")
        self.assertLess(self.all_say(clients, "a@two.test", b"250"), 2.0)

        self.edit("domains = one.test", "domains = one.test new.test")
        self.gateway.command("reload")
        for store in STORES:
            self.assertEqual(self.rcpt(Client(self.gateway.port), "a@new.test")[:3], b"250", store)

    def rcpt(self, client, recipient):
        """What it says to a recipient."""
        client.say("MAIL FROM:<a@source.test>")
        answer = client.say(f"RCPT TO:<{recipient}>")
        client.say("RSET")
        return answer

    def all_say(self, clients, recipient, code):
        """Seconds until all processes do."""
        began = time.monotonic()
        for client in clients.values():
            until(lambda: self.rcpt(client, recipient)[:3] == code, 10, 0.1)  # noqa: B023 - asked at once
        return time.monotonic() - began

    def test_successor(self):
        """What a process has kept for a queue that is away is handed over by the one that takes its place, once."""
        clients = self.session_in_each()
        worker = self.stop_worker("one")
        time.sleep(4.5)  # silent for 3 s it is away; each process hears so within a second
        marks = self.keep(clients, "kept")

        for store in STORES[1:]:
            roll.kill(*roll.worker_of(self.gateway, store))
        roll.kill(worker)  # if it has not been already: silent for 10 s it is hung

        until(lambda: all(self.sink.marks[mark] for mark in marks), 30)
        until(lambda: not any(queue["queued"] for queue in self.gateway.stat().values()), 30)
        self.assertEqual([self.sink.marks[mark] for mark in marks], [1, 1, 1])

    def test_fewer(self):
        """After a restart with fewer processes the stores that nobody has any more are shown, and run empty."""
        clients = self.session_in_each()
        worker = self.stop_worker("one")
        time.sleep(4.5)
        marks = self.keep(clients, "left")
        for client in clients.values():
            client.close()
        self.edit("processes = 3", "processes = 1")

        self.gateway.kill()
        roll.kill(worker)
        self.gateway.start(60)
        until(lambda: all(self.sink.marks[mark] for mark in marks), 40)

        self.assertEqual([self.sink.marks[mark] for mark in marks], [1, 1, 1])
        until(lambda: not any(queue["queued"] for queue in self.gateway.stat().values()), 30)
        until(lambda: len([name for name in self.gateway.stat() if name.startswith("primary")]) == 1, 30)
        self.assertNotIn("does not run", self.gateway.text())

    def test_restart(self):
        """A restart by hand-over with all of them: no client sees it, and what the old ones kept is not left behind."""
        with Load(self.gateway.port, ["a@one.test"], sessions=3) as load:
            until(lambda: len(load.owed) > 50)
            self.assertIn("is the gateway", self.gateway.command("restart"))
            before = len(load.owed)
            until(lambda: len(load.owed) > before + 100)
            names = [name for name in self.gateway.stat() if name.startswith("primary")]
            self.assertGreaterEqual(len(names), 3)
        until(lambda: not set(load.owed) - set(self.sink.marks), 30)
        self.assertEqual(lost_and_doubled(load, self.sink), ([], []))
        self.assertEqual(load.troubles, [])
        until(lambda: len(roll.main_of(self.gateway)) == 1, 30)
        until(lambda: len([name for name in self.gateway.stat() if re.match("primary", name)]) == 3, 30)


for name in ("test_states", "test_successor", "test_fewer", "test_restart"):
    getattr(PrimaryTests, name).timeout = 180
    setattr(PrimaryTests, name, pytest.mark.limit(180)(getattr(PrimaryTests, name)))
