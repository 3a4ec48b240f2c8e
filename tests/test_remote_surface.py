"""Every stateful member of the reference on every route: the same script of calls gives the same on a node, in process,
over gRPC and with shared memory, synchronous and asyncio.
"""

import asyncio
import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, RandomAccessSource, local_client, serve
from mixserve_client import (
    AsyncMixClient,
    AsyncSession,
    InvalidRequest,
    MixClient,
    MixserveError,
    ServerFault,
    Session,
)
from mixserve_client.schema.tree import flatten
from tests.conftest import ROUTES
from tests.processes import ONE_SIZE
from tests.profiles import examples
from tests.test_reference_members import DOCUMENTED_ATTRIBUTES, DOCUMENTED_METHODS, USED_METHODS

# The members that read or change a node's state, and the others.
STATEFUL = {
    "index",
    "epoch",
    "iter",
    "next",
    "reset",
    "get_state",
    "set_state",
    "compute_statistics",
    "get_statistics",
    "set_statistics",
    "reset_statistics",
    "process",
    "get_operation_stats",
    "reset_operation_stats",
    "reset_cache",
}
STATELESS = {
    "config",
    "rngs",
    "name",
    "stochastic",
    "stream_name",
    "len",
    "element_spec",
    "get_batch_at",
    "to_grain_iter_dataset",
    "copy",
    "clone",
    "requires_rng_streams",
    "ensure_rng_streams",
}

# The mixtures


def spread(batch: dict[str, Any]) -> dict[str, Any]:
    """Statistics of every kind that a message holds."""
    x = batch["x"]
    return {"mean": x.mean(axis=0), "most": float(x.max()), "of": {"rows": len(x), "named": ["x", ("y", None, True)]}}


def flat(length: int, first: int) -> dict[str, np.ndarray]:
    x = first + np.arange(length * 3, dtype=np.float32).reshape(length, 3)
    return {"x": x, "id": np.arange(length, dtype=np.int32), "flag": np.arange(length) % 2 == 0}


def nested(length: int) -> dict[str, Any]:
    image = np.arange(length * 4, dtype=np.uint8).reshape(length, 2, 2)
    half = np.arange(length).astype(jnp.bfloat16)
    return {"image": {"pixels": image, "of": {"half": half}}, "pair": (np.arange(length, dtype=np.int32), [image])}


def mix(*sources: Any, weights: tuple[float, ...] | None = None, **options: Any) -> MixDataSourcesNode:
    weights = weights or (1.0,) * len(sources)
    config = MixDataSourcesConfig(num_sources=len(sources), weights=weights, plan_sizes=ONE_SIZE, **options)
    return MixDataSourcesNode(config, list(sources))


def with_child() -> MixDataSourcesNode:
    """A mixture of a source and a node that has been used before."""
    child = mix(ArraySource(flat(6, 100)), ArraySource(flat(7, 200)), weights=(1, 2))
    iter(child)
    child.next_batch(3)
    child.set_statistics({"mean": np.float32(0.5)})
    return mix(ArraySource(flat(9, 0)), child, weights=(0.4, 0.6))


class Troubled:
    """A source that counts its reads, and fails on demand."""

    def __init__(self):
        self.takes, self.failing = 0, False

    def __len__(self):
        return 40

    def element_spec(self):
        return {"x": jax.ShapeDtypeStruct((), np.int32)}

    def take(self, record_ids):
        self.takes += 1
        if self.failing:
            raise ZeroDivisionError("told to fail")
        return {"x": record_ids.astype(np.int32)}


MIXTURES = ("computed", "precomputed", "nested", "with child")


def make_nodes() -> dict[str, MixDataSourcesNode]:
    items = [jax.tree.map(lambda array, i=i: array[i], nested(9)) for i in range(9)]
    precomputed = {"mean": np.arange(3, dtype=np.float32), "of": {"rows": 12}}
    sources = ArraySource(flat(8, 0)), ArraySource(flat(11, 50))
    return {
        "computed": mix(*sources, weights=(0.6, 0.4), batch_stats_fn=spread, cacheable=True),
        "precomputed": mix(*sources, precomputed_stats=precomputed),
        "nested": mix(ArraySource(nested(10)), RandomAccessSource(items), cacheable=True),
        "with child": with_child(),
        "troubled": mix(Troubled(), batch_stats_fn=spread, cacheable=True),
    }


