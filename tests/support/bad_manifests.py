"""Bad manifests, made from the CRD's schema: for each field what it must not be, beside a twin that is good.

A case is one edit of the full manifest. The schema says which edits there are: another name, another type, beyond a
bound, beyond a length, another word, not the pattern, too many items, absent. So a field that is added has its cases
without anybody's thinking of it. Only what a validation rule forbids stands here by hand, and a test counts the rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from everstep_operator.api.common import RULES
from everstep_operator.api.crd import root_schema
from everstep_operator.api.pod_template import USERS
from everstep_operator.api.schema import Schema
from tests.support.trainingjobs import GONE, Manifest, edited, full

TEMPLATE = "spec.template"


@dataclass(frozen=True)
class Case:
    """`bad` is refused with a message that has `words` (an expression) at `field`; `twin` is accepted."""

    kind: str
    path: str
    """Of the schema: `spec.failurePolicy.rules[].name`."""
    field: str
    """Of the manifest, as the API server writes it: `spec.failurePolicy.rules[0].name`."""
    bad: Manifest
    twin: Manifest
    words: str

    def __str__(self) -> str:
        return f"{self.field}: {self.kind}"


@dataclass(frozen=True)
class Place:
    """A field of the full manifest: its path in the schema, where it stands, and its schema."""

    path: str
    at: str
    node: Schema
    required: bool

    @property
    def field(self) -> str:
        return notation(self.at)

    def case(self, kind: str, value: Any, words: str, twin: Any = None) -> Case:
        """`twin`: another good value than the one that stands there."""
        base = context(self.at)
        good = base if twin is None else edited(base, self.at, twin)
        return Case(kind, self.path, self.field, edited(base, self.at, value), good, words)


# Bounds can only be tried where no rule binds the field to another one.
_CONTEXT: dict[str, dict[str, Any]] = {
    "spec.nodes": {"spec.elastic": GONE},
    "spec.elastic.minNodes": {"spec.nodes": 4096, "spec.elastic.maxNodes": 4096},
    "spec.elastic.maxNodes": {"spec.nodes": 1, "spec.elastic.minNodes": 1},
    "spec.failurePolicy.backoff.initialSeconds": {"spec.failurePolicy.backoff.maxSeconds": 315360000},
    "spec.failurePolicy.backoff.maxSeconds": {"spec.failurePolicy.backoff.initialSeconds": 0},
    "spec.template.spec.containers.0.name": {
        "spec.template.spec.containers": full()["spec"]["template"]["spec"]["containers"][:1]
    },
    "spec.failurePolicy.maxRestarts": {"spec.failurePolicy.windowSeconds": GONE},
}


def context(at: str) -> Manifest:
    manifest = full()
    for path, value in _CONTEXT.get(at, {}).items():
        manifest = edited(manifest, path, value)
    return manifest


def notation(at: str) -> str:
    """`spec.rules.0.name` as the API server writes it: `spec.rules[0].name`."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", at)


@cache
def generated() -> tuple[Case, ...]:
    """What the schema forbids."""
    return tuple(case for place in places() for case in _of(place))


@cache
def places() -> tuple[Place, ...]:
    """Every field of the spec, at one place in the full manifest; of the pod template those that stand there."""
    spec = root_schema()["properties"]["spec"]
    return (Place("spec", "spec", spec, True), *_places(spec, "spec", "spec", full()["spec"]))


def _places(node: Schema, path: str, at: str, value: Any) -> Iterator[Place]:
    for name, child in node.get("properties", {}).items():
        here = Place(f"{path}.{name}", f"{at}.{name}", child, name in node.get("required", ()))
        if name not in value:
            if not path.startswith(TEMPLATE):
                raise LookupError(f"{here.path} is not in the full manifest: add it to tests/support/trainingjobs.py")
            continue
        yield here
        yield from _places(child, here.path, here.at, value[name])
        if "items" in child:
            yield from _items(child["items"], here, value[name])


def _items(node: Schema, parent: Place, items: list[Any]) -> Iterator[Place]:
    """The first item, and of objects each field at the first item that has it."""
    yield Place(f"{parent.path}[]", f"{parent.at}.0", node, False)
    seen: set[str] = set()
    for index, item in enumerate(items if "properties" in node else ()):
        small = {**node, "properties": {name: node["properties"][name] for name in item if name not in seen}}
        yield from _places(small, f"{parent.path}[]", f"{parent.at}.{index}", item)
        seen |= set(item)
    missing = set(node.get("properties", {})) - seen
    if missing and not parent.path.startswith(TEMPLATE):
        raise LookupError(f"{parent.path}[]: {sorted(missing)} not in the full manifest")


