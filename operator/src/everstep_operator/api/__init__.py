"""The TrainingJob resource as typed models, and the tools that turn them into the CRD and its documentation."""

from everstep_operator.api.common import API_VERSION, CONTROLLER, GROUP, KIND, PLURAL, VERSION
from everstep_operator.api.job import InvalidJobError, Metadata, TrainingJob, trainer_index
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.api.status import Condition, ConditionType, Phase, TrainingJobStatus

__all__ = [
    "API_VERSION",
    "CONTROLLER",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Condition",
    "ConditionType",
    "InvalidJobError",
    "Metadata",
    "Phase",
    "TrainingJob",
    "TrainingJobSpec",
    "TrainingJobStatus",
    "trainer_index",
]
