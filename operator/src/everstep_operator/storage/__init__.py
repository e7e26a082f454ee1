"""How the operator reaches object storage: what a profile allows, in lanes that bad endpoints cannot block."""

from everstep_operator.storage.access import JobStorage, Storages
from everstep_operator.storage.errors import classify, classify_resume_path
from everstep_operator.storage.lanes import Lane, Lanes, LaneTimeoutError

__all__ = ["JobStorage", "Lane", "LaneTimeoutError", "Lanes", "Storages", "classify", "classify_resume_path"]
