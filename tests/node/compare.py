"""Real servers, read by `read_batch.mjs` and by our own client: fields, fingerprint, errors and bytes must agree.

One server has neither TLS nor tokens; the other one wants certificates of clients, and tokens.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mixserve import ArraySource, MixDataSourcesConfig, MixDataSourcesNode, ServerTls, serve
from mixserve_client import InvalidRequest, MixClient, MixserveError, MixtureDescription, OutOfRange, TlsOptions
from mixserve_client.schema.dtypes import dtype_name
from mixserve_client.schema.positions import POSITION_LIMIT
from tests.certificates import Authority
from tests.tokens.files import Tokens

_SCRIPT = Path(__file__).with_name("read_batch.mjs")
_REFUSED = 3
_PLAIN = {"MIXSERVE_CA": "", "MIXSERVE_TOKEN": ""}

Reply = dict[str, Any]
Environment = Mapping[str, str | os.PathLike[str]]


def main() -> int:
    """Compare everything; returns 1 if Node.js and our client differ."""
    node = _node()
    with serve({"train": node}) as server, MixClient.connect(server.address) as client:
        problems = [*_batch_problems(server.address, client), *_error_problems(server.address, client)]
    if shutil.which("openssl") is None:
        print("node: TLS and tokens were NOT tested: the command openssl, which makes certificates, is missing")
    else:
        with tempfile.TemporaryDirectory() as folder:
            problems += _secured_problems(node, Path(folder))
    for problem in problems:
        print(f"test-node: {problem}", file=sys.stderr)
    if not problems:
        print("node: ok")
    return 1 if problems else 0


def _node() -> MixDataSourcesNode:
    config = MixDataSourcesConfig(num_sources=2, weights=(0.7, 0.3))
    return MixDataSourcesNode(config, [_source("web", 37, seed=1), _source("code", 11, seed=2)])


def _source(name: str, length: int, *, seed: int) -> ArraySource:
    random = np.random.default_rng(seed)
    return ArraySource(
        {
            "tokens": random.integers(-(2**31), 2**31, (length, 33), np.int32),
            "label": random.integers(0, 2**16, length, np.uint16),
            "embedding": random.standard_normal((length, 3, 2)).astype(ml_dtypes.bfloat16),
            "document": random.integers(-(2**63), 2**63 - 1, length, np.int64),
            "mask": random.integers(0, 2, (length, 5)).astype(np.bool_),
        },
        name=name,
    )


def _secured_problems(node: MixDataSourcesNode, folder: Path) -> Iterator[str]:
    """What differs on a server that wants a certificate and a token, and who gets in without."""
    authority = Authority(folder / "authority")
    pair, own = authority.issue("server"), authority.issue("trainer")
    tokens = Tokens(folder / "tokens.yaml", {"right": ("reader", ["train"]), "elsewhere": ("reader", ["other"])})
    right = {
        "MIXSERVE_CA": authority.ca,
        "NODE_CERTIFICATE": own.certificate,
        "NODE_KEY": own.key,
        "MIXSERVE_TOKEN": tokens["right"],
    }
    tls = TlsOptions(authority.ca, own.certificate, own.key)
    with (
        serve({"train": node}, tokens=tokens.path, tls=ServerTls(pair.certificate, pair.key, authority.ca)) as server,
        MixClient.connect(server.address, tls=tls, token=tokens["right"], shared_memory=False) as client,
    ):
        yield from _batch_problems(server.address, client, right)
        yield from _error_problems(server.address, client, right)
        for what, change, code, name in (
            ("no token", {"MIXSERVE_TOKEN": ""}, "UNAUTHENTICATED", "Unauthenticated"),
            ("a wrong token", {"MIXSERVE_TOKEN": "mixserve_wrong"}, "UNAUTHENTICATED", "Unauthenticated"),
            ("a token of another mixture", {"MIXSERVE_TOKEN": tokens["elsewhere"]}, "NOT_FOUND", "UnknownMixture"),
            ("no certificate", {"NODE_CERTIFICATE": "", "NODE_KEY": ""}, "UNAVAILABLE", None),
            ("another authority", {"MIXSERVE_CA": _other(folder)}, "UNAVAILABLE", None),
            ("no TLS", {"MIXSERVE_CA": ""}, "UNAVAILABLE", None),
        ):
            got = _read(server.address, 0, 8, 7, environment={**right, **change})
            if "error" in got:
                del got["error"]["message"]
            yield from _differences(what, got, {"error": {"code": code, "name": name}})


def _other(folder: Path) -> Path:
    return Authority(folder / "other", "Other Authority").ca


def _batch_problems(address: str, client: MixClient, environment: Environment | None = None) -> Iterator[str]:
    mixture = client.mixture()
    largest = mixture.limits.size  # more than our client requests at once, and than gRPC's default of 4 MiB
    for start, size, seed in [
        (0, 1, 0),
        (5, 64, 7),
        (1000, largest, 7),
        (2**32 - 3, 8, 2**32 - 1),
        (2**53 + 1, 17, 3),
        (POSITION_LIMIT - 9, 9, 2**31),
    ]:
        expected = {
            "mixture": _describe(mixture),
            "fingerprint": mixture.fingerprint,
            "arrays": _hashed(mixture, client.get_batch_at(start, size, seed)),
        }
        yield from _differences(
            f"start {start}, size {size}, seed {seed}",
            _read(address, start, size, seed, environment=environment),
            expected,
        )


def _error_problems(address: str, client: MixClient, environment: Environment | None = None) -> Iterator[str]:
    too_large = client.mixture().limits.size + 1
    wrong: list[tuple[tuple[int, ...], type[MixserveError]]] = [
        ((0, 0, 7), InvalidRequest),
        ((0, too_large, 7), InvalidRequest),
        ((-1, 8, 7), InvalidRequest),
        ((0, 8, 7, 1), InvalidRequest),  # the request is cut short by one byte
        ((POSITION_LIMIT, 1, 7), OutOfRange),
    ]
    for arguments, cls in wrong:
        got = _read(address, *arguments, environment=environment)
        if "error" in got:
            got["error"]["message"] = bool(got["error"]["message"])
        expected = {"error": {"code": cls.code, "name": cls.__name__, "message": True}}
        yield from _differences(f"the wrong request {arguments}", got, expected)


def _read(address: str, *arguments: int, environment: Environment | None = None) -> Reply:
    command = ["node", str(_SCRIPT), address, *map(str, arguments)]
    variables = os.environ | {name: os.fspath(value) for name, value in (environment or _PLAIN).items()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=variables)
    if done.returncode not in (0, _REFUSED):
        sys.exit(f"test-node: {' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def _describe(mixture: MixtureDescription) -> Reply:
    """The Mixture message in JavaScript's form: 64-bit numbers are strings."""
    return {
        "name": mixture.name,
        "fingerprint": mixture.fingerprint,
        "fields": [{"name": f.name, "dtype": dtype_name(f.dtype), "shape": _texts(f.shape)} for f in mixture.fields],
        "sources": [
            {
                "name": s.name,
                "length": str(s.length),
                "weight": s.weight,
                "pass_end": str(s.pass_end or 0),
                "content_unknown": s.content_unknown,
                "content_sampled": s.content_sampled,
            }
            for s in mixture.sources
        ],
        "limits": {"size": str(mixture.limits.size), "reply_bytes": str(mixture.limits.reply_bytes)},
        "placement": mixture.placement,
        "sampling": mixture.sampling,
        "block_size": str(mixture.block_size),
        "stop": mixture.stop,
        "end": str(mixture.end or 0),
        "schedule": [{"start": str(entry.start), "weights": list(entry.weights)} for entry in mixture.schedule],
        "leaves": list(mixture.leaves),
    }


def _hashed(mixture: MixtureDescription, batch: dict[str, np.ndarray]) -> list[Reply]:
    return [
        {
            "name": field.name,
            "dtype": dtype_name(batch[field.name].dtype),
            "shape": _texts(batch[field.name].shape),
            "sha256": hashlib.sha256(batch[field.name].tobytes()).hexdigest(),
        }
        for field in mixture.fields
    ]


def _texts(numbers: tuple[int, ...]) -> list[str]:
    return [str(number) for number in numbers]


def _differences(what: str, got: Reply, expected: Reply) -> Iterator[str]:
    for key in sorted(got.keys() | expected.keys()):
        if got.get(key) != expected.get(key):
            yield f"{what}: {key} differs:\n  Node.js: {got.get(key)}\n  expected: {expected.get(key)}"


if __name__ == "__main__":
    sys.exit(main())
