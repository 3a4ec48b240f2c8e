"""What a server does and remembers at most, however many ask for however much."""

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mixserve_client.schema.text import show


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """The limits of one process of a server; bytes are integers, and seconds may be fractions. Raises ValueError.

    - `memory_limit`: bytes of memory, without mapped files. Near it the server refuses calls with Overloaded, and gives
      free memory back to the system. None: nine tenths of what the machine and the control groups (containers) of the
      process allow, shared by all processes of the server.
    - `reply_bytes`: of replies that readers have not taken, over all connections together. They take twice as much
      memory, since gRPC copies them. None: an eighth of `memory_limit`, and 512 MiB at most: enough for 32 of the
      largest replies of single calls.
    - `reply_bytes_per_connection`: the same for one connection. A connection may always have one reply, of any size.
      None: a quarter of `reply_bytes`, so that one reader who stalls does not keep others from theirs.
    - `streams_per_connection`: streams over gRPC that one connection may have at a time, running or waiting, and as
      many single calls. An iterator has one or two.
    - `request_timeout_s`: a call whose request has not come after this time is ended, and a bulk channel on which a
      part of a request has come, and no more for this time. The default is for 16 MiB over a slow network.
    - `max_connection_age_s`: after this time a connection is closed: its calls may finish within a minute, on a bulk
      channel the stream in progress, and the client opens another one, so that a balancer of connections can send it
      elsewhere. None: never, because clients with a list of replicas spread their calls by themselves.
    - `calls_per_mixture`: single calls of one mixture that are answered at a time; as many replies of its streams over
      gRPC, and over bulk channels, are made at a time, if there are so many threads. The default keeps one core busy
      with copies, or 16 requests under way to an object store. Of calls on sessions up to 16 run, of openings 4,
      of lists 2. Further calls wait, and then get Overloaded.
    - `read_timeout_s`: seconds for which a call waits for a read of its sources, or a call on a session for its end,
      before it ends with Unavailable. The default is much longer than a cold object store takes for a batch. Arrays and
      mapped files are copied, without a limit.
    - `schedule_bytes`: of readers' schedules, about. The server forgets those that were not used for longest, and their
      readers send them again; it refuses one that is larger by itself. 512 MiB hold 364,000 entries of two weights in
      epoch mode, and four times as many otherwise.
    - `sessions`: in memory, of all mixtures. Beyond it the server takes out those that no client holds, and with a
      state folder then those that were not used for longest, which it loads again when they are. Without one, it
      refuses further ones with Overloaded.
    """

    # The section of a configuration file has these keys and no others.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    memory_limit: int | None = None
    reply_bytes: int | None = None
    reply_bytes_per_connection: int | None = None
    streams_per_connection: int = 128
    request_timeout_s: float = 10.0
    max_connection_age_s: float | None = None
    calls_per_mixture: int = 16
    read_timeout_s: float = 60.0
    schedule_bytes: int = 512 << 20
    sessions: int = 10_000

    def __post_init__(self) -> None:
        for one in fields(self):
            value: Any = getattr(self, one.name)
            if value is None and one.default is None:
                continue
            if one.name.endswith("_s"):
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                    raise ValueError(f"{one.name} must be a number of seconds above 0, got {show(value)}")
            elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{one.name} must be a positive integer, got {show(value)}")
        if self.calls_per_mixture > _MOST_CALLS:
            raise ValueError(
                f"calls_per_mixture must be in 1..{_MOST_CALLS}, since each has a thread, got {self.calls_per_mixture}"
            )


_MOST_CALLS = 1024
