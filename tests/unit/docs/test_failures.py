"""docs/failures.md: the tests that it names exist, its defaults and its counted reasons are the program's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from everstep_operator.api.failure import FailurePolicy
from everstep_operator.reconcile import disruption, rendezvous, stall, starting, teardown

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/failures.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`:]+)::(\w+)`", PAGE)))
POLICY = FailurePolicy()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_what_it_refers_to_exists(path: str, name: str) -> None:
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_the_limits_and_their_defaults() -> None:
    limits = POLICY.phase_timeout_seconds.model_dump(by_alias=True)
    told = {row[0].strip("`"): (row[1].strip("`"), int(row[2])) for row in rows("Stalls")}
    expected = {phase: (f"phaseTimeoutSeconds.{phase}", seconds) for phase, seconds in limits.items()}
    step = ("stallTimeoutSeconds", POLICY.stall_timeout_seconds)
    assert told == expected | {"training": step}
    assert f"{teardown.STALL_GRACE} seconds" in PAGE


def test_what_counts() -> None:
    counted = {row[1].strip("`"): row[2] for row in rows("What ends an attempt")}
    for reason in (starting.REASON, rendezvous.REASON, "NodeLost", "PodDeleted", "Stopped"):
        assert counted[reason] == "no"
        assert reason in disruption.REASONS
    assert counted[stall.REASON] == "yes"
    assert stall.REASON not in disruption.REASONS


def test_the_example_is_a_policy() -> None:
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    policy = FailurePolicy.model_validate(yaml.safe_load(example)["failurePolicy"])
    assert [rule.action for rule in policy.rules] == ["FailJob", "RestartUncounted"]