def _of(place: Place) -> Iterator[Case]:
    node, kind = place.node, place.node.get("type")
    if not place.path.endswith("[]") and place.path != "spec":
        yield _misspelt(place)
    if place.required:
        yield place.case("absent", GONE, "Required value")
        yield place.case("null", None, "Required value|must be of type|must not be null|Invalid value: null")
    yield from (place.case(f"type {value!r:.9}", value, "must be of type") for value in _wrong_types(node))
    if kind in ("integer", "number") or node.get("x-kubernetes-int-or-string"):
        yield from _bounds(place)
    elif "enum" in node:
        first = next(word for word in node["enum"] if isinstance(word, str))
        yield place.case("word", "nonesuch", 'supported values: "')
        yield place.case("case", first.swapcase(), 'supported values: "')
    elif kind == "string":
        yield from _strings(place)
    elif kind == "array":
        yield from _lists(place)


def _misspelt(place: Place) -> Case:
    base, (parent, name) = context(place.at), place.at.rsplit(".", 1)
    wrong = f"{name[0]}{name[2:]}" if len(name) > 2 else f"{name}s"
    bad = edited(edited(base, place.at, GONE), f"{parent}.{wrong}", _at(base, place.at))
    return Case("typo", place.path, notation(f"{parent}.{wrong}"), bad, base, "unknown field")


def _at(manifest: Manifest, path: str) -> Any:
    found: Any = manifest
    for part in path.split("."):
        found = found[int(part)] if part.isdigit() else found[part]
    return found


def _wrong_types(node: Schema) -> tuple[Any, ...]:
    if node.get("x-kubernetes-int-or-string"):
        return (True, 1.5, [])
    return {
        "integer": ("2", 1.5, True),
        "number": ("2", True),
        "string": (7, True, []),
        "boolean": ("yes", 1),
        "object": ([], "x"),
        "array": ({}, "x"),
    }[node["type"]]


def _bounds(place: Place) -> Iterator[Case]:
    low, high = place.node.get("minimum"), place.node.get("maximum")
    if low is not None:
        words = "should be greater than or equal to"
        yield place.case("below", low - 1, words, twin=low)
        if low > 0:
            yield place.case("negative", -1, words, twin=low)
    if high is not None:
        yield place.case("above", high + 1, "should be less than or equal to", twin=high)
    if "pattern" in place.node:
        yield place.case("pattern", "nonesuch", "should match")


def _strings(place: Place) -> Iterator[Case]:
    node = place.node
    pattern = node.get("pattern", "")
    if "maxLength" in node:
        most, base = node["maxLength"], str(_at(full(), place.at))
        longest = _stretched(base, most, pattern)
        yield place.case("long", _stretched(base, most + 1, ""), "Too long", twin=longest)
    if node.get("minLength"):
        yield place.case("empty", "", "should be at least 1 chars long|should be at least")
    if pattern:
        wrong = next(word for word in ("? ?", "***") if not re.search(pattern, word))
        yield place.case("pattern", wrong, "should match")


def _stretched(base: str, length: int, pattern: str) -> str:
    """A string of that length that matches as the base does."""
    for fill in "a0":
        for at in range(len(base), -1, -1):
            found = base[:at] + fill * (length - len(base)) + base[at:]
            if re.search(pattern, found):
                return found
    raise LookupError(f"no string of {length} like {base!r} matches {pattern}")


def _lists(place: Place) -> Iterator[Case]:
    node, items = place.node, _at(full(), place.at)
    if "maxItems" in node:
        most = node["maxItems"]
        yield place.case("many", _many(items[0], most + 1), "Too many", twin=_many(items[0], most))
    if node.get("minItems"):
        yield place.case("none", [], "should have at least")
    if node.get("x-kubernetes-list-type") in ("set", "map"):
        again = place.case("twice", [*items, items[0]], "Duplicate value")
        yield replace(again, field=f"{place.field}[{len(items)}]")


def _many(item: Any, count: int) -> list[Any]:
    """Items that differ, as far as they can."""
    if isinstance(item, dict):
        others = [{**item, "name": f"{item['name']}-{n}"} if "name" in item else dict(item) for n in range(1, count)]
        return [item, *others]
    if isinstance(item, int):
        return list(range(1, count + 1))
    return [f"{item}{n}" for n in range(count)]


def _ruled(path: str, value: Any, words: str, twin: Any = None, field: str | None = None) -> Case:
    base = full()
    good = base if twin is None else edited(base, path, twin)
    return Case("rule", path, field or notation(path), edited(base, path, value), good, words)


_CONTAINERS = "spec.template.spec.containers"
_PLAIN = {"name": "main", "image": "i"}
_RULES = "spec.failurePolicy.rules"


