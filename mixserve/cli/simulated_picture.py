"""A simulated mixture -> a picture of shares and passes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mixserve.cli.simulation import Simulated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN_APART, _MOST_BORDERS = 9, 40
_COLOURS = (
    "#2166ac",
    "#d6604d",
    "#4d9221",
    "#762a83",
    "#e08214",
    "#01858b",
    "#b8447e",
    "#7a5230",
    "#8c9a1a",
    "#777777",
)


def draw(path: Path, simulated: Simulated) -> None:
    """Draw shares and passes per source, and the shares along the positions, to a .png file."""
    from matplotlib.figure import Figure

    series = _series(simulated)
    figure = Figure(figsize=(14, max(6.0, 2.8 + 0.62 * len(series))), layout="constrained")
    title = f"{simulated.name}: the first {simulated.size:,} positions".replace("$", r"\$")
    figure.suptitle(title, fontsize=13, x=0.01, ha="left")
    panels = figure.subplot_mosaic([["shares", "windows"], ["passes", "windows"]], width_ratios=[1, 1.55])
    _draw_shares(panels["shares"], series, simulated.size)
    _draw_passes(panels["passes"], series)
    _draw_windows(panels["windows"], series, simulated)
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class _Series:
    """One colour of the picture: a leaf, or all small leaves together."""

    name: str
    colour: str
    length: int
    rows: np.ndarray  # by window
    shares: np.ndarray | None  # by entry
    requested: float | None

    @property
    def count(self) -> int:
        return int(self.rows.sum())


def _series(simulated: Simulated) -> list[_Series]:
    """The leaves in their order. If there are many: the largest ones, then all others as one."""
    order = np.argsort(-np.array(simulated.counts), kind="stable").tolist()
    apart = sorted(order if len(order) <= len(_COLOURS) else order[:_DRAWN_APART])
    groups = [[place] for place in apart]
    if len(apart) < len(order):
        groups.append(order[_DRAWN_APART:])
    found: list[_Series] = []
    for group, colour in zip(groups, _COLOURS, strict=False):
        leaves = [simulated.leaves[place] for place in group]
        shares = [leaf.shares for leaf in leaves if leaf.shares is not None]
        known = len(shares) == len(leaves)
        name = leaves[0].name if len(leaves) == 1 else f"{len(leaves):,} others"
        found.append(
            _Series(
                name=_short(name),
                colour=colour,
                length=max(1, sum(leaf.length for leaf in leaves)),
                rows=simulated.rows[:, group].sum(axis=1),
                shares=np.sum(shares, axis=0) if known else None,
                requested=sum(simulated.requested(leaf) or 0.0 for leaf in leaves) if known else None,
            )
        )
    return found


def _short(name: str) -> str:
    """The name for matplotlib: short enough for a label, and $ escaped, which would begin a formula."""
    return (name if len(name) <= 24 else f"{name[:10]}…{name[-13:]}").replace("$", r"\$")


def _draw_shares(axes: "Axes", series: list[_Series], size: int) -> None:
    places = np.arange(len(series))
    realised = [one.count / size for one in series]
    axes.barh(places - 0.2, [one.requested or 0.0 for one in series], 0.36, color="#c4c4c4", label="requested")
    axes.barh(places + 0.2, realised, 0.36, color=[one.colour for one in series], label="realised")
    for place, (one, share) in enumerate(zip(series, realised, strict=True)):
        if one.requested is not None:
            axes.annotate(
                f" {one.requested:.2%}", (one.requested, place - 0.2), va="center", fontsize=8, color="#555555"
            )
        axes.annotate(f" {share:.2%}", (share, place + 0.2), va="center", fontsize=8)
    _name_rows(axes, series)
    axes.margins(x=0.16)
    _in_percent(axes.xaxis)
    axes.set_title("Share of the rows: requested (grey) and realised", loc="left", fontsize=10)


def _draw_passes(axes: "Axes", series: list[_Series]) -> None:
    passes = [one.count / one.length for one in series]
    shown = [value for value in passes if value > 0]
    least, most = min(*shown, 1.0) / 2, max(*shown, 1.0)
    if max(shown) > 30 * min(shown):
        axes.set_xscale("log")
        axes.set_xlim(least, most * (most / least) ** 0.6)
    else:
        least = 0.0
        axes.set_xlim(least, most * 1.5)
    axes.axvline(1, color="#333333", linewidth=1, linestyle="--")
    axes.barh(np.arange(len(series)), passes, 0.6, color=[one.colour for one in series])
    for place, (one, value) in enumerate(zip(series, passes, strict=True)):
        number = f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
        text = axes.annotate(
            f"{number} passes, {one.length:,} records",
            (max(value, least), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6})
    _name_rows(axes, series)
    axes.set_title("Passes over each source (dashed: one)", loc="left", fontsize=10)


def _draw_windows(axes: "Axes", series: list[_Series], simulated: Simulated) -> None:
    from matplotlib.ticker import MaxNLocator

    borders, entries = simulated.borders, simulated.entries
    inner = [start for start, _ in simulated.entries[1:]]
    for border in inner if len(inner) <= _MOST_BORDERS else []:
        axes.axvline(border, color="#999999", linewidth=0.9, linestyle=":")
    steps = [start for start, _ in entries] + [entries[-1][1]]
    most = 0.0
    for one in series:
        if one.shares is not None:
            axes.stairs(one.shares, steps, baseline=None, color=one.colour, linewidth=1.2, alpha=0.7)
            most = max(most, float(one.shares.max()))
        realised = one.rows / np.diff(borders)
        most = max(most, float(realised.max()))
        middles = (borders[:-1] + borders[1:]) / 2
        axes.plot(middles, realised, color=one.colour, linestyle="", marker="o", markersize=3.5, label=one.name)
    axes.set_xlim(0, simulated.size)
    axes.set_ylim(0, min(1.02, most * 1.08))
    _in_percent(axes.yaxis)
    axes.grid(axis="y", color="#e6e6e6")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set_xlabel("position")
    title = f"Share of the rows: requested (lines), and in each of {len(borders) - 1} windows (dots)"
    if 0 < len(inner) <= _MOST_BORDERS:
        title += "; dotted: the weights change"
    axes.set_title(title, loc="left", fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def _name_rows(axes: "Axes", series: list[_Series]) -> None:
    axes.set_yticks(range(len(series)), [one.name for one in series])
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e6e6e6")


def _in_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1, decimals=0))