# The script


class Kept(NamedTuple):
    """The state that another route gave under this name, with some entries changed."""

    name: str
    changes: tuple[tuple[str, Any], ...] = ()


class Step(NamedTuple):
    operation: str
    arguments: tuple[Any, ...] = ()
    name: str = ""  # stores the step's result under this name


def do(operation: str, *arguments: Any, name: str = "") -> Step:
    return Step(operation, arguments, name)


WHERE = (do("index"), do("epoch"))
SCRIPT = [
    do("get_state", name="new"),
    *WHERE,
    # Continue without an epoch, then epochs and their ends
    do("next"),
    do("next_batch", 2),
    *WHERE,
    do("iter"),
    *WHERE,
    do("next"),
    do("next"),
    do("next_batch", 4),
    *WHERE,
    do("get_state", name="midway"),
    do("next_batch", 3),
    do("next"),
    do("next_batch", 1000),
    *WHERE,
    do("next_batch", 1),
    do("next"),
    do("next"),
    *WHERE,
    do("get_state", name="at the end"),
    do("iter"),
    do("next_batch", 1000),
    do("next_batch", 1000),
    *WHERE,
    # States
    do("set_state", Kept("midway")),
    *WHERE,
    do("next_batch", 3),
    do("next"),
    do("get_state"),
    do("set_state", Kept("at the end")),
    *WHERE,
    do("next"),
    do("iter"),
    do("next_batch", 5),
    do("set_state", Kept("new")),
    do("get_state"),
    do("next"),
    do("set_state", Kept("midway")),
    do("iter"),
    *WHERE,
    do("next"),
    do("set_state", {}),
    do("set_state", 7),
    do("set_state", Kept("midway", (("index", -1),))),
    do("set_state", Kept("midway", (("index", 10**6),))),
    do("set_state", Kept("midway", (("index", 1),))),
    do("set_state", Kept("midway", (("epoch", "one"),))),
    do("set_state", Kept("midway", (("order", "another"),))),
    do("set_state", Kept("midway", (("iterator", "{}"),))),
    do("set_state", Kept("midway", (("_applied_count", 2**40),))),
    do("set_state", Kept("midway", (("more", 1),))),
    *WHERE,
    do("get_state"),
    *(do("next_batch", size) for size in (0, -1, "3", None, 2.5, 2**70)),
    *WHERE,
    do("next_batch", 2),
    # Statistics
    do("get_statistics"),
    do("compute_statistics", 0, 8, 7),
    do("get_statistics"),
    do("compute_statistics", 5, 3, [1, 2]),
    do("get_statistics"),
    do("get_state", name="computed"),
    do("reset_statistics"),
    do("get_statistics"),
    do("get_state"),
    do("compute_statistics", 0, 8, 7),
    do("get_statistics"),
    do("reset_statistics"),
    do(
        "set_statistics", {"mean": np.arange(3, dtype=np.float32), "by": {"a": [1, (2.5, None)], "b": np.zeros((0, 2))}}
    ),
    do("get_statistics"),
    do("set_statistics", {}),
    do("get_statistics"),
    do("set_statistics", 7),
    do("set_statistics", None),
    *(do("compute_statistics", *at) for at in ((0, 0, 7), (-1, 4, 7), (0, 4, None), (0, 4, "7"), (2**63 - 2, 4, 7))),
    do("compute_statistics", 2**70, 4, 7),
    do("get_statistics"),
    do("set_state", Kept("computed")),
    do("get_statistics"),
    do("get_state"),
    # Operations
    do("get_operation_stats"),
    do("process", 0, 8, 7),
    do("process", 3, 5, [1, 2]),
    do("process", 2**62, 5, np.array([3, 4], np.uint32)),
    do("process", 0, 8, jax.random.key(7)),
    do("get_operation_stats"),
    *(do("process", *at) for at in ((0, 0, 7), (-1, 4, 7), (0, 4, None), (0, 4), ("0", 4, 7), (0, 2.5, 7))),
    *(do("process", *at) for at in ((2**63 - 2, 4, 7), (2**70, 4, 7), (0, 4, "7"), (0, 4, np.zeros(3, np.uint32)))),
    do("get_operation_stats"),
    do("get_state", name="counted"),
    do("reset_operation_stats"),
    do("get_operation_stats"),
    do("process", 0, 8, 7),
    do("reset_cache"),
    do("process", 0, 8, 7),
    do("compute_statistics", 0, 8, 7),
    do("set_state", Kept("counted")),
    do("get_operation_stats"),
    # And back
    do("reset"),
    *WHERE,
    do("get_state"),
    do("next_batch", 4),
    do("iter"),
    do("next"),
    *WHERE,
    do("get_state"),
]


