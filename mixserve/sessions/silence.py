"""What has been silent for longest, without a look at all others."""

import heapq
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Silences(Generic[T]):
    """Items by the time at which they were last heard of. Not thread-safe.

    An item need not say when it is heard: `before` asks it when it is due. So each costs O(log n) once in a while,
    however often it is heard.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._added = 0  # so that items are never compared

    def add(self, when: float, item: T) -> None:
        """Add an item that was heard at that time; each once."""
        self._added += 1
        heapq.heappush(self._heap, (when, self._added, item))

    def before(self, when: float, heard: Callable[[T], float | None]) -> Iterator[T]:
        """Take out the items that were not heard since `when`. `heard` says when an item was (None: forget it)."""
        while self._heap and self._heap[0][0] < when:
            *_, item = heapq.heappop(self._heap)
            heard_at = heard(item)
            if heard_at is None:
                continue
            if heard_at >= when:
                self.add(heard_at, item)
            else:
                yield item

    @property
    def oldest(self) -> float | None:
        """No item was last heard before this time; None if there are none."""
        return self._heap[0][0] if self._heap else None

    def keep(self, is_wanted: Callable[[T], bool]) -> None:
        """Forget all other items."""
        self._heap = [one for one in self._heap if is_wanted(one[2])]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)
