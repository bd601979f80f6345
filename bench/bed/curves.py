"""`bench/growth` as one picture of six panels; needs matplotlib."""

import os

from matplotlib import pyplot as plt

from .pictures import OURS, PLAIN, style

TITLES = {
    "depth": "messages in the queue",
    "instances": "instances in one configuration",
    "recipients": "recipients of a message",
    "size": "octets of a message",
    "sessions": "open sessions",
    "destinations": "domains of one instance",
}
_LINES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D")
_ROOM = 1.3  # above the curves, for their names


def draw(rows, folder):
    """`growth.svg` in *folder*; its path."""
    os.makedirs(folder, exist_ok=True)
    style()
    words = [word for word in TITLES if any(row["axis"] == word for row in rows)]
    columns = min(3, len(words))
    lines = -(-len(words) // columns)
    picture, grid = plt.subplots(lines, columns, figsize=(3.6 * columns, 2.7 * lines + 0.2), squeeze=False)
    for axes, word in zip(grid.flat, words, strict=False):
        panel(axes, word, curves([row for row in rows if row["axis"] == word]))
    for axes in grid.flat[len(words) :]:
        axes.set_visible(False)
    picture.supylabel("CPU a message, to that of the base (blue); memory, MB (grey)", fontsize=9)
    path = os.path.join(folder, "growth.svg")
    picture.savefig(path, metadata={"Date": None})
    plt.close(picture)
    return path


def curves(rows):
    """(label, values, costs to the base, MB) of each series; also by recipient and by 4 kB, where those grow."""
    found = []
    for series in dict.fromkeys(row["series"] for row in rows):
        own = [row for row in rows if row["series"] == series]
        values = [row["value"] for row in own]
        costs, memory = [row["cpu_ratio"] for row in own], [row["memory"] / 1e6 for row in own]
        found.append((series or "a message", values, costs, memory))
        unit = {"recipients": ("a recipient", 1), "size": ("each 4 kB", 4096)}.get(own[0]["axis"])
        if unit:
            each = [cost * unit[1] / value for cost, value in zip(costs, values, strict=True)]
            found.append((unit[0], values, each, None))
    return found


def panel(axes, word, lines):
    """One axis."""
    beside = axes.twinx()
    beside.spines["right"].set_visible(True)
    for number, (label, values, costs, memory) in enumerate(lines):
        look = {"linestyle": _LINES[number % 4], "marker": _MARKS[number % 4], "markersize": 3}
        places = [max(0.5, value) for value in values]  # a scale of powers of ten has no 0
        axes.plot(places, costs, color=OURS, linewidth=1.3, label=label, **look)
        if memory:
            beside.plot(places, memory, color=PLAIN, linewidth=0.7, **look)
    axes.set_xscale("log")
    axes.minorticks_off()
    if max(max(costs) for _, _, costs, _ in lines) > 10:
        axes.set_yscale("log")
        axes.minorticks_off()
    else:
        axes.axhline(1, color=PLAIN, linewidth=0.5, linestyle=":")
        axes.set_ylim(0, _ROOM * max(max(costs) for _, _, costs, _ in lines))
    beside.set_ylim(0, _ROOM * max(max(memory) for _, _, _, memory in lines if memory))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(TITLES[word])
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7, loc="best")
