"""Main processes and workers that are processes: killed, stopped, blocked, too big, orphaned, handed over."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, task
from twisted.logger import globalLogPublisher

from qmq import processes
from qmq.lifeline import NO_MEMORY, resident
from qmq.processes import Crew, Workers, WorkerTrouble
from qmq.sockets import CannotListen, Listener, Sockets
from tests.real.gateway import until as wait

pytestmark = pytest.mark.slow

# A worker: it serves each socket with its process id, and does what it is told.
WORKER = """
import os, resource, sys, time
from twisted.internet import reactor, task
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogBeginner, textFileLogObserver
from qmq.lifeline import Lifeline
from qmq.sockets import Sockets

globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
sockets = Sockets()
sockets.inherit(os.environ)
facts, kept = {}, []

class Greet(Protocol):
    def connectionMade(self):
        self.transport.write(b"%d\\n" % os.getpid())
        self.transport.loseConnection()

def serve(word):
    sockets.adopt(reactor, word, Factory.forProtocol(Greet))

def take(order, descriptors):
    for word, descriptor in zip(order["words"], descriptors, strict=True):
        sockets.take(word, descriptor)
        serve(word)
    return sockets.words()

def grow(order, _):
    kept.append(b"x" * (order["mib"] << 20))

def files(order, _):
    try:
        while True:
            kept.append(open("/dev/null"))
    except OSError:
        return len(kept), resource.getrlimit(resource.RLIMIT_NOFILE)

orders = {
    "echo": lambda order, _: order["x"],
    "later": lambda order, _: task.deferLater(reactor, 0.1, lambda: "later"),
    "wrong": lambda order, _: 1 / 0,
    "unsayable": lambda order, _: object(),
    "facts": lambda order, _: facts,
    "block": lambda order, _: time.sleep(order["seconds"]),
    "exit": lambda order, _: os._exit(order["code"]),
    "environ": lambda order, _: os.environ.get(order["name"]),
    "stay": lambda order, _: reactor.addSystemEventTrigger("before", "shutdown", lambda: task.deferLater(reactor, 3600, int)) and None,
    "take": take, "grow": grow, "files": files,
}
for word in sockets.words():
    serve(word)
life = Lifeline(
    reactor, lambda: {"x": {"n": len(kept)}}, orders, told=facts.update,
    orphaned=sockets.let_go, grace=float(os.environ.get("GRACE", 30)),
)
reactor.callWhenRunning(life.startService)
reactor.addSystemEventTrigger("before", "shutdown", life.stopService)
reactor.run()
"""

# A main process in the folder argv[1] at the port argv[2]: says its workers' ids when they are ready.
MAIN = """
import json, sys
from twisted.internet import reactor
from qmq.processes import Crew, Workers
from qmq.sockets import Listener, Sockets

folder, port, worker = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sockets = Sockets()
sockets.open([Listener("tcp", "127.0.0.1", port), Listener("unix", path=folder + "/socket")])
ready = lambda: print(json.dumps(workers.pids()), flush=True)
workers = Workers(
    reactor, sockets, [sys.executable, worker], told=lambda *_: None, away=lambda _: None, all_ready=ready, stop_seconds=5,
)
for name, words in (("one", ("tcp", "unix")), ("two", ("tcp",))):
    workers.add(Crew(name, (name,), words, environ={"GRACE": "2"}))
reactor.callWhenRunning(workers.startService)
def hear():
    for name, order in json.loads(sys.stdin.readline() or "{}").items():
        reactor.callFromThread(workers.order, name, order)
