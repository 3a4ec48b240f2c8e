"""The targets of the race: ours as a ratio of its limits and peers, and CPU seconds per GB."""

from collections.abc import Sequence

from benchmarks.common.targets import Row
from benchmarks.common.work import SIZES
from benchmarks.race.roster import (
    BARE_LOOP,
    FLIGHT,
    FLIGHT_PLANNED,
    GRAIN,
    GRAIN_TUNED,
    GRAIN_WORKERS,
    GRPC,
    IN_PROCESS,
    ONE_THREAD_MEMORY,
    ONE_THREAD_TCP,
    RAW_GRPC,
    REVERB,
    REVERB_TUNED,
    SHARED_MEMORY,
    TCP,
    TF_SERVICE,
    TF_SERVICE_TUNED,
)
from benchmarks.race.summary import Rounds, cpu_per_gigabyte, speed


def race_rows(rounds: Rounds) -> list[Row]:
    peers = [(TF_SERVICE, 10), (TF_SERVICE_TUNED, 2.4), (REVERB, 6), (REVERB_TUNED, 4.5)]
    shares = zip(SIZES, (0.8, 0.8, 0.85, 0.85, 0.9), strict=True)
    return [
        *(_speed(rounds, IN_PROCESS, size, (BARE_LOOP,), 0.8) for size in (256, 4096)),
        *(_speed(rounds, SHARED_MEMORY, size, (ONE_THREAD_MEMORY,), share) for size, share in shares),
        *(_speed(rounds, TCP, size, (ONE_THREAD_TCP,), 0.8 if size == 8 else 0.9) for size in SIZES),
        *(_speed(rounds, TCP, size, (peer,), times) for peer, times in peers for size in (256, 1024)),
        *(_speed(rounds, TCP, size, (FLIGHT_PLANNED,), 1.8) for size in SIZES),
        *(_speed(rounds, TCP, size, (FLIGHT,), 1.2) for size in SIZES),
        *(_speed(rounds, GRPC, size, (RAW_GRPC,), 0.9) for size in (256, 1024, 4096)),
        _cpu(rounds, SHARED_MEMORY, 256, 0.4),
        _cpu(rounds, TCP, 256, 0.6),
    ]


def earlier_rows(rounds: Rounds) -> list[Row]:
    """What was aimed at before, as far as `race_rows` says nothing about it; CPU time of gRPC as of then."""
    peers = (TF_SERVICE, TF_SERVICE_TUNED, REVERB, REVERB_TUNED)
    return [
        *(_speed(rounds, TCP, 8, (peer,), 15) for peer in peers),
        *(
            _speed(rounds, SHARED_MEMORY, size, (FLIGHT,), times)
            for size, times in ((256, 1.3), (1024, 2.2), (4096, 3.5))
        ),
        _speed(rounds, IN_PROCESS, 256, (GRAIN, GRAIN_WORKERS), 100),
        _speed(rounds, IN_PROCESS, 256, (GRAIN_TUNED,), 100),
        Row(
            _name(GRPC, 256, "CPU s/GB"),
            RAW_GRPC,
            "<=",
            1.5,
            rounds.ratio(cpu_per_gigabyte, GRPC, (RAW_GRPC,), 256),
        ),
    ]


def _speed(rounds: Rounds, ours: str, batch: int, theirs: Sequence[str], target: float) -> Row:
    against = theirs[0] if len(theirs) == 1 else f"the best of {'; '.join(theirs)}"
    return Row(_name(ours, batch, "GB/s"), against, ">=", target, rounds.ratio(speed, ours, theirs, batch))


def _cpu(rounds: Rounds, ours: str, batch: int, target: float) -> Row:
    value = rounds.spread(cpu_per_gigabyte, ours, batch)
    return Row(_name(ours, batch, "both ends"), "CPU s/GB", "<=", target, value)


def _name(ours: str, batch: int, what: str) -> str:
    return f"{ours}, batches of {batch}, {what}"
