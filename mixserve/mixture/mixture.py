"""Sources and their weights, checked once -> all that a batch is computed from: fields, planner, gatherer."""

import functools
import hashlib
import json
import operator
import sys
from collections.abc import Sequence
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Int32

from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.fingerprint import fingerprint
from mixserve.mixture.gather import HostGather
from mixserve.mixture.plan import Planner
from mixserve.mixture.spec import NoNumbers, common_fields, numeric_leaves
from mixserve.sources import AnySource, is_keyed
from mixserve_client.wire.description import Field

SAMPLING = "categorical"


class Mixture:
    """An immutable mixture of sources and of other mixtures; it reads from its sources and holds no state of its own.

    `leaves` are the sources that are no mixtures, counted through the whole tree: what plans name and gathers read.
    A mixture whose records are no numbers has lengths and weights, and raises ValueError for everything else.
    """

    def __init__(self, children: Sequence["AnySource | Mixture"], shares: "Shares", names: Sequence[str]):
        """Raises ValueError where names or specs of children clash, and for a child without records that has a
        share."""
        self.children = tuple(children)
        self.names = _distinct(names)
        self.shares = shares
        self.lengths = tuple(len(child) for child in children)
        for name, length, share in zip(self.names, self.lengths, shares, strict=True):
            if length == 0 and share > 0:
                raise ValueError(f"the source {name!r} has no records but the weight {share}; give it the weight 0")
        self.leaves: tuple[AnySource, ...] = tuple(leaf for child in children for leaf in _leaves_of(child))
        self._fields: tuple[Field, ...] | NoNumbers = self._common_fields()
        if not isinstance(self._fields, NoNumbers):
            _ = self.blocks, self.host_gather  # what is wrong with a source shows now

    def __len__(self) -> int:
        """The records of all children together; where that is more than Python's lengths can be, the largest one."""
        return min(sum(self.lengths), sys.maxsize)

    def __reduce__(self) -> Any:
        return Mixture, (self.children, self.shares, self.names)  # the rest are programs and addresses of this process

    @property
    def fields(self) -> tuple[Field, ...]:
        """Name, stored dtype and shape of every field of a record. Raises ValueError where records are no numbers."""
        if isinstance(self._fields, NoNumbers):
            raise NoNumbers(str(self._fields)) from self._fields
        return self._fields

    @property
    def is_numeric(self) -> bool:
        """Whether the mixture has batches, and not only records."""
        return not isinstance(self._fields, NoNumbers)

    @cached_property
    def planner(self) -> Planner:
        """Chooses the records of batches."""
        nested = {i: child.planner for i, child in enumerate(self.children) if isinstance(child, Mixture)}
        return Planner(self.shares, self.lengths, nested, keyed=any(map(is_keyed, self.leaves)))

    @cached_property
    def blocks(self) -> PlanBlocks:
        """Plans for readers that go on where they stopped."""
        return PlanBlocks(self.planner)

    @cached_property
    def host_gather(self) -> HostGather:
        """Fetches the records of plans."""
        return HostGather(self.leaves, self.fields)

    @cached_property
    def order(self) -> str:
        """16 hexadecimal digits of what decides the order of single records: names, lengths and shares."""
        orders = [child.order if isinstance(child, Mixture) else "" for child in self.children]
        described = [self.names, self.lengths, [share.hex() for share in self.shares], orders]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]

    @cached_property
    def never_drawn(self) -> frozenset[int]:
        """The leaves that have no share, or lie in a child that has none."""
        never, first = set[int](), 0
        for child, share in zip(self.children, self.shares, strict=True):
            count = len(_leaves_of(child))
            inner = child.never_drawn if isinstance(child, Mixture) else frozenset[int]()
            never.update(first + leaf for leaf in (range(count) if share == 0 else inner))
            first += count
        return frozenset(never)

    @cached_property
    def device_starts(self) -> Int32[np.ndarray, " leaves"]:
        """The row of each leaf's first record in the arrays that `device.upload` makes."""
        return np.cumsum([0, *map(len, self.leaves)])[:-1].astype(np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; computed at the first use, since it reads the sources."""
        return fingerprint(
            names=self.names,
            children=self.children,
            shares=self.shares,
            fields=self.fields,
            sampling=SAMPLING,
            planner=self.planner,
        )

    def content_digest(self) -> bytes:
        """What identifies this mixture where it is a child of another."""
        return bytes.fromhex(self.fingerprint)

    def _common_fields(self) -> tuple[Field, ...] | NoNumbers:
        """The fields of all children; children without numbers are compared with none."""
        specs, lacking = dict[str, Any](), list[NoNumbers]()
        for name, child in zip(self.names, self.children, strict=True):
            try:
                if isinstance(child, Mixture):
                    specs[name] = {field.name: (field.shape, field.dtype) for field in child.fields}
                else:
                    specs[name] = numeric_leaves(name, child)
            except NoNumbers as error:
                lacking.append(NoNumbers(f"in {name!r}: {error}") if isinstance(child, Mixture) else error)
        fields = common_fields(specs) if specs else ()
        return lacking[0] if lacking else fields


class Shares(tuple[float, ...]):
    """Weights as float64 shares that sum to 1, as far as floats do; a share is never normalised twice."""

    __slots__ = ()


def normalised(weights: Sequence[float]) -> Shares:
    """The weights as shares. Raises ValueError."""
    if isinstance(weights, Shares):
        return weights
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, Real):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"weights must be numbers, got {weight!r}")
        if not abs(weight) <= sys.float_info.max or weight < 0:
            raise ValueError(f"weights must be positive or zero, and finite, got {weight!r} in {tuple(weights)}")
    # From left to right: `sum` compensates rounding from Python 3.12 on, and shares must not depend on that.
    total = functools.reduce(operator.add, map(float, weights), 0.0)
    if not 0 < total <= sys.float_info.max:
        raise ValueError(f"weights must have a positive, finite sum, got {tuple(weights)}")
    return Shares(float(weight) / total for weight in weights)


def names_of(sources: Sequence[Any]) -> list[str]:
    """Each source's `name`, else its index."""
    names = [getattr(source, "name", None) for source in sources]
    return [str(index) if name is None else str(name) for index, name in enumerate(names)]


def _leaves_of(child: "AnySource | Mixture") -> Sequence[AnySource]:
    return child.leaves if isinstance(child, Mixture) else (child,)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"sources of a mixture must have different names, got {sorted(twice)} more than once; rename them, or give "
            "all names in source_names"
        )
    return tuple(names)
