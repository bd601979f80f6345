"""What `bench/speed` does: one run of a target in a scenario, and what many runs say together."""

import os
import shutil
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace

from . import cpu
from .load import Sink, Source, counted, joined


@dataclass(frozen=True)
class Scenario:
    """A load; *messages* are for a target of pace 1."""

    word: str
    what: str
    messages: int
    octets: int = 4096
    per_connection: int = 0
    sessions: int = 40
    rate: float = 0.0  # messages a second; 0: as fast as they are taken


SCENARIOS = {
    one.word: one
    for one in (
        Scenario("many", "4 kB, connections kept", 2000),
        Scenario("one", "4 kB, a connection each", 1500, per_connection=1),
        Scenario("big", "64 kB, connections kept", 600, octets=65536),
        Scenario("latency", "4 kB, 100 a second by the clock", 1000, rate=100),
    )
}
# A connection that was opened for nothing but a greeting, processes that start: over by then.
_REST = 1.0
# In which second copies would come.
_AFTER = 0.5


# A message: fewer are the file system's own, every five seconds.
_SYNCS = 0.005


def scaled(scenario, pace, quick):
    """The scenario for a target that is so much faster; by the clock it is the same for all."""
    part = 0.25 if quick else 1
    return replace(scenario, messages=max(100, round(scenario.messages * part * (1 if scenario.rate else pace))))


def free_port():
    """One that nobody has now."""
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        return ours.getsockname()[1]


def _load(to, scenario, limit):
    return Source(
        to=to, messages=scenario.messages, sessions=scenario.sessions, octets=scenario.octets,
        per_connection=scenario.per_connection, rate=scenario.rate, seconds=limit,
    )  # fmt: skip


def direct(scenario, limit=120.0):
    """Source to sink with nothing between: what the load itself can do here."""
    sink = Sink(recipients=scenario.messages, seconds=limit + 30)
    with sink, _load(sink.addresses[0], scenario, limit) as source:
        source.wait()
        sink.settle(source.head().accepted)
        found = counted(joined(source, sink), source.head().failed)
    return {"target": "direct", "scenario": scenario.word, "messages": scenario.messages, **asdict(found)}


def relayed(kind, settings, scenario, spool, say, limit=240.0, stall=20.0):
    """
    One run of a target: its figures, and what it cost a message.

    A sink and the target are started afresh, and ended. Raises Unavailable if the target cannot be had.
    """
    folder = tempfile.mkdtemp(prefix=f"{kind.word}-", dir=spool)
    os.chmod(folder, 0o755)
    processes = cpu.tree()
    try:
        with Sink(recipients=scenario.messages, seconds=limit + 300) as sink:
            host, _, port = sink.addresses[0].rpartition(":")
            target = kind(folder, free_port(), [("ok.test", host, int(port))], **settings)
            say("starting")
            target.start(processes)
            processes.sample()
            time.sleep(_REST)
            used, device = processes.cpu(), cpu.device(target.spool)
            with _load(f"127.0.0.1:{target.port}", scenario, limit) as source:
                source.wait(say=lambda accepted: say(f"{accepted} accepted"))
                accepted = source.head().accepted
                sink.settle(accepted, stall, limit, lambda delivered: say(f"{accepted - delivered} to deliver"))
                spent, wrote = processes.cpu() - used, cpu.device(target.spool)
                time.sleep(_AFTER)
                found = counted(joined(source, sink), source.head().failed)
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)
    n = scenario.messages
    return {
        "target": kind.word, "scenario": scenario.word, "messages": n, **asdict(found),
        "cpu": round(1e6 * spent / n, 1), "memory": processes.peak,
        "flushes": round((wrote.flushes - device.flushes) / n, 4) if device else None,
        "written": round((wrote.octets - device.octets) / n) if device else None,
    }  # fmt: skip


_MEDIANS = ("accept", "through", "p50", "p99", "due50", "due99", "cpu", "memory", "flushes", "written")
_SUMS = ("lost", "doubled", "failed")


def summary(runs, first):
    """
    For each target, in order: medians over its runs, sums of what went wrong, ratios to the target *first*.

    A ratio is the median of the ratios of runs that stood side by side: what drifts, drifts for both.
    """
    rows = []
    beside = {run["rep"]: run for run in runs if run["label"] == first}
    for label in dict.fromkeys(run["label"] for run in runs):
        own = [run for run in runs if run["label"] == label]
        row = {"target": label, "runs": len(own)}
        for name in _MEDIANS:
            values = [run[name] for run in own if run.get(name) is not None]
            row[name] = statistics.median(values) if values else None
        row |= {name: sum(run[name] for run in own) for name in _SUMS}
        for name in ("accept", "through", "cpu"):
            ratios = [
                run[name] / beside[run["rep"]][name]
                for run in own
                if run.get(name) is not None and run["rep"] in beside and beside[run["rep"]].get(name)
            ]
            row[f"{name}_ratio"] = statistics.median(ratios) if ratios else None
        rows.append(row)
    return rows


def named(row):
    """A row's target; one that waits for no disk is marked, for it is not to be compared with the others."""
    return row["target"] + (" (no syncs)" if row["flushes"] is not None and row["flushes"] < _SYNCS else "")
