"""Sources and their weights, checked once -> all that a batch is computed from: fields, planner, gatherer."""

import hashlib
import json
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int32

from mixserve.mixture.blocks import PlanBlocks
from mixserve.mixture.content import Content, checked_id, identify
from mixserve.mixture.epoch import EpochPlanner
from mixserve.mixture.fingerprint import fingerprint
from mixserve.mixture.gather import HostGather
from mixserve.mixture.leaves import AnyPlanner
from mixserve.mixture.plan import Planner
from mixserve.mixture.programs import PLAN_SIZES
from mixserve.mixture.sampling import EPOCH, NEVER, Sampling
from mixserve.mixture.schedule import Schedule, Shares
from mixserve.mixture.scheduled import Planners, ScheduledPlanner
from mixserve.mixture.spec import NoNumbers, check_text, common_fields, numeric_leaves
from mixserve.shown import shown
from mixserve.sources import AnySource, RecordCheck, ReferenceSource, is_keyed
from mixserve_client.forks import renew_in_forks
from mixserve_client.schema.fields import Field


class Mixture:
    """An immutable mixture of sources and of other mixtures; it reads from its sources and holds no state of its own.

    `leaves` are the sources that are no mixtures, counted through the whole tree: what plans name and gathers read.
    A mixture whose records are no numbers has lengths and weights, and raises ValueError for everything else.
    """

    def __init__(
        self,
        children: Sequence["AnySource | Mixture"],
        sampling: Sampling,
        names: Sequence[str],
        plan_sizes: Sequence[int] = PLAN_SIZES,
        content_ids: Sequence[str | None] | None = None,
    ):
        """`content_ids` identify the content of children, in place of what these say of it themselves.

        Raises ValueError where names or specs of children clash, for a child without records that has a share, for a
        nested mixture that draws in a way that has no meaning there, and for what is no content_id."""
        self.children = tuple(children)
        self.names = _distinct(names)
        self.sampling = sampling
        self.plan_sizes = tuple(plan_sizes)
        self.lengths = tuple(len(child) for child in children)
        self._check_children()
        self._content_ids = self._checked_ids(content_ids or (None,) * len(self.children))
        self._renew_lock()
        renew_in_forks(self, Mixture._renew_lock)
        for entry in sampling.schedule.entries:
            self._check_shares(entry.shares)
        self.leaves: tuple[AnySource, ...] = tuple(leaf for child in children for leaf in _leaves_of(child))
        self._fields: tuple[Field, ...] | NoNumbers = self._common_fields()
        if not isinstance(self._fields, NoNumbers):
            _ = self.blocks, self.host_gather  # what is wrong with a source shows now

    def __len__(self) -> int:
        """The records of all children together; where that is more than Python's lengths can be, the largest one."""
        return min(sum(self.lengths), sys.maxsize)

    def __reduce__(self) -> Any:
        # The rest are programs and addresses of this process.
        return Mixture, (self.children, self.sampling, self.names, self.plan_sizes, self._content_ids)

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

    def check_record(self, record: Any, index: int) -> None:
        """Raises WrongRecord where the record at `index` of an epoch is not what the sources declare.

        Where a source's records are no numbers, nothing is declared.
        """
        if self._record_check is not None:
            self._record_check.check(record, index)

    @cached_property
    def _record_check(self) -> RecordCheck | None:
        as_jax = any(isinstance(leaf, ReferenceSource) for leaf in self.leaves)
        return RecordCheck(self.fields, as_jax=as_jax) if self.is_numeric else None

    @property
    def shares(self) -> Shares:
        """The shares of the sources from position 0 on."""
        return self.sampling.schedule.entries[0].shares

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """The names of the leaves, in the order in which plans count them: those of nested mixtures as paths."""
        return tuple(
            f"{name}/{inner}" if inner else name
            for name, child in zip(self.names, self.children, strict=True)
            for inner in (child.leaf_names if isinstance(child, Mixture) else ("",))
        )

    @cached_property
    def planner(self) -> AnyPlanner:
        """Chooses the records of batches."""
        return self._planner(self.sampling.schedule)

    @cached_property
    def blocks(self) -> PlanBlocks:
        """Plans for readers that go on where they stopped."""
        return PlanBlocks(self.planner)

    def planned_by(self, schedule: Schedule, known: Schedule, like: PlanBlocks) -> PlanBlocks:
        """Plans under the schedule of a reader, in place of the mixture's own; what it shares with the schedule
        `known`, by which `like` plans, is taken from there.

        Raises ValueError where an entry does not fit this mixture.
        """
        added = schedule.entries[schedule.entries.shared_with(known.entries) :]
        for entry in added:
            self._check_shares(entry.shares)
        self.sampling.check_borders(added)
        return self.blocks.beside(self._planner(schedule, like.planner))

    def pass_ends(self) -> Sequence[int | None]:
        """Per source, the positions that hold the first pass over it, to within a block; None where it never ends."""
        planner = self.planner
        return planner.pass_ends() if isinstance(planner, EpochPlanner) else [None] * len(self.lengths)

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
        shares = [max(of_child) for of_child in zip(*(e.shares for e in self.sampling.schedule.entries), strict=True)]
        for child, share in zip(self.children, shares, strict=True):
            count = len(_leaves_of(child))
            inner = child.never_drawn if isinstance(child, Mixture) else frozenset[int]()
            never.update(first + leaf for leaf in (range(count) if share == 0 else inner))
            first += count
        return frozenset(never)

    @cached_property
    def device_starts(self) -> Int32[np.ndarray, " leaves"]:
        """The row of each leaf's first record in the arrays that `device.upload` makes."""
        return np.cumsum([0, *map(len, self.leaves)])[:-1].astype(np.int32)

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits; computed at the first use, since it reads the sources, for seconds at most."""
        with self._identifying:  # once: what a source says may change
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
        """What identifies the content of the children, and its samples."""
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

    def differing_leaf(self, other: "Mixture") -> str | None:
        """The name of a leaf whose records are known to differ from those of the same leaf in `other`, a mixture of the
        same fingerprint; None if no difference is known."""
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

    def content_digest(self) -> bytes:
        """What identifies this mixture where it is a child of another."""
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
        """Raises ValueError where `shares` are not those of these sources, or name one without records."""
        if len(shares) != len(self.lengths):
            raise ValueError(f"weights must be {len(self.lengths)} numbers, one for each source, got {len(shares)}")
        for name, length, share in zip(self.names, self.lengths, shares, strict=True):
            if length == 0 and share > 0:
                raise ValueError(f"the source {name!r} has no records but the weight {share}; give it the weight 0")

    def _checked_ids(self, given: Sequence[str | None]) -> tuple[str | None, ...]:
        if len(given) != len(self.children):
            raise ValueError(f"content_ids must be {len(self.children)}, one for each source, got {len(given)}")
        found = list[str | None]()
        for name, child, content_id in zip(self.names, self.children, given, strict=True):
            if isinstance(child, Mixture) and content_id is not None:
                raise ValueError(f"the nested mixture {name!r} has no content_id: give ids to the sources in it")
            own = None if isinstance(child, Mixture) else getattr(child, "content_id", None)
            found.append(checked_id(name, own if content_id is None else content_id))
        return tuple(found)

    def _check_children(self) -> None:
        for name, child in zip(self.names, self.children, strict=True):
            if not isinstance(child, Mixture):
                continue
            if child.sampling.stop != NEVER:
                raise ValueError(f"the nested mixture {name!r} must have stop='never': only the outermost mixture ends")
            if child.sampling.mode == EPOCH and self.sampling.mode != EPOCH:
                raise ValueError(
                    f"the nested mixture {name!r} has sampling='epoch', which means nothing where positions are drawn "
                    "with replacement; set sampling='epoch' on the outer mixture too, or 'categorical' on this one"
                )

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


def names_of(sources: Sequence[Any]) -> list[str]:
    """Each source's `name`, else its index."""
    names = [getattr(source, "name", None) for source in sources]
    return [str(index) if name is None else str(name) for index, name in enumerate(names)]


def _leaves_of(child: "AnySource | Mixture") -> Sequence[AnySource]:
    return child.leaves if isinstance(child, Mixture) else (child,)


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(
            f"sources of a mixture must have different names, got {shown(sorted(twice))} more than once; "
            "rename them, or give all names in source_names"
        )
    for name in names:
        check_text("the name of a source", name)
    return tuple(names)
