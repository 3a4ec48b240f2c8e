"""A configuration -> that of the servers of one group: of all mixtures, or of a placed source alone."""

from collections.abc import Mapping
from pathlib import Path

from mixserve.config import Config, ConfigError, MixtureConfig
from mixserve.ray.messages import FRONT, Needs
from mixserve.sources.kinds.base import SourceConfig
from mixserve.sources.kinds.remote import RemoteConfig
from mixserve_client.schema.addresses import FLEET_SCHEME


def check(config: Config, file: Path) -> None:
    """Raises ConfigError for what replicas in Ray cannot have."""
    if config.server.state_dir is not None:
        raise ConfigError(
            f"{file}: server.state_dir: sessions live on one server, and replicas of a fleet have none that last; "
            "leave it out, or run `mixserve serve` for sessions"
        )
    if config.server.processes != 1:
        raise ConfigError(f"{file}: server.processes: a replica in Ray is one process; start more replicas instead")


def needs_of(config: Config) -> dict[str, Needs]:
    """What the replicas of each placed source need."""
    return {
        name: Needs(place.num_cpus, place.num_gpus, dict(place.resources)) for name, place in config.ray.place.items()
    }


def config_of(config: Config, fleet: str, group: str) -> Config:
    """What the servers of `group` serve. The front's mixtures read placed sources from the servers of those, and have
    the same fingerprints as with the sources themselves."""
    if group == FRONT:
        mixtures = {name: _with_remote(config, fleet, name, mixture) for name, mixture in config.mixtures.items()}
    else:
        having = {name: mixture for name, mixture in config.mixtures.items() if group in mixture.sources}
        mixtures = {name: _alone(group, mixture.sources[group]) for name, mixture in having.items()}
    return config.model_copy(update={"mixtures": mixtures})


def _alone(name: str, source: SourceConfig) -> MixtureConfig:
    return MixtureConfig.model_construct(sources={name: source.model_copy(update={"weight": 1.0})})


def _with_remote(config: Config, fleet: str, name: str, mixture: MixtureConfig) -> MixtureConfig:
    placed: Mapping[str, SourceConfig] = {
        source: RemoteConfig(
            kind="remote",
            address=f"{FLEET_SCHEME}{fleet}/{source}",
            mixture=name,
            source=source,
            weight=mixture.sources[source].weight,
            content_id=mixture.sources[source].content_id,
            tls=place.tls,
            token_file=place.token_file,
        )
        for source, place in config.ray.place.items()
        if source in mixture.sources
    }
    return mixture.model_copy(update={"sources": {**mixture.sources, **placed}})
