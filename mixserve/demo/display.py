"""A history -> a progress bar, or a few lines of output without a terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from mixserve.demo.corpus import Corpus
from mixserve.demo.history import History
from mixserve.demo.shares import LEVEL, binomial_band

_PLAIN_LINES = 8


class Display:
    """Shows a run of `steps` steps while it lasts."""

    def __init__(self, console: Console, corpora: tuple[Corpus, ...], steps: int):
        self._console = console
        self._corpora = corpora
        self._steps = steps
        self._next_line = 0
        columns = (BarColumn(16), MofNCompleteColumn(), TextColumn("{task.fields[said]}"))
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("training", total=steps, said="server and trainer are starting")

    def show(self, history: History) -> None:
        """Bring the display up to date."""
        if not history.steps:
            return
        said = self._status_line(history)
        self._progress.update(self._task, completed=history.last_step, said=said)
        if not self._console.is_terminal and history.last_step >= self._next_line:
            self._console.print(f"step {history.last_step}/{self._steps}  {said}", soft_wrap=True)
            self._next_line = history.last_step + max(1, self._steps // _PLAIN_LINES)

    def tell(self, line: str) -> None:
        """Print an event above the progress bar."""
        self._console.print(line, soft_wrap=True)

    def _status_line(self, history: History) -> str:
        losses = [f"{corpus.name} {history.recent_loss(i):.2f}" for i, corpus in enumerate(self._corpora)]
        rate, waiting = history.recent_rate(), history.wait_share()
        return f"{' '.join(losses)} bits  {rate:.1f} batches/s  {waiting:.0%} waiting"

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def summary(corpora: tuple[Corpus, ...], history: History) -> Table:
    """Requested and realised shares, and losses, of each source."""
    table = Table(caption="loss and entropy in bits per byte", caption_justify="left")
    for heading in ("source", "requested", "realised", f"{LEVEL:.0%} band", "final loss", "unigram entropy"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    for source, corpus in enumerate(corpora):
        low, high = binomial_band(corpus.share, history.rows()[-1:])
        table.add_row(
            corpus.name,
            f"{corpus.share:.2%}",
            f"{history.shares(source)[-1]:.2%}",
            f"± {(high[0] - low[0]) / 2:.2%}",
            f"{history.recent_loss(source):.3f}",
            f"{corpus.entropy_bits:.3f}",
        )
    return table
