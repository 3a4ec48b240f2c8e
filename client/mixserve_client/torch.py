"""Remote batches as PyTorch tensors, and as a data set for PyTorch's loaders. Needs `torch`."""
# pyright: standard, reportMissingImports=false, reportAttributeAccessIssue=false

import logging
import os
import sys
from dataclasses import fields
from typing import Any, Self

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from mixserve_client.client import MixClient, check_client
from mixserve_client.errors import InvalidRequest
from mixserve_client.options import BatchOptions
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.schema.dtypes import DTYPES
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.schedule import copy_pairs
from mixserve_client.schema.text import show, show_names
from mixserve_client.schema.tree import flatten, unflatten

_logger = logging.getLogger("mixserve_client")
_NAMED = ("batch_size", "key", "shard")
_OPTIONS = tuple(field.name for field in fields(BatchOptions) if field.name not in (*_NAMED, "worker"))
_DTYPES = {dtype: getattr(torch, name) for name, dtype in DTYPES.items() if hasattr(torch, name)}
_warned_of_ranks = False


class RemoteIterableDataset(IterableDataset[dict[str, torch.Tensor]]):
    """The batches of `client.batches(batch_size, key, **options)` as tensors, for loaders with `batch_size=None`.

    An element is a whole batch of this rank's rows: tensors of shape (rows, *field.shape) in the stored dtypes, nested
    as the records are. The stream of batches is the same with any number of workers. You may write to the tensors;
    processes that are forked while a tensor exists share its memory.

    Every `iter` begins at `start`. Only the first `iter` after `load_state_dict`, in the same process, resumes from the
    state; the workers of a loader resume from a state that was loaded before they started.
    """

    def __init__(
        self, client: MixClient, *, batch_size: int, key: Any, shard: tuple[int, int] | None = None, **options: Any
    ):
        """If `shard` is None, iteration uses the rank and world size of torch.distributed if it is initialised by then,
        else whole batches. `options` are those of `client.batches`. Sends nothing. Raises what `client.batches` raises.
        """
        super().__init__()
        _check_names(options)
        self._client = check_client(client)
        options |= {name: copy_pairs(options[name]) for name in ("schedule", "skip") if name in options}
        self._options: dict[str, Any] = {"batch_size": batch_size, "key": key_words(key), **options}
        self._shard = shard
        self._rank: tuple[int, int] | None = None  # the shard in the process that sent this to a worker
        self._loaded: dict[str, Any] | None = None
        self._latest: TensorBatches | None = None
        self._batches((0, 1))  # only to check the options: wrong ones raise here, not in a worker

    def __iter__(self) -> "TensorBatches":
        """An iterator from `start` on, or from a loaded state.

        Raises what `BatchIterator.set_state` raises for a loaded state, which stays loaded then, and InvalidRequest in
        a loader's worker if the client's server runs in the parent process, and if a loader that was prepared by
        Accelerate would distribute the rows of this rank over the ranks.
        """
        self._check_is_split_once()
        info = get_worker_info()
        if info is not None:
            self._check_can_travel()
        if info is None or info.id == 0:
            self._warn_of_ranks_without_group()
        batches = TensorBatches(
            self._batches((0, 1) if info is None else (info.id, info.num_workers)), own=self._can_travel
        )
        if self._loaded is not None:
            batches.load_state_dict(self._loaded)
        self._latest, self._loaded = batches, None
        return batches

    def __len__(self) -> int:
        """The number of batches from `start` to the end. May ask the server for the mixture.

        Raises TypeError if there is no end.
        """
        return _length(self._batches((0, 1)))

    def state_dict(self) -> dict[str, Any]:
        """The state of the latest `iter` in this process: that of `BatchIterator.get_state`, in plain JSON types.

        Raises InvalidRequest if there was no `iter` in this process. If the loader has workers, only they iterate, and
        the loader has their states.
        """
        if self._loaded is not None:
            return self._loaded
        if self._latest is None:
            raise InvalidRequest(
                "this data set has no state, since this process has not iterated over it; if your loader has workers, "
                "save the state of a loader that has one, such as torchdata's StatefulDataLoader"
            )
        return self._latest.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state` at the next `iter` in this process, and in workers that start from now on.

        The state may come from this data set, from a worker of the same number, or from any `BatchIterator`. This call
        does not check it; `iter` does.
        """
        self._loaded = state

    def __getstate__(self) -> dict[str, Any]:
        self._check_can_travel()
        self._check_is_split_once()  # here, because a spawned worker knows nothing about Accelerate's loader
        # torch.distributed is not initialised in a spawned worker, so the rank travels with the data set.
        return vars(self) | {"_rank": self._own_shard(), "_latest": None}

    def _batches(self, worker: tuple[int, int]) -> BatchIterator:
        return self._client.batches(**self._options, shard=self._own_shard(), worker=worker)

    def _own_shard(self) -> tuple[int, int]:
        if self._shard is not None:
            return self._shard
        if _has_group():
            return distributed.get_rank(), distributed.get_world_size()
        return self._rank or (0, 1)

    def _warn_of_ranks_without_group(self) -> None:
        """Log a warning, once in this process, if a launcher started several ranks and all would read whole batches."""
        global _warned_of_ranks
        size = os.environ.get("WORLD_SIZE", "")
        ranks = int(size) if size.isdecimal() else 1
        if _warned_of_ranks or ranks == 1 or self._shard is not None or self._own_shard()[1] > 1 or _has_group():
            return
        _warned_of_ranks = True
        _logger.warning(
            "WORLD_SIZE is %d, but torch.distributed is not initialised, so that every rank reads the same whole "
            "batches: call torch.distributed.init_process_group(...) before you iterate, or pass "
            "shard=(rank, world_size) to RemoteIterableDataset(...); shard=(0, 1) if that is what you want",
            ranks,
        )

    def __repr__(self) -> str:
        options = {name: value for name, value in self._options.items() if name not in ("batch_size", "key")}
        shown = "".join(f", {name}={show(value)}" for name, value in options.items())
        size, words = self._options["batch_size"], self._options["key"].tolist()
        return f"RemoteIterableDataset({self._client!r}, batch_size={size}, key={words}, shard={self._shard}{shown})"

    @property
    def _can_travel(self) -> bool:
        """Whether another process can use the client. If so, no server in this process shares the memory of replies."""
        return self._client.catalog.can_travel

    def _check_can_travel(self) -> None:
        if not self._can_travel:
            raise InvalidRequest(
                "this client's server runs in the process that made the client, and a loader's workers cannot reach it "
                "there: use num_workers=0, or serve(...) and MixClient.connect(...)"
            )

    def _check_is_split_once(self) -> None:
        rank, world_size = self._own_shard()
        if world_size > 1 and _accelerate_splits(self):
            raise InvalidRequest(
                f"this data set gives rank {rank} of {world_size} its own rows, and a loader that Accelerate prepared "
                "would distribute them over the ranks again, so that rows are lost: pass only model, optimizer and "
                "scheduler to `prepare`, and iterate over your own loader; with Hugging Face's Trainer, override "
                "get_train_dataloader (docs/trainers.md)"
            )


class TensorBatches:
    """A `BatchIterator` whose batches are tensors; made by `iter` of a RemoteIterableDataset."""

    def __init__(self, batches: BatchIterator, *, own: bool):
        """`own` says that no other reader has the memory of these batches."""
        self._batches = batches
        self._own = own
        self._checked = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        """The next batch. Raises InvalidRequest before the first one if PyTorch lacks the dtype of a field, and what
        the iterator's `next` raises."""
        if not self._checked:
            for name, field in flatten(self._batches.element_spec()).items():
                _torch_dtype(name, field.dtype)
            self._checked = True
        return _tensors(next(self._batches), own=self._own)

    def __len__(self) -> int:
        """How many batches are left. Raises TypeError if there is no end."""
        return _length(self._batches)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"TensorBatches({self._batches!r})"

    def state_dict(self) -> dict[str, Any]:
        """The state of the `BatchIterator`, in plain JSON types."""
        return self._batches.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken. Raises what `BatchIterator.set_state` raises."""
        self._batches.set_state(state)


def to_tensors(batch: Any) -> Any:
    """A batch, or any record of arrays and numbers, as tensors of the same nesting, shapes and dtypes.

    Tensors of writable, contiguous arrays share their memory; all other arrays are copied. Raises InvalidRequest for
    dtypes that PyTorch lacks.
    """
    return _tensors(batch, own=False)


def _tensors(batch: Any, *, own: bool) -> Any:
    return unflatten({name: _tensor(name, np.asarray(leaf), own) for name, leaf in flatten(batch).items()})


def _tensor(name: str, array: np.ndarray, own: bool) -> torch.Tensor:
    dtype = _torch_dtype(name, array.dtype)
    if array.dtype.isbuiltin != 1:  # such as bfloat16 of ml_dtypes: torch accepts only NumPy's own dtypes
        array = array.view(f"i{array.itemsize}")
    if own and array.flags.c_contiguous and array.flags.aligned and not array.flags.writeable:
        array = np.asarray(_Writable(array))
    return torch.from_numpy(array if array.flags.carray else array.copy()).view(dtype)


def _check_names(options: dict[str, Any]) -> None:
    """Raises TypeError unless these are names of options of a RemoteIterableDataset."""
    if "worker" in options:
        raise TypeError(
            "RemoteIterableDataset(...) takes no worker=: the loader's workers decide it (num_workers= of the loader)"
        )
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise TypeError(
            f"RemoteIterableDataset(...) has no option {show_names(unknown)}; it has {', '.join((*_NAMED, *_OPTIONS))}"
        )


def _length(batches: BatchIterator) -> int:
    try:
        return len(batches)
    except TypeError:
        raise TypeError(
            "this data set has no end, so it has no length; pass stop= to RemoteIterableDataset(...)"
        ) from None


def _has_group() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _torch_dtype(name: str, dtype: np.dtype) -> torch.dtype:
    try:
        return _DTYPES[dtype]
    except KeyError:
        raise InvalidRequest(
            f"the field {name!r} is of {dtype}, which PyTorch {torch.__version__} lacks; it has "
            f"{', '.join(dtype.name for dtype in _DTYPES)}"
        ) from None


def _accelerate_splits(dataset: RemoteIterableDataset) -> bool:
    """Whether the loader that Accelerate iterates over now reads `dataset` and splits what it reads over the ranks.

    Accelerate does not tell a data set that its loader was prepared, but its public GradientState has the loader that
    is iterated over.
    """
    state, loaders = (sys.modules.get(f"accelerate.{name}") for name in ("state", "data_loader"))
    if state is None or loaders is None:
        return False
    loader = getattr(state.GradientState(), "active_dataloader", None)
    splits, read = isinstance(loader, loaders.DataLoaderDispatcher), getattr(loader, "dataset", None)
    while read is not None and read is not dataset:
        splits = splits or isinstance(read, loaders.IterableDatasetShard)
        read = getattr(read, "dataset", None)
    return splits and read is dataset


class _Writable:
    """A writable array interface over a read-only array whose memory no other reader has.

    PyTorch has no read-only tensors, and warns about read-only arrays. It is safe to write here: the memory is a bytes
    object that came over gRPC, or a mapping that a server on this host has written, and neither is write-protected.
    """

    def __init__(self, array: np.ndarray):
        self.owner = array
        interface = array.__array_interface__
        self.__array_interface__: dict[str, Any] = interface | {"data": (interface["data"][0], False)}
