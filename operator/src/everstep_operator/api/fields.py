"""The fields of a spec as a flat list: what the documentation, the operator and the tests know of each one.

Paths are dotted; `[]` stands for the items of a list. The pod template is one field: what is in it is Kubernetes' own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from everstep_operator.api.common import CHANGE, Change
from everstep_operator.api.schema import Schema, resolved
from everstep_operator.api.spec import TrainingJobSpec


@dataclass(frozen=True)
class SpecField:
    """One field; `node` is its resolved schema, with the marks."""

    path: str
    node: Schema
    required: bool
    change: Change | None
    """What an edit of it does; None where the fields in it differ in that."""

    @property
    def is_leaf(self) -> bool:
        """Whether no field of its own stands below it."""
        return "properties" not in self.node and "properties" not in self.node.get("items", {})


@cache
def spec_fields() -> tuple[SpecField, ...]:
    """All fields of the spec, parents before children."""
    return tuple(walk(resolved(TrainingJobSpec)))


def walk(node: Schema, prefix: str = "", change: Change | None = None) -> Iterator[SpecField]:
    """All fields of an object's resolved schema, parents before children."""
    required = node.get("required", ())
    for name, child in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        here = change or cast("Change | None", child.get(CHANGE))
        below = list(walk(child, f"{path}.", here))
        if "properties" in child.get("items", {}):
            below = list(walk(child["items"], f"{path}[].", here))
        kinds = {found.change for found in below}
        yield SpecField(path, child, name in required, here or (kinds.pop() if len(kinds) == 1 else None))
        yield from below


@cache
def changing(how: Change) -> tuple[str, ...]:
    """Paths of the fields whose edit does this; a list, the template and an object with a mark of its own are one field
    each."""
    found: list[str] = []
    for field in spec_fields():
        single = field.is_leaf or CHANGE in field.node
        inside = "[]" in field.path or any(field.path.startswith(f"{path}.") for path in found)
        if single and not inside and field.change == how:
            found.append(field.path)
    return tuple(found)


def digests(spec: TrainingJobSpec, *how: Change) -> dict[str, str]:
    """A short digest of the value of each field that changes in one of these ways, by path; defaults included."""
    values = spec.model_dump(mode="json", by_alias=True)
    return {path: _digest(value(values, path)) for kind in how for path in changing(kind)}


def value(values: Mapping[str, Any], path: str) -> Any:
    """The value at a path without lists; None where it is absent."""
    found: Any = values
    for name in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _digest(value: Any) -> str:
    body = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(body.encode()).hexdigest()[:12]
