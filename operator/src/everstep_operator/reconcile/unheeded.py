"""Fields that the API takes and nothing acts on yet: whoever sets them is told once a spec, rather than left to wonder.

`checkpoint.async` is not among them: true is its default, so that nobody can be said to have asked for it.
"""

from __future__ import annotations

from everstep_operator.api import TrainingJobStatus
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Event


def fields(spec: TrainingJobSpec) -> tuple[str, ...]:
    """Paths of those that are set."""
    found = {
        "spec.checkpoint.local": spec.checkpoint.local,
        "spec.checkpoint.weights": spec.checkpoint.weights,
        "spec.elastic": spec.elastic,
    }
    return tuple(path for path, value in found.items() if value is not None)


def events(observation: Observation, status: TrainingJobStatus) -> tuple[Event, ...]:
    """With the status write that takes notice of the spec, and never with another."""
    unheeded = fields(observation.job.spec)
    if not unheeded or status.observed_generation == observation.job.status.observed_generation:
        return ()
    verb = "is" if len(unheeded) == 1 else "are"
    names = ", ".join(unheeded)
    message = f"{names} {verb} not acted on yet: the job runs as if {'it' if verb == 'is' else 'they'} were not set"
    return (Event("Warning", "NotActedOn", message, names),)
