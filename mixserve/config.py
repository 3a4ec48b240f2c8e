"""A YAML file -> a checked configuration. Errors name the file, the key, and what is allowed."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from mixserve.address import check_host
from mixserve.limits import ServerLimits
from mixserve.ray_section import PlaceConfig, RayConfig
from mixserve.sources.kinds.base import Function, Name, Section, Weight
from mixserve.sources.kinds.fields import field_section
from mixserve.sources.kinds.remote import RemoteConfig, RemoteTlsConfig
from mixserve.sources.registry import KINDS, AnySourceConfig
from mixserve.yaml_file import parse_yaml, read_yaml
from mixserve_client.redaction import hide_tokens
from mixserve_client.schema.sessions import LEAST_TTL_S
from mixserve_client.schema.text import shorten, show, show_names
from mixserve_client.schema.zone import MOST_CHARACTERS, is_zone

_MOST_PROBLEMS = 5
MOST_PROCESSES = 256


class ConfigError(ValueError):
    """The configuration, or a file that it names, is not usable. The message names file and key."""

    def __init__(self, message: str):
        super().__init__(shorten(hide_tokens(message)))


def check_seconds(seconds: float) -> float:
    """`seconds`, if it is a possible duration of leases. Raises ValueError."""
    if not math.isfinite(seconds) or seconds < LEAST_TTL_S:
        raise ValueError(f"must be a positive, finite number of seconds of at least {LEAST_TTL_S}, got {seconds}")
    return seconds


Seconds = Annotated[float, AfterValidator(check_seconds)]


def _check_name(name: str) -> str:
    if not name.isprintable():
        raise ValueError(f"the name of a mixture must be printable, got {show(name)}")
    return name


def _check_zone(zone: str | None) -> str | None:
    if zone is not None and not is_zone(zone):
        raise ValueError(f"must be 1 to {MOST_CHARACTERS} printable characters, got {show(zone)}")
    return zone


class ScheduleEntryConfig(Section):
    """The weights of the sources, by name, from a position on."""

    start: int = Field(alias="from", ge=0, lt=2**63 - 1)  # `from` is a keyword in Python
    weights: dict[Name, Weight]


class MixtureConfig(Section):
    """One mixture: its sources by name, sampling and weights, placement, and options of the node."""

    sampling: Literal["categorical", "epoch"] = "categorical"
    block_size: int = Field(default=2048, ge=1, le=1 << 16)
    stop: Literal["never", "first_exhausted", "all_exhausted"] = "never"
    sources: dict[Name, AnySourceConfig] = Field(min_length=1)
    schedule: list[ScheduleEntryConfig] = Field(default=[])
    placement: Literal["auto", "host", "device"] = "auto"
    cacheable: bool = False
    batch_stats_fn: Function | None = None
    precomputed_stats: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _has_its_weights_once(self) -> "MixtureConfig":
        for entry in self.schedule:
            if entry.weights.keys() != self.sources.keys():
                raise ValueError(
                    f"schedule: the entry from {entry.start} on must have weights for exactly "
                    f"{show_names(self.sources)}; {_difference(self.sources, entry.weights)}"
                )
        starts = [entry.start for entry in self.schedule]
        if any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"schedule: starts must be strictly increasing, got {show(starts)}")
        weighted = [name for name, source in self.sources.items() if source.weight is not None]
        if self.schedule and self.schedule[0].start == 0:
            if weighted:
                raise ValueError(
                    f"the schedule has the weights from 0 on, and {show_names(weighted)} a weight too: remove one of "
                    "the two"
                )
        elif len(weighted) < len(self.sources):
            missing = next(name for name, source in self.sources.items() if source.weight is None)
            raise ValueError(f"sources.{shorten(missing, 100)}.weight is required, unless a schedule starts from 0")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights from position 0 on, in the order of the sources."""
        if self.schedule and self.schedule[0].start == 0:
            return tuple(self.schedule[0].weights[name] for name in self.sources)
        return tuple(source.weight or 0.0 for source in self.sources.values())

    @property
    def later_weights(self) -> tuple[tuple[int, tuple[float, ...]], ...]:
        """(start, weights) of the later schedule entries, with weights in the order of the sources."""
        later = [entry for entry in self.schedule if entry.start > 0]
        return tuple((entry.start, tuple(entry.weights[name] for name in self.sources)) for entry in later)


class TlsConfig(Section):
    """The server's certificate and key, and the authorities of its clients' certificates (None: clients need none)."""

    certificate: str = Field(min_length=1)
    key: str = Field(min_length=1)
    client_ca: str | None = Field(default=None, min_length=1)


LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]


