"""Every member that the reference documents: its signature, its row in docs/node.md, and a test with its name."""

import inspect
import json
import logging
import re
from dataclasses import FrozenInstanceError, fields
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixserve import ArraySource, DataSourceModule, MixDataSourcesConfig, MixDataSourcesNode, StructuralConfig
from mixserve.node import mix_data_sources
from mixserve_client.schema.fields import Content
from tests.conftest import assert_batches_equal
from tests.reference import draw

DOCUMENTED_CONFIG = {
    "cacheable": False,
    "batch_stats_fn": None,
    "precomputed_stats": None,
    "stochastic": False,
    "stream_name": None,
    "num_sources": None,
    "weights": None,
}
DOCUMENTED_NODE = "MixDataSourcesNode(config, sources, *, rngs=None, name=None)"
DOCUMENTED_ATTRIBUTES = ("index", "epoch", "config", "rngs", "name", "stochastic", "stream_name")
DOCUMENTED_METHODS = (
    "to_grain_iter_dataset()",
    "reset()",
    "get_batch_at(start, size, key=None)",
    "get_operation_stats()",
    "reset_operation_stats()",
    "compute_statistics(data)",
    "get_statistics()",
    "set_statistics(stats)",
    "reset_statistics()",
    "reset_cache()",
    "copy(*, config=None, rngs=None, name=None)",
    "get_state()",
    "set_state(state)",
    "clone()",
    "requires_rng_streams()",
    "ensure_rng_streams(stream_names)",
    "process(input, *args, **kwargs)",
    "element_spec()",
)
USED_METHODS = ("__iter__()", "__next__()", "__len__()")
SHORT = np.arange(4, dtype=np.int32)
LONG = 100 + np.arange(6, dtype=np.int32)


class NeedsStreams(MixDataSourcesNode):
    """A node that declares its RNG streams."""

    def requires_rng_streams(self) -> list[str] | None:
        return ["mix", "crop"]


class Counting:
    """A source that counts its reads and resets."""

    def __init__(self):
        self.takes, self.resets = 0, 0

    def __len__(self):
        return 100

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        self.takes += 1
        return {"x": record_ids.astype(np.int32)}

    def reset(self):
        self.resets += 1


def make(*sources: Any, weights=None, rngs=None, name=None, kind=MixDataSourcesNode, **options) -> Any:
    children = list(sources) or [ArraySource({"x": SHORT}), ArraySource({"x": LONG})]
    config = MixDataSourcesConfig(num_sources=len(children), weights=weights or (1,) * len(children), **options)
    return kind(config, children, rngs=rngs, name=name)


def drawn(*records: Any) -> list[int]:
    return [int(record["x"]) for record in records]


def total(batch: dict[str, Any]) -> dict[str, Any]:
    return {"total": int(np.sum(np.asarray(batch["x"])))}


def signature(name: str, function: Any) -> str:
    """Parameters with their kinds and defaults, without `self` and types."""
    bare = inspect.Signature(
        [
            parameter.replace(annotation=inspect.Parameter.empty)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "self"
        ]
    )
    return f"{name}{bare}"


def members() -> set[str]:
    """Every public member of the real classes beyond those of `nnx.Module`, with signatures."""
    node = make()
    config = {f"config.{field.name}" for field in fields(MixDataSourcesConfig)}
    own: set[str] = {name for name in dir(node) if not name.startswith("_")} - set(dir(nnx.Module))
    methods = {name for name in own if inspect.isfunction(getattr(MixDataSourcesNode, name, None))}
    called = {
        signature(name, getattr(MixDataSourcesNode, name)) for name in (*methods, "__iter__", "__next__", "__len__")
    }
    constructors = {
        signature("MixDataSourcesConfig", MixDataSourcesConfig),
        signature("MixDataSourcesNode", MixDataSourcesNode.__init__),
    }
    return {"logger"} | constructors | config | {f"node.{name}" for name in (own - methods) | called}


def documented() -> set[str]:
    config = {f"config.{name}" for name in DOCUMENTED_CONFIG}
    node = {f"node.{name}" for name in (*DOCUMENTED_ATTRIBUTES, *DOCUMENTED_METHODS, *USED_METHODS)}
    return {"logger", DOCUMENTED_NODE} | config | node


