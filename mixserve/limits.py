"""What a server does and remembers at most, however many ask for however much."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mixserve_client.schema.text import show


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of one process of a server. Raises ValueError.

    - `reply_bytes`: of replies to single calls that readers have not taken, in all connections together.
    - `schedule_bytes`: of readers' schedules, about. The server forgets those that were not used for longest, and their
      readers send them again; it refuses one that is larger by itself. 512 MiB hold 364,000 entries of two weights in
      epoch mode, and four times as many otherwise.
    - `sessions`: in memory, of all mixtures. Beyond it the server takes out those that no client holds, and with a
      state folder then those that were not used for longest, which it loads again when they are. Without one, it
      refuses further ones with Overloaded.
    """

    # The section of a configuration file has these keys and no others.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    reply_bytes: int = 512 << 20
    schedule_bytes: int = 512 << 20
    sessions: int = 10_000

    def __post_init__(self) -> None:
        for one in fields(self):
            value: Any = getattr(self, one.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{one.name} must be a positive integer, got {show(value)}")
