"""Waiting by how busy replicas are, and the cost of a fleet by its size, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.fleet.sizing import SIZES, WORKLOADS

_COLORS = ("#0b3c8c", "#0e9aa7", "#c2410c", "#7a3fd0")
Rows = Sequence[Mapping[str, Any]]


def draw(path: Path, load: Rows, replicas: Rows) -> None:
    """Write a PNG with both pictures."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for color, nic in zip(_COLORS, sorted({row["nic"] for row in load}), strict=False):
        rows = [row for row in load if row["nic"] == nic]
        shares = [row["load"] for row in rows]
        left.plot(
            shares, [100 * row["wait_share"] for row in rows], "o-", color=color, label=f"{nic:g} Gbit/s", markersize=4
        )
    left.axvline(1, color="#8a8a8a", linewidth=0.8, linestyle="--")
    left.set(title="Images: percent of its time that the job waits", xlabel="what is asked for, by what cards give")
    left.legend(frameon=False)
    for color, workload in zip(_COLORS, WORKLOADS, strict=False):
        (row,) = [one for one in replicas if one["workload"] == workload.name and one["nic"] == 100]
        both = [row[str(size)] for size in SIZES]
        right.plot(SIZES, [cell["by_bytes"] for cell in both], "o-", color=color, label=workload.name, markersize=4)
    channels = [max(1, cell["by_channels"]) for cell in both]
    right.plot(SIZES, channels, ":", color="#8a8a8a", label="for bulk channels")
    right.set(title="Replicas of 100 Gbit/s", xlabel="accelerators", xscale="log", yscale="log")
    right.yaxis.set_major_formatter("{x:g}")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=90)
    plt.close(figure)
