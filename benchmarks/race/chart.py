"""The race as a picture: throughput, and CPU time per GB, against the batch size; limits are dashed."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.race.roster import LIMITS
from benchmarks.race.summary import Measure, Rounds, cpu_per_gigabyte, speed

_OURS = ("#0b3c8c", "#1f6feb", "#0e9aa7", "#7a3fd0", "#5fa8f5")
_THEIRS = ("#c2410c", "#16a34a", "#8a8a8a", "#bdbdbd", "#be185d", "#f09cc0", "#d97706", "#78552b", "#bfa27a", "#4d7c0f")
_MARKERS = "osD^vP*Xh"
_TUNED = ", tuned"  # drawn like the plain form, but dotted


def draw(path: Path, rounds: Rounds, names: Sequence[str], sizes: Sequence[int]) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 8), layout="constrained")
    _panel(left, speed, rounds, names, sizes)
    left.set(title="Throughput, GB/s (higher is better)")
    _panel(right, cpu_per_gigabyte, rounds, names, sizes)
    right.set(title="CPU seconds per GB, client and servers (lower is better)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, measure: Measure, rounds: Rounds, names: Sequence[str], sizes: Sequence[int]) -> None:
    ours = [name for name in names if name.startswith("mixserve")]
    theirs = [name for name in names if name not in ours]
    plain = [name for name in theirs if not name.endswith(_TUNED)]
    for name in [*theirs, *ours]:
        points = [(size, here) for size in sizes if (here := rounds.spread(measure, name, size))]
        x, y = [size for size, _ in points], [here.median for _, here in points]
        if name in ours:
            style = {"color": _OURS[ours.index(name) % len(_OURS)], "linewidth": 3, "markersize": 7, "marker": "o"}
        else:
            index = plain.index(name.removesuffix(_TUNED)) if name.removesuffix(_TUNED) in plain else len(plain)
            style = {"color": _THEIRS[index % len(_THEIRS)], "linewidth": 1.2, "markersize": 5}
            line = "--" if name in LIMITS else ":" if name.endswith(_TUNED) else "-"
            style |= {"marker": _MARKERS[index % len(_MARKERS)], "linestyle": line}
        axes.plot(x, y, label=name, **style)
        errors = [[here.median - here.low for _, here in points], [here.high - here.median for _, here in points]]
        axes.errorbar(x, y, errors, fmt="none", ecolor=style["color"], elinewidth=1, alpha=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("records of 8 KiB in a batch")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
