"""Draws docs/top.svg: `mixserve top` beside two real servers and the trainers that read from them."""

import re
import threading
import time
from contextlib import ExitStack, suppress
from io import StringIO
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, serve
from mixserve.cli.connecting import Connection
from mixserve.cli.top.asking import Asking
from mixserve.cli.top.run import picture_now
from mixserve_client import MixClient, UnknownMixture

SOURCES = {"web": (0.55, 4000), "code": (0.25, 1500), "books": (0.15, 600), "maths": (0.05, 120)}
WIDTH, HEIGHT = 132, 30
CELL = 12.2  # the width of a character in rich's pictures
EVERY_S, LASTS_S = 1.0, 20.0


def main() -> None:
    """Write the picture."""
    ended = threading.Event()
    with ExitStack() as held:
        servers = [held.enter_context(serve({"pretrain": mixture(), "images": images()})) for _ in range(2)]
        addresses = [server.address for server in servers]
        for number in range(4):
            thread = threading.Thread(target=train, args=(addresses[number % 2], number, ended))
            thread.start()
            held.callback(thread.join)
        held.callback(ended.set)
        all_asking = [Asking(address, Connection(), EVERY_S, lambda: None) for address in addresses]
        for asking in all_asking:
            asking.start()
            held.callback(asking.close)
        with MixClient.connect(addresses[0], name="notebook") as client:
            for _ in range(3):
                with suppress(UnknownMixture):
                    client.get_batch_at(0, 8, key=0, mixture="pretrained")
            time.sleep(LASTS_S)
        picture = picture_now(all_asking, EVERY_S, WIDTH, HEIGHT)
    console = Console(record=True, width=WIDTH, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(picture)
    text = console.export_svg(title="mixserve top host-a:50051 host-b:50051")
    # Fonts from another host would not load where the picture is shown.
    text = re.sub(r"@font-face \{.*?\}\n?", "", text, flags=re.DOTALL)
    # A free port is another one in every run.
    for name, address in zip(("host-a:50051", "host-b:50051"), addresses, strict=True):
        text = text.replace(address, name.ljust(len(address), "\N{NO-BREAK SPACE}"))
    text = re.sub(r'x="([\d.]+)" y="([\d.]+)" textLength="([\d.]+)"([^>]*)>((?:&#160;|\xa0)+)', without_space, text)
    (Path(__file__).parents[1] / "top.svg").write_text(text)


def without_space(found: re.Match[str]) -> str:
    """A text that begins where its first character is: some programs leave out spaces at the beginning."""
    x, y, length, more, spaces = found.groups()
    moved = CELL * len(spaces.replace("&#160;", " "))
    return f'x="{float(x) + moved:.1f}" y="{y}" textLength="{float(length) - moved:.1f}"{more}>'


def mixture() -> MixDataSourcesNode:
    """Rows of 4 KiB."""
    rng = np.random.default_rng(0)
    sources = [
        ArraySource({"tokens": rng.integers(0, 50_000, (length, 1024), np.int32)}, name=name)
        for name, (_, length) in SOURCES.items()
    ]
    weights = tuple(weight for weight, _ in SOURCES.values())
    config = MixDataSourcesConfig(
        num_sources=len(sources), weights=weights, source_names=tuple(SOURCES), sampling="epoch", plan_sizes=(4096,)
    )
    return MixDataSourcesNode(config, sources)


def images() -> MixDataSourcesNode:
    """Rows of 64 KiB, from a source that takes its time."""
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), source_names=("bucket",), plan_sizes=(4096,))
    return MixDataSourcesNode(config, [SlowSource()])


class SlowSource:
    """Rows of bytes."""

    content_id = "nothing but zeros"

    def __len__(self) -> int:
        return 50_000

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One field."""
        return {"pixels": jax.ShapeDtypeStruct((1 << 16,), np.uint8)}

    def take(self, record_ids: np.ndarray) -> dict[str, np.ndarray]:
        """As a bucket far away."""
        time.sleep(0.2)
        return {"pixels": np.zeros((len(record_ids), 1 << 16), np.uint8)}


def train(address: str, number: int, ended: threading.Event) -> None:
    """One of three hosts of a language model, or one of a vision model, which waits for its data."""
    name, mixture, size, shard, step_s = f"trainer-{number}", "pretrain", 1024, (number, 3), 0.05
    if number == 3:
        name, mixture, size, shard, step_s = "vision", "images", 128, (0, 1), 0.02
    with MixClient.connect(address, name=name, shared_memory=False) as client:
        batches = client.batches(size, key=7, mixture=mixture, shard=shard)
        while not ended.wait(step_s):
            next(batches)


if __name__ == "__main__":
    main()