# The routes

Route = Callable[[Step], Any]


def on_node(node: MixDataSourcesNode, step: Step) -> Any:
    match step.operation:
        case "index" | "epoch":
            return int(getattr(node, step.operation).get_value())
        case "iter":
            iter(node)
            return None
        case "next":
            return next(node)
        case "compute_statistics":
            return node.compute_statistics(node.get_batch_at(*step.arguments))
        case _:
            return getattr(node, step.operation)(*step.arguments)


def on_session(session: Session, step: Step) -> Any:
    match step.operation:
        case "index" | "epoch":
            return getattr(session, step.operation)
        case "iter":
            assert iter(session) is session
            return None
        case "next":
            return next(session)
        case _:
            return getattr(session, step.operation)(*step.arguments)


async def awaited(session: AsyncSession, step: Step) -> Any:
    match step.operation:
        case "index" | "epoch":
            return getattr(session, step.operation)
        case "iter":
            return await session.start_epoch()
        case "next":
            return await session.next_record()
        case _:
            return await getattr(session, step.operation)(*step.arguments)


class Hosted(NamedTuple):
    """The mixtures, and a client of them on each route."""

    nodes: dict[str, MixDataSourcesNode]
    clients: dict[str, MixClient]
    asynchronous: AsyncMixClient
    runner: asyncio.Runner

    def routes(self, mixture: str, until: ExitStack) -> dict[str, Route]:
        """To a clone of the node, and to sessions of its own on all servers."""
        node = self.nodes[mixture].clone()
        found: dict[str, Route] = {"node": lambda step: on_node(node, step)}
        for name, client in self.clients.items():
            session = until.enter_context(client.session(name.replace(" ", "-"), mixture=mixture, fresh=True))
            found[name] = lambda step, session=session: on_session(session, step)
        opened = self.runner.run(self.asynchronous.session("awaited", mixture=mixture, fresh=True))
        until.callback(lambda: self.runner.run(opened.close()))
        found["awaited"] = lambda step: self.runner.run(awaited(opened, step))
        return found


@pytest.fixture(scope="module")
def hosted() -> Iterator[Hosted]:
    with ExitStack() as stack:
        nodes = make_nodes()
        runner = stack.enter_context(asyncio.Runner())
        server = stack.enter_context(serve(nodes))
        clients = {
            "in process": local_client(nodes),
            **{name: MixClient.connect(server.address, **options) for name, options in ROUTES.items()},
        }
        for client in clients.values():
            stack.enter_context(client)
        asynchronous = AsyncMixClient.connect(server.address)
        stack.callback(lambda: runner.run(asynchronous.close()))
        yield Hosted(nodes, clients, asynchronous, runner)


@pytest.fixture
def open_routes(hosted) -> Iterator[Callable[[str], dict[str, Route]]]:
    with ExitStack() as until:
        yield lambda mixture: hosted.routes(mixture, until)


class Ended:
    """The end of an epoch."""


def outcome(route: Route, step: Step) -> Any:
    """What a step gives or raises."""
    try:
        return route(step)
    except (StopIteration, StopAsyncIteration):
        return Ended
    except Exception as error:
        return error


def assert_same(expected: Any, given: Any, at: str) -> None:
    """Require the same structure, dtypes, shapes and bytes, and the class that the node's error has on the wire."""
    if isinstance(expected, Exception):
        is_ours = isinstance(expected, MixserveError)
        assert is_ours or isinstance(expected, ValueError | TypeError), f"{at}: {expected!r}"
        assert type(given) is (type(expected) if is_ours else InvalidRequest), f"{at}: {expected!r}, {given!r}"
    elif hasattr(expected, "dtype"):
        a, b = np.asarray(expected), np.asarray(given)
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), f"{at}: {expected!r}, {given!r}"
    else:
        assert type(expected) is type(given), f"{at}: {expected!r}, {given!r}"
        if isinstance(expected, dict):
            assert expected.keys() == given.keys(), at
            for key, child in expected.items():
                assert_same(child, given[key], f"{at}.{key}")
        elif isinstance(expected, list | tuple):
            assert len(expected) == len(given), at
            for place, child in enumerate(expected):
                assert_same(child, given[place], f"{at}[{place}]")
        else:
            assert expected == given, at


