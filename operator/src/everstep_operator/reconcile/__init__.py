"""Decisions: an observation in, a plan out. No I/O, no clock, no randomness; one policy a file."""

from everstep_operator.reconcile.decide import decide
from everstep_operator.reconcile.observation import (
    ConditionView,
    ContainerView,
    HeartbeatView,
    NodeView,
    Observation,
    PodView,
    Problem,
    ProblemKind,
    Results,
    ServiceView,
    Stored,
)
from everstep_operator.reconcile.plan import Action, Event, Plan

__all__ = [
    "Action",
    "ConditionView",
    "ContainerView",
    "Event",
    "HeartbeatView",
    "NodeView",
    "Observation",
    "Plan",
    "PodView",
    "Problem",
    "ProblemKind",
    "Results",
    "ServiceView",
    "Stored",
    "decide",
]
