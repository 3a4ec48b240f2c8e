"""Draws docs/checkpoints.png: where the position in the data is stored with each kind of checkpoint, and what crashes
mean."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch

TRAINER, SERVER = ("#eef4fb", "#5b87b8"), ("#f4f1ea", "#a58a4d")
STATE, PLAIN = ("#d6604d", "#b04a38"), ("#ffffff", "#999999")
DARK, GREY = "#222222", "#777777"


class Kind(NamedTuple):
    """One kind of checkpoint: what is kept where, what travels, and what a crash means."""

    title: str
    says: str
    trainer: str
    trainer_disk: tuple[str, str]
    request: str
    server: str
    server_disk: tuple[str, str]
    held_by_server: bool
    crashes: tuple[tuple[str, str], ...]


CLIENT_HELD = Kind(
    title="held by the trainer: client.batches",
    says="pure: any server of the mixture gives the same bytes",
    trainer="position, key",
    trainer_disk=("model and get_state()", "about 150 bytes"),
    request="key, start, size",
    server="nothing",
    server_disk=("nothing", ""),
    held_by_server=False,
    crashes=(
        ("trainer killed", "reads its checkpoint, set_state(), continues\nwith any server"),
        ("server killed", "the client repeats the request, here or at a\nreplica: the same bytes"),
        ("state folder lost", "there is no state folder"),
    ),
)
ON_THE_SERVER = Kind(
    title="kept by the server: client.session",
    says="stateful: one session, one server, one holder",
    trainer="lease, call number",
    trainer_disk=("model and the name", '"step-1000"'),
    request="call 17: next_batch(256)",
    server="the session's node",
    server_disk=("--state-dir", "journal, checkpoints"),
    held_by_server=True,
    crashes=(
        ("trainer killed", 'session("run-17", take_over=True),\nrestore_checkpoint("step-1000")'),
        ("server killed", "a restarted server reads the journal; call 17\nis done once, the trainer waits meanwhile"),
        (
            "state folder lost",
            "sessions and checkpoints are lost. Without\n--state-dir they are lost whenever the server ends.",
        ),
    ),
)


def main() -> None:
    """Write the picture."""
    figure = Figure(figsize=(10.6, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw(left, CLIENT_HELD)
    draw(right, ON_THE_SERVER)
    figure.legend(
        handles=[Patch(facecolor=STATE[0], edgecolor=STATE[1], label="where the position in the data is stored")],
        loc="outside upper center",
        frameon=False,
        fontsize=9.5,
    )
    figure.savefig(Path(__file__).parents[1] / "checkpoints.png", dpi=150)


def draw(axes: Axes, kind: Kind) -> None:
    """Trainer and server with their disks, and the crashes below them."""
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.set_axis_off()
    axes.set_title(kind.title, fontsize=12.5, color=DARK, pad=18, fontweight="bold")
    axes.text(50, 101, kind.says, ha="center", va="center", fontsize=9.5, color=GREY)
    for x, name, colours in ((1, "trainer", TRAINER), (61, "server", SERVER)):
        box(axes, (x, 45, 38, 50), colours)
        axes.text(x + 19, 91, name, ha="center", va="center", fontsize=10, color=DARK)
        axes.text(x + 1.5, 67.5, "memory", fontsize=7.5, color=GREY)
        axes.text(x + 1.5, 47, "disk", fontsize=7.5, color=GREY)
    at_trainer, at_server = (PLAIN, STATE) if kind.held_by_server else (STATE, PLAIN)
    box(axes, (4, 72, 32, 14), at_trainer, kind.trainer)
    box(axes, (4, 51.5, 32, 14), at_trainer, *kind.trainer_disk)
    box(axes, (64, 72, 32, 14), at_server, kind.server)
    box(axes, (64, 51.5, 32, 14), at_server, *kind.server_disk)
    arrow(axes, (40, 82), (60, 82))
    axes.text(50, 84, kind.request.replace(": ", ":\n"), ha="center", va="bottom", fontsize=8.5, color=DARK)
    arrow(axes, (60, 75), (40, 75))
    axes.text(50, 73.5, "rows", ha="center", va="top", fontsize=8.5, color=DARK)
    for row, (event, follows) in enumerate(kind.crashes):
        y = 35 - 14 * row
        axes.text(1, y, event, ha="left", va="center", fontsize=9, color=DARK, fontweight="bold")
        axes.text(32, y, follows, ha="left", va="center", fontsize=9, color=DARK, linespacing=1.25)
        if row:
            axes.plot((1, 99), (y + 7, y + 7), color="#dddddd", linewidth=0.8)


def box(axes: Axes, place: tuple[float, float, float, float], colours: tuple[str, str], *lines: str) -> None:
    """A box (x, y, width, height) with its lines in the middle; what stores the position in the data is filled."""
    x, y, width, height = place
    fill, edge = colours
    style = "round,pad=0,rounding_size=1.6"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=edge))
    colour = "#ffffff" if colours == STATE else DARK
    text = "\n".join(filter(None, lines))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8.8, color=colour)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From `start` to `end`."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#444444", "linewidth": 1.4})


if __name__ == "__main__":
    main()
