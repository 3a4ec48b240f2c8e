"""The node's surface over a client: a Flax NNX module whose batches come from a server. Needs `flax`."""
# pyright: standard

from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from mixserve_client.client import MixClient
from mixserve_client.errors import InvalidRequest
from mixserve_client.jax_dtypes import fitting
from mixserve_client.rpc.forwarding import named_as
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.keys import IMPLEMENTATION, key_words
from mixserve_client.schema.mixture import MixtureDescription
from mixserve_client.schema.positions import check_positions
from mixserve_client.schema.tree import unflatten
from mixserve_client.sessions.session import Session

P = ParamSpec("P")
T = TypeVar("T")


def of_session(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """The operation of `Session`, on the session of a node."""

    def call(self: "RemoteMixDataSourcesNode", *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.session, *args, **kwargs)

    return named_as(method, call)


class _Remote:
    """What NNX must carry along by identity, and neither copy nor trace."""

    def __init__(self, client: MixClient, mixture: str | None, session: str | None, options: dict[str, Any]):
        self.client = client
        self.mixture = mixture
        self.session_name = session
        self.options = options
        self.session: Session | None = None
        self.last_error: BaseException | None = None

    def __copy__(self) -> "_Remote":
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Remote":
        return self

    def describe(self) -> MixtureDescription:
        return self.client.catalog.get(self.mixture, None)

    def rows(self, start: int, size: int, words: Any) -> Any:
        """The batch in JAX's dtypes; what goes wrong is kept."""
        try:
            return fitting(self.client.get_batch_at(start, size, words, mixture=self.mixture))
        except BaseException as error:
            self.last_error = error
            raise


class RemoteMixDataSourcesNode(nnx.Module):
    """A mixture on a server as a source of pipelines: `get_batch_at` may be called inside `jit`, `scan` and `vmap`.

    `session` names a session of the server, which is opened at the first use of what has a state: iteration, `reset`,
    states, statistics and counts. `session_options` are those of `MixClient.session`.
    """

    def __init__(
        self, client: MixClient, *, mixture: str | None = None, session: str | None = None, **session_options: Any
    ):
        """Asks the server for nothing."""
        self._remote = _Remote(client, mixture, session, session_options)

    @property
    def last_error(self) -> BaseException | None:
        """What the last batch that failed failed with: JAX turns errors inside programs into JaxRuntimeError."""
        return self._remote.last_error

    @property
    def session(self) -> Session:
        """The session, opened now if it was not. Raises InvalidRequest where none was named."""
        remote = self._remote
        if remote.session is None:
            if remote.session_name is None:
                raise InvalidRequest("this needs a session: RemoteMixDataSourcesNode(client, session='name')")
            remote.session = remote.client.session(remote.session_name, mixture=remote.mixture, **remote.options)
        return remote.session

    def __len__(self) -> int:
        return sum(source.length for source in self._remote.describe().sources)

    def supports_indexed_access(self) -> bool:
        """That batches may be asked for by position: what pipelines ask their source."""
        return True

    def element_spec(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct` that describes one record, in JAX's dtypes as x64 is set."""
        return unflatten(
            {
                field.name: jax.ShapeDtypeStruct(field.shape, jax.dtypes.canonicalize_dtype(field.dtype))
                for field in self._remote.describe().fields
            }
        )

    def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any:
        """The rows at the positions [start, start + size), as the node on the server gives them.

        `start` and `key` may be traced; a traced `start` has 32 bits. Raises what `MixClient.get_batch_at` raises;
        inside a program JaxRuntimeError, whose text names that error, which is `last_error` then. Without x64, values
        of 64 bits become those of 32 where they fit, and are InvalidRequest where they do not.
        """
        if key is None:
            raise InvalidRequest("key is required: without a key a batch is not defined; pass jax.random.key(seed)")
        if not isinstance(start, Tracer) and not isinstance(key, Tracer):
            return jax.tree.map(jnp.asarray, self._remote.rows(start, size, key))
        if not isinstance(start, Tracer):
            start, size = check_positions(start, size)
        elif start.shape != () or not jnp.issubdtype(start.dtype, jnp.integer):
            raise InvalidRequest(f"start must be an integer, got shape {start.shape} and dtype {start.dtype}")
        size = check_integer("size", size, 1)
        words = key
        if not isinstance(key, Tracer):
            words = jnp.asarray(key_words(key))
        elif jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            if str(jax.random.key_impl(key)) != IMPLEMENTATION:
                raise InvalidRequest(
                    f"key must be of the implementation {IMPLEMENTATION}, got {jax.random.key_impl(key)}"
                )
            words = jax.random.key_data(key)
        elif key.shape != (2,) or key.dtype != jnp.uint32:
            raise InvalidRequest(f"key must be two uint32 words, got shape {key.shape} and dtype {key.dtype}")
        batch = jax.tree.map(lambda spec: jax.ShapeDtypeStruct((size, *spec.shape), spec.dtype), self.element_spec())
        remote = self._remote

        def on_host(words: Any, *traced_start: Any) -> Any:
            return remote.rows(int(traced_start[0] if traced_start else start), size, np.asarray(words))

        # A start that is known has 64 bits.
        operands = (words, start) if isinstance(start, Tracer) else (words,)
        return jax.pure_callback(on_host, batch, *operands, vmap_method="sequential")

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch of the session: `epoch` + 1, `index` 0."""
        return iter(self.session)

    def __next__(self) -> Any:
        """The session's next record. Raises StopIteration at the epoch's end."""
        return next(self.session)

    @property
    def index(self) -> int:
        """That of the session."""
        return self.session.index

    @property
    def epoch(self) -> int:
        """That of the session."""
        return self.session.epoch

    def process(self, input: Any, size: int, key: Any = None) -> Any:  # noqa: A002 - the reference's name
        """The batch at these positions, counted in `get_operation_stats` of the session."""
        return self.session.process(input, size, key)

    next_batch = of_session(Session.next_batch)
    reset = of_session(Session.reset)
    get_state = of_session(Session.get_state)
    set_state = of_session(Session.set_state)
    compute_statistics = of_session(Session.compute_statistics)
    get_statistics = of_session(Session.get_statistics)
    set_statistics = of_session(Session.set_statistics)
    reset_statistics = of_session(Session.reset_statistics)
    get_operation_stats = of_session(Session.get_operation_stats)
    reset_operation_stats = of_session(Session.reset_operation_stats)
    reset_cache = of_session(Session.reset_cache)

    def __repr__(self) -> str:
        return f"RemoteMixDataSourcesNode({self._remote.client!r}, mixture={self._remote.mixture!r})"
