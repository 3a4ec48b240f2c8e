"""The targets of the race: ratios of throughput, and one of CPU time.

They are set against peers as their documentation shows them; the same target against the tuned form follows each.
"""

from collections.abc import Sequence

from benchmarks.common.targets import Comparison, Row
from benchmarks.race import roster
from benchmarks.race.summary import Measure, Rounds, cpu_per_gigabyte, speed

_GRAIN = (roster.GRAIN, roster.GRAIN_WORKERS)


def race_rows(rounds: Rounds) -> list[Row]:
    return [
        _speed(rounds, roster.TCP, 256, (roster.RAW_GRPC,), 0.9),
        _speed(rounds, roster.TCP, 256, (roster.TF_SERVICE,), 8),
        _speed(rounds, roster.TCP, 256, (roster.TF_SERVICE_TUNED,), 8),
        _speed(rounds, roster.TCP, 256, (roster.REVERB,), 12),
        _speed(rounds, roster.TCP, 256, (roster.REVERB_TUNED,), 12),
        _speed(rounds, roster.TCP, 8, (roster.TF_SERVICE,), 15),
        _speed(rounds, roster.TCP, 8, (roster.TF_SERVICE_TUNED,), 15),
        _speed(rounds, roster.TCP, 8, (roster.REVERB,), 15),
        _speed(rounds, roster.TCP, 8, (roster.REVERB_TUNED,), 15),
        _speed(rounds, roster.TCP, 256, (roster.FLIGHT,), 0.8),
        _speed(rounds, roster.TCP, 1024, (roster.FLIGHT,), 0.65),
        _speed(rounds, roster.SHARED_MEMORY, 256, (roster.FLIGHT,), 1.3),
        _speed(rounds, roster.SHARED_MEMORY, 1024, (roster.FLIGHT,), 2.2),
        _speed(rounds, roster.SHARED_MEMORY, 4096, (roster.FLIGHT,), 3.5),
        _speed(rounds, roster.IN_PROCESS, 256, _GRAIN, 100),
        _speed(rounds, roster.IN_PROCESS, 256, (roster.GRAIN_TUNED,), 100),
        _row(rounds, cpu_per_gigabyte, "CPU s/GB", roster.TCP, 256, (roster.RAW_GRPC,), "<=", 1.5),
    ]


def _speed(rounds: Rounds, ours: str, batch: int, theirs: Sequence[str], target: float) -> Row:
    return _row(rounds, speed, "GB/s", ours, batch, theirs, ">=", target)


def _row(
    rounds: Rounds,
    measure: Measure,
    unit: str,
    ours: str,
    batch: int,
    theirs: Sequence[str],
    comparison: Comparison,
    target: float,
) -> Row:
    against = theirs[0] if len(theirs) == 1 else f"the best of {'; '.join(theirs)}"
    value = rounds.ratio(measure, ours, theirs, batch)
    return Row(f"{ours}, batches of {batch}, {unit}", against, comparison, target, value)
