"""The chart's settings and profiles are those that the operator reads."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from everstep_operator.config.settings import Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts/everstep"
SET_BY_TEMPLATE = {"kubeconfig", "watch_namespaces", "profiles_file", "lease_name", "lease_namespace", "identity"}
SET_BY_TEMPLATE |= {"http_host", "http_port"}


def _schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    return found


def test_settings_are_the_operators() -> None:
    expected = {to_camel(name) for name in Settings.model_fields if name not in SET_BY_TEMPLATE}
    assert set(_schema()["properties"]["settings"]["properties"]) == expected


def test_bounds_of_settings_are_the_operators() -> None:
    theirs = Settings.model_json_schema()["properties"]
    keywords = {"enum", "minimum", "maximum", "exclusiveMinimum"}
    for name, mine in _schema()["properties"]["settings"]["properties"].items():
        (field,) = (field for field in theirs if to_camel(field) == name)
        assert {k: v for k, v in mine.items() if k in keywords} == {
            k: v for k, v in theirs[field].items() if k in keywords
        }, name


def test_defaults_of_settings_are_the_operators() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    fields = {to_camel(name): field for name, field in Settings.model_fields.items()}
    assert {name: fields[name].default for name in values["settings"]} == values["settings"]


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    assert set(values) | {"global"} == set(_schema()["properties"])


def test_the_crd_is_no_copy() -> None:
    assert (CHART / "files").is_symlink()
    assert (CHART / "files").resolve() == ROOT / "crds"
