"""The generated files in the tree are what the models say now."""

from pathlib import Path

import pytest
import yaml

from everstep_operator.api.__main__ import main
from everstep_operator.api.crd import crd, to_yaml
from everstep_operator.api.docs import markdown
from everstep_operator.api.pod_template import constrained, from_openapi, stored
from everstep_operator.api.schema import SchemaError

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("path", "word"), [("crds/trainingjobs.everstep.dev.yaml", "crd"), ("docs/api.md", "docs")])
def test_no_drift(path: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 0
    assert (ROOT / path).read_text(encoding="utf-8") == capsys.readouterr().out, f"{path} is stale: run `make crd`"


def test_an_unknown_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds"]) == 2
    assert "pod-template" in capsys.readouterr().err


def test_the_yaml_is_the_document() -> None:
    assert yaml.safe_load(to_yaml(crd())) == crd()


def test_the_crd_stays_below_the_limit_of_an_annotation() -> None:
    """`kubectl apply` stores the object in an annotation, and annotations may have 256 KiB together."""
    import json

    assert len(json.dumps(crd(), separators=(",", ":"))) < 200_000


def test_every_field_says_when_it_may_change() -> None:
    spec = markdown().split("## Status")[0]
    table = [line for line in spec.splitlines() if line.startswith("| `")]
    assert table
    assert [line for line in table if line.split(" | ")[3].strip() == ""] == []


def test_every_field_is_described() -> None:
    table = [line for line in markdown().splitlines() if line.startswith("| `")]
    assert [line for line in table if line.rstrip(" |").endswith("` | ")] == []
    assert all(line.rstrip("| ").endswith(".") for line in table)


def test_the_stored_template_is_left_as_it_is() -> None:
    before = stored()
    constrained(before)
    assert before == stored()


def test_another_document_is_not_taken_for_the_core_api() -> None:
    with pytest.raises(SchemaError, match="/openapi/v3/api/v1"):
        from_openapi({"components": {"schemas": {}}})
