"""One round: a fresh gateway, the load, a fault in the middle of it, and the end of all that was taken."""

import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from . import figures
from .faults import Fault
from .parts import FAULTY, INSTANCES, NAME, Bed, Load, Sinks, cpu, hurry, machine

# Between them and the fault's begin and end everything is as in the base.
BEFORE, AFTER = 5.0, 10.0
# The number of a round's first message; a multiple of INSTANCES.
STEP = 10_000_000


class Round:
    """What is running; `close` ends it all, whatever has happened."""

    def __init__(self, fault, options, say):
        self.fault, self.options, self.say = fault, options, say
        self.folder = tempfile.mkdtemp(prefix="qmq-bed-")
        self.sinks = self.bed = self.load = None

    def start(self):
        """Hosts, store, gateway."""
        fault, options = self.fault, self.options
        self.sinks = Sinks(self.folder)
        self.bed = Bed(self.sinks, options.root, section=fault.section, primary=fault.primary, extra=fault.extra,
                       workers=options.workers)  # fmt: skip
        for process in (self.sinks.others, self.sinks.faulty):
            hurry(process.pid, options.nice)
        self.say("preparing")
        fault.prepare(self.bed, self.sinks, options)
        self.say("starting")
        self.bed.start(120)
        for pid in (self.bed.process.pid, *self.bed.workers()):
            hurry(pid, options.nice)

    def begin(self, **plan):
        """Open the load's sessions and let it begin; when."""
        self.load = Load(self.folder, port=self.bed.port, **plan)
        hurry(self.load.process.pid, self.options.nice)
        begin = time.monotonic() + 0.2
        self.load.begin(begin)
        return begin

    def close(self):
        """In the order in which nobody waits for anybody."""
        if self.load is not None:
            self.load.close()
        if self.bed is not None:
            try:
                if self.options.keep_log:
                    shutil.copy(self.bed.log, f"{self.options.keep_log}/{self.fault.word}.log")
                self.bed.stop()
            except (AssertionError, OSError):
                pass  # killed
        self.fault.clear()
        if self.bed is not None:
            self.bed.clear()
        if self.sinks is not None:
            self.sinks.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settle(self, seconds, acknowledged, preload):
        """Until all that was acknowledged has arrived, or *seconds* are over; how long it took."""
        began, asked = time.monotonic(), 0.0
        while (now := time.monotonic()) < began + seconds:
            others, its, _ = self.sinks.taken()
            self.say(f"settling: {acknowledged[0] - others} and {acknowledged[1] + preload - its} to come")
            if others >= acknowledged[0] and its >= acknowledged[1] + preload:
                break
            if now - asked > 15:
                self.bed.hasten()
                asked = now
            time.sleep(0.5)
        took = time.monotonic() - began
        time.sleep(1.5)  # second copies
        return took

    def usage(self):
        """Seconds of CPU so far: of each of our processes, and of the whole machine."""
        ours = {"load": cpu(self.load.process.pid), "conductor": cpu(os.getpid())}
        return {"machine": machine(), **ours, **self.sinks.usage(), **self.bed.usage()}

    def queued(self):
        """How many messages each queue holds; what cannot be asked is missing."""
        found = {}
        for path in Path(self.bed.spool, "run").glob("*.control"):
            try:
                with socket.socket(socket.AF_UNIX) as ours:
                    ours.settimeout(5)
                    ours.connect(str(path))
                    ours.sendall(b'{"do": "stat"}\n')
                    for line in ours.makefile("rb"):
                        fact = json.loads(line)
                        if "end" in fact:
                            break
                        found.update({name: queue["queued"] for name, queue in fact.get("queues", {}).items()})
            except OSError:
                continue
        return {name: count for name, count in found.items() if count}


def capacity(options, say, seconds=10.0):
    """Messages a second, end to end, closed loop, flat out: what the hosts took from the third second on."""
    running = Round(Fault(), options, say)
    try:
        running.start()
        say("as fast as it goes")
        begin = running.begin(seconds=seconds, rate=0, sessions=2)
        jobs, _ = running.load.jobs()
        acknowledged = [job for job in jobs if job[5] == "250"]
        its = sum(job[1] == FAULTY for job in acknowledged)
        running.settle(60, (len(acknowledged) - its, its), 0)
        receipts, _ = running.sinks.receipts()
    finally:
        running.close()
    times = [at for came in receipts.values() for at in came]
    span = (begin + 2, begin + seconds)
    return sum(span[0] <= at < span[1] for at in times) / (seconds - 2)


def conduct(fault, options, rate, number, say):
    """A round with that fault; its facts."""
    running = Round(fault, options, say)
    during, after = options.seconds, AFTER if fault.word != "base" else 2.0
    try:
        running.start()
        preload = options.preload if fault.lasting else 0
        say("load")
        begin = running.begin(seconds=BEFORE + during + after, rate=rate, first=number * STEP)
        start, stop = begin + BEFORE, begin + BEFORE + during
        time.sleep(max(0, start - time.monotonic()))
        used = running.usage()
        say(fault.word)
        fault.begin(running.bed, running.sinks)
        while (now := time.monotonic()) < stop:
            fault.keep(running.bed, running.sinks)
            say(f"{fault.word}: {stop - now:.0f} s more")
            time.sleep(0.1)
        using = running.usage()
        fault.end(running.bed, running.sinks)
        say("after it")
        jobs, sessions = running.load.jobs()
        its = sum(job[5] == "250" and job[1] == FAULTY for job in jobs)
        theirs = sum(job[5] == "250" and job[1] != FAULTY for job in jobs)
        settled = running.settle(options.settle, (theirs, its), preload)
        receipts, bounced = running.sinks.receipts()
        facts = {
            "fault": fault.word, "what": fault.what, "rate": round(rate, 1), "seconds": during, "instances": INSTANCES,
            "faulty_instance": NAME, "lasting": fault.lasting, "others": figures.others(jobs, receipts, start, stop),
            "faulty": figures.faulty(jobs, receipts, preload), "bounced": len(bounced), "settled": round(settled, 1),
            "queued": running.queued(), "sessions": sessions,
            "cpu": spent(used, using, during),
            "time": figures.seconds(jobs, receipts, start),
        }  # fmt: skip
    finally:
        running.close()
    return facts


def spent(before, after, seconds):
    """
    Cores kept busy by each process; "elsewhere" is what was neither ours nor idle.

    A worker that took another's place is counted from its start; what one that is gone had used is elsewhere.
    """
    busy = {name: round(max(0.0, used - before.get(name, 0)) / seconds, 3) for name, used in after.items()}
    whole = busy.pop("machine")
    return {**busy, "elsewhere": round(max(0.0, whole - sum(busy.values())), 3)}