@cache
def ruled() -> tuple[Case, ...]:
    """What a validation rule forbids: what no single field can say."""
    return (
        _ruled("metadata.name", "1job", "must be a DNS label that starts with a letter", "job1"),
        _ruled("metadata.name", "a.b", "must be a DNS label", "a-b"),
        _ruled("metadata.name", "a-", "must be a DNS label", "a-b"),
        _ruled("metadata.name", "a" * 41, "40 characters at most", "a" * 40),
        _ruled("spec.nodes", 5, "must lie between elastic.minNodes and elastic.maxNodes", 4),
        _ruled("spec.elastic", {"minNodes": 3, "maxNodes": 4}, "must lie between", field="spec.nodes"),
        _ruled("spec.elastic.minNodes", 5, "must not exceed maxNodes", 2),
        _ruled(
            _CONTAINERS,
            [_PLAIN, {"name": "other", "image": "i"}],
            "needs one container, or one of its containers named trainer",
            [_PLAIN, {"name": "trainer", "image": "i"}],
            field="spec.template",
        ),
        _ruled("spec.template.spec.restartPolicy", "OnFailure", "must be absent or Never", GONE),
        _ruled("spec.template.spec.hostname", "me", "must be absent: the operator names the pods", GONE),
        _ruled("spec.template.spec.subdomain", "me", "must be absent: the operator names the pods", GONE),
        _ruled(f"{_CONTAINERS}.0.env.0.name", "EVERSTEP_ATTEMPT", "must not start with PET_ or EVERSTEP_"),
        _ruled(f"{_CONTAINERS}.0.env.0.name", "PET_NNODES", "must not start with PET_ or EVERSTEP_", "PETS"),
        *(
            _ruled(f"{_CONTAINERS}.0.env.0.name", f"{name}_OF", "must not start with PET_ or EVERSTEP_", name)
            for name in USERS
        ),
        _ruled(
            "spec.template.spec.initContainers",
            [{**_PLAIN, "env": [{"name": "PET_NNODES", "value": "9"}]}],
            "must not start with PET_ or EVERSTEP_",
            [{**_PLAIN, "env": [{"name": "PETS", "value": "9"}]}],
            field="spec.template.spec.initContainers[0].env[0].name",
        ),
        _ruled("spec.checkpoint.interval", {}, "needs steps, seconds or both", {"seconds": 1}),
        _ruled("spec.checkpoint.local.interval", {}, "needs steps, seconds or both", {"steps": 1}),
        _ruled("spec.checkpoint.weights.interval", {}, "needs steps, seconds or both", {"steps": 1}),
        _ruled("spec.resume.path", GONE, "is needed when mode is fromPath: name a checkpoint"),
        _ruled("spec.resume.mode", "auto", "is used only when mode is fromPath: remove it", field="spec.resume.path"),
        _ruled("spec.failurePolicy.backoff.initialSeconds", 61, "must not exceed maxSeconds", 60),
        _ruled(f"{_RULES}.0.name", "memory", "names must be unique", "other", field=_RULES),
        _ruled(f"{_RULES}.1.onExitCodes", {"values": [1]}, "needs exactly one of", GONE, field=f"{_RULES}[1]"),
        _ruled(f"{_RULES}.1.onReasons", GONE, "needs exactly one of", field=f"{_RULES}[1]"),
        _ruled("spec.failurePolicy.maxRestarts", 101, "must not exceed 100 where windowSeconds is set", 100),
        # What only a template of the same server's version refuses
        _ruled(f"{_CONTAINERS}.0.resources.limits.cpu", 0.5, "must be of type", "500m"),
        _ruled("spec.template.metadata.name", "x", "unknown field", GONE),
        _ruled("spec.template.spec.ephemeralContainers", [], "unknown field", GONE),
    )


def rules() -> tuple[tuple[str, str], ...]:
    """Every validation rule that needs no former object: the path in the schema that its refusal names, its message."""
    found = (item for item in _rules(root_schema(), "") if "oldSelf" not in item[1]["rule"])
    return tuple((f"{path}{item.get('fieldPath', '')}".removeprefix("."), item["message"]) for path, item in found)


def schema_path(field: str) -> str:
    """`spec.rules[0].name` as a path of the schema: `spec.rules[].name`."""
    return re.sub(r"\[\d+\]", "[]", field)


def _rules(node: Schema, path: str) -> Iterator[tuple[str, dict[str, str]]]:
    for item in node.get(RULES, ()):
        yield path, item
    for name, child in node.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}")
    if "items" in node:
        yield from _rules(node["items"], f"{path}[]")
