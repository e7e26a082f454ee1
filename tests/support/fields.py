"""`python -m tests.support.fields` prints docs/fields.md: each field of the spec with the tests that prove it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from everstep_operator.api.docs import row
from everstep_operator.api.fields import SpecField, changing, spec_fields
from everstep_operator.api.schema import Schema
from tests.support.effects import CHANGES, EFFECTS, SPECIAL_CHANGES

_HEAD: Final = """\
# Fields of a TrainingJob and their proofs

<!-- Generated from everstep_operator.api and tests/support/effects.py by `make crd`. -->

Every field of the spec that has no fields of its own, with the values that the API server accepts and the tests that
prove what the field does. What each one means, and what *changeable* means, is told in [api.md](api.md). That a value
out of range, of another type or under another name is refused by the field's path, while its good twin is accepted, is
proven for every field by `tests/operator/api/test_refusals.py`; that it is stored and read as it was given, with the
same default on both sides, by `tests/operator/api/test_round_trip.py`.

"""
_COLUMNS: Final = ("Field", "Values", "Default", "Changeable", "Proof of the effect", "Proof of the change")


def markdown() -> str:
    """The whole page."""
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    lines += [_line(field) for field in spec_fields() if field.is_leaf]
    return _HEAD + "".join(f"{line}\n" for line in lines)


def change_test(field: SpecField) -> str:
    """The test that an edit of the field does what its mark says."""
    if field.path in SPECIAL_CHANGES:
        return SPECIAL_CHANGES[field.path]
    assert field.change is not None
    return CHANGES[field.change].format(path=_holder(field))


def _line(field: SpecField) -> str:
    shown = row(field)
    proofs = "<br>".join(f"`{test}`" for test in EFFECTS[field.path])
    cells = (f"`{field.path}`", _values(field.node), shown.default, shown.change, proofs, f"`{change_test(field)}`")
    return f"| {' | '.join(cells)} |"


def _holder(field: SpecField) -> str:
    """The field whose edit is tried: a list or an object that is edited as a whole, else the field itself."""
    assert field.change is not None
    holders = (path for path in changing(field.change) if field.path.startswith((f"{path}.", f"{path}[]")))
    return next(holders, field.path)


def _values(node: Schema) -> str:
    return "; ".join(_facts(node)) or node.get("type", "PodTemplateSpec")


def _facts(node: Schema) -> Iterator[str]:
    if "enum" in node:
        yield ", ".join(f"`{value}`" for value in node["enum"])
    elif "minimum" in node:
        yield f"{node['minimum']} to {node['maximum']}"
    if "pattern" in node:
        yield "`" + node["pattern"].replace("|", "\\|") + "`"
    if "maxLength" in node:
        yield f"{node.get('minLength', 0)} to {node['maxLength']} characters"
    if node.get("type") == "array":
        yield f"{node.get('minItems', 0)} to {node['maxItems']} items: {_values(node['items'])}"


if __name__ == "__main__":
    sys.stdout.write(markdown())
