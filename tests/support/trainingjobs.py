"""TrainingJob manifests for tests: the smallest good one, one with every field, and edits of them by path."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Manifest = dict[str, Any]

GONE = object()
"""As a value: removes the field."""


def minimal(name: str = "job", namespace: str = "default") -> Manifest:
    """Only what is required."""
    return {
        "apiVersion": "everstep.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "template": {"spec": {"containers": [{"name": "main", "image": "example.test/train:1"}]}},
            "checkpoint": {"storage": {"uri": "s3://bucket/prefix"}},
        },
    }


def full(name: str = "job", namespace: str = "default") -> Manifest:
    """Every field of the spec, none at its default."""
    manifest = minimal(name, namespace)
    manifest["spec"] = {
        "nodes": 2,
        "procPerNode": "auto",
        "elastic": {"minNodes": 1, "maxNodes": 4},
        "suspend": True,
        "template": {
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
            "spec": {
                "nodeSelector": {"disk": "fast"},
                "containers": [
                    {
                        "name": "trainer",
                        "image": "example.test/train:1",
                        "args": ["torchrun", "train.py"],
                        "env": [{"name": "EVERSTEP_TRAIN_STEPS", "value": "10"}],
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "resources": {"limits": {"cpu": 2, "memory": "4Gi"}},
                    },
                    {"name": "sidecar", "image": "example.test/logs:1"},
                ],
                "restartPolicy": "Never",
            },
        },
        "checkpoint": {
            "storage": {
                "uri": "s3://bucket/prefix",
                "endpoint": "http://s3.test:8333",
                "region": "eu-central-1",
                "secretName": "s3-credentials",
            },
            "interval": {"steps": 100, "seconds": 900},
            "async": False,
            "keepLast": 5,
            "keepBest": {"count": 2, "metric": "eval/accuracy", "mode": "max"},
            "keepEvery": 1000,
            "local": {"interval": {"steps": 10, "seconds": 60}, "medium": "Disk", "sizeLimit": "4Gi"},
            "weights": {"interval": {"steps": 1, "seconds": 5}, "keepLast": 3},
        },
        "resume": {"mode": "fromPath", "path": "s3://bucket/other/default/parent"},
        "failurePolicy": {
            "maxRestarts": 20,
            "maxRestartsWithoutProgress": 4,
            "stallTimeoutSeconds": 0,
            "saveTimeoutSeconds": 1800,
            "startTimeoutSeconds": 120,
            "windowSeconds": 7200,
            "phaseTimeoutSeconds": {
                "starting": 1,
                "restoring": 2,
                "compiling": 3,
                "saving": 4,
                "evaluating": 5,
                "finished": 6,
            },
            "backoff": {"initialSeconds": 1, "maxSeconds": 60},
            "rules": [
                {"name": "config", "action": "FailJob", "onExitCodes": {"operator": "NotIn", "values": [1, 137]}},
                {"name": "memory", "action": "Restart", "onReasons": ["OOMKilled"]},
                {
                    "name": "disruption",
                    "action": "RestartUncounted",
                    "onPodConditions": [{"type": "DisruptionTarget", "status": "False"}],
                },
                {"name": "driver", "action": "FailJob", "onMessages": ["CUDA error*device-side assert"]},
            ],
        },
        "activeDeadlineSeconds": 86400,
        "ttlSecondsAfterFinished": 3600,
        "deletionPolicy": "Delete",
        "managedBy": "example.test/other",
    }
    return manifest


def full_status() -> Manifest:
    """Every field of the status."""
    return {
        "phase": "Running",
        "attempt": 3,
        "nodes": 2,
        "selector": "everstep.dev/job-uid=u",
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T03:00:00Z",
        "activeSeconds": 12,
        "activeSince": "2026-01-01T00:00:01Z",
        "restarts": {
            "total": 2,
            "counted": 1,
            "inPlace": 4,
            "withoutProgress": 1,
            "disrupted": 1,
            "recent": ["2026-01-01T01:00:00Z"],
            "lastReason": "OOMKilled: rank 1",
            "lastTime": "2026-01-01T01:00:00Z",
            "nextTime": "2026-01-01T01:00:05Z",
        },
        "progress": {
            "summary": "1234/10000 (12%)",
            "step": 1234,
            "totalSteps": 10000,
            "fromStep": 0,
            "updated": "2026-01-01T02:00:00Z",
            "estimatedCompletion": "2026-01-02T00:00:00Z",
            "metrics": {"loss": "2.13"},
        },
        "lastCheckpoint": {
            "step": 1200,
            "location": "s3://bucket/prefix/default/job/checkpoints/step_000000001200-000003-ab",
            "committed": "2026-01-01T02:00:00Z",
            "size": "1.2 GiB",
            "attempt": 3,
        },
        "resumedFrom": {"step": 900, "location": "s3://bucket/prefix/default/job/checkpoints/step_x"},
        "checkpoints": {
            "count": 5,
            "totalSize": "6.0 GiB",
            "best": {"step": 1100, "score": "2.01", "location": "s3://bucket/best"},
            "quarantined": 1,
            "quarantinedTime": "2026-01-01T00:00:00Z",
        },
        "recovery": {
            "detected": "2026-01-01T01:00:00.250Z",
            "attempt": 2,
            "lostSteps": 12,
            "seconds": {
                "detect": 0.9,
                "restart": 6.5,
                "teardown": 1.5,
                "schedule": 0.1,
                "start": 2.0,
                "load": 3.5,
                "total": 8.0,
            },
        },
        "fence": {"attempt": 3, "epoch": 7, "generation": 21, "claimed": 8},
        "gang": {
            "summary": "2 of 2 running",
            "nodes": 2,
            "waiting": "ImagePullBackOff: no such image",
            "succeeded": [1],
            "leaving": {
                "pod": "job-3-1",
                "node": "node-b",
                "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting",
            },
            "started": "2026-01-01T01:00:02.500Z",
            "running": "2026-01-01T01:00:04.000Z",
        },
        "requests": {
            "restart": "1",
            "checkpoint": "2",
            "attempt": 3,
            "checkpointSaved": "2",
            "checkpointSavedTime": "2026-01-01T00:00:00Z",
        },
        "history": [
            {
                "attempt": 2,
                "reason": "OOMKilled",
                "message": "rank 1 on node-b was killed at step 912",
                "rule": "memory",
                "pod": "job-2-1",
                "node": "node-b",
                "rank": 1,
                "code": -9,
                "fromStep": 600,
                "toStep": 912,
                "started": "2026-01-01T00:30:00Z",
                "ended": "2026-01-01T01:00:00Z",
                "seconds": 1800.5,
                "nextNodes": 1,
            }
        ],
        "goodput": "97%",
        "observedGeneration": 4,
        "conditions": [
            {
                "type": "Running",
                "status": "True",
                "reason": "GangRunning",
                "message": "all pods run",
                "lastTransitionTime": "2026-01-01T01:00:04Z",
                "observedGeneration": 4,
            }
        ],
    }


def edited(manifest: Manifest, path: str, value: Any) -> Manifest:
    """A copy with the field at a dotted path (numbers index lists) set, or removed with GONE."""
    copy = deepcopy(manifest)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    node: Any = copy
    for part in parents:
        node = node[part] if isinstance(part, int) else node.setdefault(part, {})
    if value is not GONE:
        node[last] = value
    elif last in node:
        del node[last]
    return copy


def paths(node: Any, prefix: str = "") -> set[str]:
    """Dotted paths of all fields in a document; list items are `[]`."""
    found: set[str] = set()
    if isinstance(node, dict):
        for name, child in node.items():
            found |= {f"{prefix}{name}"} | paths(child, f"{prefix}{name}.")
    elif isinstance(node, list):
        for child in node:
            found |= paths(child, f"{prefix.removesuffix('.')}[].")
    return found