def run_through(script: list[Step], routes: dict[str, Route]) -> None:
    """Run each step on all routes; a state from one route is set on the next one."""
    kept: dict[str, list[Any]] = {}
    for number, step in enumerate(script):
        outcomes: list[Any] = []
        for place, route in enumerate(routes.values()):
            given = [
                copy.deepcopy(kept[a.name][place - 1]) | dict(a.changes) if isinstance(a, Kept) else a
                for a in step.arguments
            ]
            outcomes.append(outcome(route, step._replace(arguments=tuple(given))))
        if step.name:
            kept[step.name] = outcomes
        for name, got in list(zip(routes, outcomes, strict=True))[1:]:
            assert_same(outcomes[0], got, f"step {number}, {step}, {name}")


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_same_calls_give_the_same_on_every_route(open_routes, mixture):
    run_through(SCRIPT, open_routes(mixture))


@settings(max_examples=examples(150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mixture=st.sampled_from(MIXTURES), script=st.lists(st.sampled_from(SCRIPT), max_size=30))
def test_any_calls_give_the_same_on_a_node_and_in_process(hosted, mixture, script):
    script = [do("get_state", name=step.name) for step in SCRIPT if step.name] + script
    node = hosted.nodes[mixture].clone()
    with hosted.clients["in process"].session("any", mixture=mixture, fresh=True) as session:
        run_through(
            script, {"node": lambda step: on_node(node, step), "session": lambda step: on_session(session, step)}
        )


def test_every_stateful_member_is_in_the_script():
    documented = {name.partition("(")[0].strip("_") for name in (*DOCUMENTED_METHODS, *USED_METHODS)}
    assert documented | set(DOCUMENTED_ATTRIBUTES) == STATEFUL | STATELESS
    assert not STATEFUL & STATELESS
    assert {step.operation for step in SCRIPT} == STATEFUL | {"next_batch"}


def test_a_fault_of_a_source_moves_no_route_and_all_go_on(hosted, open_routes):
    source, routes = hosted.nodes["troubled"].sources[0], open_routes("troubled")
    read = [do("next"), do("process", 0, 4, 7), do("compute_statistics", 0, 4, 7), do("next_batch", 3)]
    looks = [*WHERE, do("get_state"), do("get_statistics"), do("get_operation_stats")]
    run_through([do("reset_cache"), do("iter"), do("next_batch", 5), *looks], routes)
    source.failing = True
    for step in read:
        node, *others = (outcome(route, step) for route in routes.values())
        assert isinstance(node, ZeroDivisionError)
        assert all(isinstance(other, ServerFault) for other in others), (step, others)
    source.failing = False
    run_through([*looks, *read, *looks, do("next_batch", 100), *looks], routes)


def test_a_cache_is_kept_and_reset_from_every_route(hosted, open_routes):
    source, routes = hosted.nodes["troubled"].sources[0], open_routes("troubled")
    for place, (name, route) in enumerate(routes.items()):
        computed, taken = do("compute_statistics", 100 * place, 8, 7), []
        for step in (computed, computed, do("reset_cache"), computed):
            before = source.takes
            route(step)
            taken.append(source.takes - before)
        assert taken == [1, 0, 0, 1], name


def test_batches_and_specs_are_those_of_the_node_too(hosted):
    """Stateless members need no session."""
    for mixture in MIXTURES:
        node = hosted.nodes[mixture]
        batch, spec = node.get_batch_at(3, 9, 7), node.element_spec()
        for client in hosted.clients.values():
            assert_same(batch, client.get_batch_at(3, 9, 7, mixture=mixture), mixture)
            given_spec = client.mixture(mixture).element_spec
            assert {name: (leaf.shape, leaf.dtype) for name, leaf in flatten(spec).items()} == {
                name: (field.shape, field.dtype) for name, field in given_spec.items()
            }
        assert_same(batch, hosted.runner.run(hosted.asynchronous.get_batch_at(3, 9, 7, mixture=mixture)), mixture)
