"""The SQLite store with real threads, real processes and a real kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.task import deferLater

from qmq.interfaces import SpoolTrouble
from qmq.mail import Address, Envelope, FileBody, MemoryBody, Message, Token
from qmq.spool import journal
from qmq.spool.disk import SQLiteSpool
from qmq.spool.ring import Ring
from qmq.spool.writer import Writers
from tests.spool.faults import FaultyVFS

ANN = Address(b"ann", b"example.org")
TEXT = b"Subject: x\r\n\r\n" + b"Hello.\r\n" * 100
LONG = 5000

# Keeps messages for ever, every fifth a long one, and delivers every third; a line for each word that can be relied on.
CHILD = """
import sys
from twisted.internet import reactor
from qmq.mail import Address, Envelope, MemoryBody, Message, Token
from qmq.spool.disk import SQLiteSpool
from qmq.spool.ring import Ring
from qmq.spool.writer import Writers

ANN = Address(b"ann", b"example.org")
writers = Writers(2, call_from_thread=reactor.callFromThread, ring=Ring(reactor))
spool = SQLiteSpool(sys.argv[1], clock=reactor, writers=writers, inline=4096, patience=float(sys.argv[2]))

def say(word, seq):
    sys.stdout.write(f"{word} {seq}\\n")
    sys.stdout.flush()

async def keep():
    while True:
        token = spool.next_token()
        body = MemoryBody(b"%d\\r\\n" % token.seq * (500 if token.seq % 5 == 0 else 50))
        (entry,) = await spool.keep(Message(Envelope(token, ANN, (ANN,)), b"", body), [b"site"], 0)
        say("kept", token.seq)
        if token.seq % 3 == 0:
            entry.message = Message(Envelope(token, ANN, ()), b"", body)
            spool.settle(entry)

async def main():
    try:
        await spool.start()
    except Exception as error:
        say("refused", error)
        reactor.stop()
        return
    say("started", 0)
    from twisted.internet.defer import ensureDeferred
    for _ in range(20):
        ensureDeferred(keep())

from twisted.internet.defer import ensureDeferred
reactor.callWhenRunning(lambda: ensureDeferred(main()))
reactor.run()
"""


@pytest.fixture
def writers():
    made = Writers(2, call_from_thread=reactor.callFromThread, ring=Ring(reactor))
    yield made
    made.stop()


@pytest.fixture
def threads():
    made = Writers(2, call_from_thread=reactor.callFromThread)
    yield made
    made.stop()


@pytest.fixture
def child(tmp_path):
    """Starts the child above over a folder; what was started is dead after the test."""
    started = []

    def start(folder, patience=10):
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(patience)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()


def message(token, body=None):
    return Message(Envelope(token, ANN, (ANN,)), b"", body or MemoryBody(TEXT))


def done(entry):
    envelope = entry.message.envelope
    entry.message = Message(Envelope(envelope.token, envelope.sender, ()), b"", entry.message.body)
    return entry


async def sleep(seconds):
    await deferLater(reactor, seconds, lambda: None)


async def test_together(tmp_path, writers):
    """Several stores share two threads, each with many at once; every message is kept, found, read and goes."""
    spools = [
        SQLiteSpool(str(tmp_path / str(i)), clock=reactor, writers=writers, inline=1000, reserve=0) for i in range(4)
    ]
    await gatherResults([spool.start() for spool in spools])
    source = tmp_path / "source"
    source.write_bytes(b"x" * LONG)

    async def life(spool, rounds):
        for i in range(rounds):
            body = FileBody(str(source), LONG) if i % 4 == 0 else None
            (entry,) = await spool.keep(message(spool.next_token(), body), [b"site"], 0)
            if i % 2:
                spool.release(entry, 0)
            else:
                spool.settle(done(entry))

    from twisted.internet.defer import ensureDeferred

    await gatherResults([ensureDeferred(life(spool, 20)) for spool in spools for _ in range(25)])
    for spool in spools:
        await sleep(0.1)
        assert spool.messages == 250
        claimed = await spool.claim(1, 1000, [])
        bodies = await gatherResults([spool.body(entry) for entry in claimed])
        assert [body.size for body in bodies] == [len(TEXT)] * 250
        for entry in claimed:
            spool.settle(done(entry))
    await gatherResults([spool.stop() for spool in spools])
    assert [spool.messages for spool in spools] == [0] * 4


@pytest.mark.slow
@pytest.mark.limit(60)
async def test_kill(tmp_path, writers, child):
    """Nothing that was acknowledged is lost by kill -9, however often; bodies are whole; nothing is left over."""
    folder = tmp_path / "queue"
    kept = set()
    for lines in (400, 1500, 700):
        process = child(folder)
        for line, _ in zip(process.stdout, range(lines), strict=False):
            word, seq = line.split()
            if word == "kept":
                kept.add(int(seq))
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:  # what it had said before it died
            if line.startswith("kept ") and line.endswith("\n"):
                kept.add(int(line.split()[1]))
        process.wait()

    spool = SQLiteSpool(str(folder), clock=reactor, writers=writers, inline=4096, reserve=0)
    await spool.start()
    found = {}
    while claimed := await spool.claim(2e10, 1000, []):
        for entry in claimed:
            seq = entry.message.envelope.token.seq
            assert seq not in found
            body = await spool.body(entry)
            found[seq] = b"".join(body.chunks())
    assert {seq for seq in kept if seq % 3} <= found.keys()
    for seq, text in found.items():
        assert text == b"%d\r\n" % seq * (500 if seq % 5 == 0 else 50)
    files = [name for _, _, names in os.walk(folder / "mess") for name in names]
    assert len(files) == sum(seq % 5 == 0 for seq in found)
    assert spool.messages == len(found)
    await spool.stop()


async def test_second_opener(tmp_path, writers, child):
    """A second process is told who has the spool, and gets it as soon as the first is dead."""
    folder = tmp_path / "queue"
    first = child(folder)
    assert first.stdout.readline() == "started 0\n"

    second = child(folder, patience=0)
    assert f"held by process {first.pid}" in second.stdout.readline()

    spool = SQLiteSpool(str(folder), clock=reactor, writers=writers, inline=4096, reserve=0)
    started = spool.start()
    await sleep(0.6)
    assert not started.called
    first.kill()
    await started
    await spool.stop()


async def test_io_error(tmp_path, threads, monkeypatch):
    """While the disk fails nothing is acknowledged, and at once; afterwards everything goes on, nothing is lost."""
    vfs = FaultyVFS("faulty-real")
    write = journal.write

    def failing(fd, octets, at):
        if vfs.sync:
            raise OSError(5, "Input/output error")
        return write(fd, octets, at)

    monkeypatch.setattr(journal, "write", failing)
    spool = SQLiteSpool(str(tmp_path / "queue"), clock=reactor, writers=threads, vfs=vfs.name, reserve=0)
    await spool.start()
    kept, refused = set(), 0
    for i in range(300):
        vfs.sync = 50 <= i < 200
        try:
            await spool.keep(message(Token(b"peer", i)), [b"site"], 0)
            kept.add(i)
        except SpoolTrouble:
            refused += 1
        if i == 200:
            await sleep(4)
    assert kept == {*range(50), *range(201, 300)}
    assert refused == 151
    assert spool.messages == len(kept)
    await spool.stop()
    vfs.unregister()
