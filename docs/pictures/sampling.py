"""Draws docs/sampling.png: a small mixture in both sampling modes, planned by the planners that serve."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.leaves import Plan
from mixserve.mixture.plan import Planner
from mixserve.mixture.sampling import EPOCH, Sampling
from mixserve.mixture.schedule import Entry, Schedule, normalised
from mixserve_client.schema.keys import key_words

NAMES, WEIGHTS, LENGTHS = ("web", "code", "notes"), (0.5, 0.3, 0.2), (30, 18, 4)
POSITIONS, BLOCK, SEED = 60, 10, 21
COLOURS = ("#2166ac", "#d6604d", "#4d9221")
DARK, GREY = "#222222", "#777777"


def main() -> None:
    """Write the picture."""
    shares, key = normalised(WEIGHTS), key_words(SEED)
    epoch = EpochPlanner(Sampling(Schedule((Entry(0, shares),)), EPOCH, BLOCK), LENGTHS)
    plans = {
        "categorical": Planner(shares, LENGTHS).plan(key, 0, POSITIONS),
        "epoch": epoch.plan(key, 0, POSITIONS),
    }
    figure = Figure(figsize=(10, 4.7), layout="constrained")
    panels = figure.subplot_mosaic(
        [["categorical strip"] * 2, ["epoch strip"] * 2, ["categorical", "epoch"]], height_ratios=[0.5, 0.5, 1.9]
    )
    titles = {"categorical": "with replacement", "epoch": f"blocks of {BLOCK}, 5 + 3 + 2 in each"}
    for mode, plan in plans.items():
        draw_strip(panels[f"{mode} strip"], plan, f"sampling: {mode} ({titles[mode]})")
        draw_counts(panels[mode], plan, mode)
    draw_blocks(panels["epoch strip"])
    panels["epoch strip"].set_xlabel("position")
    sources = [
        Patch(color=colour, label=f"{name}: weight {weight}, {length} records")
        for name, weight, length, colour in zip(NAMES, WEIGHTS, LENGTHS, COLOURS, strict=True)
    ]
    repeat = panels["epoch strip"].plot([], [], "o", color="white", markeredgecolor=DARK, markersize=5)[0]
    repeat.set_label("this record came before")
    figure.legend(handles=[*sources, repeat], loc="outside upper center", ncols=4, frameon=False, fontsize=9.5)
    figure.savefig(Path(__file__).parents[1] / "sampling.png", dpi=150)


def draw_strip(axes: Axes, plan: Plan, title: str) -> None:
    """A cell for every position, in the colour of its source; a point where the record came before."""
    colours = [COLOURS[source] for source in plan.source_ids]
    axes.bar(range(POSITIONS), 1, width=0.88, color=colours)
    rows = list(zip(plan.source_ids.tolist(), plan.record_ids.tolist(), strict=True))
    again = [position for position, row in enumerate(rows) if row in rows[:position]]
    axes.plot(again, [0.5] * len(again), "o", color="white", markersize=4.5, markeredgewidth=0)
    axes.set_title(title, loc="left", fontsize=10.5, color=DARK, pad=8)
    axes.set(xlim=(-0.7, POSITIONS - 0.3), ylim=(0, 1), yticks=[], xticks=[])
    axes.spines[:].set_visible(False)


def draw_blocks(axes: Axes) -> None:
    """Borders of blocks, through the strip."""
    borders = range(0, POSITIONS + 1, BLOCK)
    for border in borders:
        axes.axvline(border - 0.5, ymin=-0.12, ymax=1.12, color=DARK, linewidth=1.4, clip_on=False)
    axes.set_xticks([border - 0.5 for border in borders], borders, fontsize=9)
    axes.tick_params(length=4, color=DARK)


def draw_counts(axes: Axes, plan: Plan, mode: str) -> None:
    """A bar for every record of every source: how often it came."""
    at, never = 0, 0
    for source, (name, weight, length, colour) in enumerate(zip(NAMES, WEIGHTS, LENGTHS, COLOURS, strict=True)):
        counts = np.bincount(plan.record_ids[plan.source_ids == source], minlength=length)
        places = np.arange(at, at + length)
        axes.bar(places, counts, width=0.8, color=colour)
        missing = places[counts == 0]
        axes.plot(missing, [0.13] * len(missing), "x", color=colour, markersize=4.5, markeredgewidth=1.3)
        share = POSITIONS * weight / length
        axes.plot([at - 0.5, at + length - 0.5], [share, share], color=DARK, linestyle="--", linewidth=0.9)
        axes.text(at + (length - 1) / 2, -0.35, name, ha="center", va="top", color=colour, fontsize=9.5)
        never += len(missing)
        at += length + 2
    said = "all records of a source came equally often"
    if never:
        said = f"{never} of {sum(LENGTHS)} records never came (x)"
    axes.set_title(f"{mode}: {said}", loc="left", fontsize=10.5, color=DARK)
    axes.set(xlim=(-1.5, at - 1), ylim=(0, 6.6), yticks=range(0, 7, 2), xticks=[])
    axes.set_ylabel(f"times in {POSITIONS} positions" if mode == "categorical" else "", color=GREY, fontsize=9)
    axes.tick_params(labelsize=9, colors=GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)


if __name__ == "__main__":
    main()
