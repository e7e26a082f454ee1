"""Carries a plan out: one status write, the events that tell of it, then the actions in order."""

from everstep_operator.act.actor import Actor
from everstep_operator.act.events import Events
from everstep_operator.act.status import StaleError, write_status

__all__ = ["Actor", "Events", "StaleError", "write_status"]
