"""
The proof as pictures: SVG files, their text as text, the same for the same figures.

Matplotlib is needed for this alone, and is loaded only when pictures are wanted.
"""

import os

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from . import figures

OURS, PLAIN, _BAD, _FAULT = "#31688e", "#8a8a8a", "#c0392b", "#f3e3c3"
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "qmq", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
}  # fmt: skip


def style():
    """For all pictures from now on."""
    mpl.rcParams.update(_STYLE)


def draw(done, base, folder):
    """`isolation-p99.svg` and `isolation-time.svg` in *folder*; their paths."""
    os.makedirs(folder, exist_ok=True)
    style()
    bases = [one for one in done if one["fault"] == "base"]
    faults = [one for one in done if one["fault"] != "base"]
    paths = []
    for name, picture in (("p99", bars(bases, faults, base)), ("time", courses(bases, faults))):
        paths.append(path := os.path.join(folder, f"isolation-{name}.svg"))
        picture.savefig(path, metadata={"Date": None})
        plt.close(picture)
    return paths


def bars(bases, faults, base):
    """The p99 of the other 49 under each fault, beside all rounds without one, and what is allowed."""
    picture, axes = plt.subplots(figsize=(7.5, 0.9 + 0.32 * (len(faults) + 1)))
    places = range(len(faults), 0, -1)
    p99 = [one["others"]["p99"] for one in faults]
    colours = [_BAD if figures.verdict(one, base) else OURS for one in faults]
    axes.barh(list(places), p99, color=colours, height=0.6)
    for place, value in zip(places, p99, strict=True):
        axes.text(value, place, f" {value:.1f}", va="center")
    axes.scatter([one["others"]["p99"] for one in bases], [0] * len(bases), color=PLAIN, s=18, zorder=3)
    axes.axvline(base["p99"], color=PLAIN, linewidth=1, linestyle=":")
    axes.axvline(figures.allowed(base), color=_BAD, linewidth=1, linestyle="--")
    axes.text(figures.allowed(base), len(faults) + 0.6, " allowed", color=_BAD, va="bottom", ha="center")
    axes.set_yticks([*places, 0], [*(one["fault"] for one in faults), f"no fault, {len(bases)} rounds"])
    axes.set_xlim(0, 1.15 * max(*p99, figures.allowed(base), *(one["others"]["p99"] for one in bases)))
    axes.set_xlabel("p99 from 250 to delivery of the other 49 instances, ms")
    return picture


def courses(bases, faults):
    """Second by second around each fault: p50 and p99 of the other 49, and the longest wait."""
    shown = [*bases[:1], *faults]
    columns = 3
    rows = -(-len(shown) // columns)
    picture, grid = plt.subplots(rows, columns, figsize=(9, 1.7 * rows + 0.4), sharex=True, sharey=True, squeeze=False)
    for axes, one in zip(grid.flat, shown, strict=False):
        course(axes, one)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    grid.flat[0].legend(loc="upper right", frameon=False, fontsize=7, ncols=3)
    picture.supxlabel("seconds from the fault's beginning", fontsize=9)
    picture.supylabel("from 250 to delivery, ms", fontsize=9)
    return picture


def course(axes, one):
    """One fault."""
    if one["fault"] != "base":
        axes.axvspan(one["time"][0][0] if one["lasting"] else 0, one["seconds"], color=_FAULT, linewidth=0)
    seconds, _, p50, p99, most = zip(*one["time"][:-1], strict=True)  # the last second is not a whole one
    floor = 0.1  # of the axis; a host may have the message before its sender has read the 250
    axes.plot(seconds, [max(floor, v) for v in most], color=PLAIN, linewidth=0.6, label="max")
    axes.plot(seconds, [max(floor, v) for v in p99], color=OURS, linewidth=1.2, label="p99")
    axes.plot(seconds, [max(floor, v) for v in p50], color=OURS, linewidth=0.8, linestyle=":", label="p50")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_title(one["fault"] if one["fault"] != "base" else "no fault", fontsize=9, loc="left")
