"""Runs docs/trainers.md in processes of its own: `-m tests.frameworks.recipes FOLDER` writes `report.json`.

The process runs the page as it stands, then each recipe undisturbed and with a stop between two checkpoints, on one
rank, and in two processes of torchrun. The report has the rows of every batch that reached the model.
"""

import faulthandler
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]
RECIPES = {"lightning": 1, "trainer": 2, "accelerate": 1}  # batches per step
STEPS, STOP, SAVED = 14, 12.5, 10  # of a whole run, of one that is stopped, and the step of its checkpoint
Rows = list[list[int]]


class Stopped(Exception):
    """What ends a run between two checkpoints."""


class Recorder:
    """The rows of all batches that reach the model of the page; a row is its first token divided by 8."""

    def __init__(self):
        self.rows: Rows = []
        self.stop_at: float | None = None
        torch.nn.modules.module.register_module_forward_pre_hook(self._note)

    def _note(self, module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if type(module) is not torch.nn.Embedding:
            return
        if self.stop_at is not None and len(self.rows) >= self.stop_at:
            raise Stopped
        (tokens,) = given
        assert tokens.dtype == torch.int64
        assert torch.equal(tokens, tokens[:, :1] + torch.arange(7))
        self.rows.append((tokens[:, 0] // 8).tolist())

    def record(self, train: Callable[[], Any], stop_at: float | None = None) -> Rows:
        """The rows of one run."""
        self.rows, self.stop_at = [], stop_at
        try:
            train()
        except Stopped:
            assert stop_at is not None
        return self.rows


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)


def stop_and_resume(page: dict[str, Any], recorder: Recorder, mark: str) -> dict[str, Any]:
    """Of each recipe: the rows of a whole run, of a stopped and of a resumed one; and whether the models are equal.

    The folder of the stopped run is kept: its name ends with `mark`-stopped.
    """
    return {
        name: stop_and_resume_one(page, recorder, f"{name}-{mark}", page[f"train_with_{name}"], STOP * per_step)
        for name, per_step in RECIPES.items()
    }


def stop_and_resume_one(
    page: dict[str, Any], recorder: Recorder, folder: str, train: Callable[[str, int], Any], stop_at: float
) -> dict[str, Any]:
    models = []
    whole = recorder.record(lambda: models.append(train(f"{folder}-whole", STEPS)))
    stopped = recorder.record(lambda: train(folder, STEPS), stop_at)
    wait_for_ranks()
    if rank() == 0:
        shutil.copytree(folder, f"{folder}-stopped", symlinks=True)
    wait_for_ranks()
    resumed = recorder.record(lambda: models.append(train(folder, STEPS)))
    return {"whole": whole, "stopped": stopped, "resumed": resumed, "equal": page["equal"](*models)}


def resume(page: dict[str, Any], recorder: Recorder, mark: str) -> dict[str, Rows]:
    """The rows of each recipe after it resumed from the stopped runs called `mark`."""
    return {name: resume_one(recorder, f"{name}-{mark}-stopped", page[f"train_with_{name}"]) for name in RECIPES}


def resume_one(recorder: Recorder, folder: str, train: Callable[[str, int], Any]) -> Rows:
    return recorder.record(lambda: train(folder, STEPS))


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait_for_ranks() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def refusals(page: dict[str, Any]) -> dict[str, str]:
    """What a rank is told if a loader that would split its rows again reads them."""
    dataset = page["RemoteIterableDataset"](page["client"], batch_size=8, key=7, stop=80)
    whole = {"batch_size": None, "collate_fn": model_tokens}
    cases: dict[str, Callable[[], Any]] = {
        "dispatched": lambda: prepared(page, DataLoader(dataset, **whole)),
        "dispatched as uint16": lambda: prepared(page, DataLoader(dataset, batch_size=None)),
        "split": lambda: prepared(page, DataLoader(dataset, collate_fn=first), dispatch_batches=False),
    }
    for method in ("fork", "spawn"):
        loader = DataLoader(dataset, collate_fn=first, num_workers=1, multiprocessing_context=method)
        cases[method] = lambda loader=loader: prepared(page, loader, dispatch_batches=False)
    cases["Trainer"] = lambda: page["Trainer"](
        page["Model"](),
        page["TrainingArguments"]("refused", max_steps=2, use_cpu=True, report_to="none"),
        train_dataset=dataset,
        data_collator=page["model_inputs"],
    ).train()
    return {name: told(case) for name, case in cases.items()}


def prepared(page: dict[str, Any], loader: Any, **options: Any) -> Rows:
    """The first column of what Accelerate makes of a loader."""
    configuration = page["DataLoaderConfiguration"](**options)
    accelerator = page["Accelerator"](cpu=True, dataloader_config=configuration)
    return [(batch["tokens"].long()[:, 0] // 8).tolist() for batch in accelerator.prepare(loader)]


def first(batches: list[Any]) -> Any:
    return batches[0]


def told(case: Callable[[], Any]) -> str:
    try:
        return f"no error: {case()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def prepared_whole_batches(page: dict[str, Any]) -> Rows:
    """Of a data set that gives every rank whole batches, what Accelerate distributes: that is right."""
    dataset = page["RemoteIterableDataset"](page["client"], batch_size=8, key=7, stop=80, shard=(0, 1))
    return prepared(page, DataLoader(dataset, batch_size=None, collate_fn=model_tokens))


def model_tokens(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"tokens": batch["tokens"].long()}


def run_rank(folder: Path, address: str) -> None:
    """One of two ranks: writes its report to `rank-0.json` or `rank-1.json`."""
    os.chdir(folder)
    page: dict[str, Any] = {"__name__": "__main__", "address": address, "Path": Path}
    _, common, trainer, _, lightning, _, accelerate, _ = blocks("docs/trainers.md")
    for block in (common, trainer, lightning, accelerate):
        exec(block, page)
    page["DEVICES"] = 2
    recorder = Recorder()
    report = {
        "runs": stop_and_resume(page, recorder, "ranks"),
        "of one": resume(page, recorder, "workers-0"),
        "refusals": refusals(page),
        "whole batches": prepared_whole_batches(page),
    }
    Path(f"rank-{rank()}.json").write_text(json.dumps(report))
    distributed.destroy_process_group()


def run_page(folder: Path) -> None:
    """The page, its recipes on one rank and on two, and the block of the README."""
    os.chdir(folder)
    page: dict[str, Any] = {"__name__": "__main__"}
    found = blocks("docs/trainers.md")
    for block in found:
        exec(block, page)
    exec(found[1], page)  # the page has closed its client
    recorder = Recorder()
    report: dict[str, Any] = {"readme": first_of_readme(page)}
    for workers in (0, 2):
        page["WORKERS"] = workers
        report[f"workers-{workers}"] = stop_and_resume(page, recorder, f"workers-{workers}")
    page["WORKERS"] = 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--local-addr", "127.0.0.1", "-m", __spec__.name, str(folder), page["address"]]
    with at_root():  # without names of hosts, so that no name server can delay the ranks
        ended = subprocess.run(command, env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"}, check=False)
    assert ended.returncode == 0
    report["ranks"] = [json.loads(Path(f"rank-{number}.json").read_text()) for number in range(2)]
    report["of two"] = resume(page, recorder, "ranks")
    report["whole batches"] = prepared_whole_batches(page)
    report["stream"] = rows_of_stream(page, page["BATCH_SIZE"], 2 * STEPS)
    report["small stream"] = rows_of_stream(page, 8, 10)
    Path("report.json").write_text(json.dumps(report))


def first_of_readme(page: dict[str, Any]) -> bool:
    """Whether the README's loader for PyTorch gives the first batch."""
    (block,) = [block for block in blocks("README.md") if "torchdata" in block]
    exec(block, page)
    return torch.equal(next(iter(page["loader"]))["tokens"], next(iter(page["loader"].dataset))["tokens"])


def rows_of_stream(page: dict[str, Any], size: int, count: int) -> Rows:
    batches = page["client"].batches(size, page["KEY"], stop=size * count)
    return [(batch["tokens"][:, 0] // 8).tolist() for batch in batches]


@contextmanager
def at_root() -> Iterator[None]:
    """In the folder from which this module can be imported."""
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        yield
    finally:
        os.chdir(before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.multiprocessing.set_start_method("fork")  # what `exec` defines cannot be pickled
    # Of a process that hangs, say where. A rank must end first: the page waits for its ranks.
    faulthandler.dump_traceback_later(90 if len(sys.argv) == 3 else 200, exit=True)
    if len(sys.argv) == 3:
        run_rank(Path(sys.argv[1]), sys.argv[2])
    else:
        run_page(Path(sys.argv[1]))
