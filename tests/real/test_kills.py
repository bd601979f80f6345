"""
kill -9 of every kind of process there is, under load: nothing acknowledged is lost, and little comes twice.

A dozen rounds, one of each kind; QMQ_ROUNDS says how many (60 takes some
minutes), QMQ_SEED which.
"""

import contextlib
import io
import os
import random
import subprocess
import time
from pathlib import Path

import click
import pytest
from twisted.trial.unittest import SynchronousTestCase

from qmq.cli.ask import ask
from tests.real import roll
from tests.real.gateway import QMQ, Client, Gateway, Sink, free_port, until
from tests.real.load import Load

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("QMQ_ROUNDS", "12"))
SEED = int(os.environ.get("QMQ_SEED") or random.randrange(1 << 31))
MOVED = 200
# What a host has taken is delivered a second time if its queue's process is killed before that is on disk: what
# came to it so long before the kill, and what was on its way. Settles wait 0.05 s for company, then for a sync
# that 2 busy cores may hold up.
IN_FLIGHT = 2.0
LATE = 2.0  # our own sink may note it later than it came
FELT = ("main", "primary", "giver", "both", "old", "new")  # kills that clients may see
ROLES = ("one", "two", "alone", "from", "to", "bounces")


class House:
    """A gateway with every kind of process, sinks, and an account of what was killed when."""

    def __init__(self, rng):
        self.rng = rng
        self.sink, self.told = Sink(), Sink()
        self.sink.answers[b"RCPT"] = lambda line: b"550 5.1.1 nobody\r\n" if b"<nobody@" in line else None
        route = f"smtp:127.0.0.1:{self.sink.port}"
        own = "process = own"
        self.gateway = Gateway(
            {f"{role}.test": route for role in ROLES[:-1]},
            qmq="workers = 2\nstop = 3s", primary="processes = 2",
            sections={"alone": own, "bounces": own}, bounce_route=f"smtp:127.0.0.1:{self.told.port}",
        )  # fmt: skip
        self.kills = []  # (when, kind, the roles of what was killed)
        self.longest = 0.0  # from a delivery to the kill that had it made again
        self.moved = []  # the marks of what was moved

    def close(self):
        """End all."""
        roll.end_all(self.gateway)
        self.gateway.clear()
        self.sink.close()
        self.told.close()

    # To kill

    def kill(self, kind, *pids):
        """These at once; noted."""
        there = roll.processes(self.gateway)
        roles = {role for pid in pids for role in there.get(pid, ())}
        self.kills.append((time.monotonic(), kind, roles))
        roll.kill(*pids)

    def one_of(self, *roles):
        """A process that runs one of these, when there is one."""
        return self.rng.choice(until(lambda: [p for role in roles for p in roll.worker_of(self.gateway, role)], 60))

    def primary(self):
        """A process that takes mail."""

        def there():
            return [p for p, roles in roll.processes(self.gateway).items() if roles and roles[0].startswith("primary")]

        return self.rng.choice(until(there, 60))

    def back(self, pid):
        """Wait until what *pid* ran is run again, and takes mail; then a moment more, so that hand-over is under way."""
        roles = roll.processes(self.gateway).get(pid, ())
        self.kill("worker", pid)
        until(lambda: any(self.numbers().get(role) for role in roles), 90)
        time.sleep(self.rng.uniform(0, 0.3))
        return self.one_of(*roles)

    def main(self):
        """The main process; a new one is started at once."""
        self.kill("main", *roll.main_of(self.gateway))
        self.gateway.start(60)

    def worker(self):
        """One that has several queues."""
        self.kill("worker", self.one_of("one", "two"))

    def own(self):
        """The one of a queue with `process = own`."""
        self.kill("own", self.one_of("alone"))

    def bounces(self):
        """The bounce instance's."""
        self.kill("bounces", self.one_of("bounces"))

    def takes_mail(self):
        """One of those that take mail."""
        self.kill("primary", self.primary())

    def giver(self):
        """One that takes mail, while it hands over what it has kept for a worker that was away."""
        self.back(self.one_of("one", "two", "alone"))
        self.kill("giver", self.primary())

    def taker(self):
        """The worker to which mail is handed over that was kept for it."""
        self.kill("taker", self.back(self.one_of("one", "two", "alone")))

    def both(self):
        """Both ends at the same moment."""
        self.kill("both", self.one_of("one", "two", "alone"), self.primary())

    def move_from(self):
        """The worker from whose queue mail is moved."""
        self.move("from")

    def move_to(self):
        """The worker to whose queue mail is moved."""
        self.move("to")

    def old(self):
        """The old main process while a new one takes over."""
        self.restart(0)

    def new(self):
        """The new one."""
        self.restart(1)

    KINDS = (
        main, worker, own, bounces, takes_mail, giver, taker, both, move_from, move_to, old, new,
    )  # fmt: skip

    def move(self, end):
        """Some hundred messages from one paused queue to another; its worker at *end* is killed when part has come."""
        for name in ("from", "to"):
            self.persist("pause", name)
        marks = self.fill("from.test", MOVED)
        part = self.rng.randrange(MOVED)
        with self.running("move", "--queue", "from", "--to", "to", "--all", "--yes"):
            with contextlib.suppress(AssertionError):
                until(lambda: self.numbers().get("to", {}).get("queued", 0) > part, 10, 0)
            self.kill("move", self.one_of(end))
        # Whoever gave the order sees that it broke off, and gives it again.
        until(self.gave_again, 60)
        queued = until(lambda: self.numbers().get("to", {}).get("queued"), 60)
        assert queued == len(marks), f"{len(marks)} moved, {queued} there"
        for name in ("from", "to"):
            self.persist("resume", name)
        until(lambda: all(self.sink.marks[mark] for mark in marks), 60)
        self.moved += marks

    def gave_again(self):
        """Whether nothing is left to be moved."""
        self.command("move", "--queue", "from", "--to", "to", "--all", "--yes")
        return self.numbers().get("from", {}).get("queued") == 0

    def fill(self, domain, count):
        """The marks of so many messages for a queue that is paused; as many as were acknowledged, and no others."""
        marks, number = [], 0
        client = None
        while len(marks) < count:
            number += 1
            mark = f"moved-{len(self.kills)}-{number}"
            try:
                client = client or Client(self.gateway.port)
                if client.mail(f"u@{domain}", mark=mark).startswith(b"250"):
                    marks.append(mark.encode())
            except OSError:
                client = None
                time.sleep(0.05)
        client.close()
        until(lambda: self.numbers().get("from", {}).get("queued") == count, 60)
        return marks

    def restart(self, which):
        """By hand-over; the old main process (0) or the new one (1) is killed on the way."""
        before = until(lambda: roll.main_of(self.gateway))
        with self.running("restart"):
            after = until(lambda: set(roll.main_of(self.gateway)) - set(before), 60)
            time.sleep(self.rng.uniform(0, 4))
            self.kill("new" if which else "old", *(after if which else before))

    # To look and to command

    def asked(self, **request):
        """What those say that answer; it is no trouble that some do not."""
        found = []
        with contextlib.suppress(click.ClickException), contextlib.redirect_stderr(io.StringIO()):
            found += ask(self.gateway.conf, patience=5, **request)
        return found

    def numbers(self):
        """What is known of each queue that answers."""
        return {name: queue for fact in self.asked(do="stat") for name, queue in fact["queues"].items()}

    def serves(self):
        """Whether there is a main process that is not about to end, and every queue answers; one is started if not."""
        if not roll.main_of(self.gateway):
            self.gateway.start(60)
        facts = self.asked(do="stat")
        queues = {name for fact in facts for name in fact["queues"]}
        return any(fact["main"] for fact in facts) and queues >= set(ROLES)

    def command(self, *words):
        """Whether it succeeded."""
        whole = [*QMQ, *words, "--conf", self.gateway.conf]
        return subprocess.run(whole, capture_output=True, timeout=120, check=False).returncode == 0

    def persist(self, word, queue):
        """Until it is done."""
        until(lambda: self.asked(do=word, queue=queue), 60)

    @contextlib.contextmanager
    def running(self, *words):
        """A command is under way; at the end it has ended, one way or the other."""
        whole = [*QMQ, *words, "--conf", self.gateway.conf]
        process = subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.wait(180)

    def empty(self):
        """Whether nothing waits any more; what waits for its next time is hastened."""
        self.asked(do="now", query={})
        return not any(queue["queued"] for queue in self.numbers().values())

    def still(self):
        """Whether it is empty, and stays so: one look is not one moment, and mail goes from queue to queue meanwhile."""
        return all(self.empty() for _ in range(4))  # three queues, two hand-overs, and one more

    # The account

    def account(self, load):
        """Marks lost, and marks that came twice: with the kill that explains it, or None."""
        marks = self.sink.marks + self.told.marks
        lost = [mark for mark in (*load.owed, *self.moved) if not marks[mark]]
        return lost, {mark: self.explained(mark, load) for mark, times in marks.items() if times > 1}

    def explained(self, mark, load):
        """Which kill could have made it come a second time."""
        sink = self.told if mark in self.told.marks else self.sink
        domain = load.said[mark].rpartition("@")[2].partition(".")[0] if mark in load.said else "to"
        role = "bounces" if sink is self.told else domain
        first = sink.times[mark][0]
        for number, (when, _, roles) in enumerate(self.kills):
            if role in roles and when - IN_FLIGHT < first < when + LATE:
                self.longest = max(self.longest, when - first)
                return number
        return None

    def unexplained(self, troubles):
        """What clients should not have seen: only a process that takes mail, or the main process, is felt by them."""
        kinds = [(when, kind) for when, kind, _ in self.kills]
        return [line for line in troubles if max(((0, ""), *(k for k in kinds if k[0] < line[4])))[1] not in FELT]


