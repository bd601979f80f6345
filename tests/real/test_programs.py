"""Programs that are run for real: what they are given, what they answer, how they end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import defer, task

from qmq.programs import Programs, ProgramTrouble, executable


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """A shell script of this text."""

    def made(text: str, name: str = "script") -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return made


def programs(**limits: int) -> Programs:
    from twisted.internet import reactor

    return Programs(reactor, **limits)


def alive(pid: int) -> bool:
    """Whether there is such a process, and no mere zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(true: Callable[[], object], seconds: float = 5) -> None:
    from twisted.internet import reactor

    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        await task.deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_exit_codes(script: Callable[..., str]) -> None:
    """The exit code is the program's own, from 0 to 255."""
    path = script('exit "$1"')
    runner = programs()

    codes = [await runner.run([path, str(code)], {}, {}, 10) for code in (0, 1, 31, 111, 255)]

    assert codes == [0, 1, 31, 111, 255]
    assert runner.running == 0


@pytest_twisted.ensureDeferred
async def test_descriptors(script: Callable[..., str], tmp_path: Path) -> None:
    """Each feed is read on its descriptor to its end; what is not fed is empty; there is no other descriptor."""
    out = tmp_path / "out"
    feeds = {3: b"bob@one.test\0\0\0", 4: [b"a", b"", b"b"]}
    runner = programs()

    await runner.run([script(f"(cat <&3; echo; cat; cat <&4) >{out}")], feeds, {}, 10)
    given = out.read_bytes()
    await runner.run([script(f"exec ls /proc/self/fd >{out}")], feeds, {}, 10)

    assert given == b"bob@one.test\0\0\0\nab"
    assert out.read_text().split() == ["0", "1", "2", "3", "4", "5"]  # the last is where ls itself reads


@pytest_twisted.ensureDeferred
async def test_environment(script: Callable[..., str], tmp_path: Path) -> None:
    """A program sees the environment that it was given, and not ours."""
    out = tmp_path / "out"

    await programs().run(["/usr/bin/env"], {}, {"A": "b"}, 10)
    await programs().run([script(f"/usr/bin/env >{out}")], {}, {"TCPREMOTEIP": "192.0.2.1"}, 10)

    names = {line.partition("=")[0] for line in out.read_text().splitlines()}
    assert names <= {"TCPREMOTEIP", "PWD", "SHLVL", "_", "OLDPWD"}


@pytest_twisted.ensureDeferred
async def test_long_feed(script: Callable[..., str], tmp_path: Path) -> None:
    """A long message is read from its source no faster than the program reads it, and arrives whole."""
    out, go = tmp_path / "out", tmp_path / "go"
    path = script(f"while [ ! -e {go} ]; do sleep 0.02; done; wc -c >{out}")
    given = []

    def pieces() -> Iterator[bytes]:
        for _ in range(200):
            given.append(1)
            yield b"x" * 65536

    running = programs().run([path], {0: pieces()}, {}, 10)
    await until(lambda: given)
    held = len(given)
    go.touch()

    assert await running == 0
    assert held < 10
    assert int(out.read_text()) == 200 * 65536


@pytest_twisted.ensureDeferred
async def test_closes_early(script: Callable[..., str]) -> None:
    """A program that does not read what it is given has its say all the same."""
    code = await programs().run(
        [script("exec 0<&-; exec 3<&-; sleep 0.05; exit 7")], {0: b"x" * 999999, 3: b"a"}, {}, 10
    )

    assert code == 7


@pytest_twisted.ensureDeferred
async def test_source_breaks(script: Callable[..., str]) -> None:
    """If what it is to be given cannot be read the program is ended; half a message is no message."""

    def pieces() -> Iterator[bytes]:
        yield b"x"
        raise OSError("disk")

    with pytest.raises(ProgramTrouble, match="disk"):
        await programs().run([script("cat >/dev/null; exit 0")], {0: pieces()}, {}, 10)


@pytest_twisted.ensureDeferred
async def test_stderr(script: Callable[..., str]) -> None:
    """Of standard error the first KB is kept, however much comes."""
    code = await programs().run([script("echo oops >&2; head -c 1000000 /dev/zero >&2; exit 3")], {}, {}, 10)

    assert code == 3
    assert code.stderr.startswith(b"oops\n\0")
    assert len(code.stderr) == 1024


