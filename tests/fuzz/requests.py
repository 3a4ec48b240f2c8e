"""Requests of all methods of a server, right ones and damaged ones."""

import random

import numpy as np

from mixserve_client.schema.fields import Content
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.requests import BatchRequest, PositionsRequest, RecordsRequest, StreamRequest
from mixserve_client.schema.schedule import ScheduleEntry, ScheduleRequest
from mixserve_client.schema.sessions import CallRequest, HeldSession, OpenRequest
from mixserve_client.wire import methods, request, schedule, session, source
from tests.fuzz.mutations import mutate

STREAMS = (methods.STREAM_BATCHES, methods.STREAM_POSITIONS, methods.TAKE_RECORDS)
_LARGEST = 64 << 10
_RIGHT = 0.1  # the share of requests that are not damaged


def seeds(mixture: str) -> dict[str, list[bytes]]:
    """Right requests, by method."""
    key, lease = key_words(7), "0f" * 16
    batch = BatchRequest(mixture, 5, 7, key, content=Content.RECORDS_AND_PROVENANCE)
    calls = [
        CallRequest(mixture, "run", name, arguments, lease, sequence)
        for name, arguments, sequence in [
            ("next_batch", {"size": 5}, 1),
            ("process", {"start": 1, "size": 3, "key": [0, 7]}, 0),
            ("get_state", {}, 0),
            ("save_checkpoint", {"name": "a"}, 2),
            ("list_checkpoints", {}, 0),
            ("set_statistics", {"statistics": {"mean": np.zeros(3)}}, 3),
        ]
    ]
    return {
        methods.LIST_MIXTURES: [b""],
        methods.GET_SERVER: [b""],
        methods.GET_MIXTURE: [request.encode_mixture_request(mixture)],
        methods.GET_BATCH_AT: [request.encode_batch_request(batch)],
        methods.STREAM_BATCHES: [request.encode_stream_request(StreamRequest(batch, 14, 3, 7))],
        methods.STREAM_POSITIONS: [
            request.encode_positions_request(PositionsRequest(mixture, np.array([5, 1, 99, 5]), key, 2))
        ],
        methods.GET_SOURCE: [source.encode_source_request(mixture, ""), source.encode_source_request(mixture, "0")],
        methods.TAKE_RECORDS: [
            request.encode_records_request(RecordsRequest(mixture, name, np.array([5, 1, 3, 5]), 2, hops=1))
            for name in ("", "0")
        ],
        methods.DEFINE_SCHEDULE: [
            schedule.encode_schedule_request(ScheduleRequest(mixture, "", "", (ScheduleEntry(4096, (1.0, 0.0)),)))
        ],
        methods.OPEN_SESSION: [session.encode_open_request(OpenRequest(mixture, "run", lease, take_over=True))],
        methods.CALL_SESSION: [session.encode_call_request(call) for call in calls],
        methods.RENEW_SESSIONS: [session.encode_held([HeldSession(mixture, "run", lease)])],
        methods.RELEASE_SESSIONS: [session.encode_held([HeldSession(mixture, "run", lease)])],
        methods.LIST_SESSIONS: [session.encode_list_request(mixture)],
    }


class Requests:
    """An endless supply of requests."""

    def __init__(self, mixture: str, choice: random.Random):
        self._seeds, self._choice = seeds(mixture), choice
        self._methods = list(self._seeds)

    def __call__(self) -> tuple[str, bytes]:
        """A method and a request; now and then the method is none, or another one's."""
        choice = self._choice
        method = choice.choice(self._methods)
        known = self._seeds[choice.choice(self._methods) if choice.random() < 0.05 else method]
        data = choice.choice(known) if choice.random() < _RIGHT else mutate(choice, known, _LARGEST)
        return (method if choice.random() < 0.99 else f"/mixserve.v1.None/{choice.randrange(9)}"), data