def test_every_documented_member_exists_with_its_signature():
    assert documented() <= members()
    parameters = list(inspect.signature(MixDataSourcesConfig).parameters.values())
    positional, more = parameters[: len(DOCUMENTED_CONFIG)], parameters[len(DOCUMENTED_CONFIG) :]
    assert [(p.name, p.default) for p in positional] == list(DOCUMENTED_CONFIG.items())
    assert {p.kind for p in positional} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is not p.empty for p in more)
    assert issubclass(MixDataSourcesConfig, StructuralConfig)
    assert issubclass(MixDataSourcesNode, DataSourceModule)
    assert issubclass(DataSourceModule, nnx.Module)


def test_every_documented_member_has_a_docstring():
    methods = [getattr(MixDataSourcesNode, row.partition("(")[0]) for row in DOCUMENTED_METHODS]
    for documented_here in (MixDataSourcesConfig, MixDataSourcesNode, mix_data_sources, *methods):
        assert inspect.getdoc(documented_here), documented_here


def test_every_member_has_a_row_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "node.md").read_text("utf-8")
    table = page.partition("## Every member")[2].partition("\n## ")[0]
    rows = [tuple(map(str.strip, line.strip("|").split("|"))) for line in table.splitlines() if line.startswith("| `")]
    names = [name.strip("`") for name, _, _ in rows]
    assert len(names) == len(set(names)) == table.count("\n|") - 2
    assert set(names) == members()
    for name, (_, here, beyond) in zip(names, rows, strict=True):
        assert here if name in documented() else beyond, name


def test_every_documented_member_has_a_test():
    names = [re.sub(r"\(.*|config\.|node\.|__", "", row) for row in documented()]
    missing = {f"test_{name}" for name in names} - {*globals(), "test_MixDataSourcesNode"}
    assert not missing


def test_logger():
    assert mix_data_sources.logger is logging.getLogger("mixserve.node.mix_data_sources")


# The configuration


def test_mix_data_sources_config():
    config = MixDataSourcesConfig(False, None, {"mean": 1}, False, "mix", 2, [1, 3])
    assert {f.name: getattr(config, f.name) for f in fields(config)} == DOCUMENTED_CONFIG | {
        "precomputed_stats": {"mean": 1},
        "stream_name": "mix",
        "num_sources": 2,
        "weights": (0.25, 0.75),
        "sampling": "categorical",
        "block_size": 2048,
        "stop": "never",
        "schedule": (),
        "placement": "auto",
        "source_names": None,
        "content_ids": None,
        "plan_sizes": (16, 64, 256, 1024, 4096),
    }
    for field in fields(config):
        with pytest.raises(FrozenInstanceError):
            setattr(config, field.name, None)


def test_configurations_are_equal_where_all_fields_are():
    def config(mean, **options) -> MixDataSourcesConfig:
        statistics = {"mean": mean, "by": [1, {"deep": np.arange(3)}]}
        return MixDataSourcesConfig(num_sources=1, weights=(2,), precomputed_stats=statistics, **options)

    same = config(np.ones(2, np.float32)), config(jnp.ones(2, jnp.float32))
    assert same[0] == same[1]
    assert hash(same[0]) == hash(same[1])
    for other in (np.ones(3, np.float32), np.ones(2), np.array([1, 2], np.float32), [1.0, 1.0], None):
        assert config(other) != same[0]
    assert config(1, cacheable=True) != config(1)
    assert config(1) == config(1)
    assert config(1) != StructuralConfig(precomputed_stats=config(1).precomputed_stats)


def test_num_sources():
    assert make().config.num_sources == MixDataSourcesConfig(num_sources=np.int64(2), weights=(1, 1)).num_sources == 2
    for wrong in (None, 0, -1, 1.0, True, "2"):
        with pytest.raises(ValueError, match="num_sources"):
            MixDataSourcesConfig(num_sources=wrong, weights=(1.0,))
    with pytest.raises(ValueError, match="num_sources is 2, got 1"):
        MixDataSourcesNode(MixDataSourcesConfig(num_sources=2, weights=(1, 1)), [ArraySource({"x": SHORT})])


