"""A stored TrainingJob, read into models: metadata, spec and status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from everstep_operator.api.common import API_VERSION, CONTROLLER, KIND, Time
from everstep_operator.api.spec import TRAINER, TrainingJobSpec
from everstep_operator.api.status import TrainingJobStatus


class InvalidJobError(ValueError):
    """A stored object that this operator cannot read; the text names each field and its value, `body` is the object."""

    def __init__(self, text: str, body: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.body = body


class Metadata(BaseModel):
    """The part of ObjectMeta that the operator uses."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    name: str
    namespace: str
    uid: str
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()


class TrainingJob(BaseModel):
    """One TrainingJob as the API server stores it."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    metadata: Metadata
    spec: TrainingJobSpec
    status: TrainingJobStatus = TrainingJobStatus()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Reads an object as the API gives it, ignoring unknown fields. Raises InvalidJobError."""
        known = {key: body[key] for key in ("metadata", "spec", "status") if body.get(key) is not None}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            raise InvalidJobError(_explain(error), body) from error

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.metadata.namespace, self.metadata.name

    @property
    def root_uri(self) -> str:
        """Where all of the job stands in storage, with a slash at the end."""
        base = self.spec.checkpoint.storage.uri.rstrip("/")
        return f"{base}/{self.metadata.namespace}/{self.metadata.name}/"

    @property
    def is_ours(self) -> bool:
        """Whether this operator runs the job, rather than the controller that `managedBy` names."""
        return self.spec.managed_by in (None, CONTROLLER)

    @property
    def is_deleted(self) -> bool:
        """Whether its deletion has begun."""
        return self.metadata.deletion_timestamp is not None

    def owner_reference(self) -> dict[str, Any]:
        """The controller reference for what belongs to the job."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.metadata.name,
            "uid": self.metadata.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }


def trainer_index(template: Mapping[str, Any]) -> int:
    """Index of the container that trains: the one named `trainer`, else the only (or first) one."""
    containers = template.get("spec", {}).get("containers", [])
    return next((i for i, c in enumerate(containers) if c.get("name") == TRAINER), 0)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        value = problem["input"]
        shown = "" if isinstance(value, dict | list) else f" (got {value!r})"
        lines.append(f"{path}: {problem['msg']}{shown}")
    return "; ".join(lines)
