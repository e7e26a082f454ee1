"""The chart's settings and profiles are those that the operator reads."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from dev import chart_schema
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


def test_kubernetes_own_types_are_generated() -> None:
    text = (CHART / "values.schema.json").read_text(encoding="utf-8")
    assert chart_schema.rendered(text) == text, "run make crd"


def test_no_object_of_the_schema_takes_unknown_fields() -> None:
    """But for `global`, which is Helm's, and maps whose keys are the user's."""
    open_ones = [path for path, node in _objects(_schema()) if _is_open(node)]
    assert open_ones == ["/properties/global"]


def _objects(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    if isinstance(node, list):
        return [found for index, child in enumerate(node) for found in _objects(child, f"{path}/{index}")]
    if not isinstance(node, dict):
        return []
    inner = [found for name, child in node.items() for found in _objects(child, f"{path}/{name}")]
    return [(path, node), *inner] if node.get("type") == "object" else inner


def _is_open(node: dict[str, Any]) -> bool:
    rest = node.get("additionalProperties")
    return rest is not False and not isinstance(rest, dict)