def test_weights():
    for weights in ((1, 3), [0.5, 1.5], np.array([2, 6]), iter((10.0, 30.0)), jnp.array([1.0, 3.0])):
        assert MixDataSourcesConfig(num_sources=2, weights=weights).weights == (0.25, 0.75)
    for wrong in (
        None,
        (1,),
        (1, 2, 3),
        (1, -1),
        (0, 0),
        (1, float("nan")),
        (1, float("inf")),
        ("1", 1),
        "11",
        b"11",
        2,
        {1: 2, 3: 4},
        {1, 3},
    ):
        with pytest.raises(ValueError, match="weights"):
            MixDataSourcesConfig(num_sources=2, weights=wrong)
    for odd in ((True, False), (10**400, 1)):
        with pytest.raises(ValueError, match="weights must be"):
            MixDataSourcesConfig(num_sources=2, weights=odd)
    batch = make(weights=(1, 0)).get_batch_at(0, 16, 0)
    assert set(np.asarray(batch["x"]).tolist()) == set(SHORT.tolist())


def test_cacheable():
    node, source, key = make(Counting(), cacheable=True), Counting(), jax.random.key(5)
    first = node.get_batch_at(3, 12, 5)
    assert node.get_batch_at(3, 12, key)["x"] is first["x"]
    assert node.sources[0].takes == 1
    first.clear()  # the node must not share the caller's dict
    for start, size, seed in ((4, 12, 5), (3, 13, 5), (3, 12, 6)):
        assert_batches_equal(node.get_batch_at(start, size, seed), make(source).get_batch_at(start, size, seed))
    assert node.sources[0].takes == 4
    for start in range(8):  # more than the cache holds
        node.get_batch_at(start, 2, 0)
    assert len(node.get_batch_at(3, 12, 5)["x"]) == 12
    assert node.sources[0].takes == 13
    plain = make(Counting())
    assert plain.config.cacheable is False
    assert plain.get_batch_at(0, 2, 5)["x"] is not plain.get_batch_at(0, 2, 5)["x"]
    with pytest.raises(ValueError, match="cacheable must be True or False, got 1"):
        StructuralConfig(cacheable=1)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_cached_batches_are_no_tracers_and_know_of_x64(placement):
    key = jax.random.key(0)
    node = make(ArraySource({"x": np.arange(9), "y": SHORT[[0] * 9]}), cacheable=True, placement=placement)
    inside = jax.jit(lambda: node.get_batch_at(0, 4, key))()
    assert_batches_equal(node.get_batch_at(0, 4, key), inside)
    with jax.enable_x64(True):
        assert node.get_batch_at(0, 4, key)["x"].dtype == np.int64
    assert node.get_batch_at(0, 4, key)["x"].dtype == np.int32


def test_batch_stats_fn():
    class Sum(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.float32(2))

        def __call__(self, data):
            return {"sum": data["x"].sum() * self.scale[...]}

    def scaled(data, by):
        return {"sum": data["x"].sum() * by}

    for function in (Sum(), partial(scaled, by=2)):
        node = make(batch_stats_fn=function)
        assert node.config.batch_stats_fn is function
        assert float(node.compute_statistics({"x": jnp.arange(4, dtype=jnp.float32)})["sum"]) == 12.0
        assert len(jax.jit(lambda node: node.get_batch_at(0, 3, 1)["x"])(node)) == 3
    with pytest.raises(ValueError, match="batch_stats_fn must be callable, got 5"):
        StructuralConfig(batch_stats_fn=5)


def test_precomputed_stats():
    statistics = {"mean": np.arange(3)}
    node = make(precomputed_stats=statistics)
    assert node.config.precomputed_stats is statistics
    assert node.get_statistics() is statistics
    with pytest.raises(ValueError, match="precomputed_stats must be a dict, got 5"):
        StructuralConfig(precomputed_stats=5)
    with pytest.raises(ValueError, match="batch_stats_fn and precomputed_stats exclude each other"):
        make(precomputed_stats={}, batch_stats_fn=total)


def test_stochastic():
    node = make()
    assert node.stochastic is node.config.stochastic is False
    with pytest.warns(UserWarning, match="stochastic is set to False, and stream_name to None") as warned:
        node = make(stochastic=True, stream_name="mix")
    assert warned[0].filename == __file__
    assert (node.stochastic, node.config.stochastic, node.stream_name) == (False, False, None)
    assert node.config == make().config
    with pytest.raises(ValueError, match="stochastic must be True or False, got None"):
        StructuralConfig(stochastic=None)
    assert DataSourceModule(StructuralConfig(stochastic=True)).stochastic is True


