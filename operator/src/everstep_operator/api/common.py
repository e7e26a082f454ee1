"""What all models of the resource share: the base classes, the bounded scalar types and the marks on fields.

Every string, list and map has a bound, because the API server estimates the cost of validation rules from them.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints
from pydantic.alias_generators import to_camel

GROUP = "everstep.dev"
VERSION = "v1alpha1"
KIND = "TrainingJob"
PLURAL = "trainingjobs"
API_VERSION = f"{GROUP}/{VERSION}"
CONTROLLER = f"{GROUP}/operator"

MAX_STEP = 999_999_999_999
"""Steps are written with twelve digits in checkpoint locations."""
MAX_COUNT = 2**31 - 1
MAX_NUMBER = 2**53
"""JSON readers that know only floating-point numbers are exact up to here."""
MAX_LOCATION = 2048
MAX_SECONDS = 10 * 365 * 86_400
"""Ten years: no duration of a job is longer."""

RULES = "x-kubernetes-validations"
CHANGE = "x-everstep-change"
INLINE = "x-everstep-inline"

Change = Literal["live", "restart", "next-attempt", "first-attempt", "immutable"]
"""What an edit of a field does to a job that runs:

live          it takes effect at once, the gang goes on
restart       the gang saves and stops, and the next attempt is made with it
next-attempt  the gang goes on with the former value, the next attempt is made with it
first-attempt accepted until the first attempt has started, refused afterwards
immutable     refused
"""


def changes(how: Change, **extra: Any) -> dict[str, Any]:
    """Schema extras of a field: what an edit of it does, and further schema keywords.

    The operator, the documentation and the tests all go by this one word. On an object it holds for all that is in it.
    """
    return {CHANGE: how, **extra}


def rule(expression: str, message: str, *, path: str | None = None) -> dict[str, str]:
    """One CEL rule; `path` is the field, relative to the rule's object, that the refusal names."""
    out = {"rule": expression, "message": message}
    if path:
        out["fieldPath"] = path
    return out


def rules(*items: dict[str, str]) -> dict[str, Any]:
    """Schema extras that carry CEL rules."""
    return {RULES: list(items)}


_BASE = ConfigDict(
    alias_generator=to_camel,
    populate_by_name=True,
    use_attribute_docstrings=True,
    extra="ignore",  # an older operator meets objects of a newer schema; the API server is who refuses unknown fields
    frozen=True,
)


class SpecModel(BaseModel):
    """Base of what the user writes: no coercion, so that a value means here what it means to the API server."""

    model_config = ConfigDict(**_BASE, strict=True)


class StatusModel(BaseModel):
    """Base of what the operator writes."""

    model_config = _BASE

    def dump(self) -> dict[str, Any]:
        """The JSON form with camelCase names and without the fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _utc(value: datetime) -> datetime:
    """A tenant's register may name the first moment of the calendar, in a zone where it is over already."""
    try:
        return value.astimezone(UTC)
    except OverflowError:
        return value.replace(tzinfo=UTC)


def _to_second(value: datetime) -> datetime:
    return _utc(value).replace(microsecond=0)


def _rfc3339(value: datetime) -> str:
    return value.isoformat(timespec="seconds").replace("+00:00", "Z")  # strftime gives the year 1 one digit


Time = Annotated[AwareDatetime, AfterValidator(_to_second), PlainSerializer(_rfc3339, when_used="json")]
"""A moment in UTC, with whole seconds as Kubernetes writes them: what is read back equals what was written."""


def _to_millisecond(value: datetime) -> datetime:
    return _utc(value).replace(microsecond=value.microsecond // 1000 * 1000)


def _rfc3339_milliseconds(value: datetime) -> str:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[
    AwareDatetime, AfterValidator(_to_millisecond), PlainSerializer(_rfc3339_milliseconds, when_used="json")
]
"""A moment in UTC with milliseconds, for what durations are computed from."""

Step = Annotated[int, Field(ge=0, le=MAX_STEP, json_schema_extra={"format": "int64"})]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT, json_schema_extra={"format": "int32"})]
Number64 = Annotated[int, Field(ge=0, le=MAX_NUMBER, json_schema_extra={"format": "int64"})]
Seconds = Annotated[int, Field(ge=0, le=MAX_SECONDS, json_schema_extra={"format": "int32"})]
PositiveSeconds = Annotated[int, Field(ge=1, le=MAX_SECONDS, json_schema_extra={"format": "int32"})]
Duration = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
"""Seconds with a fraction, for measurements."""

DnsLabel = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[
    str,
    StringConstraints(
        min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ),
]
Short = Annotated[str, StringConstraints(max_length=256)]
Line = Annotated[str, StringConstraints(max_length=1024)]
Text = Annotated[str, StringConstraints(max_length=4096)]
Where = Annotated[str, StringConstraints(max_length=MAX_LOCATION)]
"""URI of a checkpoint: as long as a register may say it."""

_S3 = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9!_.*'()=@+-]+)*/?$"

S3Uri = Annotated[str, StringConstraints(max_length=1024, pattern=_S3)]
"""`s3://bucket/prefix`: a bucket of 3 to 63 characters, then path segments of S3's safe characters."""
S3Prefix = Annotated[str, StringConstraints(max_length=768, pattern=_S3)]
"""The same, with room for namespace, job, checkpoint and file within the 1024 bytes of an S3 key."""