class KillTests(SynchronousTestCase):
    """One gateway for all rounds; clients that send all the while."""

    def test_rounds(self):
        """
        What was acknowledged arrives, whatever is killed; twice only what its queue had in flight when it was killed.

        A move is no delivery: it neither loses nor doubles. Never have two processes one store.
        """
        rng = random.Random(SEED)
        house = House(rng)
        self.addCleanup(house.close)
        house.gateway.start(60)
        kinds = [
            kind for _ in range(-(-ROUNDS // len(House.KINDS))) for kind in rng.sample(House.KINDS, len(House.KINDS))
        ]
        recipients = [f"u@{role}.test" for role in ("one", "two", "alone")] * 3 + ["nobody@one.test", "nobody@two.test"]
        began = time.monotonic()
        with roll.Watch(house.gateway) as watch, Load(house.gateway.port, recipients, pause=0.02) as load:
            for kind in kinds[:ROUNDS]:
                until(house.serves, 90, 0.1)
                time.sleep(rng.uniform(0, 0.5))
                kind(house)
                print(f"{time.monotonic() - began:6.1f} s  {kind.__name__}: {len(load.owed)} acknowledged", flush=True)
            until(house.serves, 90, 0.1)
        until(house.still, 120, 0.2)
        lost, doubled = house.account(load)

        per_kill = [list(doubled.values()).count(number) for number in range(len(house.kills))]
        print(
            f"seed {SEED}: {ROUNDS} rounds, {len(house.kills)} kills, {time.monotonic() - began:.0f} s: "
            f"{len(load.owed)} acknowledged and {len(house.moved)} moved, {len(lost)} lost, {len(doubled)} twice "
            f"(at most {max(per_kill)} by one kill, by its host taken {house.longest:.2f} s before at most), {len(load.troubles)} not acknowledged; {watch.looks} looks"
        )  # fmt: skip
        self.assertEqual(lost, [])
        self.assertEqual([mark for mark, kill in doubled.items() if kill is None], [])
        self.assertEqual([mark for mark in house.moved if mark in doubled], [])
        self.assertEqual(watch.shared, [])
        self.assertEqual(house.unexplained(load.troubles), [])
        self.assertGreater(len(load.owed), 20 * ROUNDS)

    test_rounds.timeout = 1800


class OrphanTests(SynchronousTestCase):
    """The main process killed alone, while its workers have deliveries under way."""

    def gateway(self, delay, stop):
        """It, its host, and the processes that are to be orphans; five messages are on their way."""
        sink = Sink(delay)
        self.addCleanup(sink.close)
        gateway = Gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"}, qmq=f"workers = 1\nstop = {stop}s", primary="processes = 2",
            sections={"one": f"qmtp-listen = 127.0.0.1:{free_port()}"}, bounces=False,
        )  # fmt: skip
        self.addCleanup(gateway.clear)
        self.addCleanup(roll.end_all, gateway)
        gateway.start()
        client = Client(gateway.port)
        for n in range(5):
            self.assertTrue(client.mail("a@one.test", mark=f"m{n}").startswith(b"250"))
        until(lambda: sink.connections)
        time.sleep(0.2)
        return gateway, sink, set(roll.processes(gateway)) - {gateway.process.pid}

    def test_new_one_at_once(self):
        """Its workers finish what is on its way and end; a new gateway starts at once, and delivers nothing of it again."""
        gateway, sink, orphans = self.gateway(1.5, 8)
        with roll.Watch(gateway, 0.05) as watch:
            began = time.monotonic()
            gateway.kill()
            gateway.start()
            self.assertTrue(Client(gateway.port).mail("a@one.test", mark="after").startswith(b"250"))
            until(lambda: not orphans & set(roll.processes(gateway)), 8 + 5)
            gone = time.monotonic() - began
            until(lambda: len(sink.marks) == 6, 30)
            until(lambda: gateway.stat()["one"]["queued"] == 0, 30)
        print(f"orphans gone {gone:.1f} s after the kill; {watch.looks} looks")
        self.assertEqual(set(sink.marks.values()), {1})
        self.assertEqual(watch.shared, [])

    def test_killed_twice(self):
        """A main process killed while its workers wait for the stores of orphans leaves its ports free all the same."""
        gateway, sink, orphans = self.gateway(9, 12)
        gateway.kill()
        with contextlib.suppress(AssertionError):
            gateway.start(2)
        until(lambda: len(roll.processes(gateway)) > len(orphans & set(roll.processes(gateway))) + 2)
        waiting = set(roll.processes(gateway)) - orphans - {gateway.process.pid}
        time.sleep(0.5)
        self.assertTrue(orphans & set(roll.processes(gateway)), "too late to tell")
        gateway.kill()
        until(lambda: not waiting & set(roll.processes(gateway)), 4)
        gateway.start(40)
        until(lambda: len(sink.marks) == 5, 40)

    def test_successor(self):
        """
        A new main process that is killed while the old one has sessions is no secret: the old one ends as well.

        Else whoever watches that one would see a gateway where nobody takes mail.
        """
        sink = Sink()
        self.addCleanup(sink.close)
        gateway = Gateway(
            {"one.test": f"smtp:127.0.0.1:{sink.port}"}, primary="processes = 2", qmq="stop = 3s", bounces=False
        )
        self.addCleanup(gateway.clear)
        self.addCleanup(roll.end_all, gateway)
        gateway.start()
        client = Client(gateway.port)
        for _ in range(2):
            gateway.command("restart")
            self.assertTrue(client.mail("a@one.test", mark="between").startswith(b"250"))
        self.assertIsNone(gateway.process.poll())
        newest = max(roll.main_of(gateway), key=roll.started)
        began = time.monotonic()
        roll.kill(newest)
        until(lambda: gateway.process.poll() is not None, 20)
        until(lambda: not roll.processes(gateway), 20)
        print(f"all are gone {time.monotonic() - began:.1f} s after the kill")
        gateway.start()
        self.assertTrue(Client(gateway.port).mail("a@one.test", mark="after").startswith(b"250"))
        until(lambda: sink.marks[b"after"])

    def test_nobody_is_missed(self):
        """Of processes that were killed for good, commands say nothing: neither an old main process nor a worker."""
        gateway, _, _ = self.gateway(0, 3)
        client = Client(gateway.port)
        gateway.command("restart")
        roll.kill(*[pid for pid in roll.main_of(gateway) if pid == gateway.process.pid])
        until(lambda: gateway.whole("stat").stderr == "", 10, 0.5)
        client.close()

        roll.end_all(gateway)
        Path(gateway.conf).write_text(Path(gateway.conf).read_text().replace("processes = 2", "processes = 1"))
        gateway.start()
        self.assertEqual(gateway.whole("stat").stderr, "")


for name in ("test_new_one_at_once", "test_killed_twice", "test_successor", "test_nobody_is_missed"):
    getattr(OrphanTests, name).timeout = 120
    setattr(OrphanTests, name, pytest.mark.limit(120)(getattr(OrphanTests, name)))
KillTests.test_rounds = pytest.mark.limit(1800)(KillTests.test_rounds)
