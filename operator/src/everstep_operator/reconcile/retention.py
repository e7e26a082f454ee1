"""Which checkpoints stay, and the upkeep of a root whose catalog is this job's: retire, remove, sweep."""

from __future__ import annotations

from everstep.catalog import Best, Catalog, Retention
from everstep.catalog.retention import expendable
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.reconcile.attempt import own
from everstep_operator.reconcile.observation import Observation
from everstep_operator.reconcile.plan import Action, FinishRemovals, Retire, Sweep

SWEEP_SECONDS = 600.0
REMOVALS = 8
"""Intents that one pass finishes: a running job is not to wait long for its next look."""


def policy(spec: TrainingJobSpec, catalog: Catalog) -> Retention:
    wanted = spec.checkpoint
    return Retention(last=wanted.keep_last, best=best(spec, catalog), every=wanted.keep_every)


def best(spec: TrainingJobSpec, catalog: Catalog) -> Best | None:
    """Another metric than before counts once a score of it stands: a gang goes on scoring by the former one until its
    next attempt, and what that one keeps is not to go for the sake of an edit."""
    wanted = spec.checkpoint.keep_best
    if wanted is None:
        return None
    edited = Best(count=wanted.count, mode=wanted.mode, metric=wanted.metric)
    scored = {entry.score_of for entry in catalog.live() if entry.score is not None}
    former = catalog.retention.best if catalog.retention is not None else None
    if former is None or former.metric not in scored or wanted.metric in scored:
        return edited
    return former.model_copy(update={"count": wanted.count})


def upkeep(observation: Observation, once: bool = False) -> tuple[Action, ...]:
    """`once`: of a job that writes nothing any more, whose root needs no second sweep."""
    catalog = own(observation)
    if catalog is None or observation.stored.problem is not None or observation.results.problem is not None:
        return ()
    wanted = policy(observation.job.spec, catalog)
    actions: list[Action] = []
    leaving = expendable(catalog, wanted, observation.now)
    if leaving:
        actions.append(Retire(wanted))
    if leaving or catalog.removing:
        actions.append(FinishRemovals(REMOVALS))
    age = observation.stored.swept_age
    if age is None or (age >= SWEEP_SECONDS and not once):
        actions.append(Sweep())
    return tuple(actions)
