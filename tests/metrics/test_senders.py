"""Who sends a request, as strangers may say it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixserve_client.schema.requests import Sender
from mixserve_client.wire._generated import mix_pb2
from mixserve_client.wire.request import decode_batch_request, decode_positions_request, decode_stream_request

KEY = mix_pb2.Key(implementation="threefry2x32", words=[0, 7])


@given(
    client=st.text(max_size=200),
    reader=st.integers(0, 2**64 - 1),
    share=st.none() | st.floats(width=32, allow_nan=True, allow_infinity=True),
    trace=st.text(max_size=200),
)
def test_what_makes_no_sense_is_left_out(client, reader, share, trace):
    sender = mix_pb2.Sender(client=client, reader=reader, wait_share=share, trace=trace)
    first = mix_pb2.GetBatchAtRequest(mixture="m", start=0, size=4, key=KEY, sender=sender)
    positions = mix_pb2.StreamPositionsRequest(positions=[1], key=KEY, reply_rows=1, sender=sender)
    stream = mix_pb2.StreamBatchesRequest(first=first, stride=4, count=1, reply_rows=4)
    found = decode_batch_request(first.SerializeToString()).sender
    assert found == decode_stream_request(stream.SerializeToString()).first.sender
    assert found == decode_positions_request(positions.SerializeToString()).sender
    assert len(found.client) <= 64
    assert found.client.isprintable()
    assert found.client == client[:64] or not client[:64].isprintable()
    assert found.reader == reader
    assert len(found.trace) <= 55
    assert trace.startswith(found.trace)
    if share is not None and 0 <= share <= 1:
        assert found.wait_share == np.float32(share)
    else:
        assert found.wait_share is None


@pytest.mark.parametrize("decode", [decode_batch_request, decode_positions_request])
def test_requests_of_older_clients_say_nothing(decode):
    message = (
        mix_pb2.GetBatchAtRequest(size=4, key=KEY)
        if decode is decode_batch_request
        else mix_pb2.StreamPositionsRequest(positions=[1], key=KEY, reply_rows=1)
    )
    assert decode(message.SerializeToString()).sender == Sender()
