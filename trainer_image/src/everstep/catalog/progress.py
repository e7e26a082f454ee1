"""The heartbeat: one small object an attempt, overwritten in place, by which the operator sees a run from outside.

It decides nothing: what is committed stands in the register alone.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from everstep.catalog.fields import Attempt, Count, Epoch, Finite, Metrics, Moment, Step
from everstep.catalog.keys import progress_key, request_key
from everstep.catalog.store import UNCHANGED, Store, Unchanged
from everstep.errors import CatalogUnreadableError

MAX_HEARTBEAT_BYTES = 64 << 10

Phase = Literal["starting", "restoring", "compiling", "training", "saving", "evaluating", "finished", "failed"]


def rate(size: int, seconds: float) -> float:
    """Units a second, also of what took no time that a clock shows."""
    return size / max(seconds, 1e-9)


class SaveTimes(BaseModel):
    """What the last save that stands has cost. Seconds; of several ranks the slowest counts."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: Step
    bytes: Count
    staged_seconds: float
    """From the step boundary until the state was copied."""
    uploaded_seconds: float
    """From then on until storage had acknowledged every file of a rank."""
    committed_seconds: float
    """From when all ranks had stored theirs until the save stood: the manifest and the swap."""
    blocked_seconds: float
    """For how long training stood still."""
    retries: Count = 0
    """Requests that had to be sent again."""


class LoadTimes(BaseModel):
    """What the load of the step that was resumed has cost, all ranks together."""

    model_config = ConfigDict(extra="allow", frozen=True)

    step: Step
    seconds: float
    bytes: Count
    """Of tensors, from storage or the nodes' local tier; each once, however many ranks needed it."""
    retries: Count = 0
    """Requests that had to be sent again."""


class Heartbeat(BaseModel):
    """Written by rank 0. All times are the writer's clock: compare `beat`, never clocks of two machines."""

    model_config = ConfigDict(extra="allow", frozen=True)

    attempt: Attempt
    epoch: Epoch
    """The claim's epoch: a new one is a restart in place."""
    beat: Count
    """+1 with each write: the sign of life."""
    time: Moment
    phase: Phase
    phase_since: Moment
    step: Step = 0
    total_steps: Count | None = None
    samples: Count = 0
    tokens: Count = 0
    data_epoch: Count = 0
    metrics: Metrics = Field(default_factory=dict)
    seconds_per_step: Finite = None
    resumed_step: Step | None = None
    """The step that was loaded; None for a fresh start."""
    former_step: Step | None = None
    """The last step that ended in this container before this worker group: after a restart in place, how far the group
    before it got. None where nobody noted it."""
    last_load: LoadTimes | None = None
    first_step: Moment | None = None
    """When the first step of this worker group ended."""
    saves_failed: Count = 0
    saves_failed_in_a_row: Count = 0
    """Since the last commit, or the start of this worker group."""
    last_save_error: str | None = None
    last_save: SaveTimes | None = None
    saving_step: Step | None = None
    """The step that is being saved beside training."""
    saves_waited: Count = 0
    """Saves that had to wait for the one before: storage is slower than the interval."""
    local_step: Step | None = None
    """The newest step that the local tier has, whole."""
    local_saves_failed: Count = 0
    last_local_error: str | None = None
    fatal: str | None = None
    """The failure that ends this attempt, in one line."""
    request: str | None = None
    """The last request for a checkpoint that was seen."""
    request_step: Step | None = None
    """The step that is saved for it; None until that save begins."""


class Request(BaseModel):
    """What somebody outside asks of the workers of an attempt. Written by the operator, read with each beat."""

    model_config = ConfigDict(extra="allow", frozen=True)

    checkpoint: str
    """Asks for one save; another value asks for another."""


def write_heartbeat(store: Store, heartbeat: Heartbeat) -> None:
    """Of more metrics than a reader accepts it has those that were reported first: a gang whose heartbeat cannot be
    read is taken for one that hangs."""
    body = heartbeat.model_dump_json().encode()
    while len(body) > MAX_HEARTBEAT_BYTES and heartbeat.metrics:
        some = dict(list(heartbeat.metrics.items())[: len(heartbeat.metrics) // 2])
        heartbeat = heartbeat.model_copy(update={"metrics": some})
        body = heartbeat.model_dump_json().encode()
    store.put(progress_key(heartbeat.attempt), body)


def read_heartbeat(store: Store, attempt: int, known: str | None = None) -> tuple[Heartbeat, str] | Unchanged | None:
    """The heartbeat of an attempt with its token; None before the first, UNCHANGED where `known` is still its token."""
    found = store.read_register(progress_key(attempt), known)
    if found is UNCHANGED or found is None:
        return found
    if len(found.body) > MAX_HEARTBEAT_BYTES:
        raise CatalogUnreadableError(f"{progress_key(attempt)} has more than {MAX_HEARTBEAT_BYTES} bytes")
    try:
        return Heartbeat.model_validate_json(found.body), found.token
    except ValidationError as error:
        raise CatalogUnreadableError(f"{progress_key(attempt)}: {error.errors()[0]['msg']}") from error


def write_request(store: Store, attempt: int, request: Request) -> None:
    store.put(request_key(attempt), request.model_dump_json().encode())


def read_request(store: Store, attempt: int, known: str | None = None) -> tuple[Request, str] | Unchanged | None:
    """Like `read_heartbeat`."""
    found = store.read_register(request_key(attempt), known)
    if found is UNCHANGED or found is None:
        return found
    try:
        return Request.model_validate_json(found.body[:MAX_HEARTBEAT_BYTES]), found.token
    except ValidationError as error:
        raise CatalogUnreadableError(f"{request_key(attempt)}: {error.errors()[0]['msg']}") from error
