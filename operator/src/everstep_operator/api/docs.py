"""Writes docs/api.md: each field's type, default, meaning, and when a change of it takes effect."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from everstep_operator.api.common import INLINE, RULES
from everstep_operator.api.fields import SpecField, walk
from everstep_operator.api.schema import Schema, resolved
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.api.status import TrainingJobStatus

CHANGES: Final = {
    "live": "live",
    "restart": "with a restart",
    "next-attempt": "from the next attempt",
    "first-attempt": "before the first attempt",
    "immutable": "no",
    None: "by field",
}

_HEAD: Final = """\
# TrainingJob

<!-- Generated from everstep_operator.api by `make crd`. -->

`everstep.dev/v1alpha1`, kind `TrainingJob`, short name `tj`. `kubectl explain tj.spec` shows the same text.

The name is a DNS label that starts with a letter, 40 characters at most. Unknown fields are refused under strict field
validation, which is `kubectl`'s default, in the pod template too.

## Spec

*Changeable* says what an edit of a running job does:

- **live**: it takes effect at once, and the gang goes on;
- **with a restart**: the gang saves and stops, and the next attempt resumes that save with the new value. No failure is
  counted. The API server is asked first whether it would take the new pods; where it would not, the gang goes on as it
  is, and the condition SpecApplied says why;
- **from the next attempt**: the gang goes on with the former value, the condition SpecApplied says so, and the next
  attempt, whatever it is for, has the new one; to have it at once, give the annotation `everstep.dev/restart-now` a new
  value;
- **before the first attempt**: it may change until the first attempt has started, and is refused afterwards;
- **no**: it is refused.

[fields.md](fields.md) names the test that proves each field's effect.

"""

_STATUS: Final = """
## Status

What the operator saw and did. Sizes, percentages and metrics are text for people.

"""


@dataclass(frozen=True)
class Row:
    """One field."""

    path: str
    kind: str
    default: str
    change: str
    meaning: str
    rules: tuple[str, ...] = ()


def markdown() -> str:
    """The whole page."""
    spec, status = resolved(TrainingJobSpec), resolved(TrainingJobStatus)
    lines = ["| Field | Type | Default | Changeable | Meaning |", "|---|---|---|---|---|"]
    lines += [f"| `{row.path}` | {row.kind} | {row.default} | {row.change} | {row.meaning} |" for row in rows(spec)]
    seen = ["| Field | Type | Meaning |", "|---|---|---|"]
    seen += [f"| `{row.path}` | {row.kind} | {row.meaning} |" for row in rows(status)]
    return f"{_HEAD}{_lines(lines)}{_STATUS}{_lines(seen)}"


def rows(node: Schema) -> Iterator[Row]:
    """One row a field, parents before children."""
    return (row(field) for field in walk(node))


def row(field: SpecField) -> Row:
    return Row(
        path=field.path,
        kind=_kind(field.node),
        default="required" if field.required else _default(field.node),
        change=CHANGES[field.change],
        meaning=_meaning(field.node),
    )


def _meaning(node: Schema) -> str:
    text = " ".join(node.get("description", "").split())
    refusals = [_refusal(item) for item in node.get(RULES, ()) if "oldSelf" not in item["rule"]]
    return " ".join([text, *refusals]).replace("|", "\\|")


def _refusal(item: dict[str, str]) -> str:
    subject = f"`{item['fieldPath'][1:]}`" if "fieldPath" in item else "It"
    return f"{subject} {item['message']}."


def _default(node: Schema) -> str:
    default = node.get("default")
    if isinstance(default, dict):  # what the nested fields do not say themselves
        fields = node.get("properties", {})
        default = {k: v for k, v in default.items() if v != fields[k].get("default") and not isinstance(v, dict)}
    return f"`{json.dumps(default)}`" if default not in (None, {}) else ""


def _kind(node: Schema) -> str:
    if INLINE in node:
        return "PodTemplateSpec"
    if node.get("x-kubernetes-int-or-string"):
        words = node["pattern"].strip("^$()").split("|")
        return f"{_range(node)} or " + ", ".join(f"`{word}`" for word in words)
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    kind: Any = node.get("type")
    if kind == "array":
        return f"list of {_kind(node['items'])}, at most {node['maxItems']}"
    if kind == "object":
        return "map" if "additionalProperties" in node else "object"
    if kind == "string":
        return "time" if node.get("format") == "date-time" else "string"
    if kind == "integer":
        return _range(node)
    return str(kind)


def _range(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if high is not None and high <= 100_000:
        return f"integer {low} to {high}"
    return f"integer, at least {low}" if low else "integer"


def _lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