def test_stream_name():
    node = make(stream_name="mix")
    assert node.stream_name == node.config.stream_name == "mix"
    assert make().stream_name is None
    with pytest.raises(ValueError, match="stream_name must be a string"):
        make(stream_name=[5])


# The node


def test_mix_data_sources_node():
    node = make()
    assert isinstance(node, nnx.Module)
    assert len(node.sources) == 2
    with pytest.raises(TypeError, match="config must be a MixDataSourcesConfig, got None"):
        MixDataSourcesNode(None, [])
    with pytest.raises(TypeError, match=r"a source needs .* got \[1\]; wrap .* in a RandomAccessSource"):
        make([1])
    with pytest.raises(ValueError, match=r"'0' has the leaf 'x', '1' does not"):
        make(ArraySource({"x": SHORT}), ArraySource({"y": SHORT}))
    with pytest.raises(TypeError, match="positional"):
        MixDataSourcesNode(node.config, node.sources, None)


def test_index():
    node = make()
    assert isinstance(node.index, nnx.Variable)
    assert node.index.get_value() == 0
    assert drawn(next(node), next(node), next(node)) == [0, 100, 1]
    assert node.index.get_value() == 3
    for index, record in ((6, 3), (1, 100), (5, 102)):  # it is the position, also if it is set by hand
        node.index.set_value(index)
        assert drawn(next(node)) == [record]
        assert node.index.get_value() == index + 1


def test_epoch():
    node = make()
    assert isinstance(node.epoch, nnx.Variable)
    assert node.epoch.get_value() == 0
    next(node)
    assert node.epoch.get_value() == 0
    for epoch in (1, 2, 3):
        assert len(list(node)) == 8
        assert node.epoch.get_value() == epoch


def test_config():
    config = MixDataSourcesConfig(num_sources=1, weights=(1,))
    node = MixDataSourcesNode(config, [Counting()])
    assert node.config is config
    nnx.jit(lambda node: node.epoch.set_value(3))(node)
    assert node.config is config
    with pytest.raises(FrozenInstanceError):
        node.config.weights = (1.0,)


def test_rngs():
    rngs = nnx.Rngs(0, mix=1)
    node = make(rngs=rngs)
    assert node.rngs is rngs
    assert set(node.get_state()["rngs"]) == {"default", "mix"}
    assert make().rngs is None


def test_name():
    inner = make(name="inner")
    assert inner.name == "inner"
    assert make(inner, Counting()).mixture.names == ("inner", "1")
    assert make().name is None


def test_iter():
    node = make()
    iterator = iter(node)
    assert drawn(next(iterator)) == [0]
    assert drawn(*iter(iterator)) == [100, 1, 101, 2, 102, 3, 103]  # it continues, and ends with Grain's mix
    assert list(iterator) == []
    assert drawn(*node) == [0, 100, 1, 101, 2, 102, 3, 103]
    assert (node.index.get_value(), node.epoch.get_value()) == (8, 2)


def test_next():
    node = make(ArraySource({"x": SHORT}))
    assert drawn(next(node), next(node), next(node), next(node)) == [0, 1, 2, 3]
    with pytest.raises(StopIteration):
        next(node)
    assert node.index.get_value() == 4


def test_len():
    assert len(make()) == len(make(weights=(0, 1))) == 10
    assert len(make(make(), Counting())) == 110


def test_to_grain_iter_dataset():
    dataset = make().to_grain_iter_dataset()
    assert isinstance(dataset, grain.IterDataset)
    assert drawn(*dataset) == drawn(*make()) == [0, 100, 1, 101, 2, 102, 3, 103]
    assert drawn(*make(weights=(0, 1)).to_grain_iter_dataset()) == LONG.tolist()
    assert drawn(*make(make(), make()).to_grain_iter_dataset())[:5] == [0, 0, 100, 100, 1]


def test_reset():
    node = make(Counting(), make())
    inner = node.sources[1]
    drawn(*node, *inner)
    node.reset()
    for each in (node, inner):
        assert (each.index.get_value(), each.epoch.get_value()) == (0, 0)
    assert node.sources[0].resets == 1
    assert drawn(next(node), next(node)) == [0, 0]


