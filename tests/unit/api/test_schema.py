"""The generator translates strictly: what a structural schema cannot say is refused, never dropped."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, create_model

from everstep_operator.api.common import INLINE
from everstep_operator.api.schema import SchemaError, structural


def _field(kind: Any, *default: Any) -> dict[str, Any]:
    model = create_model("M", field=(kind, default[0] if default else ...))
    found: dict[str, Any] = structural(model, {"opaque": {"type": "object"}})["properties"]["field"]
    return found


class Nested(BaseModel):
    """A nested model."""

    value: Annotated[int, Field(ge=0, le=9)] = 1
    word: Literal["a", "b"] | None = None


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Annotated[int, Field(gt=0, lt=10)], {"type": "integer", "minimum": 1, "maximum": 9}),
        (Literal["only"], {"type": "string", "enum": ["only"]}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Annotated[str, Field(max_length=3)] | None, {"type": "string", "maxLength": 3}),
        (
            Annotated[dict[str, Annotated[str, Field(max_length=3)]], Field(max_length=2)],
            {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "string", "maxLength": 3}},
        ),
        (Annotated[dict[str, Any], Field(json_schema_extra={INLINE: "opaque"})], {"type": "object"}),
        (
            Nested,
            {
                "type": "object",
                "description": "A nested model.",
                "properties": {
                    "value": {"type": "integer", "minimum": 0, "maximum": 9, "default": 1},
                    "word": {"type": "string", "enum": ["a", "b"]},
                },
            },
        ),
    ],
)
def test_translates(kind: Any, expected: dict[str, Any]) -> None:
    assert _field(kind) == expected


def test_defaults_are_kept_without_null() -> None:
    assert _field(Nested, Nested())["default"] == {"value": 1}
    assert "default" not in _field(Nested | None, None)


def test_int_or_string() -> None:
    extra: dict[str, Any] = {"x-kubernetes-int-or-string": True, "pattern": "^auto$"}
    kind = Annotated[int | Literal["auto"], Field(json_schema_extra=extra)]
    assert _field(kind) == {"x-kubernetes-int-or-string": True, "pattern": "^auto$"}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (str, "M.field: a string needs maxLength"),
        (int, "M.field: a number needs minimum and maximum"),
        (list[Literal["a"]], "M.field: a list needs items and maxItems"),
        (dict[str, Literal["a"]], "M.field: a map needs maxProperties"),
        (Annotated[dict[str, Any], Field(max_length=2)], "M.field: additionalProperties must be a schema"),
        (Annotated[int, Field(ge=0, le=1)] | Literal["a"], "M.field: anyOf of 2 types"),
        (Annotated[int, Field(ge=0, le=9, multiple_of=2)], "M.field: no strict equivalent for multipleOf"),
        (Annotated[float, Field(gt=0, le=9)], "M.field: exclusiveMinimum of a number"),
        (Annotated[set[Literal["a"]], Field(max_length=2)], "M.field: no strict equivalent for uniqueItems"),
        (Annotated[dict[str, Any], Field(json_schema_extra={INLINE: "other"})], "M.field: no schema named 'other'"),
        (Annotated[str, Field(max_length=3, json_schema_extra={"pattern": "(?!a)"})], "M.field: .* RE2"),
        (Annotated[str, Field(max_length=3, json_schema_extra={"if": {}})], "M.field: no strict equivalent for if"),
        (Annotated[list[str], Field(max_length=3)], r"M.field.items: a string needs maxLength"),
    ],
)
def test_refuses_with_the_place(kind: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        _field(kind)
