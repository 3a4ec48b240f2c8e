"""The code of docs/migrate.md and docs/testing.md that needs PyTorch, torchdata or Hugging Face datasets."""

import pytest
from datasets import Dataset

from tests.migrate.page import (
    CODE,
    END,
    KEPT,
    STRICT,
    WEB,
    blocks,
    check_endless,
    check_train,
    outcome_of_testing_page,
    read,
    run,
    served,
    web_rows,
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served")) as where:
        yield where


def test_torchdata_before_and_after(address, tmp_path):
    before, after, _ = blocks("torchdata and PyTorch")
    check_endless(read(before, tmp_path, environ=STRICT))
    check_train(read(after, tmp_path, address))  # torchdata calls a function that PyTorch deprecates


def test_what_takes_the_place_of_streaming_needs_no_streaming(address, tmp_path):
    _, after, _ = blocks("MosaicML Streaming")
    check_train(read(f"{after}\nassert state['position'] == 0\n", tmp_path, address, environ=STRICT))


def test_interleave_datasets(tmp_path):
    before, _, _ = blocks("Hugging Face datasets")
    mixed = read(before, tmp_path)
    # Sources are drawn at random, so the end is near that of exact shares.
    assert abs(mixed.rows - END) < 60
    assert abs(mixed.share - 0.7) < 0.03
    assert mixed.in_passes
    assert sum(mixed.web) == WEB or sum(mixed.code) == CODE


def test_data_sets_of_pytorch_are_kept(tmp_path):
    _, _, keep = blocks("torchdata and PyTorch")
    run(keep + KEPT, tmp_path)


def test_files_of_hugging_face_are_kept(tmp_path):
    _, _, keep = blocks("Hugging Face datasets")
    Dataset.from_dict({"tokens": web_rows(tmp_path)}).save_to_disk(tmp_path / "web_arrow")
    run(keep + KEPT, tmp_path)


def test_the_page_on_testing_passes_all_of_its_tests(tmp_path):
    assert outcome_of_testing_page(tmp_path) == {"passed": 12}
