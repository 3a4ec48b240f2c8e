"""The section `ray` of a configuration file: sources that `mixserve ray up` serves by actors of their own."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from mixserve.sources.kinds.base import Name, Section
from mixserve.sources.kinds.remote import RemoteTlsConfig, as_tls
from mixserve_client.schema.addresses import FLEET_NAME

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PlaceConfig(Section):
    """Where a source is served: by so many `replicas`, each on a node of Ray that has these resources.

    `tls` and `token_file` are how the other servers reach it, as in a source of `kind: remote`.
    """

    replicas: int = Field(default=1, ge=1, le=1000)
    num_cpus: Amount = 1.0
    num_gpus: Amount = 0.0
    resources: dict[Name, Amount] = Field(default={})
    tls: Annotated[RemoteTlsConfig | None, BeforeValidator(as_tls)] = None
    token_file: str | None = Field(default=None, min_length=1)


class RayConfig(Section):
    """`place`: by the name of a source, where it is served. Servers that Ray does not start ignore it."""

    place: dict[Annotated[str, Field(pattern=rf"^{FLEET_NAME}$")], PlaceConfig] = Field(default={})
