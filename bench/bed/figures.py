"""What a round's jobs and receipts mean: waits, refusals, losses, second copies; and the verdict."""

import statistics
from collections import Counter

from .parts import FAULTY

# A fault may cost the others so much of p99 (the greater of the two).
FACTOR, MORE = 1.25, 25.0


def at(waits, part):
    """A quantile of sorted waits, in milliseconds; 0 of none."""
    return 1000 * waits[min(len(waits) - 1, int(part * len(waits)))] if waits else 0.0


def waits(jobs, receipts):
    """From 250 to receipt, sorted; seconds."""
    return sorted(receipts[str(n)][0] - said for n, _, _, _, said, code in jobs if code == "250" and str(n) in receipts)


def quantiles(sorted_):
    """p50, p99 and max, in milliseconds."""
    return {"p50": round(at(sorted_, 0.5), 1), "p99": round(at(sorted_, 0.99), 1), "max": round(at(sorted_, 1), 1)}


def others(jobs, receipts, begin, end):
    """What the other 49 felt of what happened from *begin* to *end*."""
    theirs = [job for job in jobs if job[1] != FAULTY]
    then = [job for job in theirs if begin <= job[2] < end]
    before = [job for job in theirs if job[2] < begin]
    return {
        "messages": len(then),
        **quantiles(waits(then, receipts)),
        "before": quantiles(waits(before, receipts)),
        "accepted": quantiles(sorted(said - due for _, _, due, _, said, code in then if code == "250")),
        "late": quantiles(sorted(sent - due for _, _, due, sent, _, _ in then if sent)),
        "refused": dict(Counter(job[5] for job in theirs if job[5] != "250")),
        **fates([job[0] for job in theirs if job[5] == "250"], [job[0] for job in theirs], receipts),
    }


def faulty(jobs, receipts, preload):
    """What became of its own mail, in the end; the preloaded messages too."""
    its = [job for job in jobs if job[1] == FAULTY]
    old = [f"p{n}" for n in range(preload)]
    return {
        "got": dict(Counter(job[5] for job in its)),
        "preloaded": preload,
        **fates([*(job[0] for job in its if job[5] == "250"), *old], [*(job[0] for job in its), *old], receipts),
    }


def fates(taken, sent, receipts):
    """Of acknowledged messages that never came, and of any that came twice: how many, and some of them."""
    missing = [str(n) for n in taken if str(n) not in receipts]
    double = [str(n) for n in sent if len(receipts.get(str(n), ())) > 1]
    return {
        "acknowledged": len(taken),
        "missing": len(missing), "missing_some": missing[:5],
        "doubled": len(double), "doubled_some": double[:5],
    }  # fmt: skip


def seconds(jobs, receipts, zero):
    """For each second from *zero* on: when, messages, p50, p99, max of the others; by the time of the 250."""
    by_second = {}
    for n, instance, _, _, said, code in jobs:
        if instance != FAULTY and code == "250" and (came := receipts.get(str(n))):
            by_second.setdefault(int((said - zero) // 1), []).append(came[0] - said)
    rows = []
    for second, some in sorted(by_second.items()):
        some.sort()
        rows.append([second, len(some), *(round(at(some, part), 2) for part in (0.5, 0.99, 1))])
    return rows


def median_of(rounds):
    """The base: the median of what the rounds without a fault had."""
    return {key: statistics.median(one["others"][key] for one in rounds) for key in ("p50", "p99", "max")}


def allowed(base):
    """The p99 that a fault may bring the others."""
    return max(FACTOR * base["p99"], base["p99"] + MORE)


def verdict(one, base):
    """What speaks against it; nothing if it is passed."""
    theirs = one["others"]
    against = []
    if theirs["p99"] > allowed(base):
        against.append("p99")
    if theirs["refused"]:
        against.append("refused")
    if theirs["missing"] or one["faulty"]["missing"]:
        against.append("missing")
    if theirs["doubled"]:
        against.append("doubled")
    return against
