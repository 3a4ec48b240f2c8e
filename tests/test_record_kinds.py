"""The kinds whose records are decoded, in a configuration file: the one that the page shows."""

import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mixserve.cli.main import app
from mixserve.config import load_config
from mixserve.sources.prepared import preparing_in
from tests.records import example, tfrecord, write_array_record
from tests.test_mds import write_mds

PAGE = Path(__file__).parent.parent / "docs/sources.md"
IDS = [list(range(first, first + 500 + first)) for first in range(20)]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("record_kinds")
    (folder / "c4").mkdir()
    records = [example({"targets": ids}) for ids in IDS]
    write_array_record(folder / "c4/a.array_record-00000-of-00001", records)
    (folder / "c4/a.tfrecord-00000-of-00001").write_bytes(tfrecord(records))
    with tarfile.open(folder / "c4/a.tar", "w") as archive:
        for number, ids in enumerate(IDS):
            data = io.BytesIO()
            np.save(data, np.array(ids, np.uint16))
            info = tarfile.TarInfo(f"{number:03}.npy")
            info.size = data.tell()
            data.seek(0)
            archive.addfile(info, data)
    write_mds(
        folder / "c4-mds", {"input_ids": "ndarray:uint16"}, [[{"input_ids": np.array(ids, np.uint16)} for ids in IDS]]
    )
    text = PAGE.read_text().partition("## Records that are decoded")[2]
    blocks = re.findall(r"```yaml\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    (yaml,) = (block for block in blocks if "array_record" in block)
    (folder / "mixture.yaml").write_text(yaml)
    return folder / "mixture.yaml"


def test_all_kinds_serve_the_same_records(file):
    configured = load_config(file)
    with preparing_in(file.parent / configured.server.prepared):
        sources = [source.open(file.parent) for source in configured.mixtures["train"].sources.values()]
    assert len(sources) == 4
    expected = np.zeros((20, 512), np.int32)
    for row, ids in zip(expected, IDS, strict=True):
        row[: len(ids)] = ids[:512]
    for source in sources:
        batch = source.take(np.arange(20))
        assert batch["tokens"].dtype == np.int32
        np.testing.assert_array_equal(batch["tokens"], expected)
        assert batch["size"].tolist() == [min(len(ids), 512) for ids in IDS]
    assert {path.name for path in (file.parent / "prepared").iterdir()} == {"tfrecord", "webdataset"}


def test_check_opens_the_file_of_the_page(file):
    result = CliRunner().invoke(app, ["check", str(file)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("grain", "tensorflow", "tar", "mosaic"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("length: 512, lengths: size, long: cut", "length: 4"), r"sources\.grain: .*of the record 0 has 500 values"),
        (("from: targets, ", "from: nothing, "), r"no field 'nothing' is stored; there are targets"),
        (("as: int32, length: 512, lengths: size, long: cut", "as: int8, length: 600"), "do not all fit into as: int8"),
        (("as: int32, length: 512", "as: int33, length: 512"), r"fields\.tokens\.as: 'int33' is not a dtype"),
        (
            ("kind: array_record", "kind: array_record\n        record: xml"),
            r"grain\.record: Input should be 'example'",
        ),
        (("kind: array_record", "kind: array_record\n        field: x"), r"grain: field: the records have names"),
        (("length: 512", "length: 512, default: [1]"), r"default.*at most 0 items"),
        (("length: 512", "length: 512, default: 1"), r"fields\.tokens\.default: must be \[\]"),
        (("path: c4-mds", "path: c4/a.tar"), r"mosaic: .*c4/a\.tar"),
    ],
)
def test_what_is_wrong_names_source_and_key(file, change, said):
    wrong = file.with_name("wrong.yaml")
    wrong.write_text(file.read_text().replace(*change))
    result = CliRunner().invoke(app, ["check", str(wrong)], env={"COLUMNS": "1000"})
    assert result.exit_code == 2
    assert re.search(said, result.output, re.DOTALL), result.output
