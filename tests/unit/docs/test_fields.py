"""docs/fields.md: no field without a proof, and no proof that is not there."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from everstep_operator.api.fields import changing, spec_fields
from tests.support.effects import EFFECTS
from tests.support.fields import change_test, markdown

ROOT = Path(__file__).parents[3]
LEAVES = [field for field in spec_fields() if field.is_leaf]


@cache
def collected() -> frozenset[str]:
    """Every test that pytest finds in the files that the table names, with and without its parameters."""
    named = {test.split("::")[0] for tests in EFFECTS.values() for test in tests}
    named |= {change_test(field).split("::")[0] for field in LEAVES}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *sorted(named)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    found = {line for line in done.stdout.splitlines() if "::" in line}
    return frozenset(found | {test.split("[")[0] for test in found})


def test_the_page_is_what_models_and_table_say() -> None:
    assert (ROOT / "docs/fields.md").read_text(encoding="utf-8") == markdown(), (
        "docs/fields.md is stale: run `make crd`"
    )


def test_every_field_has_a_proof_and_every_proof_a_field() -> None:
    assert {field.path for field in LEAVES} == set(EFFECTS)
    assert [path for path, tests in EFFECTS.items() if not tests] == []


@pytest.mark.slow
def test_every_proof_of_an_effect_is_a_test_that_is_there() -> None:
    assert [test for tests in EFFECTS.values() for test in tests if test not in collected()] == []


@pytest.mark.slow
def test_every_proof_of_a_change_is_a_test_that_is_there() -> None:
    assert [test for field in LEAVES if (test := change_test(field)) not in collected()] == []


def test_every_way_to_change_is_used() -> None:
    assert all(changing(how) for how in ("live", "restart", "next-attempt", "first-attempt", "immutable"))
