"""The code of docs/testing.md and docs/migrate.md that needs no library besides the project's own."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, local_client
from mixserve.build import build_nodes
from mixserve.config import load_config
from mixserve_client import MixClient, OutOfRange
from tests.migrate.page import (
    CODE,
    END,
    KEPT,
    STRICT,
    WEB,
    blocks,
    check_endless,
    check_once,
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


@pytest.fixture
def client(address):
    with MixClient.connect(address, patience_s=20) as made:
        yield made


def test_the_page_on_testing_passes_its_own_tests(tmp_path):
    # tests/frameworks runs the test that needs PyTorch.
    assert outcome_of_testing_page(tmp_path) == {"passed": 11, "skipped": 1}


@pytest.mark.parametrize(
    ("heading", "count"),
    [
        ("Grain", 3),
        ("tf.data", 4),
        ("MosaicML Streaming", 3),
        ("torchdata and PyTorch", 3),
        ("Hugging Face datasets", 3),
        ("Levanter", 2),
    ],
)
def test_every_library_has_its_blocks(heading, count):
    assert len(blocks(heading)) == count


def test_the_server_of_the_file_is_that_of_the_code(client, tmp_path):
    run("", tmp_path)
    (text,) = blocks("The data, the server and the client", "yaml")
    file = tmp_path / "mixture.yaml"
    file.write_text(text)
    nodes = build_nodes(load_config(file), file)
    assert sorted(nodes) == ["once", "train"]
    for name, node in nodes.items():
        assert node.mixture.fingerprint == client.mixture(name).fingerprint


def test_grain_before_and_after(address, tmp_path):
    before, after, _ = blocks("Grain")
    targets = (
        'first = next(batches)\nassert (first["targets"] == first["tokens"][:, 1:]).all()\nbatches.set_state(state)\n'
    )
    check_endless(read(before + targets, tmp_path, environ=STRICT))
    check_train(read(after + targets, tmp_path, address, environ=STRICT))


def test_files_of_grain_are_kept(tmp_path):
    _, _, keep = blocks("Grain")
    writer = ArrayRecordWriter(str(tmp_path / "web.array_record"), "group_size:1")
    for row in web_rows(tmp_path):
        writer.write(row.tobytes())
    writer.close()
    run(f"import grain\n{keep}\n{KEPT}", tmp_path)


def test_what_takes_the_place_of_tf_data_needs_no_tensorflow(address, tmp_path):
    _, after, _, _ = blocks("tf.data")
    check_train(read(after, tmp_path, address, environ=STRICT))


def test_what_takes_the_place_of_interleave_datasets_needs_no_datasets(address, tmp_path):
    _, after, _ = blocks("Hugging Face datasets")
    check_once(read(f"{after}\nassert end == {END}\n", tmp_path, address, environ=STRICT))


def test_items_of_an_async_dataset_are_rows_by_their_positions(address, client):
    _, after = blocks("Levanter")
    # Levanter cannot be installed here: the class runs without its base.
    importing = "from levanter.data import AsyncDataset\n"
    assert importing in after
    namespace = {"client": client, "server": SimpleNamespace(address=address), "AsyncDataset": object}
    exec(after.replace(importing, ""), namespace)
    dataset = namespace["dataset"]

    async def use():
        assert dataset.is_finite()
        assert await dataset.async_len() == END
        assert await dataset.get_batch([]) == []
        endless = type(dataset)(dataset.client, 7, "train")
        assert not endless.is_finite()
        with pytest.raises(ValueError, match="no end"):
            await endless.async_len()
        with pytest.raises(OutOfRange):
            await dataset.get_batch([0, END])
        far = 2**40
        (item,) = await endless.get_batch(np.array([far]))
        np.testing.assert_array_equal(item["tokens"], client.get_batch_at(far, 1, 7, mixture="train")["tokens"][0])
        items = await dataset.get_batch([5, 856, 0, 5])
        await dataset.client.close()
        return [item["tokens"] for item in items]

    rows = client.get_batch_at(0, END, 7, mixture="once")["tokens"]
    np.testing.assert_array_equal(asyncio.run(use()), rows[[5, 856, 0, 5]], strict=True)


def test_numbers_of_records_as_weights_give_every_record_once():
    config = MixDataSourcesConfig(num_sources=2, weights=(WEB, CODE), sampling="epoch", stop="first_exhausted")
    sources = [ArraySource({"tokens": np.zeros((length, 8), np.int32)}) for length in (WEB, CODE)]
    with local_client({"train": MixDataSourcesNode(config, sources)}) as client:
        assert client.mixture().end == WEB + CODE
        plan = client.get_plan_at(0, WEB + CODE, 7)
    assert len(set(zip(plan["source_id"].tolist(), plan["record_id"].tolist(), strict=True))) == WEB + CODE
