"""A history -> demo_report.png: loss per source, requested and realised shares, and time spent waiting."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mixserve.demo.corpus import Corpus
from mixserve.demo.history import RECENT, History
from mixserve.demo.shares import LEVEL, binomial_band

_COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#762a83")
_GREY = "#555555"
_LEGEND = {"loc": "upper right", "edgecolor": "none", "framealpha": 1.0}


def write_report(path: Path, corpora: tuple[Corpus, ...], history: History, verdict: str) -> None:
    """Draw the run to `path`, with `verdict` below the title."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle(
        f"A language model learns from a mixture of two texts while server and trainer are killed\n{verdict}",
        fontsize=13,
    )
    panels = figure.subplot_mosaic([["loss", "loss"], ["shares", "waiting"]], height_ratios=[1.15, 1])
    _draw_losses(panels["loss"], corpora, history)
    _draw_shares(panels["shares"], corpora, history)
    _draw_waiting(panels["waiting"], history)
    for axes in panels.values():
        _mark_kills(axes, history)
        axes.set_xlim(0, history.last_step)
        axes.set_xlabel("training step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6")
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def _draw_losses(axes: Axes, corpora: tuple[Corpus, ...], history: History) -> None:
    for source, (corpus, colour) in enumerate(zip(corpora, _COLOURS, strict=False)):
        losses = history.losses(source)
        axes.plot(history.numbers(), losses, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(history.numbers(), _trailing_mean(losses), color=colour, linewidth=2, label=f"{corpus.name}: loss")
        label = f"{corpus.name}: unigram entropy, {corpus.entropy_bits:.2f}"
        axes.axhline(corpus.entropy_bits, color=colour, linestyle="--", linewidth=1.2, label=label)
    axes.set_title(f"Loss per source (thick: mean of the last {RECENT} steps)", loc="left")
    axes.set_ylabel("bits per byte")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=2, **_LEGEND)


def _draw_shares(axes: Axes, corpora: tuple[Corpus, ...], history: History) -> None:
    rows = history.rows()
    for source, (corpus, colour) in enumerate(zip(corpora, _COLOURS, strict=False)):
        axes.fill_between(history.numbers(), *binomial_band(corpus.share, rows), color=colour, alpha=0.15, linewidth=0)
        axes.axhline(corpus.share, color=colour, linestyle="--", linewidth=1.2)
        label = f"{corpus.name}: requested {corpus.share:.1%}, realised {history.shares(source)[-1]:.2%}"
        axes.plot(history.numbers(), history.shares(source), color=colour, linewidth=1.8, label=label)
    axes.set_title(f"Share of the rows so far (shaded: {LEVEL:.0%} binomial band)", loc="left")
    axes.set_ylabel("share of rows")
    requested = [corpus.share for corpus in corpora]
    axes.set_ylim(max(0, min(requested) - 0.25), min(1, max(requested) + 0.25))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(**_LEGEND)


def _draw_waiting(axes: Axes, history: History) -> None:
    axes.bar(history.numbers(), history.wait_shares(), width=1, color=_COLOURS[0])
    median, whole = np.median(history.wait_shares()), history.wait_share()
    axes.set_title(f"Time spent waiting for data (median {median:.1%}; with outages {whole:.0%})", loc="left")
    axes.set_ylabel("share of each step")
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _mark_kills(axes: Axes, history: History) -> None:
    for step, name in history.kills:
        axes.axvline(step, color=_GREY, linestyle=":", linewidth=1.2)
        place = {"xytext": (-3, 6), "textcoords": "offset points", "rotation": 90, "va": "bottom", "ha": "right"}
        axes.annotate(f"{name} killed", (step, axes.get_ylim()[0]), color=_GREY, fontsize=8, **place)


def _trailing_mean(values: np.ndarray) -> np.ndarray:
    """The mean of each value and up to 19 values before it, without NaNs."""
    windows = [values[max(0, i - RECENT + 1) : i + 1] for i in range(len(values))]
    return np.array([np.nan if np.isnan(window).all() else np.nanmean(window) for window in windows])
