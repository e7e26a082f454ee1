"""Assembles the CustomResourceDefinition of TrainingJob from the models."""

from __future__ import annotations

from typing import Any, Final

import yaml

from everstep_operator.api.common import GROUP, KIND, PLURAL, RULES, VERSION, rule
from everstep_operator.api.pod_template import constrained, stored
from everstep_operator.api.schema import Schema, structural
from everstep_operator.api.spec import TrainingJobSpec
from everstep_operator.api.status import TrainingJobStatus

MAX_NAME: Final = 40
"""Names of pods, Services and label values are made from the job's, and may have 63 characters."""

_NAME: Final = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
_COLUMNS: Final[list[tuple[str, str, str, int, str]]] = [
    ("Phase", "string", ".status.phase", 0, "Where the job stands"),
    ("Step", "integer", ".status.progress.step", 0, "The last finished optimizer step"),
    ("Progress", "string", ".status.progress.summary", 0, "Step, total and percent"),
    ("Last-Checkpoint", "integer", ".status.lastCheckpoint.step", 0, "Step of the latest committed checkpoint"),
    ("Restarts", "integer", ".status.restarts.total", 0, "New attempts after a failure"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Time since the job was created"),
    ("Attempt", "integer", ".status.attempt", 1, "The current attempt"),
    ("In-Place", "integer", ".status.restarts.inPlace", 1, "Restarts of the workers within an attempt"),
    ("Nodes", "integer", ".spec.nodes", 1, "Pods in the gang"),
    ("Goodput", "string", ".status.goodput", 1, "Share of active time in steps that were kept"),
    ("Location", "string", ".status.lastCheckpoint.location", 1, "Where the latest committed checkpoint stands"),
]
_ROOT_RULES: Final = [
    rule(
        f"size(self.metadata.name) <= {MAX_NAME} && self.metadata.name.matches('{_NAME}')",
        f"must be a DNS label that starts with a letter, {MAX_NAME} characters at most: pods are named after it",
        path=".metadata.name",
    ),
    # Written on the root, where the status is in sight and the field cannot be removed and added again.
    rule(
        "!has(oldSelf.status) || !has(oldSelf.status.attempt) || oldSelf.status.attempt == 0 "
        "|| self.spec.resume == oldSelf.spec.resume",
        "governs the first attempt, which has started: create a new job",
        path=".spec.resume",
    ),
]


def crd() -> dict[str, Any]:
    """The CustomResourceDefinition as a document."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # Without it, uninstalling the chart would delete every job.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tj"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": root_schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.nodes",
                            "statusReplicasPath": ".status.nodes",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text}
                        | ({"priority": priority} if priority else {})
                        for name, kind, path, priority, text in _COLUMNS
                    ],
                }
            ],
        },
    }


def root_schema() -> Schema:
    """The schema of a whole TrainingJob."""
    return {
        "type": "object",
        "description": "A distributed PyTorch training that survives failures of its pods and nodes.",
        "required": ["spec"],
        RULES: _ROOT_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural(TrainingJobSpec, {"pod_template": constrained(stored())}),
            "status": structural(TrainingJobStatus, defaults=False),
        },
    }


class _Dumper(yaml.SafeDumper):
    """Writes shared values out in full instead of as anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(document: dict[str, Any]) -> str:
    """The document as YAML, keys in their own order, with a note on where it comes from."""
    body = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=118, allow_unicode=True)
    return f"# Generated from everstep_operator.api by `make crd`.\n{body}"
