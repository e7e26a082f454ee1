"""Fields that the API takes and nothing acts on yet: whoever sets them is told once a spec, not left to wonder."""

from __future__ import annotations

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.fields import changing, value
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Event


def fields(spec: TrainingJobSpec) -> tuple[str, ...]:
    """Paths of those that are set."""
    values = spec.model_dump(mode="json", by_alias=True)
    return tuple(f"spec.{path}" for path in changing("none") if value(values, path) is not None)


def events(observation: Observation, status: TrainingJobStatus) -> tuple[Event, ...]:
    """With the status write that takes notice of the spec, and never with another."""
    unheeded = fields(observation.job.spec)
    if not unheeded or status.observed_generation == observation.job.status.observed_generation:
        return ()
    verb = "is" if len(unheeded) == 1 else "are"
    names = ", ".join(unheeded)
    message = f"{names} {verb} not acted on yet: the job runs as if {'it' if verb == 'is' else 'they'} were not set"
    return (Event("Warning", "NotActedOn", message, names),)
