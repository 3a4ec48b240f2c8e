"""What a client gets from a server in many ways -> digests, states and errors, as a line of JSON.

python read_all.py ADDRESS '{"route": "bulk", "states": {…}, "resume": "NAME", …}'

It runs under the clients of several versions, so it uses what all of them have, and nothing of the tests.
"""

import hashlib
import itertools
import json
import sys
from typing import Any

import numpy as np

import mixserve_client
from mixserve_client import MixClient, MixserveError

ROUTES: dict[str, dict[str, Any]] = {
    "grpc": {"shared_memory": False, "bulk": False},
    "grpc with checksums": {"shared_memory": False, "bulk": False, "checksum": True},
    "bulk": {"shared_memory": False},
    "shared memory": {},
}
SIZE = 8
ITERATORS: dict[str, dict[str, Any]] = {
    "plain": {},
    "shard of a worker": {"shard": (1, 2), "worker": (1, 3)},
    "schedule and skips": {"schedule": [(16, [0.2, 0.8])], "skip": [(3, 6), (50, 60)], "provenance": True},
}


def digest(batch: Any) -> str:
    """Names, dtypes, shapes and bytes of all arrays, in a hash."""
    found = hashlib.sha256()
    for name in sorted(batch):
        array = np.asarray(batch[name])
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def read_mixture(client: MixClient, mixture: str, states: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Digests of what comes of `mixture` in all ways, and the states of iterators; they go on from `states`."""
    described = client.mixture(mixture)
    got: dict[str, Any] = {
        "described": [
            described.fingerprint,
            sorted(field.name for field in described.fields),
            client.end(mixture=mixture),
        ],
        "at": digest(client.get_batch_at(3, 5, 7, mixture=mixture, provenance=True)),
        "large": digest(client.get_batch_at(0, 5000, (3, 4), mixture=mixture)),
        "by positions": digest(client.get_batch_by_positions([31, 7, 7], 7, mixture=mixture)),
        "plan": digest(client.get_plan_at(3, 5, 7, mixture=mixture)),
    }
    saved = dict[str, Any]()
    for name, options in ITERATORS.items():
        with client.batches(SIZE, 7, mixture=mixture, **options) as batches:
            got[name] = [digest(batch) for batch in itertools.islice(batches, 6)]
            if not options:
                batches.schedule_weights([0.9, 0.1])
                got[name].append(digest(next(batches)))
            saved[name] = batches.get_state()
            if name in states:
                batches.set_state(states[name])
            got[f"{name}, further"] = [digest(next(batches)) for _ in range(4)]
    return got, saved


def use_session(client: MixClient, name: str) -> dict[str, Any]:
    """A session from its begin on; after it comes back to a checkpoint, it is closed three records later."""
    with client.session(name, mixture="tokens") as session:
        iter(session)
        got = {"first": [digest(session.next_batch(5)), digest(next(session))], "resumed": session.resumed}
        session.save_checkpoint("one")
        session.next_batch(9)
        session.restore_checkpoint("one")
        got["after"] = digest(session.next_batch(3))
        got["checkpoints"] = [checkpoint.name for checkpoint in session.list_checkpoints()]
        got["at"] = [session.index, session.epoch, session.get_operation_stats()]
        return got


def resume_session(client: MixClient, name: str) -> dict[str, Any]:
    """The session that `use_session` closed, maybe of another version."""
    with client.session(name, mixture="tokens") as session:
        got = {"resumed": session.resumed, "at": [session.index, session.epoch], "next": digest(session.next_batch(4))}
        session.restore_checkpoint("one")
        return got | {"again": digest(session.next_batch(3))}


def errors_of(client: MixClient) -> dict[str, str]:
    """The class of the error of each wrong call."""
    wrong = {
        "mixture": lambda: client.mixture("unknown"),
        "rows": lambda: client.get_batch_at(0, 0, 7, mixture="tokens"),
        "session": lambda: client.view_session("unknown", mixture="tokens").get_state(),
        "state": lambda: client.batches(SIZE, 7, mixture="tokens").set_state({"version": 1}),
    }
    found = dict[str, str]()
    for name, call in wrong.items():
        try:
            call()
        except MixserveError as error:
            found[name] = type(error).__name__
    return found


def main(address: str, asked: str) -> None:
    wanted = json.loads(asked)
    states = wanted.get("states", {})
    got: dict[str, Any] = {"package": mixserve_client.__file__, "mixtures": {}, "states": {}}
    with MixClient.connect(address.split(","), patience_s=60, **ROUTES[wanted["route"]]) as client:
        got["names"] = client.mixtures()
        for mixture in got["names"]:
            got["mixtures"][mixture], got["states"][mixture] = read_mixture(client, mixture, states.get(mixture, {}))
        got["errors"] = errors_of(client) if "," not in address else {}
        if "begin" in wanted:
            got["session"] = use_session(client, wanted["begin"])
        if "resume" in wanted:
            got["resumed"] = resume_session(client, wanted["resume"])
        got["transport"] = client.transport
    print(json.dumps(got))


if __name__ == "__main__":
    main(*sys.argv[1:])
