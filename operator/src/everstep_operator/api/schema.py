"""Turns pydantic models into the structural OpenAPI v3 schema that a CustomResourceDefinition takes.

The API server rejects some of JSON Schema (`$ref`, `anyOf` with null, numeric `exclusiveMinimum`) and drops some
silently (`const`), so translation is strict: what is not known to be understood is refused here. So are strings, lists
and maps without a bound, because validation rules over them would exceed the API server's cost budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from everstep_operator.api.common import CHANGE, INLINE, RULES

Schema = dict[str, Any]

_INT_OR_STRING: Final = "x-kubernetes-int-or-string"
_MARKS: Final = {CHANGE, INLINE}
_DROPPED: Final = {"title"}
_KEPT: Final = {
    "type", "description", "default", "enum", "format", "pattern", "required",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", RULES, _INT_OR_STRING,
}  # fmt: skip
_CHILDREN: Final = {"properties", "items", "additionalProperties"}
_TYPES: Final = {"string", "integer", "number", "boolean", "object", "array"}


class SchemaError(ValueError):
    """A model uses something that has no strict equivalent in a structural schema; the text names where."""


def resolved(model: type[BaseModel]) -> Schema:
    """The model's JSON schema without `$ref`, null and title; marks on fields are still there. Raises SchemaError."""
    raw = model.model_json_schema(by_alias=True)
    return _resolve(raw, raw.get("$defs", {}), model.__name__)


def structural(model: type[BaseModel], inline: Mapping[str, Schema] | None = None, *, defaults: bool = True) -> Schema:
    """The structural schema of a model. `inline` gives the schemas of opaque fields by name. Raises SchemaError."""
    return _structural(resolved(model), inline or {}, defaults, model.__name__)


def _resolve(raw: Any, definitions: Mapping[str, Any], path: str) -> Schema:
    if not isinstance(raw, dict):
        raise SchemaError(f"{path}: a schema must be an object, not {raw!r}")
    node: Schema = {key: value for key, value in raw.items() if key not in _DROPPED | {"$defs"}}
    if "$ref" in node:
        name = node.pop("$ref").removeprefix("#/$defs/")
        if name not in definitions:
            raise SchemaError(f"{path}: $ref to {name!r}, which is not defined")
        node = {**definitions[name], **node}
        return _resolve(node, definitions, path)
    if "allOf" in node and len(node["allOf"]) == 1:
        (only,) = node.pop("allOf")
        return _resolve({**only, **node}, definitions, path)
    if "anyOf" in node:
        return _resolve_any_of(node, definitions, path)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _resolve(node[key], definitions, f"{path}.{key}")
    if "properties" in node:
        node["properties"] = {
            name: _resolve(child, definitions, f"{path}.{name}") for name, child in node["properties"].items()
        }
    if "default" in node:
        node["default"] = _small(node["default"])
        if node["default"] is None:
            del node["default"]
    return node


def _resolve_any_of(node: Schema, definitions: Mapping[str, Any], path: str) -> Schema:
    branches = [branch for branch in node.pop("anyOf") if branch != {"type": "null"}]
    if len(branches) == 1:
        return _resolve({**branches[0], **node}, definitions, path)
    if node.get(_INT_OR_STRING) is True and {b.get("type") for b in branches} == {"integer", "string"}:
        return node
    raise SchemaError(f"{path}: anyOf of {len(branches)} types; only null and {_INT_OR_STRING} are understood")


def _small(default: Any) -> Any:
    """A default without what is null or an empty list; None if nothing is left."""
    if isinstance(default, dict):
        small = {name: _small(value) for name, value in default.items()}
        return {name: value for name, value in small.items() if value is not None}
    return None if default == [] else default


def _structural(node: Schema, inline: Mapping[str, Schema], defaults: bool, path: str) -> Schema:
    if INLINE in node:
        return _inlined(node, inline, path)
    node = {key: value for key, value in node.items() if key not in _MARKS}
    if not defaults:
        node.pop("default", None)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    _inclusive(node, path)
    unknown = sorted(set(node) - _KEPT - _CHILDREN)
    if unknown:
        raise SchemaError(f"{path}: no strict equivalent for {', '.join(unknown)}")
    if "description" in node:
        node["description"] = " ".join(node["description"].split())
    if _INT_OR_STRING not in node and node.get("type") not in _TYPES:
        raise SchemaError(f"{path}: needs one type, has {node.get('type')!r}")
    _bounded(node, path)
    for key in ("items", "additionalProperties"):
        if key in node:
            if not isinstance(node[key], dict):
                raise SchemaError(f"{path}: {key} must be a schema, not {node[key]!r}")
            node[key] = _structural(node[key], inline, defaults, f"{path}.{key}")
    if "properties" in node:
        node["properties"] = {
            name: _structural(child, inline, defaults, f"{path}.{name}") for name, child in node["properties"].items()
        }
    return node


def _inlined(node: Schema, inline: Mapping[str, Schema], path: str) -> Schema:
    name = node[INLINE]
    if name not in inline:
        raise SchemaError(f"{path}: no schema named {name!r} was given to inline")
    description = {"description": " ".join(node["description"].split())} if "description" in node else {}
    return {**description, **inline[name]}


def _inclusive(node: Schema, path: str) -> None:
    for exclusive, inclusive, sign in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if exclusive not in node:
            continue
        if inclusive in node:
            raise SchemaError(f"{path}: has both {exclusive} and {inclusive}")
        if node.get("type") == "integer":
            node[inclusive] = node.pop(exclusive) + sign
        else:
            raise SchemaError(f"{path}: {exclusive} of a {node.get('type')}: use an inclusive bound")


def _bounded(node: Schema, path: str) -> None:
    kind = node.get("type")
    if kind == "string" and not ({"maxLength", "enum"} & set(node) or node.get("format") == "date-time"):
        raise SchemaError(f"{path}: a string needs maxLength")
    if kind == "array" and not {"maxItems", "items"} <= set(node):
        raise SchemaError(f"{path}: a list needs items and maxItems")
    if kind == "object":
        if ("properties" in node) == ("additionalProperties" in node):
            raise SchemaError(f"{path}: an object needs either properties or additionalProperties")
        if "additionalProperties" in node and "maxProperties" not in node:
            raise SchemaError(f"{path}: a map needs maxProperties")
    if kind in ("integer", "number") and not {"minimum", "maximum"} <= set(node):
        raise SchemaError(f"{path}: a number needs minimum and maximum")
    if any(look in node.get("pattern", "") for look in ("(?=", "(?!", "(?<")):
        raise SchemaError(f"{path}: the API server's patterns are RE2, without look-around")
