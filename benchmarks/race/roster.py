"""Who races: names, modules, and the environments that they run in.

A peer by its bare name is used as its documentation shows; if other means make it faster, its tuned form runs as well.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.environments import python_of


@dataclass(frozen=True)
class Entry:
    """A contestant as the driver starts it; `environment` is a folder of .venv-peers, None for the driver's own.

    Batches of more than `largest` records take so long that it is left out.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()
    environment: str | None = None
    largest: int = sys.maxsize

    def python(self) -> Path:
        """The interpreter to run it with. Raises FileNotFoundError if its environment has not been built."""
        return python_of(self.environment)


TCP = "mixserve tcp"
UNIX = "mixserve unix"
SHARED_MEMORY = "mixserve shared memory"
IN_PROCESS = "mixserve in process"
RAW_GRPC = "raw grpcio"
FLIGHT = "Arrow Flight"
SOCKET = "raw TCP socket"
MEMCPY = "memcpy"
TF_SERVICE = "tf.data service"
TF_SERVICE_TUNED = "tf.data service, tuned"
TF_LOCAL = "tf.data local"
REVERB = "Reverb"
REVERB_TUNED = "Reverb, tuned"
GRAIN = "grain"
GRAIN_WORKERS = "grain, 2 workers"
GRAIN_TUNED = "grain, tuned"

_OURS = "benchmarks.race.ours"
_PEERS = "benchmarks.race.peers"

ROSTER = (
    Entry(TCP, _OURS, ("tcp",)),
    Entry(UNIX, _OURS, ("unix",)),
    Entry(SHARED_MEMORY, _OURS, ("shared-memory",)),
    Entry(IN_PROCESS, _OURS, ("in-process",)),
    Entry(RAW_GRPC, f"{_PEERS}.raw_grpc"),
    Entry(FLIGHT, f"{_PEERS}.flight", environment="flight"),
    Entry(SOCKET, f"{_PEERS}.raw_socket"),
    Entry(MEMCPY, f"{_PEERS}.memcpy"),
    Entry(TF_SERVICE, f"{_PEERS}.tf_data_service", ("textbook",), "tensorflow"),
    Entry(TF_SERVICE_TUNED, f"{_PEERS}.tf_data_service", ("tuned",), "tensorflow"),
    Entry(TF_LOCAL, f"{_PEERS}.tf_data", environment="tensorflow"),
    Entry(REVERB, f"{_PEERS}.reverb_table", ("textbook",), "reverb"),
    Entry(REVERB_TUNED, f"{_PEERS}.reverb_table", ("tuned",), "reverb"),
    Entry(GRAIN, f"{_PEERS}.grain_mix", ("textbook",), largest=1024),
    Entry(GRAIN_WORKERS, f"{_PEERS}.grain_mix", ("textbook", "2"), largest=256),
    Entry(GRAIN_TUNED, f"{_PEERS}.grain_mix", ("tuned",)),
)
