"""Who may reach a server, as its file and flags say."""

from dataclasses import dataclass
from pathlib import Path

from mixserve.access.certificates import Certificates, ServerTls
from mixserve.access.exposure import check_exposure
from mixserve.address import join_address, ports_of
from mixserve.config import ConfigError, ServerConfig
from mixserve.sources.kinds.expanding import expand


@dataclass(frozen=True)
class Reach:
    """The arguments of `serve` that say where the server listens besides its address, and who may reach it."""

    config_file: Path
    tls: ServerTls | None
    insecure: bool
    health_host: str
    health_port: int | None
    metrics_host: str
    metrics_port: int | None
    bulk: bool
    bulk_port: int

    @property
    def health_address(self) -> str | None:
        """Where health alone is answered; None for nowhere."""
        return None if self.health_port is None else join_address(self.health_host, self.health_port)

    @property
    def metrics_address(self) -> str | None:
        """Where Prometheus reads metrics; None for nowhere."""
        return None if self.metrics_port is None else join_address(self.metrics_host, self.metrics_port)

    def check(self, address: str, *, has_tokens: bool) -> None:
        """Raises ConfigError if a file of TLS cannot be used, or if others could reach `address` unchecked."""
        try:
            if self.tls is not None:
                Certificates(self.tls)
            check_exposure(
                address,
                has_tls=self.tls is not None,
                has_client_ca=self.tls is not None and self.tls.client_ca is not None,
                has_tokens=has_tokens,
                insecure=self.insecure,
            )
        except ValueError as error:
            raise ConfigError(f"{self.config_file}: server: {error}") from error

    def addresses(self, address: str, *, processes: int = 1, worker_port: int | None = None) -> list[str]:
        """As `ports_of`: `address`, and others at which such a server listens. Raises ConfigError."""
        others = {"health": self.health_address, "metrics": self.metrics_address}
        try:
            return ports_of(
                address,
                {what: at for what, at in others.items() if at is not None},
                self.bulk_port if self.bulk else None,
                processes=processes,
                worker_port=worker_port,
            )
        except ValueError as error:
            raise ConfigError(f"{self.config_file}: server: {error}") from error


def reachable(
    server: ServerConfig,
    config_file: Path,
    *,
    insecure: bool,
    health_port: int | None,
    metrics_port: int | None,
    bulk: bool | None,
    bulk_port: int | None,
) -> Reach:
    """What the file and the flags say. Raises ConfigError."""
    bulk = server.bulk if bulk is None else bulk
    if bulk_port is not None and not bulk:
        raise ConfigError(f"--bulk-port {bulk_port} is for bulk channels, which are turned off; add --bulk")
    tls = server.tls
    files = None if tls is None else {name: value for name, value in tls.model_dump().items() if value is not None}
    return Reach(
        config_file,
        None if files is None else ServerTls(**{n: beside(f"tls.{n}", path, config_file) for n, path in files.items()}),
        insecure or server.insecure,
        server.health_host,
        server.health_port if health_port is None else health_port,
        server.metrics_host,
        server.metrics_port if metrics_port is None else metrics_port,
        bulk,
        server.bulk_port if bulk_port is None else bulk_port,
    )


def beside(key: str, configured: str, config_file: Path) -> Path:
    """The path that the file has under `key`, relative to the file. Raises ConfigError."""
    try:
        return config_file.parent / expand(configured, config_file.parent)
    except ValueError as error:
        raise ConfigError(f"{config_file}: server.{key}: {error}") from error
