"""The loop as a picture: its share of waiting and its slowdown, against the length of a step, for each batch size."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.common.work import ROW_BYTES
from benchmarks.trainer.roster import FLOOR, GRAIN, GRAIN_SHORT, SHARED_MEMORY, TCP, TF_SERVICE, TF_SERVICE_TUNED
from benchmarks.trainer.summary import Cell, Loops, slowdown, waiting

_STYLES = {
    FLOOR: ("#8a8a8a", ":"),
    SHARED_MEMORY: ("#0b3c8c", "-"),
    TCP: ("#1f6feb", "-"),
    TF_SERVICE: ("#c2410c", "-"),
    TF_SERVICE_TUNED: ("#c2410c", ":"),
    GRAIN: ("#16a34a", "-"),
    GRAIN_SHORT: ("#16a34a", ":"),
}
_LEAST = 0.001  # percent; smaller values are drawn here
_TARGET = 1.0


def draw(path: Path, loops: Loops, names: Sequence[str]) -> None:
    sizes = loops.results["sizes"]
    figure, (above, below) = plt.subplots(
        2, len(sizes), figsize=(5.5 * len(sizes), 8), sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for size, upper, lower in zip(sizes, above, below, strict=True):
        _lines(upper, loops, names, size, lambda name, batch, rounds: rounds.spread(waiting, name, batch))
        upper.set_yscale("log")
        upper.yaxis.set_major_formatter("{x:g}")
        upper.axhline(_TARGET, color="#444444", linewidth=0.8, linestyle="--")
        upper.set_title(f"batches of {size * ROW_BYTES / (1 << 20):g} MiB")
        _lines(lower, loops, names, size, slowdown)
        lower.set_xlabel("length of a step, ms")
    above[0].set_ylabel("% of the loop's time spent waiting")
    below[0].set_ylabel("loop by that with data in memory")
    figure.legend(
        *above[0].get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(sizes), frameon=False
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _lines(axes: Axes, loops: Loops, names: Sequence[str], size: int, cell: Cell) -> None:
    steps = loops.results["steps_ms"]
    for name in names:
        points = [(step, here) for step in steps if (here := cell(name, size, loops.at(step)))]
        color, style = _STYLES[name]
        x, y = [step for step, _ in points], [max(_LEAST, here.median) for _, here in points]
        width = 3 if name in (SHARED_MEMORY, TCP) else 1.2
        axes.plot(x, y, label=name, color=color, linestyle=style, linewidth=width, marker="o", markersize=4)
        errors = [[here.median - here.low for _, here in points], [here.high - here.median for _, here in points]]
        axes.errorbar(x, y, errors, fmt="none", ecolor=color, elinewidth=1, alpha=0.5)
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(step) for step in steps])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