class ServerConfig(Section):
    """Options of the server: address, folder of shared memory, folder of sessions and checkpoints (None: none), seconds
    of silence after which a session is free, folder of compiled programs (true: the user's cache folder), and folder of
    what sources prepare, such as indexes (None: in the user's cache folder).

    Whether batches may come over bulk channels, and at which port of `host` (0: a free one).

    Who may reach it, and what they may do: files of TLS (None: plain text), the file of `mixserve token` whose tokens
    calls need (None: none), whether other machines may reach it without TLS and credentials, the address that answers
    health alone, and the one where Prometheus reads metrics (no port: none).

    `processes` is how many processes serve the port together (auto: half of the cores). Each also has a port
    of its own, counted from `worker_port` (None: free ones). `limits` are those of each process. `zone` names where the
    server is, for clients that prefer servers of their own zone.

    `log_format` and `log_level` are those of the log of `mixserve serve`.
    """

    host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    bulk: bool = True
    bulk_port: int = Field(default=0, ge=0, le=65535)
    shared_memory: bool | str = True
    state_dir: str | None = Field(default=None, min_length=1)
    session_ttl_s: Seconds = 900.0
    compilation_cache: bool | Annotated[str, Field(min_length=1)] = True
    prepared: str | None = Field(default=None, min_length=1)
    tls: TlsConfig | None = None
    insecure: bool = False
    health_host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    health_port: int | None = Field(default=None, ge=0, le=65535)
    metrics_host: Annotated[str, AfterValidator(check_host)] = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    tokens: str | None = Field(default=None, min_length=1)
    processes: Annotated[int, Field(ge=1, le=MOST_PROCESSES)] | Literal["auto"] = 1
    worker_port: int | None = Field(default=None, ge=1, le=65535)
    limits: ServerLimits = ServerLimits()
    zone: Annotated[str | None, AfterValidator(_check_zone)] = None
    log_format: LogFormat = "text"
    log_level: LogLevel = "info"


class Config(Section):
    """A whole configuration file."""

    mixtures: dict[Annotated[Name, AfterValidator(_check_name)], MixtureConfig] = Field(min_length=1)
    server: ServerConfig = ServerConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _places_its_sources(self) -> "Config":
        for name in self.ray.place:
            found = [mixture.sources[name] for mixture in self.mixtures.values() if name in mixture.sources]
            if not found:
                raise ValueError(f"ray.place.{shorten(name, 100)}: no mixture has a source of this name")
            if any(isinstance(source, RemoteConfig) for source in found):
                raise ValueError(f"ray.place.{shorten(name, 100)}: this source is on another server already")
        return self


def load_config(path: Path | str) -> Config:
    """The configuration in the YAML file at `path`. Raises ConfigError."""
    path = Path(path)
    try:
        content = read_yaml(path, _is_name)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _check_content(content, path)


def parse_config(text: str, path: Path) -> Config:
    """The configuration in `text`, which errors say is that of the file at `path`. Raises ConfigError."""
    try:
        content = parse_yaml(text, is_name=_is_name)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _check_content(content, path)


def _check_content(content: Any, path: Path) -> Config:
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must have the keys {_allowed_keys(Config)}, got {type(content).__name__}")
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # A wrong key in each of a thousand sources is one mistake: the first few say enough.
        said = [f"{path}: {_describe_problem(problem)}" for problem in problems[:_MOST_PROBLEMS]]
        if len(problems) > _MOST_PROBLEMS:
            said.append(f"{path}: and {len(problems) - _MOST_PROBLEMS:,} more problems")
        raise ConfigError("\n".join(said)) from error


def _is_name(path: tuple[Hashable, ...]) -> bool:
    """Whether keys at `path` are texts: all but those within the values of `arguments` and `precomputed_stats`."""
    in_arguments = len(path) > 5 and path[4] == "arguments"
    return not in_arguments and not (len(path) > 3 and path[2] == "precomputed_stats")


def _describe_problem(problem: Any) -> str:
    # pydantic adds the kind of a source to the path, after mixtures.NAME.sources.NAME; the file has no such level.
    steps = [shorten(str(step), 100) for i, step in enumerate(problem["loc"]) if not (i == 4 and step in KINDS)]
    key, value = shorten(".".join(steps), 300), problem["input"]
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key; allowed here are {_allowed_keys(_section(problem['loc']))}"
    if problem["type"] == "missing":
        return f"{key}: is required"
    message = shorten(problem["msg"].removeprefix("Value error, "), 600)
    if not key:  # of the whole file, and the message names the key
        return message
    says_what_came = isinstance(value, dict) or show(value) in message
    return f"{key}: {message}" if says_what_came else f"{key}: {message}; got {show(value)}"


def _difference(wanted: dict[str, Any], given: dict[str, Any]) -> str:
    """Which names are missing or unknown."""
    lacking, foreign = [n for n in wanted if n not in given], [n for n in given if n not in wanted]
    parts = [("missing are", lacking), ("unknown are", foreign)]
    return ", ".join(f"{what} {show_names(names)}" for what, names in parts if names)


def _section(place: Sequence[Any]) -> type[Section] | type[ServerLimits]:
    """The section that has the key at the path `place`, by the depth of the sections in the file."""
    if len(place) == 1:
        return Config
    if place[0] == "server":
        return {"tls": TlsConfig, "limits": ServerLimits}[place[1]] if len(place) > 2 else ServerConfig
    if place[0] == "ray":
        return RayConfig if len(place) == 2 else RemoteTlsConfig if len(place) > 4 else PlaceConfig
    if len(place) == 3:
        return MixtureConfig
    if len(place) > 6 and place[5] == "fields":
        return field_section(KINDS[place[4]])
    if len(place) > 6 and place[5] == "tls":
        return RemoteTlsConfig
    return ScheduleEntryConfig if place[2] == "schedule" else KINDS[place[4]]


def _allowed_keys(section: type[Section] | type[ServerLimits]) -> str:
    if not issubclass(section, Section):
        return ", ".join(one.name for one in fields(section))
    return ", ".join(field.alias or name for name, field in section.model_fields.items())
