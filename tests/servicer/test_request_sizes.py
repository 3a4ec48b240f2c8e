"""Requests cost what their bytes allow: each method has a limit, and nothing is counted after it was converted."""

import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode
from mixserve.servicer import Services
from mixserve_client.errors import InvalidRequest, MixserveError, SessionTaken, UnknownSession
from mixserve_client.schema.schedule import ScheduleEntry, ScheduleRequest
from mixserve_client.schema.sessions import HeldSession, OpenRequest
from mixserve_client.wire import methods
from mixserve_client.wire._generated import mix_pb2, state_pb2
from mixserve_client.wire.frame import delimited
from mixserve_client.wire.request import check_small, decode_positions_request
from mixserve_client.wire.schedule import decode_schedule_request, encode_schedule_request
from mixserve_client.wire.session import decode_call, decode_held, encode_held, encode_open_request
from mixserve_client.wire.value import DEPTH_LIMIT, encode_value, value_of
from mixserve_client.wire.value_count import check_values
from tests.client.test_value import trees
from tests.peak import memory_peak
from tests.processes import ONE_SIZE

LEASE = "a" * 32
MIB = 1 << 20


@pytest.fixture(scope="module")
def services() -> Services:
    config = MixDataSourcesConfig(num_sources=1, weights=(1.0,), plan_sizes=ONE_SIZE)
    made = Services({"train": MixDataSourcesNode(config, [ArraySource({"x": np.arange(9)})])})
    made.handle(methods.OPEN_SESSION, encode_open_request(OpenRequest("train", "run", LEASE)))
    return made


SMALL = {  # a part that costs much, by method
    methods.LIST_MIXTURES: b"\x0a\x00",
    methods.GET_MIXTURE: b"\x0a\x00",
    methods.GET_SERVER: b"\x0a\x00",
    methods.GET_BATCH_AT: b"\x78\x01",  # slots
    methods.STREAM_BATCHES: b"\x78\x01",
    methods.STREAM_POSITIONS: b"\x10\x01",  # positions
    methods.TAKE_RECORDS: b"\x10\x01",  # record ids
    methods.GET_SOURCE: b"\x0a\x00",
    methods.DEFINE_SCHEDULE: b"\x22\x00",  # entries
    methods.OPEN_SESSION: b"\x12\x00",
    methods.LIST_SESSIONS: b"\x0a\x00",
    methods.RENEW_SESSIONS: b"\x0a\x00",
    methods.RELEASE_SESSIONS: b"\x0a\x00",
}


def send(services: Services, method: str, request: bytes) -> None:
    if method in services.mix.streams:
        list(services.stream(method, request))
    else:
        services.handle(method, request)


