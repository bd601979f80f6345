"""What `bench/growth` does with a point: its loads beside the base's, round by round; and what that says."""

import statistics
import time
from contextlib import contextmanager
from dataclasses import asdict, replace

from .axes import BASE
from .side import Side

# No further round of a load is begun after so many seconds.
_LONG = 15.0
# Files a round: a few for each side are enough to know each way.
WARM = 0.25


@contextmanager
def base_side(place, settings, say):
    """The gateway to which all points of an axis are compared; the first messages after its start do not count."""
    with Side(place, BASE.sections, hosts=BASE.sinks, settings=settings) as side:
        side.start(say)
        side.run(warm(BASE.loads[0][1]))
        yield side


def warm(load):
    """A part of the load, before it counts."""
    return replace(load, messages=max(2, int(load.messages * WARM)))


def measure(point, base, load, place, settings, rounds, say):
    """The rows of a point, one for each of its loads; *load* is the base's."""
    side = Side(place, point.sections, hosts=point.sinks, primary=point.primary, queue=point.queue, settings=settings)
    rows = []
    with side:
        side.start(say)
        opened = side.open(point.idle) if point.idle else None
        for series, own in point.loads:
            say(f"{series or own.messages} warming up")
            side.run(warm(own))
            pairs, began = [], time.monotonic()
            while len(pairs) < rounds and (not pairs or time.monotonic() - began < _LONG):
                say(f"{series} {len(pairs) + 1}/{rounds}".strip())
                first = base.run(load), side.run(own)
                pairs.append(((load, *first[0]), (own, *first[1])))
            rows.append({
                "axis": point.axis, "series": series, "value": point.value, **compared(pairs),
                "start": round(side.started, 2), "filled": round(side.filled, 1), "idle": round(side.idle, 4),
                "rest": side.rest, "opened": opened, "memory": side.memory, "base_rest": base.rest,
                "base_memory": base.memory, "load": {**asdict(own), "domains": len(own.domains)},
            })  # fmt: skip
        doubled = side.close()
    rows[-1]["doubled"] = max(rows[-1]["doubled"], doubled - sum(row["doubled"] for row in rows[:-1]))
    return rows


def compared(pairs):
    """
    Of rounds of base and point, (load, figures, CPU in seconds) each: medians, and medians of ratios.

    *cpu* is in microseconds a message, *rate* in messages a second from the first to the last delivery.
    """
    base = [told(*one) for one, _ in pairs]
    own = [told(*one) for _, one in pairs]
    row = {key: statistics.median(one[key] for one in own) for key in ("cpu", "rate", "p50", "p99")}
    row |= {f"base_{key}": statistics.median(one[key] for one in base) for key in ("cpu", "rate", "p50", "p99")}
    for key in ("cpu", "rate"):
        row[f"{key}_ratio"] = statistics.median(
            mine[key] / theirs[key] if theirs[key] else 0.0 for mine, theirs in zip(own, base, strict=True)
        )
    for key in ("lost", "doubled", "failed"):
        row[key] = sum(one[key] for one in own)
    row["base_wrong"] = sum(one["lost"] + one["doubled"] for one in base)
    return row | {"rounds": len(pairs)}


def told(load, found, spent):
    """One round in plain numbers."""
    return {
        "cpu": 1e6 * spent / load.messages, "rate": found.through / load.recipients, "p50": found.p50, "p99": found.p99,
        "lost": found.lost, "doubled": found.doubled, "failed": found.failed,
    }  # fmt: skip


def goals(rows):
    """What is to hold: (words, figure, whether it does), of those of which there are figures."""
    at = {(row["axis"], row["series"], row["value"]): row for row in rows}
    found = []

    def judge(words, figure, most, unit=""):
        found.append((words, f"{figure:,.2f}{unit}", figure <= most))

    for series in ("deferred", "due, host dead"):
        deep, shallow = at.get(("depth", series, 1_000_000)), at.get(("depth", series, 1000))
        if deep and shallow:
            judge(f"CPU a message at 1,000,000 ({series}), to that at 1,000: at most 1.3",
                  deep["cpu_ratio"] / shallow["cpu_ratio"], 1.3)  # fmt: skip
            judge(f"memory at 1,000,000 ({series}): at most 400 MB", deep["memory"] / 1e6, 400, " MB")
    many, one = at.get(("instances", "to 1", 1000)), at.get(("instances", "to 1", 1))
    if many and one:
        judge("memory of each of 1,000 instances at rest: at most 300 kB",
              (many["rest"] - one["rest"]) / 999e3, 300, " kB")  # fmt: skip
        judge("start with 1,000 instances: at most 10 s", many["start"], 10, " s")
        if used := at.get(("instances", "to all", 1000)):
            judge("memory of each of 1,000 instances at work: at most 300 kB",
                  (used["memory"] - one["memory"]) / 999e3, 300, " kB")  # fmt: skip
    for series in ("to 1", "to 10"):
        many, ten = at.get(("instances", series, 1000)), at.get(("instances", series, 10))
        if many and ten:
            found.append(rate_goal(series, many["rate_ratio"] / ten["rate_ratio"]))
    wrong = sum(row["lost"] + row["doubled"] + row["base_wrong"] for row in rows)
    found.append(("nothing lost, nothing doubled", str(wrong), not wrong))
    return found


def rate_goal(series, ratio):
    """Traffic to some of many instances."""
    return (f"rate with 1,000 instances, traffic {series}, to that with 10: at least 0.8", f"{ratio:.2f}", ratio >= 0.8)
