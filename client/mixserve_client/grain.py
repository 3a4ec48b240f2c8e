"""Remote batches as Grain data sets, for Grain's own pipelines, prefetch and checkpoints. Needs `grain`."""
# pyright: standard

import sys
from collections.abc import Sequence
from typing import Any

import grain

from mixserve_client.client import MixClient, check_client
from mixserve_client.reading.iterator import BatchIterator
from mixserve_client.schema.checks import check_integer
from mixserve_client.schema.fields import Batch
from mixserve_client.schema.keys import key_words
from mixserve_client.schema.schedule import copy_pairs
from mixserve_client.schema.tree import flatten, unflatten


class RemoteMapDataset(grain.MapDataset[Batch]):
    """Batches by number: element i has the rows at the positions [i * batch_size, (i + 1) * batch_size).

    `len` is `num_batches`, or `sys.maxsize` if it is None; as in Grain, larger numbers wrap around. It is pickled with
    its client, for Grain's worker processes. A batch is one request, and Grain prefetches with threads
    (`to_iter_dataset(ReadOptions(...))`); `RemoteIterDataset` prefetches with streams.
    """

    def __init__(
        self,
        client: MixClient,
        *,
        batch_size: int,
        key: Any,
        mixture: str | None = None,
        num_batches: int | None = None,
    ):
        """Raises InvalidRequest if `batch_size` or `num_batches` is below 1, or if `key` is not a key."""
        super().__init__()
        self._client = check_client(client)
        self._batch_size = check_integer("batch_size", batch_size, 1)
        self._words = key_words(key)
        self._mixture = mixture
        self._length = sys.maxsize if num_batches is None else check_integer("num_batches", num_batches, 1)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        """The batch of number `index`; for a slice the data set of its batches. Raises what `get_batch_at` raises."""
        if isinstance(index, slice):
            return self.slice(index)
        return self._rows(check_integer("index", index) % self._length, 1)

    def _getitems(self, indices: Sequence[int]) -> Sequence[Any]:
        # Grain calls this to read several elements at once. Consecutive batches are read in one request.
        batches, numbers = list[Any](), [check_integer("index", index) % self._length for index in indices]
        begin = 0
        for place in range(1, len(numbers) + 1):
            if place < len(numbers) and numbers[place] == numbers[place - 1] + 1:
                continue
            leaves = flatten(self._rows(numbers[begin], place - begin))
            for at in range(0, (place - begin) * self._batch_size, self._batch_size):
                batches.append(unflatten({name: leaf[at : at + self._batch_size] for name, leaf in leaves.items()}))
            begin = place
        return batches

    def __str__(self) -> str:
        return f"RemoteMapDataset({self._client!r}, batch_size={self._batch_size}, mixture={self._mixture!r})"

    @property
    def _element_spec(self) -> Any:
        return self._client.batches(self._batch_size, self._words, mixture=self._mixture).element_spec()

    def _rows(self, number: int, count: int) -> Any:
        size = self._batch_size
        return self._client.get_batch_at(number * size, count * size, self._words, mixture=self._mixture)


class RemoteIterDataset(grain.IterDataset[Batch]):
    """The batches of `client.batches(batch_size, key, **options)`, prefetched with streams."""

    def __init__(self, client: MixClient, *, batch_size: int, key: Any, **options: Any):
        """Raises what `client.batches` raises."""
        super().__init__()
        options |= {name: copy_pairs(options[name]) for name in ("schedule", "skip") if name in options}
        self._client = check_client(client)
        client.batches(batch_size, key, **options).close()  # only to check the options: wrong ones raise here
        self._options: dict[str, Any] = {"batch_size": batch_size, "key": key_words(key), **options}

    def __iter__(self) -> "RemoteDatasetIterator":
        return RemoteDatasetIterator(self._client.batches(**self._options))

    def __str__(self) -> str:
        return f"RemoteIterDataset({self._client!r}, batch_size={self._options['batch_size']})"

    @property
    def _element_spec(self) -> Any:
        return self._client.batches(**self._options).element_spec()


class RemoteDatasetIterator(grain.DatasetIterator[Batch]):
    """A `BatchIterator` as a Grain iterator, whose state Grain's and Orbax's checkpoints save."""

    def __init__(self, batches: BatchIterator):
        super().__init__()
        self._batches = batches

    def __next__(self) -> Any:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """The state of the `BatchIterator`, in plain JSON types."""
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken. Raises what `BatchIterator.set_state` raises."""
        self._batches.set_state(state)

    def start_prefetch(self) -> None:
        """Send the first requests now, before the first `next`."""
        self._batches.start_prefetch()

    def close(self) -> None:
        """Drop the batches in flight; the client stays open."""
        self._batches.close()

    def __str__(self) -> str:
        return f"RemoteDatasetIterator({self._batches!r})"

    @property
    def _element_spec(self) -> Any:
        return self._batches.element_spec()
