"""Writes the parts of charts/everstep/values.schema.json that are Kubernetes' own types, from the API server's schema.

A typo in an affinity is then refused by Helm, with its path, before anything is installed. `make crd` runs it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from dev.paths import REPOSITORY

SCHEMA = REPOSITORY / "charts/everstep/values.schema.json"
POD_TEMPLATE = REPOSITORY / "operator/src/everstep_operator/api/pod_template.schema.json"
POD_FIELDS = {
    "affinity": "affinity",
    "tolerations": "tolerations",
    "topologySpreadConstraints": "topologySpreadConstraints",
    "podSecurityContext": "securityContext",
    "extraVolumes": "volumes",
}
CONTAINER_FIELDS = {"resources": "resources", "extraEnv": "env", "extraVolumeMounts": "volumeMounts"}
KEPT = ("type", "required", "enum", "minimum", "maximum")


def definitions() -> dict[str, Any]:
    """Name of a value to its schema, without room for fields that Kubernetes does not know."""
    spec = json.loads(POD_TEMPLATE.read_text(encoding="utf-8"))["properties"]["spec"]["properties"]
    container = spec["containers"]["items"]["properties"]
    found = {value: strict(spec[name]) for value, name in POD_FIELDS.items()}
    return found | {value: strict(container[name]) for value, name in CONTAINER_FIELDS.items()}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of the API server as JSON schema that refuses unknown fields."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: schema[key] for key in KEPT if key in schema}
    if "items" in schema:
        found["items"] = strict(schema["items"])
    if "properties" in schema:
        found["properties"] = {name: strict(child) for name, child in schema["properties"].items()}
        found["additionalProperties"] = False
    elif "additionalProperties" in schema:
        found["additionalProperties"] = strict(schema["additionalProperties"])
    return found


def rendered(text: str) -> str:
    """The schema's text with each of these definitions on its line."""
    for name, schema in definitions().items():
        line = f'    "{name}": {json.dumps(schema, separators=(",", ":"), sort_keys=True)}'
        text, count = re.subn(rf'^    "{name}": \{{"(?!\$ref).*?\}}(?=,?$)', lambda _, new=line: new, text, flags=re.M)  # type: ignore[misc]
        assert count == 1, f"values.schema.json has {count} definitions of {name}"
    return text


if __name__ == "__main__":
    SCHEMA.write_text(rendered(SCHEMA.read_text(encoding="utf-8")), encoding="utf-8")