def test_get_batch_at():
    node, key = make(weights=(1, 3)), jax.random.key(3)
    rows = [(SHORT, LONG)[source][record] for source, record in draw((1, 3), [4, 6], key, 7, 16)]
    batch = node.get_batch_at(7, 16, key)
    assert isinstance(batch["x"], jax.Array)
    assert_batches_equal(batch, {"x": np.array(rows)})
    assert_batches_equal(jax.jit(lambda start, key: node.get_batch_at(start, 16, key))(7, key), batch)
    assert (node.index.get_value(), node.epoch.get_value()) == (0, 0)
    with pytest.raises(ValueError, match="key is required"):
        node.get_batch_at(7, 16)


def test_get_operation_stats():
    node = make()
    assert node.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    node.process(0, 4, 1)
    node.process(9, size=4, key=1)
    node.get_batch_at(0, 4, 1)  # does not count
    for wrong in ((0, 0, 1), (0, 4), (0, 4, -1)):
        with pytest.raises(ValueError, match=r"(size|key) .*must be|key is required"):
            node.process(*wrong)
    counts = node.get_operation_stats()
    assert counts == {"applied_count": 2, "skipped_count": 3}
    assert {type(count) for count in counts.values()} == {int}


def test_reset_operation_stats():
    node = make()
    node.process(0, 4, 1)
    with pytest.raises(ValueError, match="key"):
        node.process(0, 4)
    node.reset_operation_stats()
    assert node.get_operation_stats() == {"applied_count": 0, "skipped_count": 0}
    node.process(0, 4, 1)
    assert node.get_operation_stats()["applied_count"] == 1


def test_process():
    node, key = make(), jax.random.key(1)
    expected = node.get_batch_at(7, 9, key)
    assert_batches_equal(node.process(7, 9, key), expected)
    assert_batches_equal(node.process(7, key=key, size=9), expected)
    assert_batches_equal(nnx.jit(lambda node, start: node.process(start, 9, key))(node, 7), expected)
    assert node.get_operation_stats() == {"applied_count": 3, "skipped_count": 0}
    with pytest.raises(NotImplementedError, match="DataSourceModule must define process"):
        DataSourceModule(StructuralConfig()).process(0)


def test_compute_statistics():
    node = make(batch_stats_fn=total)
    assert node.compute_statistics({"x": np.arange(5)}) == {"total": 10}
    assert node.get_statistics() == {"total": 10}
    node.compute_statistics({"x": np.arange(3)})
    assert node.get_statistics() == {"total": 3}
    without = make(precomputed_stats={"a": 1})
    assert without.compute_statistics({"x": np.arange(5)}) is None
    assert without.get_statistics() == {"a": 1}


def test_get_statistics():
    assert make().get_statistics() is None
    assert make(precomputed_stats={"a": 1}).get_statistics() == {"a": 1}
    node = make(batch_stats_fn=total)
    assert node.get_statistics() is None
    node.compute_statistics({"x": np.arange(5)})
    assert node.get_statistics() == {"total": 10}


def test_set_statistics():
    node = make(batch_stats_fn=total)
    node.compute_statistics({"x": np.arange(5)})
    node.set_statistics({"b": 2})
    assert node.get_statistics() == {"b": 2}
    node.reset_statistics()
    node.set_statistics({"c": 3})
    assert node.get_statistics() == {"c": 3}
    known = make(precomputed_stats={"a": 1})
    known.set_statistics({"b": 2})
    assert known.get_statistics() == {"a": 1}  # they come first, until they are reset
    with pytest.raises(TypeError, match="stats must be a dict, got list"):
        node.set_statistics([1])


def test_reset_statistics():
    node, known = make(batch_stats_fn=total), make(precomputed_stats={"a": 1})
    node.set_statistics({"b": 2})
    for each in (node, known):
        each.reset_statistics()
        assert each.get_statistics() is None
    node.compute_statistics({"x": np.arange(3)})
    assert node.get_statistics() == {"total": 3}
    known.set_statistics({"b": 2})
    assert known.get_statistics() == {"a": 1}


def test_reset_cache():
    node = make(cacheable=True)
    first = node.get_batch_at(0, 4, 1)
    node.reset_cache()
    again = node.get_batch_at(0, 4, 1)
    assert again["x"] is not first["x"]
    assert_batches_equal(again, first)
    make().reset_cache()  # without a cache it does nothing


