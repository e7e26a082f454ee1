"""The schema of `spec.template`: Kubernetes' own PodTemplateSpec, so that a misspelt field is refused.

`pod_template.schema.json` beside this file is made from the API server's description of itself:

    kubectl get --raw /openapi/v3/api/v1 | python -m everstep_operator.api pod-template > pod_template.schema.json

Descriptions and defaults are left out: Kubernetes applies its defaults to the pods, and `kubectl explain pod.spec`
describes them. What is the operator's to set is refused by validation rules.
"""

from __future__ import annotations

import json
from copy import deepcopy
from importlib.resources import files
from typing import Any, Final

from everstep_operator.api.common import RULES, rule
from everstep_operator.api.schema import Schema, SchemaError

DATA_FILE: Final = "pod_template.schema.json"
MAX_CONTAINERS: Final = 16
MAX_VARIABLES: Final = 256
RECIPE_PREFIX: Final = "EVERSTEP_TRAIN_"
"""Variables that configure the recipe."""
USERS: Final = ("EVERSTEP_PRELOAD", "EVERSTEP_WARM_RANKS", "PET_MAX_RESTARTS")
"""What else is the user's to set; all others that start with EVERSTEP_ or PET_ are the operator's."""

_ROOT: Final = "io.k8s.api.core.v1.PodTemplateSpec"
_METADATA: Final = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_LABELS: Final[Schema] = {"type": "object", "additionalProperties": {"type": "string"}}
_SPECIAL: Final[dict[str, Schema]] = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"x-kubernetes-int-or-string": True},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"x-kubernetes-int-or-string": True},
    # Serializers in Go write `creationTimestamp: null`; the rest of ObjectMeta is not the template's to give.
    _METADATA: {
        "type": "object",
        "properties": {
            "annotations": _LABELS,
            "creationTimestamp": {"type": "string", "format": "date-time", "nullable": True},
            "labels": _LABELS,
        },
    },
}
_KEPT: Final[tuple[str, ...]] = (
    "type",
    "format",
    "required",
    "enum",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
)
_IGNORED: Final = {
    "description",
    "default",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-patch-merge-key",
    "x-kubernetes-patch-strategy",
    "x-kubernetes-unions",
}


def from_openapi(document: dict[str, Any]) -> Schema:
    """PodTemplateSpec out of an OpenAPI v3 document of the core API, inlined. Raises SchemaError."""
    try:
        definitions = document["components"]["schemas"]
        definitions[_ROOT]
    except (KeyError, TypeError) as error:
        raise SchemaError(f"the document does not define {_ROOT}: it must be /openapi/v3/api/v1") from error
    return _inline({"$ref": f"#/components/schemas/{_ROOT}"}, definitions, "template")


def stored() -> Schema:
    """The schema as it stands in the package."""
    schema: Schema = json.loads(files(__package__).joinpath(DATA_FILE).read_text(encoding="utf-8"))
    return schema


def constrained(schema: Schema) -> Schema:
    """The template's schema with bounds, and with the rules on what is the operator's to set."""
    schema = deepcopy(schema)
    schema["required"] = ["spec"]
    spec = schema["properties"]["spec"]
    spec[RULES] = [
        rule(
            "!has(self.restartPolicy) || self.restartPolicy == 'Never'",
            "must be absent or Never: the operator decides about restarts",
            path=".restartPolicy",
        ),
        rule("!has(self.hostname)", "must be absent: the operator names the pods", path=".hostname"),
        rule("!has(self.subdomain)", "must be absent: the operator names the pods", path=".subdomain"),
    ]
    del spec["properties"]["ephemeralContainers"]
    for kind in ("containers", "initContainers"):
        containers = spec["properties"][kind]
        containers["maxItems"] = MAX_CONTAINERS
        containers["items"]["properties"]["name"]["maxLength"] = 63
        env = containers["items"]["properties"]["env"]
        env["maxItems"] = MAX_VARIABLES
        env["items"]["properties"]["name"]["maxLength"] = 256
        env["items"][RULES] = [
            rule(
                "!(self.name.startsWith('PET_') || self.name.startsWith('EVERSTEP_')) "
                f"|| self.name.startsWith('{RECIPE_PREFIX}') || self.name in {list(USERS)}",
                "must not start with PET_ or EVERSTEP_: these are the operator's to set "
                f"(but {RECIPE_PREFIX}…, {', '.join(USERS)})",
                path=".name",
            )
        ]
    spec["properties"]["containers"]["minItems"] = 1
    return schema


def _inline(node: Schema, definitions: dict[str, Any], path: str) -> Schema:
    if "allOf" in node and len(node["allOf"]) == 1:
        node = node["allOf"][0]
    if "$ref" in node:
        name = node["$ref"].rsplit("/", 1)[-1]
        if name in _SPECIAL:
            return deepcopy(_SPECIAL[name])
        node = definitions[name]
    unknown = sorted(set(node) - set(_KEPT) - _IGNORED)
    if unknown:
        raise SchemaError(f"{path}: no strict equivalent for {', '.join(unknown)}")
    out: Schema = {key: node[key] for key in _KEPT if key in node}
    if "items" in node:
        out["items"] = _inline(node["items"], definitions, f"{path}[]")
    if "additionalProperties" in node:
        out["additionalProperties"] = _inline(node["additionalProperties"], definitions, f"{path}{{}}")
    if "properties" in node:
        out["properties"] = {
            name: _inline(child, definitions, f"{path}.{name}") for name, child in node["properties"].items()
        }
    _keep_key_defaults(node, out, definitions)
    return out


def _keep_key_defaults(node: Schema, out: Schema, definitions: dict[str, Any]) -> None:
    """A key of a list map must be required or have a default, such as a port's protocol."""
    keys = node.get("x-kubernetes-list-map-keys", ())
    if not keys:
        return
    item = node["items"]
    (reference,) = item.get("allOf", [item])
    original = definitions[reference["$ref"].rsplit("/", 1)[-1]]
    for key in keys:
        if key not in original.get("required", ()):
            out["items"]["properties"][key]["default"] = original["properties"][key]["default"]
