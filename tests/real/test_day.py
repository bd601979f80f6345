"""An operator's day under load: nothing is refused, closed, lost or doubled."""

import os
import re
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real.gateway import Gateway, Sink, until
from tests.real.load import Load, lost_and_doubled

DOMAINS = ("alpha.test", "beta.test", "gamma.test")


class DayTests(SynchronousTestCase):
    """Three instances in two workers; sinks for all."""

    def setUp(self):
        self.sink = Sink()
        self.addCleanup(self.sink.close)
        route = f"smtp:127.0.0.1:{self.sink.port}"
        self.gateway = Gateway(dict.fromkeys(DOMAINS, route), qmq="workers = 2", bounce_route=route)
        self.addCleanup(self.gateway.clear)
        self.gateway.start()

    def edit(self, change):
        """Change conf-qmq."""
        path = Path(self.gateway.conf)
        path.write_text(change(path.read_text()))

    def add(self, name, number, more=""):
        """One more customer."""
        route = f"domains = {name}.test\ndeliver = smtp:127.0.0.1:{self.sink.port}\nqmtp-listen = none\n"
        self.edit(
            lambda text: text.replace("90:bounces", f"{number}:{name}\n90:bounces") + f"\n[{name}]\n{route}{more}\n"
        )

    def settled(self, load):
        """All that was acknowledged has left every queue."""
        try:
            until(lambda: len(set(load.owed) - set(self.sink.marks)) == 0, 60)
        except AssertionError as late:
            missing = {mark: load.owed[mark] for mark in set(load.owed) - set(self.sink.marks)}
            log = self.gateway.text()[-3000:]
            raise AssertionError(f"{late}: {missing}\n{self.gateway.command('list')}\n{log}") from None
        self.assertEqual(lost_and_doubled(load, self.sink), ([], []))

    def test_instances_come_and_go(self):
        """Customers are added, changed, moved to a process of their own and removed; nobody's mail feels it."""
        with Load(self.gateway.port, [f"a@{domain}" for domain in DOMAINS]) as load:
            for number, name in ((11, "delta"), (12, "eta"), (13, "zeta")):
                self.add(name, number)
            told = self.gateway.command("reload")
            self.assertIn("+ [delta]", told)
            load.recipients = [*load.recipients, "a@delta.test", "a@eta.test", "a@zeta.test"]
            until(lambda: all(load.count[f"a@{name}.test"] > 5 for name in ("delta", "eta", "zeta")))

            self.edit(lambda text: text.replace("[alpha]", "[alpha]\nconcurrency = 7\nprocess = own"))
            self.assertIn("concurrency: 120 -> 7", self.gateway.command("reload"))
            before = load.count["a@alpha.test"]
            until(lambda: load.count["a@alpha.test"] > before + 20)

            load.recipients = [r for r in load.recipients if r != "a@zeta.test"]
            time.sleep(2)  # until the last client that began with zeta has had its answer
            until(lambda: self.gateway.stat()["zeta"]["queued"] == 0)
            self.edit(lambda text: re.sub(r"13:zeta\n|\[zeta\][^\[]*", "", text))
            until(self.reloaded, 20)
            self.assertNotIn("zeta", self.gateway.stat())
            time.sleep(0.5)
        self.settled(load)
        self.assertEqual(load.troubles, [])

    def reloaded(self):
        """A reload that is refused while the last states are a second old."""
        try:
            return self.gateway.command("reload")
        except subprocess.CalledProcessError:
            return ""

    def test_restart_by_hand_over(self):
        """A new main process takes the sockets over: old sessions go on, new ones are served, nothing is refused."""
        first = self.gateway.process.pid
        with Load(self.gateway.port, [f"a@{domain}" for domain in DOMAINS]) as load:
            until(lambda: sum(load.count.values()) > 100)
            for _ in range(2):
                told = self.gateway.command("restart")
                self.assertIn("is the gateway", told)
                before = sum(load.count.values())
                until(lambda before=before: sum(load.count.values()) > before + 100)
        self.settled(load)
        self.assertEqual(load.troubles, [])
        self.assertEqual(self.gateway.process.pid, first)
        self.assertIsNone(self.gateway.process.poll())
        stats = self.gateway.command("stat", "--json")
        self.assertNotIn(f'"pid": {first}', stats)

    def test_old_sessions_deliver(self):
        """What comes by a session older than a restart is delivered at once, however long that session lasts."""
        client = self.gateway.client()
        for n in range(2):
            self.gateway.command("restart")
            for name in ("alpha", "beta"):
                self.assertTrue(client.mail(f"a@{name}.test", mark=f"old-{name}{n}").startswith(b"250"))
            until(lambda n=n: self.sink.marks[b"old-alpha%d" % n] and self.sink.marks[b"old-beta%d" % n], 8)
        self.assertTrue(client.say("QUIT").startswith(b"221"))

    def test_old_sessions_of_primary_processes(self):
        """A restart closes no session of a process of its own that takes mail, either, and each restart is told to its end."""
        self.edit(lambda text: text.replace("[primary]", "[primary]\nprocesses = 2"))
        self.gateway.stop()
        self.gateway.start()
        clients = [self.gateway.client() for _ in range(4)]
        for n in range(2):
            self.assertIn("is the gateway", self.gateway.command("restart"))
            for k, client in enumerate(clients):
                self.assertTrue(client.mail("a@alpha.test", mark=f"own{n}{k}").startswith(b"250"))
            until(lambda n=n: all(self.sink.marks[b"own%d%d" % (n, k)] for k in range(4)), 15)
        for client in clients:
            self.assertTrue(client.say("QUIT").startswith(b"221"))

    def test_stopped_while_old_sessions_go_on(self):
        """A TERM to the first main process stops the gateway, though that one still has a session of before two restarts."""
        client = self.gateway.client()
        for _ in range(2):
            self.gateway.command("restart")
        until(lambda: len(self.gateway.workers()) == 1)  # the newest, adopted
        newest = self.gateway.workers()
        self.gateway.stop()
        client.close()
        until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in newest), 15)

    def test_bad_file_changes_nothing(self):
        """A configuration with an error is told with its line, and everything goes on as before."""
        self.add("delta", 11, "concurrency = many")
        self.assertEqual(self.reloaded(), "")
        self.assertNotIn("delta", self.gateway.stat())
        self.assertTrue(self.gateway.client().mail("a@alpha.test", mark="still").startswith(b"250"))
        until(lambda: self.sink.marks[b"still"])

    def test_mail_left_is_not_left(self):
        """An instance with mail in it cannot be removed until it is said where the mail goes; then it goes there."""
        self.gateway.command("pause", "gamma")
        client = self.gateway.client()
        for n in range(50):
            self.assertTrue(client.mail("a@gamma.test", mark=f"left{n}").startswith(b"250"))
        client.close()
        time.sleep(1.2)
        whole = Path(self.gateway.conf).read_text()
        self.edit(lambda text: re.sub(r"3:gamma\n|\[gamma\][^\[]*", "", text))
        self.assertEqual(self.reloaded(), "")
        self.assertIn("gamma", self.gateway.stat())

        self.edit(lambda text: text.replace("[qmq]", "[qmq]\nretired = gamma=beta"))
        self.edit(lambda text: text.replace("domains = beta.test", "domains = beta.test gamma.test"))
        self.assertIn("gamma", self.gateway.command("reload"))
        until(lambda: sum(self.sink.marks[b"left%d" % n] for n in range(50)) == 50, 30)
        self.assertEqual([mark for mark, times in self.sink.marks.items() if times > 1], [])
        self.assertNotEqual(whole, Path(self.gateway.conf).read_text())

    def test_move_ten_thousand(self):
        """Thousands of messages move from one queue to another while mail flows; each arrives once."""
        many = int(os.environ.get("QMQ_MANY", "1000"))
        self.gateway.command("pause", "gamma")
        client = self.gateway.client()
        for n in range(many):
            self.assertTrue(client.mail("a@gamma.test", mark=f"move{n}").startswith(b"250"))
        client.close()
        with Load(self.gateway.port, ["a@alpha.test", "a@beta.test"]) as load:
            self.gateway.command("move", "--queue", "gamma", "--to", "beta", "--all", "--yes")
            until(lambda: self.gateway.stat()["gamma"]["queued"] == 0, 60)
        until(lambda: sum(self.sink.marks[b"move%d" % n] for n in range(many)) == many, 60)
        self.settled(load)
        self.assertEqual(load.troubles, [])
