"""Remote batches as PyTorch tensors, and as a data set for its loaders. Needs `torch`."""
# pyright: standard, reportMissingImports=false, reportAttributeAccessIssue=false

from typing import Any, Self

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from mixserve_client.client import MixClient
from mixserve_client.errors import InvalidRequest
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.schedule import copy_pairs
from mixserve_client.schema.tree import flatten, unflatten

_DTYPES = {dtype: getattr(torch, name) for name, dtype in DTYPES.items() if hasattr(torch, name)}


class RemoteIterableDataset(IterableDataset[Any]):
    """The batches of `client.batches(batch_size, key, **options)` as tensors, for loaders with `batch_size=None`.

    An element is a whole batch, of this rank's rows: tensors of shape (rows, *field.shape) in the stored dtypes, nested
    as the records are. The stream is the same at any number of workers. Every `iter` begins at `start`, but in the
    process where `load_state_dict` was called the first one after it; a loader's workers all begin at a state that was
    loaded before they were started. Tensors may be written to; processes that are forked off share the memory of
    those that exist then.
    """

    def __init__(
        self, client: MixClient, *, batch_size: int, key: Any, shard: tuple[int, int] | None = None, **options: Any
    ):
        """`shard` None takes rank and world size of torch.distributed where it is initialised when iteration begins,
        else the whole batch. Never asks the server. Raises what `client.batches` raises.
        """
        super().__init__()
        self._client = client
        options |= {name: copy_pairs(options[name]) for name in ("schedule", "skip") if name in options}
        self._options: dict[str, Any] = {"batch_size": batch_size, "key": key_words(key), **options}
        self._shard = shard
        self._rank: tuple[int, int] | None = None  # the shard in the process that sent this to a worker
        self._loaded: dict[str, Any] | None = None
        self._latest: TensorBatches | None = None
        self._batches((0, 1))

    def __iter__(self) -> "TensorBatches":
        """Raises InvalidRequest in the worker of a loader where the client's server is in its parent, and what
        `BatchIterator.set_state` raises where a state was loaded, which stays loaded then."""
        info = get_worker_info()
        if info is not None:
            self._check_can_travel()
        batches = TensorBatches(
            self._batches((0, 1) if info is None else (info.id, info.num_workers)), own=self._can_travel
        )
        if self._loaded is not None:
            batches.load_state_dict(self._loaded)
        self._latest, self._loaded = batches, None
        return batches

    def __len__(self) -> int:
        """The batches from `start` to the end, of which the last may be short or left out. Asks the server for the
        mixture.

        Raises TypeError, as what has no length, where there is no end.
        """
        return len(self._batches((0, 1)))

    def state_dict(self) -> dict[str, Any]:
        """The state of the latest `iter` in this process: what `BatchIterator.get_state` gives, in plain JSON types.

        Raises InvalidRequest where there was none, as in a process whose loader has workers: the loader has the states.
        """
        if self._loaded is not None:
            return self._loaded
        if self._latest is None:
            raise InvalidRequest(
                "nothing was read in this process, so there is no state; where a loader has workers, take that of the "
                "loader: torchdata's StatefulDataLoader has one"
            )
        return self._latest.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iter` in this process, and those of workers that are started from now on, go on where `state`
        was taken, by this, by a worker of that number or by any `BatchIterator`; it raises what there is to raise."""
        self._loaded = state

    def __getstate__(self) -> dict[str, Any]:
        self._check_can_travel()
        return vars(self) | {"_rank": self._own_shard(), "_latest": None}

    def _batches(self, worker: tuple[int, int]) -> BatchIterator:
        return self._client.batches(**self._options, shard=self._own_shard(), worker=worker)

    def _own_shard(self) -> tuple[int, int]:
        if self._shard is not None:
            return self._shard
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return self._rank or (0, 1)

    @property
    def _can_travel(self) -> bool:
        """Whether the client can be used in another process; then no server in this one has its replies."""
        return self._client.catalog.can_travel

    def _check_can_travel(self) -> None:
        if not self._can_travel:
            raise InvalidRequest(
                "the server of this client is in the process that made it, where a loader's workers cannot reach it: "
                "use num_workers=0, or serve(...) and MixClient.connect(...)"
            )


class TensorBatches:
    """A `BatchIterator` whose batches are tensors; made by `iter` of a RemoteIterableDataset."""

    def __init__(self, batches: BatchIterator, *, own: bool):
        """`own` says that the batches' memory is nobody else's."""
        self._batches = batches
        self._own = own
        self._checked = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """The next batch. Raises InvalidRequest before the first one where PyTorch lacks the dtype of a field, and what
        the iterator's `next` raises."""
        if not self._checked:
            for name, field in flatten(self._batches.element_spec()).items():
                _checked_dtype(name, field.dtype)
            self._checked = True
        return _tensors(next(self._batches), own=self._own)

    def __len__(self) -> int:
        """How many batches are left. Raises TypeError where there is no end."""
        return len(self._batches)

    def __bool__(self) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        """That of the `BatchIterator`, in plain JSON types."""
        return self._batches.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken. Raises what `BatchIterator.set_state` raises."""
        self._batches.set_state(state)


def to_tensors(batch: Any) -> Any:
    """The tensors of a batch, or of any record of arrays and numbers, nested as it is, in the same dtypes.

    Contiguous arrays that can be written to share their memory with their tensors, all others are copied. Raises
    InvalidRequest for dtypes that PyTorch lacks.
    """
    return _tensors(batch, own=False)


def _tensors(batch: Any, *, own: bool) -> Any:
    return unflatten({name: _tensor(name, np.asarray(leaf), own) for name, leaf in flatten(batch).items()})


def _tensor(name: str, array: np.ndarray, own: bool) -> torch.Tensor:
    dtype = _checked_dtype(name, array.dtype)
    if array.dtype.isbuiltin != 1:  # torch knows NumPy's own dtypes alone
        array = array.view(f"i{array.itemsize}")
    if own and array.flags.c_contiguous and array.flags.aligned and not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array if array.flags.carray else array.copy()).view(dtype)


def _checked_dtype(name: str, dtype: np.dtype) -> torch.dtype:
    try:
        return _DTYPES[dtype]
    except KeyError:
        raise InvalidRequest(
            f"the field {name!r} is of {dtype}, which PyTorch {torch.__version__} lacks; it has "
            f"{', '.join(dtype.name for dtype in _DTYPES)}"
        ) from None


class _Writable:
    """NumPy's array interface over the memory of a read-only array whose memory nobody else reads: writable.

    That memory is a bytes object that came over gRPC, or a mapping that a server on this host has written, and neither
    is protected. Tensors cannot be read-only, and PyTorch warns of arrays that are.
    """

    def __init__(self, array: np.ndarray):
        self.owner = array
        interface = array.__array_interface__
        self.__array_interface__: dict[str, Any] = interface | {"data": (interface["data"][0], False)}
