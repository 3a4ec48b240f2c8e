"""Who races: ours, the limits, and peers; names, modules, and the environments that they run in.

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
GRPC = "mixserve gRPC alone"
UNIX = "mixserve unix"
SHARED_MEMORY = "mixserve shared memory"
IN_PROCESS = "mixserve in process"
BARE_LOOP = "plan and gather, bare loop"
TAKE = "np.take"
MEMCPY = "memcpy"
ONE_THREAD_MEMORY = "experiment, shared memory"
ONE_THREAD_TCP = "experiment, TCP"
SOCKET = "raw TCP socket"
RAW_GRPC = "raw grpcio"
FLIGHT = "Arrow Flight, one hot batch"
FLIGHT_PLANNED = "Arrow Flight, same work"
ZMQ_PLANNED = "pyzmq, same work"
TF_SERVICE = "tf.data service"
TF_SERVICE_TUNED = "tf.data service, tuned"
TF_LOCAL = "tf.data local"
REVERB = "Reverb"
REVERB_TUNED = "Reverb, tuned"
GRAIN = "grain"
GRAIN_WORKERS = "grain, 2 workers"
GRAIN_TUNED = "grain, tuned"

# Ours is shown as a share of each of these.
LIMITS = (BARE_LOOP, TAKE, MEMCPY, ONE_THREAD_MEMORY, ONE_THREAD_TCP, SOCKET, RAW_GRPC, FLIGHT, FLIGHT_PLANNED)
LIMITS += (ZMQ_PLANNED,)

_OURS = "benchmarks.race.ours"
_LIMITS = "benchmarks.race.limits"
_PEERS = "benchmarks.race.peers"

# Ours and its limit run one after the other, so that both meet the same state of the machine.
ROSTER = (
    Entry(IN_PROCESS, _OURS, ("in-process",)),
    Entry(BARE_LOOP, f"{_LIMITS}.bare_loop"),
    Entry(TAKE, f"{_LIMITS}.take"),
    Entry(MEMCPY, f"{_LIMITS}.memcpy"),
    Entry(SHARED_MEMORY, _OURS, ("shared-memory",)),
    Entry(ONE_THREAD_MEMORY, f"{_LIMITS}.one_thread_memory"),
    Entry(TCP, _OURS, ("tcp",)),
    Entry(ONE_THREAD_TCP, f"{_LIMITS}.one_thread_tcp"),
    Entry(SOCKET, f"{_LIMITS}.raw_socket"),
    Entry(FLIGHT_PLANNED, f"{_PEERS}.flight_planned"),
    Entry(FLIGHT, f"{_PEERS}.flight", environment="flight"),
    Entry(ZMQ_PLANNED, f"{_PEERS}.zmq_planned", environment="zmq"),
    Entry(GRPC, _OURS, ("grpc",)),
    Entry(RAW_GRPC, f"{_PEERS}.raw_grpc"),
    Entry(UNIX, _OURS, ("unix",)),
    Entry(TF_SERVICE, f"{_PEERS}.tf_data_service", ("textbook",), "tensorflow"),
    Entry(TF_SERVICE_TUNED, f"{_PEERS}.tf_data_service", ("tuned",), "tensorflow"),
    Entry(REVERB, f"{_PEERS}.reverb_table", ("textbook",), "reverb"),
    Entry(REVERB_TUNED, f"{_PEERS}.reverb_table", ("tuned",), "reverb"),
    Entry(TF_LOCAL, f"{_PEERS}.tf_data", environment="tensorflow"),
    Entry(GRAIN, f"{_PEERS}.grain_mix", ("textbook",), largest=1024),
    Entry(GRAIN_WORKERS, f"{_PEERS}.grain_mix", ("textbook", "2"), largest=256),
    Entry(GRAIN_TUNED, f"{_PEERS}.grain_mix", ("tuned",)),
)