@pytest.mark.alone
@pytest.mark.parametrize("method", SMALL)
def test_the_most_parts_that_a_request_may_have_cost_little(services, method):
    part = SMALL[method]
    with memory_peak() as peak, pytest.raises(InvalidRequest, match=r"must have at most \d+ bytes"):
        send(services, method, part * (8 * MIB))
    assert peak.most < 20  # with the request itself
    most = next(size for size in (2 * MIB, MIB, 128 << 10) if not _refuses(method, size))
    began = time.process_time()
    with memory_peak() as peak, suppress(MixserveError):
        send(services, method, part * (most // 2))
    assert peak.most < 64
    assert time.process_time() - began < 5  # seconds; it takes less than 0.2


def _refuses(method: str, size: int) -> bool:
    try:
        check_small(method, bytes(size))
    except InvalidRequest:
        return True
    return False


def test_what_clients_send_at_most_is_taken():
    most = 2**63 - 2
    entries = tuple(ScheduleEntry(most - 65_536 + at, (1.0,)) for at in range(1 << 16))
    schedule = encode_schedule_request(ScheduleRequest("train" * 20, "f" * 64, "f" * 64, entries))
    check_small(methods.DEFINE_SCHEDULE, schedule)
    assert len(decode_schedule_request(schedule).entries) == 1 << 16
    positions = mix_pb2.StreamPositionsRequest(
        positions=[most] * 65_536,
        slots=[most] * 8192,
        reply_rows=1,
        key=mix_pb2.Key(implementation="threefry2x32", words=[1, 2]),
    ).SerializeToString()
    check_small(methods.STREAM_POSITIONS, positions)
    assert decode_positions_request(positions).rows == 65_536
    slots = mix_pb2.GetBatchAtRequest(slots=[most] * 8192).SerializeToString()
    check_small(methods.GET_BATCH_AT, slots)
    check_small(methods.STREAM_BATCHES, slots)
    held = encode_held(HeldSession("m" * 800, "s" * 128, f"{at:032x}") for at in range(1000))
    check_small(methods.RENEW_SESSIONS, held)
    assert len(decode_held(held)) == 1000


# Calls of sessions may have 16 MiB


def call(arguments: bytes, **more: object) -> bytes:
    """A CallSession request with these arguments, encoded."""
    head = {"mixture": "train", "session": "run", "lease": LEASE, "sequence": 1, "operation": "set_statistics"} | more
    return state_pb2.CallSessionRequest(**head).SerializeToString() + delimited(6, arguments)


MANY = {
    "values": delimited(7, b"\x0a\x00" * (8 * MIB - 100)),
    "dimensions": delimited(6, delimited(2, b"\x01" * (16 * MIB - 200))),
    "kinds": b"\x3a\x00\x42\x00" * (4 * MIB - 50),
    "levels": b"\x3a\x80\x80\x40\x0a\x80\x80\x40" * (MIB // 4),
    "groups": b"\x53" * (15 * MIB),
}


@pytest.mark.alone
@pytest.mark.parametrize("what", MANY)
@pytest.mark.parametrize(
    ("refused", "more"),
    [
        (UnknownSession, {"session": "another"}),
        (SessionTaken, {"lease": "b" * 32}),
        (InvalidRequest, {"operation": "no operation"}),
        (InvalidRequest, {"operation": "next_batch"}),
        (InvalidRequest, {"lease": "", "sequence": 0}),
        (InvalidRequest, {}),
    ],
)
def test_arguments_are_not_converted_before_it_is_known_that_they_are_wanted(services, what, refused, more):
    request = call(MANY[what], **more)
    began = time.process_time()
    with memory_peak() as peak, pytest.raises(refused):
        services.handle(methods.CALL_SESSION, request)
    assert peak.most < 64  # it once was up to 381
    assert time.process_time() - began < 5


def test_only_states_and_statistics_may_be_large(services):
    large = encode_value({"size": 1, "more": "x" * 200_000})
    for operation in ("next_batch", "get_state", "save_checkpoint", "process", "list_checkpoints"):
        with pytest.raises(InvalidRequest, match=f"the arguments of {operation} must have at most 131072 bytes, got"):
            services.handle(methods.CALL_SESSION, call(large, operation=operation))


def count_children(message: state_pb2.Value) -> int:
    children = [*message.list.values, *message.tuple.values, *(entry.value for entry in message.dict.entries)]
    return len(children) + sum(map(count_children, children))


@given(trees)
def test_values_are_counted_as_they_are_read(tree):
    data = encode_value(tree)
    count = count_children(state_pb2.Value.FromString(data))
    check_values(data, count)
    if count:
        with pytest.raises(ValueError, match="too many values"):
            check_values(data, count - 1)


@given(st.binary(max_size=60))
def test_what_the_count_accepts_holds_no_more_than_it_says(data):
    """Whatever bytes: a message that protobuf reads, and the count lets pass, has no more values."""
    try:
        message = state_pb2.Value.FromString(data)
        check_values(data, 3)
    except Exception:  # protobuf's own error, or the count's
        return
    assert count_children(message) <= 3


def test_the_deepest_value_is_counted():
    tree: object = None
    for _ in range(DEPTH_LIMIT):
        tree = {"x": tree}
    check_values(encode_value(tree), DEPTH_LIMIT)


texts = st.text(max_size=8)


@given(
    st.lists(
        st.one_of(
            st.builds(lambda text: {"mixture": text}, texts),
            st.builds(lambda name: {"session": name}, st.from_regex("[A-Za-z0-9]{1,9}", fullmatch=True)),
            st.just({"lease": LEASE}),
            st.builds(lambda number: {"sequence": number}, st.integers(-(2**63), 2**63 - 1)),
            st.builds(lambda text: {"operation": text}, texts),
            st.builds(
                lambda tree: {"arguments": state_pb2.Value.FromString(encode_value({"a": tree}))},
                st.integers(-9, 9) | texts,
            ),
            st.sampled_from([b"\x78\x01", b"\x79" + bytes(8), b"\x7d" + bytes(4), b"\x7a\x02ab"]),  # of a newer client
        ),
        max_size=8,
    )
)
def test_a_call_is_read_as_protobuf_reads_it(parts):
    data = b"".join(
        part if isinstance(part, bytes) else state_pb2.CallSessionRequest(**part).SerializeToString() for part in parts
    )
    message = state_pb2.CallSessionRequest.FromString(data)
    try:
        found = decode_call(data)
    except InvalidRequest:
        assert not message.session or message.sequence < 0 or (message.sequence and not message.lease)
        return
    assert (found.mixture, found.name, found.operation) == (message.mixture, message.session, message.operation)
    assert (found.lease, found.sequence) == (message.lease, message.sequence)
    assert bool(found.arguments) == message.HasField("arguments")
    if found.arguments:
        try:
            theirs = value_of(message.arguments)
        except ValueError as error:  # two equal keys, after a merge
            with pytest.raises(InvalidRequest, match=str(error)[:20]):
                found.read()
            return
        assert found.read().arguments == theirs
