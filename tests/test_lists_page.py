"""The lists and commands of docs/migrate.md, over files of each format."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mixserve.config import load_config
from tests import test_megatron
from tests.records import example, write_array_record
from tests.test_init import run
from tests.test_mds import write_mds

PAGE = (Path(__file__).parent.parent / "docs/migrate.md").read_text("utf-8")
# The files of the page's blocks, in their order; None: what the command before writes.
FILES = {
    "Megatron-LM": (None, "blend.txt", "splits.json"),
    "MaxText": ("grain_mixture.json", "config.yml"),
    "OLMo": ("mix.txt", "sources.yaml"),
    "MosaicML streams": ("pretrain.yaml",),
}


def page_data(library: str) -> None:
    rng = np.random.default_rng(0)
    for name, dtype in (("web", "u2"), ("code", "i4"), ("books", "i4")):
        if library == "Megatron-LM":
            test_megatron.write(Path(f"{name}_text_document"), [rng.integers(0, 50_000, 5000).astype(dtype)] * 2)
        elif library == "MaxText":
            Path(name).mkdir()
            records = [example({"targets": [*range(1, 2 + i)]}) for i in range(8)]
            write_array_record(Path(name) / "a.array_record", records)
        elif library == "OLMo":
            folder = Path(f"ai2-llm/preprocessed/{name}/dolma2-tokenizer")
            folder.mkdir(parents=True)
            rng.integers(0, 100_000, 9000).astype(np.uint32).tofile(folder / "part-0-00000.npy")
        else:
            Path(f"mds/{name}").mkdir(parents=True)
            samples = [{"tokens": np.arange(2048, dtype=np.int32)}] * 3
            write_mds(Path(f"mds/{name}/train"), {"tokens": "ndarray:int32"}, [samples])


@pytest.mark.parametrize("library", FILES)
def test_the_page_on_lists(tmp_path, monkeypatch, library):
    monkeypatch.chdir(tmp_path)
    section = PAGE.split("\n## From a list of data\n")[1].split("\n## ")[0].split(f"\n### {library}\n")[1]
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section.split("\n### ")[0], re.MULTILINE | re.DOTALL)
    texts = [text for language, text in blocks if language != "sh"]
    page_data(library)
    for name, text in zip(FILES[library], texts, strict=True):
        Path(name or "shown.yaml").write_text(text)
    written = []
    for command in "".join(text for language, text in blocks if language == "sh").splitlines():
        program, *arguments = shlex.split(command)
        assert program == "mixserve"
        run(*arguments)
        written.append(arguments[arguments.index("--out") + 1] if "--out" in arguments else "mixture.yaml")
        run("check", written[-1])
    if Path("shown.yaml").exists():
        assert load_config(Path("shown.yaml")) == load_config(Path(written[0]))
    assert len(set(written)) == len(written)
