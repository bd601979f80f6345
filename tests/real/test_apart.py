"""Each role a process of its own (--only), as systemd's qmq@NAME has them: one file, no main process over all."""

import copy
import json
import os
import signal
import time
from pathlib import Path

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real import roll
from tests.real.gateway import Gateway, Sink, until
from tests.real.load import Load, lost_and_doubled

pytestmark = pytest.mark.slow
ROLES = ("primary", "one", "two", "bounces")


class ApartTests(SynchronousTestCase):
    """Four processes that nobody has started but the test."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        route = f"smtp:127.0.0.1:{self.sink.port}"
        self.gateway = Gateway({"one.test": route, "two.test": route}, qmq="stop = 3s", bounce_route=route)
        self.addCleanup(self.gateway.clear)
        self.addCleanup(roll.end_all, self.gateway)
        self.parts = {role: self.start(role) for role in ROLES}

    def start(self, role):
        """The process of a role, with a log of its own; it is ready."""
        part = copy.copy(self.gateway)
        part.log = f"{self.gateway.log}-{role}"
        return part.start(30, "--only", role)

    def edit(self, *change):
        """Change conf-qmq."""
        path = Path(self.gateway.conf)
        path.write_text(path.read_text().replace(*change))

    def facts(self):
        """What each process says of itself, by its name."""
        lines = [json.loads(line) for line in self.gateway.command("stat", "--json").splitlines()]
        return {fact["process"]: fact for fact in lines}

    def test_together(self):
        """They are one gateway: mail, bounces, commands and moves go from one to the other."""
        self.sink.answers[b"RCPT"] = lambda line: b"550 5.1.1 nobody\r\n" if b"<nobody@" in line else None
        client = self.gateway.client()
        for name in ("one", "two"):
            self.assertTrue(client.mail(f"a@{name}.test", mark=f"to-{name}").startswith(b"250"))
        self.assertTrue(client.mail("nobody@one.test", mark="returned").startswith(b"250"))
        until(lambda: self.sink.marks == {b"to-one": 1, b"to-two": 1, b"returned": 1})

        facts = self.facts()
        self.assertEqual({name: list(fact["queues"]) for name, fact in facts.items()}, {role: [role] for role in ROLES})
        self.assertEqual(
            {name: fact["pid"] for name, fact in facts.items()}, {r: p.process.pid for r, p in self.parts.items()}
        )
        self.assertEqual(facts["primary"]["queues"]["primary"]["accepted"], 0)

        self.gateway.command("refuse", "one")
        self.assertEqual(client.mail("a@one.test")[:3], b"452")
        self.gateway.command("accept", "one")
        for name in ("one", "two"):
            self.gateway.command("pause", name)
        for n in range(20):
            self.assertTrue(client.mail("a@one.test", mark=f"moved{n}").startswith(b"250"))
        self.gateway.command("move", "--queue", "one", "--to", "two", "--all", "--yes")
        until(lambda: self.facts()["two"]["queues"]["two"]["queued"] == 20)
        self.gateway.command("resume", "two")
        until(lambda: sum(self.sink.marks.values()) == 23)

    def test_killed(self):
        """One that is killed is missed by nobody but its own mail, which waits with the primary and comes once."""
        with Load(self.gateway.port, ["a@one.test", "a@two.test"], sessions=2) as load:
            for _ in range(2):
                before = len(load.owed)
                until(lambda before=before: len(load.owed) > before + 50)
                self.parts["one"].kill()
                until(lambda: self.facts()["primary"]["primary"]["waiting"].get("one"))
                self.parts["one"] = self.start("one")
        until(lambda: not set(load.owed) - set(self.sink.marks), 30)
        lost, doubled = lost_and_doubled(load, self.sink)
        self.assertEqual((lost, load.troubles), ([], []))
        self.assertEqual([mark for mark in doubled if load.said[mark] != "a@one.test"], [])
        until(lambda: not any(fact["queues"][name]["queued"] for name, fact in self.facts().items()))

    def test_reloaded(self):
        """Each is reloaded by HUP, by itself, and `qmq reload` reloads them all."""
        client = self.gateway.client()
        self.edit("domains = one.test", "domains = one.test more.test")
        self.assertEqual(client.mail("a@more.test")[:3], b"503")
        os.kill(self.parts["primary"].process.pid, signal.SIGHUP)
        until(lambda: "conf-qmq reloaded" in self.parts["primary"].text())
        self.assertTrue(self.gateway.client().mail("a@more.test", mark="more").startswith(b"250"))
        until(lambda: self.sink.marks[b"more"])

        os.kill(self.parts["one"].process.pid, signal.SIGHUP)
        until(lambda: "conf-qmq reloaded" in self.parts["one"].text())
        self.assertNotIn("conf-qmq reloaded", self.parts["two"].text())
        self.edit("domains = two.test", "domains = two.test again.test")
        self.gateway.command("reload")
        for role in ROLES:
            self.assertIn("again.test", self.parts[role].text(), role)
        self.assertTrue(self.gateway.client().mail("a@again.test", mark="again").startswith(b"250"))
        until(lambda: self.sink.marks[b"again"])

    def test_stopped(self):
        """One that is stopped leaves in order, and is started again at once, with its sockets."""
        began = time.monotonic()
        for role in ROLES:
            self.parts[role].stop()
            self.parts[role] = self.start(role)
        self.assertLess(time.monotonic() - began, 60)
        self.assertTrue(self.gateway.client().mail("a@one.test", mark="last").startswith(b"250"))
        until(lambda: self.sink.marks[b"last"])
        self.assertEqual(set(self.facts()), set(ROLES))

    def test_restarted(self):
        """`qmq restart` restarts each of them by hand-over, and no client sees it."""
        with Load(self.gateway.port, ["a@one.test", "a@two.test"], sessions=2) as load:
            until(lambda: len(load.owed) > 50)
            told = self.gateway.command("restart")
            before = len(load.owed)
            until(lambda: len(load.owed) > before + 100)
        until(lambda: not set(load.owed) - set(self.sink.marks), 30)
        self.assertEqual(told.count("is the gateway"), len(ROLES))
        self.assertEqual((lost_and_doubled(load, self.sink), load.troubles), (([], []), []))
        self.assertEqual(set(self.facts()), set(ROLES))


for name in ("test_together", "test_killed", "test_reloaded", "test_restarted", "test_stopped"):
    getattr(ApartTests, name).timeout = 120
    setattr(ApartTests, name, pytest.mark.limit(120)(getattr(ApartTests, name)))
