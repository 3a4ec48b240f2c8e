"""The contestants that feed the training loop: names, modules, and environments, as in the race."""

from benchmarks.race.roster import GRAIN, RAW_GRPC, SHARED_MEMORY, TCP, TF_SERVICE, TF_SERVICE_TUNED, Entry
from benchmarks.race.roster import ROSTER as RACERS

FLOOR = "data already in memory"
GRAIN_SHORT = "grain, 16 batches ahead"

_RACERS = {entry.name: entry for entry in RACERS}

RAW = _RACERS[RAW_GRPC]
ROSTER = (
    Entry(FLOOR, "benchmarks.trainer.in_memory"),
    _RACERS[SHARED_MEMORY],
    _RACERS[TCP],
    _RACERS[TF_SERVICE],
    _RACERS[TF_SERVICE_TUNED],
    _RACERS[GRAIN],
    Entry(GRAIN_SHORT, "benchmarks.trainer.grain_ahead", ("16",)),
)
