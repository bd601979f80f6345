"""`bench/speed` as pictures: SVG files in the style of the isolation's; needs matplotlib."""

import os

from matplotlib import pyplot as plt

from .pictures import OURS, PLAIN, style
from .speeds import named

_PANELS = (
    ("through", "end to end, messages a second"),
    ("accept", "accepted, messages a second"),
    ("cpu", "CPU, µs a message"),
)


def draw(scenario, rows, folder):
    """`speed-SCENARIO.svg` in *folder*, of a summary's rows; its path."""
    os.makedirs(folder, exist_ok=True)
    style()
    rows = [row for row in rows if row["target"] != "direct"]  # the load itself
    picture = waits(rows) if scenario.rate else bars(rows)
    path = os.path.join(folder, f"speed-{scenario.word}.svg")
    picture.savefig(path, metadata={"Date": None})
    plt.close(picture)
    return path


def _bars(axes, names, values, label, ratios=None):
    places = range(len(names), 0, -1)
    colours = [OURS if name.startswith("qmq") else PLAIN for name in names]
    axes.barh(list(places), values, color=colours, height=0.6)
    for place, value, ratio in zip(places, values, ratios or [None] * len(values), strict=True):
        axes.text(value, place, f" {value:,.0f}" + (f" ({ratio:.2g}x)" if ratio else ""), va="center", fontsize=8)
    axes.set_yticks(list(places), names)
    axes.set_xlim(0, 1.45 * max([*values, 1e-9]))
    axes.set_xlabel(label)


def bars(rows):
    """Rates and CPU of each target, with their ratios to the first."""
    picture, grid = plt.subplots(1, len(_PANELS), figsize=(10, 0.8 + 0.36 * len(rows)), sharey=True)
    names = [named(row) for row in rows]
    for axes, (key, label) in zip(grid, _PANELS, strict=True):
        _bars(axes, names, [row[key] or 0 for row in rows], label, [row[f"{key}_ratio"] for row in rows])
    return picture


def waits(rows):
    """From 250 to delivery of each target: p50 and p99, at least 0.1 ms, on a scale of powers of ten."""
    picture, axes = plt.subplots(figsize=(7.5, 0.9 + 0.36 * len(rows)))
    for place, row in zip(range(len(rows), 0, -1), rows, strict=True):
        p50, p99 = (max(0.1, 1000 * row[key]) for key in ("p50", "p99"))
        colour = OURS if row["target"].startswith("qmq") else PLAIN
        axes.plot([p50, p99], [place, place], color=colour, linewidth=2)
        axes.scatter([p50], [place], color=colour, s=22, facecolors="white", zorder=3)
        axes.scatter([p99], [place], color=colour, s=22, zorder=3)
        axes.text(p99, place, f"  {p50:,.1f}, {p99:,.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows), 0, -1), [named(row) for row in rows])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.25, y=0.2)
    axes.set_xlabel("from 250 to delivery, p50 (open) and p99 (full), ms")
    return picture