reactor.callInThread(hear)
reactor.run()
"""


class Main:
    """A main process's part, in this process."""

    def __init__(self, folder):
        from twisted.internet import reactor

        self.script = folder / "worker.py"
        self.script.write_text(WORKER)
        self.sockets = Sockets()
        self.told, self.away, self.log = [], [], []
        self.ready = defer.Deferred()
        globalLogPublisher.addObserver(self.note)
        self.workers = Workers(
            reactor, self.sockets, [sys.executable, str(self.script)],
            told=lambda name, said: self.told.append((name, said)), away=self.away.append,
            all_ready=lambda: self.ready.callback(None), stop_seconds=2,
        )  # fmt: skip

    def note(self, event):
        """What an operator would read."""
        if event.get("log_namespace") == "qmq.processes":
            self.log.append(event["log_format"].format(**event))

    async def start(self, *crews):
        """All crews, up."""
        for crew in crews or (Crew("one", ("one",)),):
            self.workers.add(crew)
        self.workers.startService()
        await self.ready

    def order(self, do, name="one", **more):
        """An order's answer."""
        return self.workers.order(name, {"do": do, **more})

    async def stop(self):
        """In order."""
        globalLogPublisher.removeObserver(self.note)
        await self.workers.stopService()
        self.sockets.let_go()


@pytest.fixture
def main(tmp_path):
    """Stopped at the end."""
    made = Main(tmp_path)
    yield made
    pytest_twisted.blockon(defer.ensureDeferred(made.stop()))


async def until(true, seconds=15):
    from twisted.internet import reactor

    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end
        await task.deferLater(reactor, 0.02)
    return value


async def greeting(address):
    """Which process serves there: the connection is made at once, the answer may take its time."""
    from twisted.internet import reactor

    client = socket.create_connection(address, 1) if isinstance(address, tuple) else socket.socket(socket.AF_UNIX)
    with client:
        if isinstance(address, str):
            client.connect(address)
        client.setblocking(False)
        said = b""
        while not said.endswith(b"\n"):
            try:
                said += client.recv(100)
            except BlockingIOError:
                await task.deferLater(reactor, 0.01)
        return int(said)


