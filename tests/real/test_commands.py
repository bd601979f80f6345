"""The operators' commands against a gateway of several processes."""

import json
import os
import signal
import subprocess

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import QMQ, Gateway, Sink, until

pytestmark = pytest.mark.slow
LATER = b"451 4.7.1 greylisted\r\n"


class CommandTests(SynchronousTestCase):
    """one and two in a worker each; two's host defers everything until it is told otherwise."""

    def setUp(self):
        self.one, self.two = Sink(), Sink()
        self.two.answers[b"RCPT"] = LATER
        routes = {
            f"{name}.test": f"smtp:127.0.0.1:{sink.port}" for name, sink in (("one", self.one), ("two", self.two))
        }
        self.gateway = Gateway(routes, qmq="workers = 2")
        for sink in (self.one, self.two):
            self.addCleanup(sink.close)
        self.addCleanup(self.gateway.clear)
        self.gateway.start()

    def facts(self, *words):
        return [json.loads(line) for line in self.gateway.command(*words, "--json").splitlines()]

    def defer(self, *marks, sender="a@source.test"):
        """Mail for two that waits."""
        before = len(self.facts("list", "--queue", "two", "--attempts", "1"))
        client = self.gateway.client()
        for mark in marks:
            self.assertTrue(client.mail("bob@two.test", mark=mark, sender=sender).startswith(b"250"))
        until(
            lambda: (
                len(self.facts("list", "--queue", "two", "--attempts", "1", "--state", "waiting"))
                == before + len(marks)
            )
        )

    def test_find_and_show(self):
        """A message is found by what is known of it, and shown to the last octet."""
        self.defer("m1")

        (fact,) = self.facts("list", "--error", "greylist", "--destination", "127.0.0.1", "--recipient", "@two.test")

        self.assertEqual((fact["queue"], fact["attempts"], fact["state"]), ("two", 1, "waiting"))
        self.assertIn("X-Mark: m1", self.facts("show", fact["id"])[0]["header"])
        self.assertTrue(self.gateway.command("cat", fact["id"]).endswith("\n\nhello\n"))
        self.assertIn(fact["id"], self.gateway.command("list"))
        self.assertEqual(self.facts("list", "--older", "1h"), [])

    def test_hold_and_release(self):
        """What is held is not tried, whatever is due; when it is let go it is delivered."""
        self.defer("m1", "m2")
        first, _ = self.facts("list", "--queue", "two")
        self.gateway.command("hold", first["id"], "--yes")
        self.two.answers.clear()

        self.gateway.command("now", "two")
        until(lambda: self.two.marks[b"m2"])
        self.assertEqual([fact["id"] for fact in self.facts("list", "--state", "held")], [first["id"]])
        self.assertEqual(self.two.marks[b"m1"], 0)

        self.assertIn("two: 1 released", self.gateway.command("release", "--state", "held"))
        until(lambda: self.two.marks[b"m1"])
        until(lambda: not self.facts("list"))

    def test_delete(self):
        """What is deleted is gone, and nobody hears of it; a dry run deletes nothing."""
        self.defer("m1", sender="x@spam.test")
        self.defer("m2")

        self.assertIn("would delete 1 message", self.gateway.command("delete", "--sender", "@spam.test"))
        self.assertEqual(len(self.facts("list")), 2)
        self.assertIn("two: 1 deleted", self.gateway.command("delete", "--sender", "@spam.test", "--yes"))

        self.assertEqual([fact["sender"] for fact in self.facts("list")], ["a@source.test"])

    def test_bounce(self):
        """Who is told that a message is given up hears the reason."""
        self.defer("m1", sender="sam@one.test")

        self.gateway.command("bounce", "--queue", "two", "--reason", "this host is no more", "--yes")

        until(lambda: self.one.messages)
        self.assertIn(b"this host is no more", self.one.messages[0][2])
        self.assertEqual(self.facts("list", "--queue", "two"), [])

    def test_move(self):
        """What is moved is as old as before, and delivered by the other queue, once."""
        self.defer("m1", "m2")
        born = sorted(fact["born"] for fact in self.facts("list"))
        self.gateway.command("pause", "one")

        self.assertIn("two: 2 moved to one", self.gateway.command("move", "--queue", "two", "--to", "one", "--yes"))
        until(lambda: {fact["queue"] for fact in self.facts("list")} == {"one"})
        for was, fact in zip(born, sorted(self.facts("list"), key=lambda fact: fact["born"]), strict=True):
            self.assertLess(abs(was - fact["born"]), 0.002)
        self.two.answers.clear()
        self.gateway.command("resume", "one")

        until(lambda: sum(self.two.marks.values()) >= 2)
        until(lambda: not self.facts("list"))
        self.assertEqual(self.two.marks, {b"m1": 1, b"m2": 1})
        self.assertEqual(self.gateway.stat()["one"]["delivered"], 2)

    def test_drain(self):
        """A queue runs empty and takes no mail; one that cannot says why."""
        self.defer("m1")
        slow = subprocess.run(
            [*QMQ, "drain", "two", "--wait", "1s", "--conf", self.gateway.conf],
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.assertEqual(slow.returncode, 1)
        self.assertIn("1  127.0.0.1: 451 4.7.1 greylisted", slow.stdout)

        self.two.answers.clear()
        self.assertIn("two is empty", self.gateway.command("drain", "two", "--wait", "20s"))

        self.assertEqual(self.two.marks[b"m1"], 1)
        until(lambda: self.gateway.client().mail("bob@two.test").startswith(b"503"))
        self.gateway.command("accept", "two")
        until(lambda: self.gateway.client().mail("bob@two.test").startswith(b"250"))

    def test_hung_worker(self):
        """A worker that hangs is named; the queues of the others are told all the same."""
        facts = self.facts("stat")
        worker = next(fact for fact in facts if "one" in fact["queues"])
        os.kill(worker["pid"], signal.SIGSTOP)
        self.addCleanup(os.kill, worker["pid"], signal.SIGCONT)

        result = subprocess.run(
            [*QMQ, "stat", "--patience", "500ms", "--conf", self.gateway.conf],
            capture_output=True,
            text=True,
            timeout=60,
        )

        self.assertIn(f"{worker['process']}: no answer within 0.5 s", result.stderr)
        self.assertIn("two", result.stdout)
        self.assertIn("primary", result.stdout)

    def test_hung_up(self):
        """Whoever reads a long list in part gets that part, and the gateway goes on."""
        client = self.gateway.client()
        self.gateway.command("pause", "two")
        for n in range(300):
            client.mail("bob@two.test", mark=str(n))

        page = self.gateway.command("list", "--json", "--limit", "3")

        self.assertEqual(len(page.splitlines()), 3)
        self.assertEqual(len(self.facts("list", "--queue", "two")), 300)
        self.assertIn("would hold 300 messages", self.gateway.command("hold", "--queue", "two"))