@pytest_twisted.ensureDeferred
async def test_time(script: Callable[..., str], tmp_path: Path) -> None:
    """When its time is over a program is killed, with all that it has started, even if it holds its descriptors."""
    pids = tmp_path / "pids"
    path = script(f"trap '' TERM; sleep 60 & echo $$ $! >{pids}; echo why >&2; cat; sleep 60")
    runner = programs()

    with pytest.raises(ProgramTrouble, match=r"longer than 0\.3 s") as trouble:
        await runner.run([path], {}, {}, 0.3)

    assert trouble.value.stderr == b"why\n"
    await until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))
    await until(lambda: runner.running == 0)


@pytest_twisted.ensureDeferred
async def test_cancel(script: Callable[..., str], tmp_path: Path) -> None:
    """If nobody waits for the answer any more the program is killed."""
    pids = tmp_path / "pids"
    runner = programs()

    running = runner.run([script(f"echo $$ >{pids}.new; mv {pids}.new {pids}; sleep 60")], {3: b"x"}, {}, 10)
    await until(pids.exists)
    running.cancel()

    with pytest.raises(defer.CancelledError):
        await running
    await until(lambda: not alive(int(pids.read_text())))
    await until(lambda: runner.running == 0)


@pytest_twisted.ensureDeferred
async def test_signal(script: Callable[..., str]) -> None:
    """A program that is ended by a signal has no exit code."""
    with pytest.raises(ProgramTrouble, match=f"signal {signal.SIGSEGV.value}"):
        await programs().run([script("echo bad >&2; kill -SEGV $$")], {}, {}, 10)


@pytest_twisted.ensureDeferred
async def test_daemon(script: Callable[..., str]) -> None:
    """What a program leaves running, with its descriptors open, does not hold its answer back for long."""
    began = time.monotonic()

    code = await programs().run([script("sleep 5 <&3 & exit 4")], {3: b"x" * 999999}, {}, 10)

    assert code == 4
    assert time.monotonic() - began < 3


@pytest_twisted.ensureDeferred
async def test_cannot_be_run(tmp_path: Path) -> None:
    """What cannot be executed fails; it is never mistaken for a program that said 1."""
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "nobody").write_text("#!/nonexistent/interpreter\n")
    (tmp_path / "nobody").chmod(0o755)
    runner = programs()

    for name in ("absent", "plain", "nobody", "."):
        with pytest.raises(ProgramTrouble, match="cannot run"):
            await runner.run([str(tmp_path / name)], {3: b"x"}, {}, 10)

    assert runner.running == 0


@pytest_twisted.ensureDeferred
async def test_no_descriptor_leaks(script: Callable[..., str]) -> None:
    """Whatever becomes of a program, we keep no descriptor of it."""
    good, bad = script("exit 0"), "/nonexistent/program"
    runner = programs()
    await runner.run([good], {3: b"x"}, {}, 10)
    before = len(os.listdir("/proc/self/fd"))

    for path in [good, bad] * 5:
        with contextlib.suppress(ProgramTrouble):
            await runner.run([path], {3: b"x", 4: [b"y"]}, {}, 10)

    assert len(os.listdir("/proc/self/fd")) == before


@pytest_twisted.ensureDeferred
async def test_many(script: Callable[..., str], tmp_path: Path) -> None:
    """Forty wishes with room for four run four at a time, and all are answered."""
    path = script(f"touch {tmp_path}/r.$$; ls {tmp_path} | grep -c '^r' >>{tmp_path}/counts; rm {tmp_path}/r.$$")
    runner = programs(at_once=4)

    answers = await defer.gatherResults([runner.run([path], {3: b"x"}, {}, 20) for _ in range(40)])

    assert answers == [0] * 40
    counts = [int(line) for line in (tmp_path / "counts").read_text().split()]
    assert len(counts) == 40
    assert max(counts) <= 4


def test_executable(tmp_path: Path) -> None:
    """A program is found in PATH or from a folder on; what is none is refused with its path."""
    (tmp_path / "plain").write_text("")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ok").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "ok").chmod(0o755)

    assert executable("sh").endswith("/sh")
    assert executable("bin/ok", str(tmp_path)) == str(tmp_path / "bin" / "ok")
    for name in ("bin/absent", "./bin", "/nonexistent", "no-such-program-anywhere"):
        with pytest.raises(ValueError, match=name.removeprefix("./")):
            executable(name, str(tmp_path))