def test_copy():
    node = make(name="a", rngs=nnx.Rngs(0), stream_name="s")
    next(node)
    node.set_statistics({"b": 2})
    same, renamed = node.copy(), node.copy(name="b")
    assert type(same) is MixDataSourcesNode
    assert same is not node
    assert (same.config, same.name, same.rngs, same.sources) == (node.config, "a", node.rngs, node.sources)
    assert (same.index.get_value(), same.get_statistics()) == (0, None)
    assert (renamed.name, renamed.config, node.name) == ("b", node.config, "a")
    rngs = nnx.Rngs(1)
    assert node.copy(rngs=rngs).rngs is rngs
    config = MixDataSourcesConfig(num_sources=2, weights=(0, 1))
    other = node.copy(config=config)
    assert (other.config, other.name) == (config, "a")
    assert drawn(*other) == LONG.tolist()
    with pytest.raises(ValueError, match="num_sources is 1, got 2"):
        node.copy(config=MixDataSourcesConfig(num_sources=1, weights=(1,)))
    with pytest.raises(TypeError, match="positional"):
        node.copy(config)


def test_clone():
    node = make(make(), ArraySource({"x": LONG}), rngs=nnx.Rngs(0), cacheable=True)
    next(node)
    node.process(0, 4, 1)
    clone = node.clone()
    assert type(clone) is MixDataSourcesNode
    assert clone.config is node.config
    assert clone.get_state()["index"] == 1
    assert json.dumps(clone.get_state(), default=np.ndarray.tolist) == json.dumps(
        node.get_state(), default=np.ndarray.tolist
    )
    assert drawn(*node.sources[0]) == [0, 100, 1, 101, 2, 102, 3, 103]
    assert clone.sources[0].index.get_value() == 0  # a module has its own state
    assert clone.sources[1] is node.sources[1]  # data are shared
    assert drawn(next(node), next(node)) == drawn(next(clone), next(clone)) == [100, 100]
    next(node)
    assert (node.index.get_value(), clone.index.get_value()) == (4, 3)
    clone.reset_operation_stats()
    assert node.get_operation_stats()["applied_count"] == 1


def test_get_state():
    node = make()
    assert node.get_state() == {
        "_applied_count": 0,
        "_skipped_count": 0,
        "epoch": 0,
        "index": 0,
        "statistics": {"known": False, "reset": False, "values": {}},
        "iterator": '{"parents": [{"next_index": 0}, {"next_index": 0}], "index": 0, "stop": false}',
        "order": node.mixture.order,
    }
    iter(node)
    next(node)
    node.process(0, 4, 1)
    node.set_statistics({"mean": jnp.arange(2)})
    state = node.get_state()
    assert (state["epoch"], state["index"], state["_applied_count"]) == (1, 1, 1)
    assert json.loads(state["iterator"])["parents"] == [{"next_index": 1}, {"next_index": 0}]
    assert isinstance(state["statistics"]["values"]["mean"], np.ndarray)
    outer = make(make(name="inner"), rngs=nnx.Rngs(0)).get_state()
    assert outer["sources"] == {"inner": make().get_state()}
    assert outer["rngs"]["default"]["key"].dtype == np.uint32


def test_set_state():
    node, other = make(make(name="inner"), rngs=nnx.Rngs(0)), make(make(name="inner"), rngs=nnx.Rngs(1))
    iter(node)
    next(node)
    node.rngs.default()
    node.set_statistics({"mean": np.arange(2)})
    state = node.get_state()
    rest = drawn(*iter(lambda: next(node, None), None))
    assert other.set_state(state) is None
    assert jax.random.key_data(other.rngs.default()).tolist() == jax.random.key_data(node.rngs.default()).tolist()
    assert other.get_statistics()["mean"].tolist() == [0, 1]
    assert other.epoch.get_value() == 1
    assert drawn(*iter(lambda: next(other, None), None)) == rest == [100, 1, 101, 2, 102, 3, 103]

    kept = str(other.get_state())
    inner = state["sources"]["inner"]
    with pytest.raises(TypeError, match="state must be a dict, as get_state returns it, got list"):
        other.set_state([state])
    for wrong, said in (
        ({name: value for name, value in state.items() if name != "epoch"}, "epoch is missing"),
        (state | {"more": 1}, "more does not belong here"),
        (state | {"index": "1"}, "index must be int"),
        (state | {"iterator": "{}"}, "is not a state of Grain's iterator"),
        (state | {"iterator": inner["iterator"]}, "is not a state of Grain's iterator"),
        (state | {"index": 2}, "is not the state of Grain's iterator before the record 2"),
        (state | {"sources": {}}, r"sources\.inner is missing"),
        (state | {"sources": {"inner": inner | {"epoch": 1.5}}}, r"sources\.inner\.epoch must be int"),
        (state | {"statistics": 1}, "statistics must be a dict"),
        (state | {"rngs": {"default": {"count": 0, "key": np.zeros(3, np.uint32)}}}, r"rngs\.default\.key"),
    ):
        with pytest.raises(ValueError, match=said):
            other.set_state(wrong)
        assert str(other.get_state()) == kept


