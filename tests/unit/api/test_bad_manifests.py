"""The bad manifests cover the whole schema: a field or a rule without a case of its own fails here."""

from __future__ import annotations

import json
import re

import pytest

from everstep_operator.api.fields import spec_fields
from tests.support.bad_manifests import TEMPLATE, Case, generated, places, ruled, rules, schema_path

CASES = (*generated(), *ruled())


def test_every_field_has_a_typo_and_a_wrong_type() -> None:
    fields = {f"spec.{field.path}" for field in spec_fields()}
    for kind in ("typo", "type"):
        assert fields - {case.path for case in generated() if case.kind.startswith(kind)} == set()


def test_every_leaf_has_a_case_beside_these_unless_it_is_a_switch() -> None:
    """A field whose every value is good but for its type is a boolean, or the template with its own fields."""
    rich = {case.path for case in CASES if case.kind not in ("typo", "rule") and not case.kind.startswith("type")}
    leaves = {f"spec.{field.path}": field.node for field in spec_fields() if field.is_leaf}
    assert {path for path, node in leaves.items() if node.get("type") != "boolean"} - rich == set()


def test_every_rule_is_broken_by_a_case() -> None:
    broken = [(schema_path(case.field), case.words) for case in ruled()]
    for path, message in rules():
        assert any(path == field and re.search(words, message) for field, words in broken), f"{path}: {message}"


def test_every_rule_says_what_to_do() -> None:
    vague = [message for _, message in rules() if not re.search(r"\bmust\b|\bneeds\b|: \w+ ", message)]
    assert vague == []


def test_every_level_of_the_template_is_tried() -> None:
    tried = {case.path for case in generated() if case.path.startswith(TEMPLATE) and case.kind == "typo"}
    assert {
        f"{TEMPLATE}.metadata.labels",
        f"{TEMPLATE}.spec.containers",
        f"{TEMPLATE}.spec.containers[].resources.limits",
        f"{TEMPLATE}.spec.containers[].env[].value",
        f"{TEMPLATE}.spec.containers[].ports[].containerPort",
    } <= tried


def test_the_bounds_of_every_number_are_tried() -> None:
    numbers = {place.path for place in places() if {"minimum", "maximum"} <= set(place.node)}
    for kind in ("below", "above"):
        assert numbers - {case.path for case in generated() if case.kind == kind} == set()


def test_cases_are_many_and_differ() -> None:
    assert len(CASES) >= 60
    assert len({str(case) for case in generated()}) == len(generated())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bad_and_twin_differ(case: Case) -> None:
    assert json.dumps(case.bad) != json.dumps(case.twin)
