"""A Flax NNX module with the node's members, whose batches come from a server. Needs `flax`."""
# pyright: standard

from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from mixserve_client.client import MixClient, check_client
from mixserve_client.errors import InvalidRequest
from mixserve_client.jax_dtypes import fit_dtypes
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
    """The call of `Session`, made on the session of a node."""

    def call(self: "RemoteMixDataSourcesNode", *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self.session, *args, **kwargs)

    return named_as(method, call)


class _Remote:
    """The client and the session of a node, hidden from NNX."""

    # NNX compares an object of a plain class by identity, and does not trace it. Copies of it are the object itself, so
    # clones of a node share client and session.

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
        """The batch in JAX's dtypes. Keeps an error in `last_error`, since JAX replaces errors of callbacks."""
        try:
            return fit_dtypes(self.client.get_batch_at(start, size, words, mixture=self.mixture))
        except BaseException as error:
            self.last_error = error
            raise


class RemoteMixDataSourcesNode(nnx.Module):
    """A mixture on a server as a source of pipelines. You may call `get_batch_at` inside `jit`, `scan` and `vmap`.

    `session` names a session on the server, which has everything that needs state: iteration, `reset`, states,
    statistics and counts. The first such call opens it. `session_options` are those of `MixClient.session`.
    """

    def __init__(
        self, client: MixClient, *, mixture: str | None = None, session: str | None = None, **session_options: Any
    ):
        """Sends nothing yet. Raises InvalidRequest if `client` is not a client."""
        self._remote = _Remote(check_client(client), mixture, session, session_options)

    @property
    def last_error(self) -> BaseException | None:
        """The error of the last batch that failed. Inside programs JAX raises JaxRuntimeError in its place."""
        return self._remote.last_error

    @property
    def session(self) -> Session:
        """The session; the first use opens it. Raises InvalidRequest if the node was made without a session's name."""
        remote = self._remote
        if remote.session is None:
            if remote.session_name is None:
                raise InvalidRequest("this call needs a session: use RemoteMixDataSourcesNode(client, session='name')")
            remote.session = remote.client.session(remote.session_name, mixture=remote.mixture, **remote.options)
        return remote.session

    def __len__(self) -> int:
        return sum(source.length for source in self._remote.describe().sources)

    def supports_indexed_access(self) -> bool:
        """True: pipelines may ask for batches by position."""
        return True

    def element_spec(self) -> Any:
        """A pytree of `jax.ShapeDtypeStruct` for one record, in JAX's dtypes under the current x64 setting."""
        return unflatten(
            {
                field.name: jax.ShapeDtypeStruct(field.shape, jax.dtypes.canonicalize_dtype(field.dtype))
                for field in self._remote.describe().fields
            }
        )

    def get_batch_at(self, start: Any, size: int, key: Any = None) -> Any:
        """The rows at the positions [start, start + size), as the node on the server returns them: a pytree of
        `jax.Array`s of shape (size, *field.shape).

        `start` and `key` may be traced; a traced `start` has 32 bits. Without x64, 64-bit values become 32-bit values,
        and a value that does not fit raises InvalidRequest. Raises what `MixClient.get_batch_at` raises; inside a
        program JaxRuntimeError, whose text names that error, and `last_error` has it.
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

        # A start that is known now stays a Python integer: as an operand it would lose bits without x64.
        operands = (words, start) if isinstance(start, Tracer) else (words,)
        # Under `vmap` one callback for each element: a batch takes one start and one key.
        return jax.pure_callback(on_host, batch, *operands, vmap_method="sequential")

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch of the session (`epoch` + 1, `index` 0), and iterate over its records."""
        return iter(self.session)

    def __next__(self) -> Any:
        """The session's next record. Raises StopIteration at the epoch's end."""
        return next(self.session)

    @property
    def index(self) -> int:
        """The session's `index`: the number of records read in this epoch."""
        return self.session.index

    @property
    def epoch(self) -> int:
        """The session's `epoch`: the number of epochs started."""
        return self.session.epoch

    def process(self, input: Any, size: int, key: Any = None) -> Any:  # noqa: A002 - the reference's name
        """The batch at the positions [input, input + size), counted in the session's `get_operation_stats`."""
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
