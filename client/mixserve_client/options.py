"""Options of a client's connection and of its iterators. Frozen, valid by construction, picklable."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import Any, cast

from mixserve_client.credentials import TlsOptions, TokenOptions, check_no_token
from mixserve_client.errors import InvalidRequest
from mixserve_client.schema.addresses import check_address, require_ray
from mixserve_client.schema.checks import check_integer, check_mixture, check_pair, check_seconds, check_truth
from mixserve_client.schema.client_name import check_client_name
from mixserve_client.schema.keys import KeyWords, key_words
from mixserve_client.schema.positions import POSITION_LIMIT, check_intervals, check_positions
from mixserve_client.schema.schedule import Pairs, copy_pairs
from mixserve_client.schema.zone import check_zone
from mixserve_client.wire.checksum import require_crc32c


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """How a client reaches its servers; `MixClient.connect` says what each option means. Raises InvalidRequest."""

    address: str | Iterable[str]
    patience_s: float = 600.0
    shared_memory: bool | str = True
    tls: bool | str | PathLike[str] | TlsOptions | None = None
    token: str | None = field(default=None, repr=False)
    token_file: str | PathLike[str] | None = None
    bulk: bool = True
    attempt_s: float = 5.0
    hedge: bool = False
    checksum: bool | None = None
    name: str | None = None
    zone: str | None = None

    def __post_init__(self) -> None:
        # Any: callers without a type checker pass anything. object.__setattr__ is how a frozen dataclass sets a field.
        given: Any = self.address
        several = isinstance(given, Iterable) and not isinstance(given, str)
        addresses: list[Any] = list(cast(Iterable[Any], given)) if several else [given]
        if not addresses:
            raise InvalidRequest("address must name at least one server, got none")
        object.__setattr__(self, "address", tuple(require_ray(check_address(one)) for one in addresses))
        object.__setattr__(self, "patience_s", check_seconds("patience_s", self.patience_s))
        folder: Any = self.shared_memory
        if not isinstance(folder, bool | str) or folder == "":
            raise InvalidRequest(f"shared_memory must be True, False or a folder, got {folder!r:.100}")
        if not isinstance(folder, bool):
            check_no_token(folder, "shared_memory must be True, False or a folder")
        object.__setattr__(self, "bulk", check_truth("bulk", self.bulk))
        object.__setattr__(self, "attempt_s", check_seconds("attempt_s", self.attempt_s))
        object.__setattr__(self, "hedge", check_truth("hedge", self.hedge))
        if self.checksum is not None:
            object.__setattr__(self, "checksum", check_truth("checksum", self.checksum))
        if self.checksum:
            require_crc32c()
        object.__setattr__(self, "tls", TlsOptions.of(self.tls))
        given = TokenOptions(self.token, self.token_file)
        object.__setattr__(self, "token", given.token)
        object.__setattr__(self, "token_file", given.token_file)
        object.__setattr__(self, "name", check_client_name(self.name))
        object.__setattr__(self, "zone", check_zone(self.zone))

    def __setstate__(self, state: Sequence[Any]) -> None:
        # Pickles of older clients have fewer options.
        for number, one in enumerate(fields(self)):
            object.__setattr__(self, one.name, state[number] if number < len(state) else one.default)

    @property
    def tls_options(self) -> TlsOptions | None:
        """The files of TLS; None without TLS."""
        return cast(TlsOptions | None, self.tls)

    @property
    def token_options(self) -> TokenOptions:
        """The token, or where it is."""
        return TokenOptions(self.token, self.token_file)

    @property
    def addresses(self) -> tuple[str, ...]:
        """One address for each replica."""
        return tuple(self.address)


# No __eq__: `key` is an array, which has no single truth value.
@dataclass(frozen=True, slots=True, eq=False)
class BatchOptions:
    """What an iterator yields, and how it reads; `MixClient.batches` says what each option means.

    The constructor accepts any kind of key and stores its two words, and copies `schedule` and `skip`. It does not
    check the weights of `schedule`, since that needs the mixture. Raises InvalidRequest and OutOfRange.
    """

    batch_size: int
    key: KeyWords
    mixture: str | None = None
    start: int = 0
    stop: int | None = None
    shard: tuple[int, int] = (0, 1)
    worker: tuple[int, int] = (0, 1)
    schedule: Pairs | None = None
    provenance: bool = False
    skip: Sequence[tuple[int, int]] = ()
    drop_remainder: bool = False
    strict: bool = True
    prefetch: int = 2
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        start, size = check_positions(self.start, self.batch_size, name="batch_size")
        checked = {
            "batch_size": size,
            "key": key_words(self.key),
            "mixture": check_mixture(self.mixture) or None,
            "start": start,
            "stop": None if self.stop is None else check_integer("stop", self.stop, 0, POSITION_LIMIT),
            "shard": check_pair("shard", self.shard, size),
            "worker": check_pair("worker", self.worker),
            "schedule": copy_pairs(self.schedule),
            "provenance": check_truth("provenance", self.provenance),
            "skip": check_intervals("skip", copy_pairs(self.skip)),
            "drop_remainder": check_truth("drop_remainder", self.drop_remainder),
            "strict": check_truth("strict", self.strict),
            "prefetch": check_integer("prefetch", self.prefetch, 0),
            "timeout_s": None if self.timeout_s is None else check_seconds("timeout_s", self.timeout_s),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