def test_requires_rng_streams():
    assert make().requires_rng_streams() is None
    node = make(kind=NeedsStreams)
    assert node.requires_rng_streams() == ["mix", "crop"]
    with pytest.raises(ValueError, match=r"\['mix', 'crop'\] are required"):
        node.ensure_rng_streams([])


def test_ensure_rng_streams():
    make().ensure_rng_streams([])
    node = make(kind=NeedsStreams)
    node.ensure_rng_streams(["crop", "default", "mix"])
    with pytest.raises(ValueError, match=r"the RNG streams \['crop'\] are required, got only \['a', 'mix'\]"):
        node.ensure_rng_streams(["mix", "a"])


def test_element_spec():
    assert make().element_spec() == {"x": jax.ShapeDtypeStruct((), np.int32)}
    nested = ArraySource(
        {"image": {"pixels": np.zeros((5, 2, 3), np.uint8)}, "pair": (np.zeros(5), [np.zeros(5, bool)])}
    )
    assert make(nested).element_spec() == {
        "image": {"pixels": jax.ShapeDtypeStruct((2, 3), np.uint8)},
        "pair": (jax.ShapeDtypeStruct((), np.float32), [jax.ShapeDtypeStruct((), bool)]),
    }
    with pytest.raises(NotImplementedError, match="DataSourceModule must define element_spec"):
        DataSourceModule(StructuralConfig()).element_spec()


def test_what_the_node_has_beyond_the_reference():
    sources = [ArraySource({"x": SHORT, "wide": 2**40 + np.arange(4)}), ArraySource({"x": LONG, "wide": np.arange(6)})]
    node = make(*sources, source_names=("a", "b"), placement="host")
    assert node.sources == sources
    node.sources.clear()  # the node must not share the caller's list
    assert (node.mixture.names, node.mixture.lengths, node.mixture.shares) == (("a", "b"), (4, 6), (0.5, 0.5))
    assert node.placed("host") is node.placed(None) is node
    assert (node.placement, node.placed("device").placement) == ("host", "device")
    rows = draw((1, 1), [4, 6], jax.random.key(2), 5, 12)
    for each in (node, node.placed("device")):
        out = {"x": np.zeros(12, np.int32), "wide": np.zeros(12, np.int64)}
        each.read_into(5, np.array([0, 2], np.uint32), out)
        parts = {name: np.empty_like(array) for name, array in out.items()}
        size = len(next(iter(out.values())))
        each.begin_gather(each.mixture.blocks.plan(np.array([0, 2], np.uint32), [(5, 1), (6, size - 1)]))(parts)
        assert all(parts[name].tobytes() == array.tobytes() for name, array in out.items())
        ids = {"source_id": np.zeros(12, np.int32), "record_id": np.zeros(12, np.int64)}
        fields_of = {Content.RECORDS: out, Content.RECORDS_AND_PROVENANCE: out | ids, Content.PROVENANCE: ids}
        for content, wanted in fields_of.items():
            read = each.begin_read(np.array([0, 2], np.uint32), [(5, 1), (6, size - 1)], each.mixture.blocks, content)
            parts = {name: np.zeros_like(array) for name, array in wanted.items()}
            read.write(parts)
            assert all(parts[name].tobytes() == out[name].tobytes() for name in parts.keys() & out.keys())
            if content != Content.RECORDS:
                assert list(zip(parts["source_id"].tolist(), parts["record_id"].tolist(), strict=True)) == rows
        assert out["x"].tolist() == [(SHORT, LONG)[source][record] for source, record in rows]
        assert out["wide"].tolist() == [(2**40 + record, record)[source] for source, record in rows]