def alive(pid):
    """Whether there is such a process, and no mere zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest_twisted.ensureDeferred
async def test_orders_and_facts(main):
    """Orders are answered, those that take their time too; trouble comes back as its text; facts arrive; beats come."""
    await main.start(Crew("one", ("one",), environ={"EXTRA": "yes"}))

    assert await main.order("echo", x=["ä", 1, None]) == ["ä", 1, None]
    assert await main.order("later") == "later"
    assert await main.workers.order("one", {"do": "environ", "name": "EXTRA"}) == "yes"
    for do, text in (
        ("wrong", "division by zero"),
        ("nothing", "no such order"),
        ("unsayable", "not JSON serializable"),
    ):
        with pytest.raises(WorkerTrouble, match=text):
            await main.order(do)
    main.workers.tell_all({"known": {"x": 1}})
    assert await main.order("facts") == {"known": {"x": 1}}
    await until(lambda: len(main.told) >= 3)
    name, said = main.told[-1]
    assert (name, said["states"]) == ("one", {"x": {"n": 0}})
    assert 20 << 20 < said["memory"] < 500 << 20
    (standing,) = main.workers.standings()
    assert (standing.pid, standing.restarts) == (main.workers.pids()["one"], 0)
    assert abs(standing.since - time.time()) < 60


@pytest_twisted.ensureDeferred
async def test_sockets_sent_down(main, tmp_path):
    """A worker that runs is given a new socket and serves it; one it has inherited it serves from the start."""
    path = str(tmp_path / "socket")
    main.sockets.open([Listener("tcp", "127.0.0.1", 0), Listener("unix", path=path)])
    address = socket.socket(fileno=os.dup(main.sockets.descriptor("tcp"))).getsockname()
    await main.start(Crew("one", ("one",), ("unix",)))
    pid = main.workers.pids()["one"]
    assert await greeting(path) == pid

    assert await main.workers.order("one", {"do": "take"}, ["tcp"]) == ["unix", "tcp"]

    assert await greeting(address) == pid


@pytest_twisted.ensureDeferred
async def test_killed(main):
    """A worker that is killed is away, and started again; who connects meanwhile waits, and is not refused."""
    main.sockets.open([Listener("tcp", "127.0.0.1", 0)])
    address = socket.socket(fileno=os.dup(main.sockets.descriptor("tcp"))).getsockname()
    await main.start(Crew("one", ("one",), ("tcp",)), Crew("two", ("two",)))
    pids = main.workers.pids()

    for number in range(3):
        os.kill(main.workers.pids()["one"], signal.SIGKILL)
        await until(lambda: len(main.away) > number)  # noqa: B023 - asked at once
        assert await greeting(address) not in pids.values()

    assert main.away == ["one"] * 3
    assert main.workers.pids()["two"] == pids["two"]
    assert main.log[0] == "one ended (killed by signal 9); starting it again in 0.5 s"


@pytest_twisted.ensureDeferred
async def test_stopped(main, monkeypatch):
    """A stopped worker is away, blocks nobody, and is back when it goes on; if it does not, it is killed and replaced."""
    monkeypatch.setattr(processes, "_AWAY", 1.5)
    monkeypatch.setattr(processes, "_SILENCE", 8.0)
    await main.start(Crew("one", ("one",)), Crew("two", ("two",)))
    pid = main.workers.pids()["one"]
    os.kill(pid, signal.SIGSTOP)
    unanswered = main.order("echo", x=1)

    began = time.monotonic()
    for number in range(100):
        main.workers.tell_all({"known": {str(n): number for n in range(1000)}})
        assert await main.order("echo", "two", x=number) == number
    assert time.monotonic() - began < 10
    await until(lambda: main.away == ["one"])
    os.kill(pid, signal.SIGCONT)
    assert await unanswered == 1
    while (await main.order("facts"))["known"]["7"] != 99:  # older ones may be on their way
        pass
    assert main.workers.pids()["one"] == pid

    os.kill(pid, signal.SIGSTOP)
    await until(lambda: main.workers.pids().get("one", pid) != pid)

    assert main.away[-1] == "one"
    assert [line for line in main.log if "silent for" in line]
    assert await main.order("echo", x=1) == 1


@pytest_twisted.ensureDeferred
async def test_grown(main):
    """A worker past its memory is killed, with a line that says so, and started again."""
    bound = resident() + (40 << 20)
    await main.start(Crew("one", ("one",), memory=bound))
    pid = main.workers.pids()["one"]
    more = 60 + (bound >> 20) - (main.told[-1][1]["memory"] >> 20)
    main.order("grow", mib=more).addErrback(lambda _: None)  # it may be killed before it answers

    await until(lambda: main.workers.pids().get("one", pid) != pid)

    assert "octets of memory, more than its" in main.log[0]
    assert main.log[1].startswith("one ended (killed by signal 9)")


@pytest_twisted.ensureDeferred
async def test_grown_while_blocked(main):
    """One that grows while its thread is blocked is seen all the same."""
    await main.start(Crew("one", ("one",), memory=150 << 20))
    pid = main.workers.pids()["one"]
    main.order("grow", mib=140).addErrback(lambda _: None)
    main.order("block", seconds=60).addErrback(lambda _: None)

    await until(lambda: main.workers.pids().get("one", pid) != pid, 5)

    assert "octets of memory" in main.log[0]


@pytest_twisted.ensureDeferred
async def test_hard_bound(main):
    """What is far too much at once the kernel refuses, and the worker ends rather than go on half done."""
    await main.start(Crew("one", ("one",), memory=200 << 20))
    pid = main.workers.pids()["one"]

    with pytest.raises(WorkerTrouble, match="ended before it answered"):
        await main.order("grow", mib=4000)

    await until(lambda: main.workers.pids().get("one", pid) != pid)
    assert main.log[0].startswith(f"one ended (exit code {NO_MEMORY})")


@pytest_twisted.ensureDeferred
async def test_files(main):
    """A worker has as many descriptors as its crew says, and cannot raise that."""
    await main.start(Crew("one", ("one",), files=100))

    count, limits = await main.order("files")

    assert limits == [100, 100]
    assert 50 < count < 100


@pytest_twisted.ensureDeferred
async def test_no_descriptor_for_a_socket(main):
    """A worker with no descriptor free for a socket that is sent to it ends; the next one inherits what it needs."""
    main.sockets.open([Listener("tcp", "127.0.0.1", 0)])
    await main.start(Crew("one", ("one",), files=100))
    await main.order("files")
    main.workers.change(Crew("one", ("one",), ("tcp",)))
    pid = main.workers.pids()["one"]

    with pytest.raises(WorkerTrouble):
        await main.workers.order("one", {"do": "take"}, ["tcp"])

    await until(lambda: main.workers.pids().get("one", pid) != pid)
    address = socket.socket(fileno=os.dup(main.sockets.descriptor("tcp"))).getsockname()
    assert await greeting(address) == main.workers.pids()["one"]


@pytest_twisted.ensureDeferred
async def test_added_and_removed(main):
    """Workers come and go while others run; one that does not stop in time is killed."""
    main.workers._patience = 1
    await main.start()
    main.workers.add(Crew("two", ("two",)))
    assert await main.order("echo", "two", x=1) == 1
    await main.order("stay", "two")
    pid = main.workers.pids()["two"]

    began = time.monotonic()
    await main.workers.remove("two")

    assert 0.9 < time.monotonic() - began < 5
    assert (list(main.workers.pids()), alive(pid)) == (["one"], False)
    began = time.monotonic()
    await main.workers.remove("one")
    assert (main.workers.pids(), time.monotonic() - began < 0.9) == ({}, True)


def test_main_killed(tmp_path):
    """
    After kill -9 of the main process its lock is free at once, its port soon.

    Its workers leave; one that is blocked is killed when its grace is over.
    """
    (tmp_path / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", MAIN, str(tmp_path), str(port), str(tmp_path / "worker.py")]
    main = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = json.loads(main.stdout.readline())
    with pytest.raises(CannotListen):
        Sockets().open([Listener("unix", path=str(tmp_path / "socket"))])
    print(json.dumps({"two": {"do": "block", "seconds": 60}}), file=main.stdin, flush=True)
    time.sleep(0.5)

    main.kill()
    main.wait()
    assert all(map(alive, workers.values()))
    ours = Sockets()
    ours.open([Listener("unix", path=str(tmp_path / "socket"))], patience=0)
    began = time.monotonic()
    ours.open([Listener("tcp", "127.0.0.1", port)])

    assert time.monotonic() - began < 5  # the one that is blocked is gone, too
    wait(lambda: not any(map(alive, workers.values())), 10)
    assert (tmp_path / "socket").exists()
    ours.close()
    ours.let_go()
    main.stdin.close()
    main.stdout.close()


@pytest_twisted.ensureDeferred
async def test_turns(tmp_path):
    """Between one process's port and the next one's no connection is refused: they wait, and are served."""
    from twisted.internet import reactor
    from twisted.internet.protocol import Factory, ProcessProtocol, Protocol

    class Greet(Protocol):
        def connectionMade(self):
            self.transport.write(b"%d\n" % os.getpid())
            self.transport.loseConnection()

    ours = Sockets()
    path = str(tmp_path / "socket")
    ours.open([Listener("tcp", "127.0.0.1", 0), Listener("unix", path=path)])
    address = socket.socket(fileno=os.dup(ours.descriptor("tcp"))).getsockname()
    ports = [ours.adopt(reactor, word, Factory.forProtocol(Greet)) for word in ours.words()]
    assert [await greeting(address), await greeting(path)] == [os.getpid()] * 2

    for port in ports:
        await port.stopListening()
    waiting = [defer.ensureDeferred(greeting(where)) for where in (address, path) * 20]
    await task.deferLater(reactor, 0.1)
    assert not any(greeted.called for greeted in waiting)
    descriptors, environ = ours.hand_down(4)
    near, far = socket.socketpair()
    (tmp_path / "worker.py").write_text(WORKER)
    heir = reactor.spawnProcess(
        ProcessProtocol(), sys.executable, [sys.executable, str(tmp_path / "worker.py")], {**os.environ, **environ},
        childFDs={0: 0, 1: 1, 2: 2, 3: far.fileno(), **descriptors},
    )  # fmt: skip
    far.close()
    greeted = [await one for one in waiting]
    pid = heir.pid

    assert greeted == [pid] * 40
    ours.disown()
    ours.close()
    ours.let_go()
    assert [await greeting(address), await greeting(path)] == [pid] * 2
    with pytest.raises(CannotListen):
        Sockets().open([Listener("unix", path=path)])
    near.close()  # its main process is gone
    await until(lambda: not alive(pid))
    after = Sockets()
    after.open([Listener("unix", path=path)])
    after.let_go()
