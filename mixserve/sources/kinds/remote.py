"""`kind: remote`: a source of another mixserve server."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from mixserve.sources.kinds.base import Name, Section, SourceConfig
from mixserve.sources.kinds.expanding import expand
from mixserve_client.schema.addresses import check_address
from mixserve_client.schema.checks import check_seconds

Address = Annotated[str, AfterValidator(check_address)]


class RemoteTlsConfig(Section):
    """The authorities that may have signed the server's certificate (None: those that gRPC brings), and the
    certificate and key of this server as its client."""

    ca: str | None = Field(default=None, min_length=1)
    certificate: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)


def as_tls(value: Any) -> Any:
    """`tls` as a section: `true` is one without keys, and a path is short for `ca`."""
    if value is False:
        return None
    return {} if value is True else {"ca": value} if isinstance(value, str) else value


class RemoteConfig(SourceConfig):
    """The source `source` of the mixture `mixture` (None: the only one) of the server at `address`; several addresses
    are replicas, of which those of `zone` are asked first. `token_file` has the token for it. `patience_s` is how many
    seconds a read tries to reach a server.
    """

    kind: Literal["remote"]
    address: Address | Annotated[list[Address], Field(min_length=1)]
    mixture: Name | None = None
    source: Name | None = None
    tls: Annotated[RemoteTlsConfig | None, BeforeValidator(as_tls)] = None
    token_file: str | None = Field(default=None, min_length=1)
    zone: Name | None = None
    patience_s: Annotated[float, AfterValidator(lambda given: check_seconds("patience_s", given))] | None = None

    @model_validator(mode="after")
    def _leaves_out_there(self) -> "RemoteConfig":
        if self.on_error == "skip":
            raise ValueError(
                "on_error: skip is for the server that has the data: write it there, and this source leaves out the "
                "same records"
            )
        return self

    def open(self, folder: Path) -> Any:
        from mixserve.sources.remote_source import PATIENCE_S, RemoteSource
        from mixserve_client.credentials import TlsOptions

        def path(key: str, given: str | None) -> str | None:
            try:
                return None if given is None else str(folder.absolute() / expand(given, folder))
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from None

        tls = self.tls
        return RemoteSource(
            self.address,
            mixture=self.mixture,
            source=self.source,
            tls=None
            if tls is None
            else TlsOptions(path("tls.ca", tls.ca), path("tls.certificate", tls.certificate), path("tls.key", tls.key)),
            token_file=path("token_file", self.token_file),
            zone=self.zone,
            patience_s=PATIENCE_S if self.patience_s is None else self.patience_s,
        )
