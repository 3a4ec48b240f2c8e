"""`mixserve init --from`: lists of other libraries become mixtures of the same sources and shares, or clear errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixserve.config import load_config
from tests import test_megatron
from tests.records import example, write_array_record
from tests.test_init import run
from tests.test_mds import write_mds

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def made(*arguments: object) -> str:
    run("init", "--from", *arguments)
    run("check", "mixture.yaml")
    return Path("mixture.yaml").read_text()


def sections(mixture: str = "train") -> dict[str, dict[str, Any]]:
    """The keys of each source that are not defaults."""
    found = load_config(Path("mixture.yaml")).mixtures[mixture].sources
    return {name: source.model_dump(by_alias=True, exclude_defaults=True) for name, source in found.items()}


def weights(mixture: str = "train") -> dict[str, float]:
    return {name: section["weight"] for name, section in sections(mixture).items()}


def opened(name: str) -> Any:
    return load_config(Path("mixture.yaml")).mixtures["train"].sources[name].open(Path())


def refused(*arguments: object) -> str:
    said = run("init", "--from", *arguments, code=2)
    assert not Path("mixture.yaml").exists()
    return said


# Megatron


@pytest.fixture
def blend(here):
    for name, length, dtype in (("web", 400, "u2"), ("code", 200, "i4"), ("books", 100, "u2")):
        rows = [RNG.integers(0, 100, length).astype(dtype) for _ in range(3)]
        test_megatron.write(Path(f"{name}_text_document"), rows)


def test_data_path_of_megatron(blend):
    text = made("megatron", "0.7", "web_text_document", "0.3", "code_text_document", "--sequence-length", 33)
    common = {"kind": "megatron", "sequence_length": 33, "overlap": 1, "as": "int32"}
    assert sections() == {
        "web": {**common, "path": "web_text_document", "weight": 0.7},
        "code": {**common, "path": "code_text_document", "weight": 0.3},
    }
    assert "# order: {seed: 1234}" in text
    assert "--split (969,30,1 by default) does not carry over" in text.replace("\n# ", " ")


def test_prefixes_of_megatron_without_weights_have_the_shares_of_their_windows(blend):
    made("megatron", "web_text_document", "books_text_document", "--sequence-length", 33)
    assert weights() == {"web": 1199 // 32, "books": 299 // 32}
    assert all("as" not in section for section in sections().values())


def test_very_small_and_very_large_weights_stay_exact(blend):
    made(
        "megatron",
        "1e-7",
        "web_text_document",
        "12345678.5",
        "code_text_document",
        "1e22",
        "books_text_document",
        "--sequence-length",
        33,
    )
    assert weights() == {"web": 1e-7, "code": 12345678.5, "books": 1e22}


def test_a_file_of_a_megatron_blend(blend):
    Path("blend.txt").write_text("30 web_text_document\n70\nbooks_text_document.bin 5 web_text_document\n")
    made("megatron", "blend.txt", "--sequence-length", 33)
    assert weights() == {"web": 30, "books": 70, "web_2": 5}


def test_megatron_blends_per_split(blend):
    splits = {"train": ["0.5", "web_text_document", 0.5, "code_text_document"], "valid": "books_text_document"}
    Path("splits.json").write_text(json.dumps(splits | {"test": None}))
    text = made("megatron", "splits.json", "--sequence-length", 33)
    assert list(load_config(Path("mixture.yaml")).mixtures) == ["train", "valid"]
    assert weights() == {"web": 0.5, "code": 0.5}
    assert "--split" not in text


def test_windows_are_those_that_megatron_reads(blend):
    """Sample i of Megatron with sequence length L begins at token i L, and has L + 1 tokens."""
    made("megatron", "1", "web_text_document", "--sequence-length", 33)
    tokens = np.fromfile("web_text_document.bin", np.uint16)
    source = opened("web")
    rows = source.take(np.arange(len(source)))["tokens"]
    np.testing.assert_array_equal(rows, [tokens[i * 32 : i * 32 + 33] for i in range(1199 // 32)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.3 web_text_document\n0.7\n", "blend.txt, line 2: weights and prefixes must alternate, but '0.7'"),
        ("0.3 web_text_document\nx code_text_document", "blend.txt, line 2: a weight must be a number"),
        ("4_5 web_text_document", "blend.txt, line 1: a weight must be a number of at least 0, got '4_5'"),
        ("-1 web_text_document", "blend.txt, line 1: a weight must be a number of at least 0, got '-1'"),
        ("1 web_text_document\nnan code_text_document", "line 2: a weight must be a number of at least 0, got 'nan'"),
        ("0 web_text_document 0 code_text_document", "all weights are 0"),
        ("1 web_text_document\n\n1 gone_text_document", "blend.txt, line 3: there is no "),
        ("1 s3://bucket/web", "line 1: 's3://bucket/web' is remote"),
        ("", "blend.txt: is empty"),
        ("1 web\0_text_document", "blend.txt, line 1: "),
        ("1 " + "a" * 5000, "blend.txt, line 1: "),
    ],
)
def test_malformed_blends_of_megatron(blend, text, said):
    Path("blend.txt").write_text(text)
    assert said in refused("megatron", "blend.txt")


def test_malformed_json_of_megatron(blend):
    for text, said in (
        ("{,", "line 1"),
        ("[]", "must be a mapping"),
        ("{}", "must have a blend"),
        ('{"train": 3}', "list"),
    ):
        Path("s.json").write_text(text)
        assert said in refused("megatron", "s.json")


# MaxText


@pytest.fixture
def array_records(here):
    for name, longest in (("web", 30), ("code", 9)):
        Path(name).mkdir()
        for part in range(2):
            records = [example({"targets": [*range(1 + i % longest)], "n": i}) for i in range(40)]
            write_array_record(Path(f"{name}/{name}-train.array_record-0000{part}-of-00002"), records)


def test_grain_train_files_of_maxtext(array_records):
    text = made("maxtext", "web/web-train*.array_record*,0.3;code/*,0.7")
    fields = {"from": "targets", "as": "int32", "length": 32, "lengths": "targets_length", "long": "cut"}
    for name, path, weight in (("web-train", "web/web-train*.array_record*", 0.3), ("code", "code/*", 0.7)):
        section = sections()[name]
        assert (section["kind"], section["path"], section["weight"]) == ("array_record", path, weight)
        assert {key: section["fields"]["targets"][key] for key in fields} == fields
    assert "# stop: first_exhausted" in text


def test_the_mixture_config_of_maxtext(array_records):
    config = {"ds1": {"path": "web/*", "weight": 3}, "ds2": {"path": "gs://bucket/code/*0*", "weight": 0.7}}
    Path("mixture.json").write_text(json.dumps(config))
    made("maxtext", "mixture.json", "--replace", "gs://bucket/=", "--sequence-length", 16)
    assert weights() == {"ds1": 3, "ds2": 0.7}
    assert sections()["ds1"]["fields"]["targets"]["length"] == 16


def test_the_configuration_of_maxtext(array_records):
    Path("config.yml").write_text(
        "grain_file_type: arrayrecord\ngrain_train_files: 'web/*,1;code/*,2'\ngrain_eval_files: code/*\n"
        "max_target_length: 24\nother: [1]\n"
    )
    made("maxtext", "config.yml")
    assert (weights(), weights("validation")) == ({"web": 1, "code": 2}, {"code": 1})
    assert sections()["web"]["fields"]["targets"]["length"] == 24


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web/*,0.3;code/*", "pattern 2: must be PATTERN,WEIGHT, got 'code/*'"),
        ("web/*,0.3;code/*,x", "pattern 2: a weight must be a number"),
        ("web/*,0.3;", "pattern 2: must be PATTERN,WEIGHT, got ''"),
        ("web/*,0.3", "pattern 1: one pattern has no weight"),
        ("web/*,1;none/*,1", "pattern 2: "),
        ("web/*,1;gs://b/*,1", "pattern 2: 'gs://b/*' is remote"),
        ("gone.json", "gone.json"),
    ],
)
def test_malformed_mixtures_of_maxtext(array_records, text, said):
    assert said in refused("maxtext", text)


def test_malformed_files_of_maxtext(array_records):
    for name, text, said in (
        ("m.json", '{"a": {"path": "web/*"}}', "m.json, a: must have weight"),
        ("m.json", '{"a": 1}', "m.json, a: must be a mapping"),
        ("m.json", "{\n\n}x", "m.json: is not JSON: Extra data: line 3"),
        ("m.yml", "grain_file_type: parquet\n", "use mixserve init PATH"),
        ("m.yml", "a: [\n", "m.yml: "),
        ("m.yml", "a: 1\n", "must have grain_train_files"),
    ):
        Path(name).write_text(text)
        assert said in refused("maxtext", name)


def test_records_of_different_kinds_are_refused(array_records):
    Path("other").mkdir()
    write_array_record(Path("other/a.array_record"), [b'{"a": [1]}'])
    said = refused("maxtext", "web/*,1;other/*,1")
    assert "pattern 2: its records are json, and those of web example" in said


# OLMo


@pytest.fixture
def token_files(here):
    for path, count in (("a/dolma2/part-0", 640), ("a/dolma2/part-1", 330), ("b/dolma2/part-0", 99)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        RNG.integers(0, 100_000, count).astype(np.uint32).tofile(f"{path}.npy")


MIX = "# a mix\nweb,a/{TOKENIZER}/part-0.npy\n\nweb,a/{TOKENIZER}/part-1.npy\ncode,b/{TOKENIZER}/part-0.npy\n"
TOKENIZER = ("--replace", "{TOKENIZER}=dolma2")


def test_a_mix_of_olmo(token_files):
    Path("mix.txt").write_text(MIX)
    text = made("olmo", "mix.txt", *TOKENIZER, "--sequence-length", 32)
    common = {"kind": "tokens", "dtype": "uint32", "sequence_length": 32, "windows": "per_file"}
    assert sections() == {
        "web": {**common, "path": ["a/dolma2/part-0.npy", "a/dolma2/part-1.npy"], "weight": 640 // 32 + 330 // 32},
        "code": {**common, "path": "b/dolma2/part-0.npy", "weight": 99 // 32},
    }
    assert "a guess" in text


def test_a_mix_of_olmo_in_another_folder_with_lines_that_come_twice(token_files, tmp_path):
    Path("lists").mkdir()
    Path("lists/mix.txt").write_text(MIX + "web,a/{TOKENIZER}/part-1.npy\n")
    for place in ("base", "out"):
        Path(place).mkdir()
    for name in "ab":
        Path(name).rename(f"base/{name}")
    options = ("--sequence-length", 32, "--dtype", "uint32", "--base", "base")
    made("olmo", "lists/mix.txt", *TOKENIZER, *options)
    assert weights() == {"web": 30, "code": 3, "web_2": 10}
    assert sections()["web_2"]["path"] == "base/a/dolma2/part-1.npy"


def test_a_mixture_of_sources_of_olmo(token_files):
    Path("m.yaml").write_text(
        "sources:\n- source_name: web\n  target_ratio: 0.25\n  max_repetition_ratio: 3.0\n"
        "  paths: [s3://ai2/a/dolma2/*.npy]\n- {source_name: code, target_ratio: 0.75, paths: [s3://ai2/b/dolma2/part-0.npy]}\n"
    )
    text = made("olmo", "m.yaml", "--sequence-length", 32, "--replace", "s3://ai2/=", "--dtype", "uint32")
    assert weights() == {"web": 0.25, "code": 0.75}
    assert sections()["web"]["path"] == "a/dolma2/*.npy"
    assert "max_repetition_ratio" in text


def test_the_configuration_of_olmo(token_files):
    paths = "paths: [a/dolma2/part-0.npy, b/dolma2/part-0.npy]"
    Path("m.yaml").write_text(f"model: {{max_sequence_length: 32}}\ndata:\n  memmap_dtype: uint32\n  {paths}\n")
    made("olmo", "m.yaml")
    (section,) = sections().values()
    assert (section["sequence_length"], section["dtype"], section["weight"]) == (32, "uint32", 23)


def test_records_are_those_that_olmo_reads(token_files):
    Path("mix.txt").write_text(MIX)
    made("olmo", "mix.txt", *TOKENIZER, "--sequence-length", 32, "--dtype", "uint32")
    rows = opened("web").take(np.arange(30))["tokens"]
    files = [np.fromfile(f"a/dolma2/part-{part}.npy", np.uint32) for part in range(2)]
    np.testing.assert_array_equal(
        rows, np.concatenate([file[: len(file) // 32 * 32].reshape(-1, 32) for file in files])
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web,a/dolma2/part-0.npy\nweb\n", "mix.txt, line 2: must be LABEL,PATH, got 'web'"),
        ("web,a,b\n", "mix.txt, line 1: must be LABEL,PATH"),
        ("\n,a/dolma2/part-0.npy\n", "mix.txt, line 2: must be LABEL,PATH"),
        ("# nothing\n", "mix.txt: has no lines"),
        ("a\0,b\n", "mix.txt, line 1: "),
        ("web,a/{TOKENIZER}/part-0.npy\n", "line 1: say what {TOKENIZER} is with --replace '{TOKENIZER}=NAME'"),
        ("web,a/dolma2/part-0.npy\nweb,a/dolma2/part-7.npy\n", "mix.txt, line 2: there is no "),
        ("web,weka://x/part-0.npy\n", "line 1: 'weka://x/part-0.npy' is remote"),
    ],
)
def test_malformed_mixes_of_olmo(token_files, text, said):
    Path("mix.txt").write_text(text)
    assert said in refused("olmo", "mix.txt", "--dtype", "uint32", "--sequence-length", 32)


def test_malformed_configurations_of_olmo(token_files):
    for text, said in (
        ("a: 1\n", "must have sources"),
        ("sources: 3\n", "sources: must be a list"),
        ("sources: [{source_name: a, target_ratio: x, paths: [a]}]\n", "sources[0], target_ratio: a weight must be"),
        ("sources: [{source_name: a, target_ratio: 1, paths: a}]\n", "sources[0], paths: must be a list of paths"),
        ("data: {paths: []}\n", "data.paths: must be a list of paths"),
        ("data: {paths: [a/dolma2/part-0.npy], memmap_dtype: u9}\n", "u9"),
        ("data: {paths: [x], memmap_dtype: 3}\n", "data.memmap_dtype"),
    ):
        Path("m.yaml").write_text(text)
        assert said in refused("olmo", "m.yaml")


# MosaicML


@pytest.fixture
def streams(here):
    for name, count, longest in (("web", 20, 6), ("code", 8, 30)):
        samples = [{"tokens": np.arange(1 + i % longest, dtype=np.int32)} for i in range(count)]
        Path(name).mkdir()
        write_mds(Path(name) / "train", {"tokens": "ndarray:int32"}, [samples])


def foundry(*streams: str) -> None:
    lines = "".join(f"      {stream}\n" for stream in streams)
    Path("run.yaml").write_text(
        f"data: .\nvariables: {{root: '${{data}}/code'}}\nmax_seq_len: 16\ntrain_loader:\n  name: text\n  dataset:\n"
        f"    split: train\n    max_seq_len: ${{max_seq_len}}\n    streams:\n{lines}"
    )


def test_streams_with_proportions(streams):
    foundry(
        "web: {local: web, remote: 's3://b/web', proportion: 0.9}",
        "code: {local: '${variables.root}', proportion: 0.1}",
    )
    made("mosaicml", "run.yaml")
    assert weights() == {"web": 0.9, "code": 0.1}
    assert {name: section["path"] for name, section in sections().items()} == {"web": "web/train", "code": "code/train"}
    assert sections()["web"]["fields"]["tokens"]["length"] == 16


def test_streams_with_repeat_and_choose_are_weighed_by_their_samples(streams):
    foundry(
        "web: {local: web, repeat: 0.5}", "code: {local: code, choose: 100}", "more: {local: code, repeat: 987654.3}"
    )
    text = made("mosaicml", "run.yaml")
    assert weights() == {"web": 10, "code": 100, "more": 8 * 987654.3}
    assert "number of records: 20, times repeat 0.5" in text


def test_streams_as_a_list_and_a_data_set_alone(streams):
    Path("run.yaml").write_text("streams:\n- {local: web, split: train, proportion: 1}\n")
    made("mosaicml", "run.yaml", "--sequence-length", 8)
    assert {name: section["path"] for name, section in sections().items()} == {"train": "web/train"}
    Path("mixture.yaml").unlink()
    Path("run.yaml").write_text("train_loader: {dataset: {remote: 's3://b/web', split: train}}\neval_loader: []\n")
    made("mosaicml", "run.yaml", "--replace", "s3://b=.")
    assert weights() == {"data": 20}


def test_ids_that_old_data_sets_have_as_bytes(here):
    ids = np.arange(2 * 16).reshape(2, 16)
    Path("web").mkdir()
    write_mds(Path("web/train"), {"tokens": "bytes"}, [[{"tokens": row.tobytes()} for row in ids]])
    foundry("web: {local: web}")
    made("mosaicml", "run.yaml")
    np.testing.assert_array_equal(opened("web").take(np.arange(2))["tokens"].view(np.int64), ids)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ("web: {local: web, proportion: 1, repeat: 2}", "streams.web: may have one of"),
        ("web: {local: web, proportion: much}", "streams.web.proportion: a weight must be a number"),
        ("web: 3", "streams.web: must be a mapping, got 3"),
        ("web: {proportion: 1}", "streams.web: local: must be a path, got None"),
        ("web: {local: '${nothing}'}", "streams.web.local: the file does not say what '${nothing}' is"),
        ("web: {local: gone}", "streams.web: there is no "),
        ("web: {remote: 's3://b/web'}", "is remote, and mixserve reads files of this machine"),
        ("web: {local: web, split: val}", "streams.web: "),
    ],
)
def test_malformed_streams(streams, stream, said):
    foundry(stream)
    assert said in refused("mosaicml", "run.yaml")


def test_streams_that_do_not_fit_together(streams):
    foundry("web: {local: web, proportion: 1}", "code: {local: code}")
    assert "streams.code: must have a proportion, since another stream has one" in refused("mosaicml", "run.yaml")
    write_mds(Path("other"), {"text": "str"}, [[{"text": "a"}]])
    foundry("web: {local: web}", "other: {local: .}")
    Path("train").symlink_to("other")
    said = refused("mosaicml", "run.yaml")
    assert "streams.other: its records are ['text: str'], and those of web ['tokens: ndarray:int32']" in said


# All


def test_a_list_without_an_end_is_refused(here):
    assert "/dev/zero: a list may have at most 64 MiB, and this is larger" in refused("olmo", "/dev/zero")


def test_options_that_do_not_fit(here):
    assert "--from must be one of megatron, maxtext, olmo, mosaicml, got 'grain'" in refused("grain", "x")
    assert "--replace must be OLD=NEW" in refused("olmo", "x", "--replace", "gs://b")
    assert "--dtype is for --from olmo" in refused("megatron", "x", "--dtype", "uint16")
    assert "takes one file" in refused("olmo", "x", "y")
    assert "takes one YAML file" in refused("mosaicml", "x", "y")
    assert "takes one text or file" in refused("maxtext", "x", "y")
    for option in (("--base", "x"), ("--replace", "a=b"), ("--dtype", "uint16")):
        assert f"{option[0]} needs --from" in run("init", ".", *option, code=2)
    for library in ("olmo", "mosaicml"):
        assert "No such file" in refused(library, "gone.yaml")
        Path("data.yaml").write_bytes(b"\xff\xfe\x00")
        assert "data.yaml: " in refused(library, "data.yaml")
    Path("mixture.yaml").touch()
    assert "exists: give another --out" in run("init", "--from", "olmo", "x", code=2)


def test_the_file_may_be_written_elsewhere(blend):
    Path("out").mkdir()
    run("init", "--from", "megatron", "1", "web_text_document", "--out", "out/m.yaml", "--sequence-length", 33)
    run("check", "out/m.yaml")
