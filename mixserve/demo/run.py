"""The whole demo: a training run with kills, compared with an undisturbed run, and a picture of it."""

import signal
import sys
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from mixserve.demo.child import Child
from mixserve.demo.corpus import mixture_file, write_corpora
from mixserve.demo.display import Display, summary
from mixserve.demo.journal import JournalReader
from mixserve.demo.rehearsal import Rehearsal

_REFERENCE_S = 180.0


def run(*, steps: int, folder: Path | None, report: Path) -> None:
    """Train for `steps` steps in `folder`, and draw `report`. Exits with 1 if a single byte of a batch differs."""
    if not all(map(find_spec, ("matplotlib", "optax"))):
        sys.exit("mixserve: the demo needs matplotlib and optax: pip install 'mixserve[demo]'")
    console = Console(highlight=False)
    with ExitStack() as stack:
        # SIGTERM unwinds the stack like any error, so that no child process is left. 143 is 128 + SIGTERM.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)))
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="mixserve-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        corpora = write_corpora(folder)
        for corpus in corpora:
            size, bits = f"{corpus.size_bytes / 1e6:.1f} MB", f"{corpus.entropy_bits:.2f} bits/byte"
            console.print(f"{corpus.name}: {size}, {corpus.share:.0%} of the mixture, unigram entropy {bits}")
        with (
            Display(console, corpora, steps) as display,
            Rehearsal(folder, steps, display) as rehearsal,
        ):
            rehearsal.run_to_step(steps // 4)
            rehearsal.kill_server()
            rehearsal.run_to_step(steps // 2)
            rehearsal.kill_trainer()
            rehearsal.run_to_step(3 * steps // 4)
            rehearsal.kill_server()
            digest = rehearsal.finish()
        history = rehearsal.history
        console.print("the same batches in a fresh process, without a server …")
        expected = _reference_digest(folder, steps)
        sign = "=" if digest == expected else "!="
        said = f"{steps} batches, {len(history.kills)} kills, digest"
        verdict = f"{said} {digest[:16]} {sign} in-process {expected[:16]}"

        from mixserve.demo.report import write_report

        write_report(report, corpora, history, verdict)
        console.print(summary(corpora, history))
        console.print(f"{time.monotonic() - began:.0f} s; the picture is {report}", soft_wrap=True)
        console.print(verdict, soft_wrap=True)
        if digest != expected:
            sys.exit(1)


def _reference_digest(folder: Path, steps: int) -> str:
    journal = folder / "reference.jsonl"
    journal.unlink(missing_ok=True)
    arguments = ["mixserve.demo.reference", str(mixture_file(folder)), str(steps), str(journal)]
    with Child("reference", arguments, folder / "reference.log") as child:
        child.wait(_REFERENCE_S)
    (entry,) = JournalReader(journal).read()
    return entry["digest"]
