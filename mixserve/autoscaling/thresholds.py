"""When the policy goes up and down."""

from dataclasses import dataclass, fields

from mixserve_client.errors import InvalidRequest


@dataclass(frozen=True)
class Thresholds:
    """Shares in 0..1, and times in seconds. Raises InvalidRequest if they contradict each other.

    - `up`: more replicas when trainers wait for more than this part of their time, for `up_after_s`;
    - `down`: fewer only while they wait for at most this part, for `down_after_s`;
    - `busy`: how many replies at a time each of fewer replicas may have to make;
    - `settle_s`: for how long figures after a change do not count, since clients move, and their shares of waiting
      fade by a factor e every 15 s;
    - `arrive_s`: how long to wait for replicas that were asked for before asking for more of them;
    - `gone_after_s`: the minimum, when no trainer has read for so long;
    - `retry_after_s`: how long not to try more replicas again when they did not help; twice as long each time, up to
      a day.
    """

    up: float = 0.05
    down: float = 0.02
    busy: float = 0.7
    up_after_s: float = 15.0
    down_after_s: float = 300.0
    settle_s: float = 60.0
    arrive_s: float = 600.0
    gone_after_s: float = 600.0
    retry_after_s: float = 1800.0

    def __post_init__(self) -> None:
        if not 0 <= self.down < self.up < 1:
            raise InvalidRequest(
                f"down and up must be shares with 0 <= down < up < 1, got down={self.down} and up={self.up}"
            )
        for one in fields(self):
            value: float = getattr(self, one.name)
            if one.name not in ("up", "down") and not 0 < value < float("inf"):
                raise InvalidRequest(f"{one.name} must be a number above 0, got {value}")
