"""Sources and their weights, checked once -> everything that a batch is computed from: fields, planner, gather."""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int32

from mixserve.failed_read import FailedRead, Read, naming_source
from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.content import SAMPLED_RECORDS, Content, check_id, identify
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.fingerprint import fingerprint
from mixserve.mixture.gather import HostGather
from mixserve.mixture.leaves import AnyPlanner, Plan
from mixserve.mixture.plan import Planner
from mixserve.mixture.programs import PLAN_SIZES
from mixserve.mixture.sampling import EPOCH, NEVER, Sampling
from mixserve.mixture.schedule import Schedule, Shares
from mixserve.mixture.scheduled import Planners, ScheduledPlanner
from mixserve.mixture.spec import NotNumeric, check_text, common_fields, numeric_leaves
from mixserve.mixture.taking import take_records
from mixserve.sources import AnySource, RecordCheck, ReferenceSource, is_keyed
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.fields import Field
from mixserve_client.schema.text import show


class Mixture:
    """An immutable mixture of sources and of other mixtures, without state of its own.

    `leaves` are the sources that are not mixtures, numbered through the whole tree; plans refer to them by number. If
    the records of a source are not arrays of numbers, the mixture has lengths and weights only: everything else raises
    ValueError.
    """

    def __init__(
        self,
        children: Sequence["AnySource | Mixture"],
        sampling: Sampling,
        names: Sequence[str],
        plan_sizes: Sequence[int] = PLAN_SIZES,
        content_ids: Sequence[str | None] | None = None,
    ):
        """`content_ids` identify the content of children, and replace the children's own ids and digests.

        Raises ValueError if names are not distinct, specs of children differ, a child without records has a share, a
        nested mixture cannot draw inside this one, or a content_id is not None or a string of 1 to 256 characters.
        """
        self.children = tuple(children)
        self.names = _check_names(names)
        self.sampling = sampling
        self.plan_sizes = tuple(plan_sizes)
        self.lengths = tuple(map(_length, self.names, children))
        self._check_children()
        self._content_ids = self._check_ids(content_ids or (None,) * len(self.children))
        # Another thread of the parent may hold the lock when the process forks.
        self._renew_lock()
        renew_in_forks(self, Mixture._renew_lock)
        for entry in sampling.schedule.entries:
            self._check_shares(entry.shares)
        self.leaves: tuple[AnySource, ...] = tuple(leaf for child in children for leaf in _leaves_of(child))
        self._fields: tuple[Field, ...] | NotNumeric = self._common_fields()
        if not isinstance(self._fields, NotNumeric):
            # Made at once, so that a source's faults show here and not in the first batch.
            _ = self.blocks, self.host_gather

    def __len__(self) -> int:
        """The number of records of all children together, at most `sys.maxsize`."""
        return min(sum(self.lengths), sys.maxsize)

    def __reduce__(self) -> Any:
        # The other attributes hold programs, locks and memory addresses of this process.
        return Mixture, (self.children, self.sampling, self.names, self.plan_sizes, self._content_ids)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Name, stored dtype and shape of every field. Raises ValueError if records are not arrays of numbers."""
        if isinstance(self._fields, NotNumeric):
            # A new error each time: the stored one would collect the frames of every caller in its traceback.
            raise NotNumeric(str(self._fields)) from self._fields
        return self._fields

    @property
    def is_numeric(self) -> bool:
        """Whether the mixture has batches; if not, its records can still be iterated."""
        return not isinstance(self._fields, NotNumeric)

    def check_record(self, record: Any, index: int, read: Read | None = None) -> None:
        """Raises WrongRecord if the record at `index` of an epoch, from `read`, is not what the sources declare.

        Accepts anything if a source's records are not numeric, since such a mixture declares nothing.
        """
        if self._record_check is not None:
            self._record_check.check(record, index, read)

    @cached_property
    def _record_check(self) -> RecordCheck | None:
        as_jax = any(isinstance(leaf, ReferenceSource) for leaf in self.leaves)
        return RecordCheck(self.fields, as_jax=as_jax) if self.is_numeric else None

    @property
    def shares(self) -> Shares:
        """The shares of the sources at position 0."""
        return self.sampling.schedule.entries[0].shares

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """The names of the leaves, in the order of their numbers; a leaf of a nested mixture has a path as its name."""
        return tuple(
            f"{name}/{inner}" if inner else name
            for name, child in zip(self.names, self.children, strict=True)
            for inner in (child.leaf_names if isinstance(child, Mixture) else ("",))
        )

    def leaf_shares(self, shares: Shares) -> Float64[np.ndarray, " leaves"]:
        """The shares of the leaves, if those of the sources are `shares`.

        NaN for the leaves of a nested mixture whose weights change: they depend on how far its readers are in it.
        """
        inner = [
            child.leaf_shares(child.shares) * (1.0 if len(child.sampling.schedule.entries) == 1 else np.nan)
            if isinstance(child, Mixture)
            else np.ones(1)
            for child in self.children
        ]
        return np.concatenate([share * of_child for share, of_child in zip(shares, inner, strict=True)])

    @cached_property
    def planner(self) -> AnyPlanner:
        """Chooses the records of batches under the mixture's own schedule."""
        return self._planner(self.sampling.schedule)

    @cached_property
    def blocks(self) -> PlanBlocks:
        """Plans under the mixture's own schedule, cached for readers that continue where they stopped."""
        return PlanBlocks(self.planner)

    def planned_by(self, schedule: Schedule, known: Schedule, like: PlanBlocks) -> PlanBlocks:
        """Plans under a reader's schedule, which replaces the mixture's own.

        `like` plans by the schedule `known`; its work is reused for the entries that both schedules share.
        Raises ValueError if another entry does not fit this mixture.
        """
        added = schedule.entries[schedule.entries.shared_with(known.entries) :]
        for entry in added:
            self._check_shares(entry.shares)
        self.sampling.check_borders(added)
        return self.blocks.with_planner(self._planner(schedule, like.planner))

    def pass_ends(self) -> Sequence[int | None]:
        """Per source, how many positions the first pass over it takes, to within a block; None if it never ends."""
        planner = self.planner
        return planner.pass_ends() if isinstance(planner, EpochPlanner) else [None] * len(self.lengths)

    @cached_property
    def host_gather(self) -> HostGather:
        """Fetches the records of plans."""
        return HostGather(self.leaves, self.fields, self.leaf_names)

    @cached_property
    def order(self) -> str:
        """The digest of what decides the order of single records (names, lengths, shares): 16 hexadecimal digits."""
        orders = [child.order if isinstance(child, Mixture) else "" for child in self.children]
        parts = [self.names, self.lengths, [share.hex() for share in self.shares], orders]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def never_drawn(self) -> frozenset[int]:
        """The numbers of the leaves that no entry of the schedule gives a share, alone or with their whole child."""
        never, first = set[int](), 0
        shares = [max(of_child) for of_child in zip(*(e.shares for e in self.sampling.schedule.entries), strict=True)]
        for child, share in zip(self.children, shares, strict=True):
            count = len(_leaves_of(child))
            inner = child.never_drawn if isinstance(child, Mixture) else frozenset[int]()
            never.update(first + leaf for leaf in (range(count) if share == 0 else inner))
            first += count
        return frozenset(never)

    @cached_property
    def device_starts(self) -> Int32[np.ndarray, " leaves"]:
        """The row of each leaf's first record in the arrays of `device.upload`."""
        return np.cumsum([0, *map(len, self.leaves)])[:-1].astype(np.int32)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits, computed at the first use: reading the sources may take seconds."""
        # Once, under a lock: a source may answer differently the second time, and readers must agree.
        with self._identifying:
            return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(
            names=self.names,
            lengths=self.lengths,
            identities=[content.identity for content in self._contents],
            fields=self.fields,
            sampling=self.sampling,
            planner=self.planner,
        )

    @property
    def contents(self) -> Sequence[Content]:
        """Per child, what identifies its content, and the sample of its records."""
        with self._identifying:
            return self._contents

    @cached_property
    def _contents(self) -> Sequence[Content]:
        return identify(self.names, self.children, self._content_ids, self.fields)

    def unknown_contents(self) -> Sequence[bool]:
        """Per child, whether the fingerprint does not cover the content of all its records."""
        return [
            any(child.unknown_contents()) if isinstance(child, Mixture) else length > 0 and not content.identity
            for child, length, content in zip(self.children, self.lengths, self.contents, strict=True)
        ]

    def sampled_contents(self) -> Sequence[bool]:
        """Per child, whether the fingerprint covers only a sample of its records."""
        return [
            any(child.sampled_contents()) if isinstance(child, Mixture) else _is_sampled(content, length)
            for child, length, content in zip(self.children, self.lengths, self.contents, strict=True)
        ]

    def leaf_content(self, number: int) -> tuple[bytes, bool]:
        """What identifies the content of a leaf in a fingerprint, and whether only a sample of its records does."""
        for child, length, content in zip(self.children, self.lengths, self.contents, strict=True):
            count = len(_leaves_of(child))
            if number < count:
                if isinstance(child, Mixture):
                    return child.leaf_content(number)
                return content.identity, _is_sampled(content, length)
            number -= count
        raise IndexError("the mixture has fewer leaves")

    def differing_leaf(self, other: "Mixture") -> str | None:
        """The name of a leaf whose sample differs in `other`, a mixture of the same fingerprint; None if none does."""
        for name, child, child_of_other, here, there in zip(
            self.names, self.children, other.children, self.contents, other.contents, strict=True
        ):
            if isinstance(child, Mixture) and isinstance(child_of_other, Mixture):
                inner = child.differing_leaf(child_of_other)
                if inner is not None:
                    return f"{name}/{inner}"
            elif here.sample is not None and there.sample is not None and here.sample != there.sample:
                return name
        return None

    def check_leaf(self, number: int) -> None:
        """Read the first and the last record of a leaf. Raises ValueError, which names the record, if that fails."""
        leaf = self.leaves[number]
        for record_id in sorted({0, len(leaf) - 1}) if len(leaf) else ():
            try:
                buffers = {field.name: np.empty((1, *field.shape), field.dtype) for field in self.fields}
                here = Plan(np.array([number], np.int32), np.array([record_id]), np.zeros((1, 2), np.uint32))
                take_records(leaf, here, buffers)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a source may be a user's code, and raise anything
                raise ValueError(str(FailedRead.of(self.leaf_names[number], [record_id], 0, error))) from error

    def content_digest(self) -> bytes:
        """The identity of this mixture as a child of another."""
        return bytes.fromhex(self.fingerprint)

    def _renew_lock(self) -> None:
        self._identifying = threading.Lock()

    def _nested(self) -> dict[int, AnyPlanner]:
        return {i: child.planner for i, child in enumerate(self.children) if isinstance(child, Mixture)}

    def _planner(self, schedule: Schedule, like: AnyPlanner | None = None) -> AnyPlanner:
        if self.sampling.mode == EPOCH:
            return EpochPlanner(
                self.sampling,
                self.lengths,
                self._nested(),
                schedule=schedule,
                keyed=any(map(is_keyed, self.leaves)),
                like=like.counts if isinstance(like, EpochPlanner) else None,
            )
        if len(schedule.entries) == 1:
            (planner,) = self._planners.of([schedule.entries[0].shares])
            return planner
        return ScheduledPlanner(schedule, self._planners, like if isinstance(like, ScheduledPlanner) else None)

    @cached_property
    def _planners(self) -> Planners:
        keyed = any(map(is_keyed, self.leaves))
        planner = Planner(self.shares, self.lengths, self._nested(), keyed=keyed, sizes=self.plan_sizes)
        return Planners(planner, self.shares)

    def _check_shares(self, shares: Sequence[float]) -> None:
        """Raises ValueError for another number of `shares` than sources, or a share of a source without records."""
        if len(shares) != len(self.lengths):
            raise ValueError(f"weights must be {len(self.lengths)} numbers, one for each source, got {len(shares)}")
        for name, length, share in zip(self.names, self.lengths, shares, strict=True):
            if length == 0 and share > 0:
                raise ValueError(f"the source {name!r} has no records but the weight {share}; give it the weight 0")

    def _check_ids(self, given: Sequence[str | None]) -> tuple[str | None, ...]:
        if len(given) != len(self.children):
            raise ValueError(f"content_ids must be {len(self.children)}, one for each source, got {len(given)}")
        found = list[str | None]()
        for name, child, content_id in zip(self.names, self.children, given, strict=True):
            if isinstance(child, Mixture) and content_id is not None:
                raise ValueError(f"the nested mixture {name!r} cannot have a content_id; give ids to the sources in it")
            own = None if isinstance(child, Mixture) else getattr(child, "content_id", None)
            found.append(check_id(name, own if content_id is None else content_id))
        return tuple(found)

    def _check_children(self) -> None:
        for name, child in zip(self.names, self.children, strict=True):
            if not isinstance(child, Mixture):
                continue
            if child.sampling.stop != NEVER:
                raise ValueError(f"the nested mixture {name!r} must have stop='never': only the outermost mixture ends")
            if child.sampling.mode == EPOCH and self.sampling.mode != EPOCH:
                raise ValueError(
                    f"the nested mixture {name!r} has sampling='epoch', but the outer one draws its positions with "
                    "replacement, in no order; set sampling='epoch' on the outer one too, or 'categorical' on this one"
                )

    def _common_fields(self) -> tuple[Field, ...] | NotNumeric:
        """The fields that all children share, or the error of the first child that is not numeric."""
        # Numeric children are compared even if another child is not: a clash is an error in any case.
        specs, lacking = dict[str, Any](), list[NotNumeric]()
        for name, child in zip(self.names, self.children, strict=True):
            try:
                if isinstance(child, Mixture):
                    specs[name] = {field.name: (field.shape, field.dtype) for field in child.fields}
                else:
                    specs[name] = numeric_leaves(name, child)
            except NotNumeric as error:
                lacking.append(NotNumeric(f"in {name!r}: {error}") if isinstance(child, Mixture) else error)
        fields = common_fields(specs) if specs else ()
        return lacking[0] if lacking else fields


def _is_sampled(content: Content, length: int) -> bool:
    is_of_sample = content.sample is not None and content.identity != b"" and length > SAMPLED_RECORDS
    return content.is_sampled or is_of_sample


def names_of(sources: Sequence[Any]) -> list[str]:
    """Each source's `name`, else its index as text."""
    names = [getattr(source, "name", None) for source in sources]
    return [str(index) if name is None else str(name) for index, name in enumerate(names)]


def _length(name: str, child: "AnySource | Mixture") -> int:
    with naming_source(name, "the length"):
        return len(child)


def _leaves_of(child: "AnySource | Mixture") -> Sequence[AnySource]:
    return child.leaves if isinstance(child, Mixture) else (child,)


def _check_names(names: Sequence[str]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"the sources of a mixture must have distinct names, got {show(sorted(twice))} more than once; "
            "rename them, or give all names in source_names"
        )
    for name in names:
        check_text("the name of a source", name)
    return tuple(names)
