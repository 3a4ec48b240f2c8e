"""Nested records <-> flat ones: a leaf's name is its path, so the names alone are enough to rebuild the record.

Steps are joined by "/". The key of a dict is itself, with "~" written "~0" and "/" written "~1"; the items of a tuple
are "~t0", "~t1", …, those of a list "~l0", "~l1", …. A flat record with plain keys is its own flat form.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

_SEQUENCES: dict[str, type] = {"~t": tuple, "~l": list}


def flatten(record: Any) -> dict[str, Any]:
    """The leaves of a record by name, sorted; dicts, tuples and lists are nodes, everything else is a leaf.

    Raises TypeError for keys that are not non-empty strings, and ValueError for empty nodes, which have no name.
    """
    leaves: dict[str, Any] = {}
    _collect(record, "", leaves)
    return {name: leaves[name] for name in sorted(leaves)}


def unflatten(leaves: Mapping[str, Any]) -> Any:
    """The record with these leaves. Raises ValueError if the names do not make up one record."""
    if not any(map(is_path, leaves)):
        return dict(leaves)
    if list(leaves) == [""]:
        return leaves[""]
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *path, last = name.split("/")
        node = root
        for step in path:
            child: Any = node.setdefault(step, {})
            if isinstance(child, _Leaf):
                raise ValueError(f"the leaf {name!r:.100} is inside another leaf")
            node = cast(dict[str, Any], child)
        if last in node:
            raise ValueError(f"the leaf {name!r:.100} is also a node")
        node[last] = _Leaf(leaf)
    return _rebuild(root)


@lru_cache(maxsize=4096)
def is_path(name: str) -> bool:
    """Whether `name` is anything but a plain key of a flat record."""
    return not name or "/" in name or "~" in name


class _Leaf:
    """Marks a leaf, which may itself be a dict, so that it is not taken for a node."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value


def _collect(node: Any, path: str, leaves: dict[str, Any]) -> None:
    if isinstance(node, Mapping):
        mapping = cast(Mapping[Any, Any], node)
        children = [(_step(key), child) for key, child in mapping.items()]
    elif isinstance(node, tuple | list):
        prefix = "~t" if isinstance(node, tuple) else "~l"
        children = [(f"{prefix}{index}", child) for index, child in enumerate(cast(list[Any], node))]
    else:
        leaves[path] = node
        return
    if not children:
        raise ValueError(f"a record must not hold empty containers, got one at {path or 'its root'!r:.100}")
    for step, child in children:
        _collect(child, f"{path}/{step}" if path else step, leaves)


def _step(key: Any) -> str:
    if not isinstance(key, str) or not key:
        raise TypeError(f"keys of records must be non-empty strings, got {key!r:.100}")
    return key.replace("~", "~0").replace("/", "~1")


def _rebuild(node: Any) -> Any:
    if isinstance(node, _Leaf):
        return node.value
    steps = cast(dict[str, Any], node)
    kinds = {step[:2] if step[:2] in _SEQUENCES else "" for step in steps}
    if len(kinds) > 1:
        raise ValueError(f"the steps {sorted(steps)!r:.200} do not make up one container")
    kind = kinds.pop()
    if not kind:
        return {step.replace("~1", "/").replace("~0", "~"): _rebuild(child) for step, child in steps.items()}
    places = [f"{kind}{index}" for index in range(len(steps))]
    if set(places) != set(steps):
        raise ValueError(f"the steps {sorted(steps)!r:.200} do not make up one container")
    return _SEQUENCES[kind](_rebuild(steps[place]) for place in places)
