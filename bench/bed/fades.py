"""`bench/dead-domains` as pictures: a panel for each way of being dead, a line for each target; needs matplotlib."""

import os

from matplotlib import pyplot as plt

from .pictures import OURS, PLAIN, style

_LOOK = {
    "qmq": {"color": OURS, "linewidth": 1.8}, "qmq-one": {"color": OURS, "linewidth": 1.2, "linestyle": "--"},
    "postfix": {"color": "#c0392b"}, "opensmtpd": {"color": "#b8860b"}, "exim": {"color": "#6b8e23"},
    "haraka": {"color": "#8e44ad"},
}  # fmt: skip
_FLOOR = 0.5  # ms, of the axis


def draw(rows, name, folder):
    """The picture of that name in *folder*, of rows of one load and one number of dead domains; its path."""
    os.makedirs(folder, exist_ok=True)
    style()
    ways = list(dict.fromkeys(row["way"] for row in rows if row["way"]))
    shown = {"sharex": True, "sharey": "row", "squeeze": False}
    picture, grid = plt.subplots(2, len(ways), figsize=(2.4 * len(ways) + 0.6, 4.6), **shown)
    for (top, bottom), way in zip(grid.T, ways, strict=True):
        for row in (row for row in rows if row["way"] == way):
            look = {"linewidth": 1, "color": PLAIN} | _LOOK.get(row["target"], {})
            top.plot(*by_span(row["came"]), label=row["target"], **look)
            seconds, _, _, _, p99 = zip(*row["time"], strict=True) if row["time"] else [[]] * 5
            bottom.plot(seconds, [max(_FLOOR, 1e3 * value) for value in p99], **look)
        top.set_title(way, fontsize=9, loc="left")
        top.set_ylim(0, 1.2 * max(row["offered"] for row in rows))
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.minorticks_off()
    grid[0][0].set_ylabel("healthy deliveries a second")
    grid[1][0].set_ylabel("p99 from 250 to delivery, ms")
    picture.supxlabel("seconds", fontsize=9)
    picture.legend(*grid[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False)
    path = os.path.join(folder, f"{name}.svg")
    picture.savefig(path, metadata={"Date": None})
    plt.close(picture)
    return path


def by_span(came):
    """Deliveries a second over spans of a thirtieth of the time: (middles, rates)."""
    width = max(1, len(came) // 30)
    spans = [came[at : at + width] for at in range(0, len(came), width)]
    return [(at + 0.5) * width for at in range(len(spans))], [sum(span) / len(span) for span in spans]
