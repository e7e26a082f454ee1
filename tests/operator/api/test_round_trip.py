"""Model, API server, model: every valid spec is accepted, stored as it is, and has the same defaults on both sides.

The specs are drawn from the schema: what it allows, field by field, is what the API server must take. Objects and
fields are left out at random, so that defaults are filled in at every level.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everstep_operator.api import TrainingJobSpec
from everstep_operator.api.fields import SpecField, spec_fields, value
from everstep_operator.api.schema import Schema, resolved
from tests.operator.api.conftest import Jobs
from tests.support.trainingjobs import GONE, edited, full, minimal

SCHEMA = resolved(TrainingJobSpec)
TEMPLATES = [full()["spec"]["template"], minimal()["spec"]["template"]]


def test_specs_that_the_schema_allows_are_stored_as_they_are(crd_jobs: Jobs) -> None:
    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(_values(SCHEMA).map(_possible))
    def check(spec: dict[str, Any]) -> None:
        sent = TrainingJobSpec.model_validate(spec)
        stored = crd_jobs.create({**minimal(), "spec": spec}, dry_run=True)["spec"]
        assert TrainingJobSpec.model_validate(stored) == sent
        assert dict(_given(spec)) == {path: found for path, found in _given(stored) if path in dict(_given(spec))}
        written = sent.model_dump(mode="json", by_alias=True, exclude_none=True)
        assert crd_jobs.create({**minimal(), "spec": written}, dry_run=True)["spec"] == _with_empty(written, stored)

    check()


@pytest.mark.parametrize("field", [field for field in spec_fields() if "[]" not in field.path], ids=lambda f: f.path)
def test_a_field_makes_the_round_trip_and_without_it_both_sides_have_the_same_default(
    crd_jobs: Jobs, field: SpecField
) -> None:
    path = f"spec.{field.path}"
    given = value(full()["spec"], field.path)
    base = full()
    for other, gone in _PARTNERS.get(field.path, {}).items():
        base = edited(base, f"spec.{other}", gone)
    stored = crd_jobs.create(full(), dry_run=True)["spec"]
    assert value(stored, field.path) == given
    assert value(_dump(stored), field.path) == value(_dump(full()["spec"]), field.path)
    if field.required:
        return
    without = edited(base, path, GONE)
    defaulted = crd_jobs.create(without, dry_run=True)["spec"]
    assert value(_dump(defaulted), field.path) == value(_dump(without["spec"]), field.path) != given


_PARTNERS: dict[str, dict[str, Any]] = {
    "nodes": {"elastic": GONE},
    "resume.mode": {"resume.path": GONE},
    "resume.path": {"resume.mode": "auto"},
    "failurePolicy.backoff.maxSeconds": {},
}
"""What a field cannot be without."""


def _dump(spec: dict[str, Any]) -> dict[str, Any]:
    return TrainingJobSpec.model_validate(spec).model_dump(mode="json", by_alias=True)


def _values(node: Schema) -> st.SearchStrategy[Any]:
    if "x-everstep-inline" in node:
        return st.sampled_from(TEMPLATES)
    if "enum" in node:
        return st.sampled_from(node["enum"])
    numbers = st.integers(node.get("minimum"), node.get("maximum"))
    if node.get("x-kubernetes-int-or-string"):
        return numbers | st.from_regex(re.compile(node["pattern"], re.ASCII), fullmatch=True)
    match node["type"]:
        case "object":
            required = set(node.get("required", ()))
            fields = {name: _values(child) for name, child in node["properties"].items()}
            return st.fixed_dictionaries(
                {name: each for name, each in fields.items() if name in required},
                optional={name: each for name, each in fields.items() if name not in required},
            )
        case "array":
            unique = node.get("x-kubernetes-list-type") == "set"
            most = min(node["maxItems"], 4)
            return st.lists(_values(node["items"]), min_size=node.get("minItems", 0), max_size=most, unique=unique)
        case "boolean":
            return st.booleans()
        case "integer":
            return numbers
        case _:
            return _strings(node)


def _strings(node: Schema) -> st.SearchStrategy[str]:
    low, high = node.get("minLength", 0), node["maxLength"]
    if "pattern" not in node:
        return st.text(min_size=low, max_size=high)
    found = st.from_regex(re.compile(node["pattern"].replace("$", r"\Z"), re.ASCII), alphabet=_ASCII)
    return found.filter(lambda text: low <= len(text) <= high)


_ASCII = st.characters(codec="ascii", categories=["L", "N", "P", "S"])


def _possible(spec: dict[str, Any]) -> dict[str, Any]:
    """What no rule forbids: fields that only go together are made to."""
    if elastic := spec.get("elastic"):
        elastic["minNodes"], elastic["maxNodes"] = sorted((elastic["minNodes"], elastic["maxNodes"]))
        spec["nodes"] = min(max(spec.get("nodes", 1), elastic["minNodes"]), elastic["maxNodes"])
    resume = spec.get("resume", {})
    if resume.get("mode") == "fromPath":
        resume.setdefault("path", "s3://bucket/other/default/parent")
    else:
        resume.pop("path", None)
    checkpoint = spec["checkpoint"]
    for holder in (checkpoint, checkpoint.get("local", {}), checkpoint.get("weights", {})):
        if holder.get("interval") == {}:
            holder["interval"]["steps"] = 5
    policy = spec.get("failurePolicy", {})
    if backoff := policy.get("backoff"):
        longest = backoff.get("maxSeconds", 300)
        backoff["initialSeconds"] = min(backoff.get("initialSeconds", 5), longest)
    if "windowSeconds" in policy:
        policy["maxRestarts"] = min(policy.get("maxRestarts", 10), 100)
    for index, rule in enumerate(policy.get("rules", ())):
        rule["name"] = f"r{index}"
        kinds = [name for name in rule if name.startswith("on")]
        for name in kinds[1:]:
            del rule[name]
        if not kinds:
            rule["onReasons"] = ["OOMKilled"]
    return spec


def _given(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no object or list, by its path."""
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _given(child, f"{prefix}.{name}")
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _given(child, f"{prefix}[{index}]")
    else:
        yield prefix, node


def _with_empty(written: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """What the model writes, where an empty list stands for an absent one; the template as the server fills it in."""
    return {**written, "template": stored["template"]}
