"""Helm refuses a typo at every level of the values, by its path, before anything is installed."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.support.helm import EXISTING, INLINE, HelmError, render

PEERS = [
    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
    {
        "namespaceSelector": {"matchLabels": {"a": "b"}},
        "podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
    },
]
TERM = {"labelSelector": {"matchLabels": {"a": "b"}}, "topologyKey": "kubernetes.io/hostname"}
FULL: dict[str, Any] = {
    "image": {
        "repository": "registry.test/everstep/operator",
        "tag": "1",
        "digest": f"sha256:{'a' * 64}",
        "pullPolicy": "Always",
    },
    "imagePullSecrets": [{"name": "pull"}],
    "nameOverride": "named",
    "fullnameOverride": "full",
    "replicas": 2,
    "crd": {"install": False},
    "watchNamespaces": ["a", "b"],
    "storageProfiles": [INLINE, EXISTING],
    "settings": {"logFormat": "console", "concurrency": 4},
    "serviceAccount": {
        "create": True,
        "name": "x",
        "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"},
    },
    "rbac": {"create": True, "aggregate": False},
    "http": {"port": 8081},
    "service": {"annotations": {"a": "b"}},
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi"}},
    "priorityClassName": "system-cluster-critical",
    "terminationGracePeriodSeconds": 30,
    "podAnnotations": {"a": "b"},
    "podLabels": {"a": "b"},
    "podSecurityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
    "nodeSelector": {"a": "b"},
    "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]
            }
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": TERM}],
            "requiredDuringSchedulingIgnoredDuringExecution": [TERM],
        },
    },
    "topologySpreadConstraints": [
        {
            "maxSkew": 1,
            "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"a": "b"}},
        }
    ],
    "extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    "podDisruptionBudget": {"enabled": True},
    "networkPolicy": {
        "enabled": True,
        "apiServer": {"ports": [6443], "to": PEERS},
        "dns": {"to": PEERS},
        "storage": {"ports": [9000], "to": PEERS},
        "metrics": {"from": PEERS},
        "extraEgress": [{"to": PEERS, "ports": [{"protocol": "TCP", "port": 80}]}],
    },
    "monitoring": {
        "podMonitor": {"enabled": True, "interval": "15s", "labels": {"a": "b"}},
        "alerts": {"enabled": True, "labels": {"a": "b"}},
        "dashboard": {"enabled": True, "labels": {"a": "b"}},
    },
}
"""Every value of the chart, set to something."""

FREE = {
    *("annotations", "labels", "matchLabels", "podAnnotations", "podLabels", "nodeSelector"),
    *("requests", "limits"),
}
"""Maps whose keys are the user's own."""
TYPO = "tpyo"
Path = tuple[str | int, ...]


def objects(node: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of all objects whose fields are known."""
    if isinstance(node, dict):
        if path and path[-1] in FREE:
            return
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from objects(child, (*path, name))


def leaves(node: Any, path: Path = ()) -> Iterator[Path]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from leaves(child, (*path, name))
    if not isinstance(node, dict | list):
        yield path


def changed(path: Path, value: Any) -> dict[str, Any]:
    copy = deepcopy(FULL)
    node: Any = copy
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return copy


def named(path: Path) -> str:
    """A JSON pointer."""
    return "".join("/" + str(part).replace("/", "~1") for part in path)


def test_all_values_together_are_accepted() -> None:
    assert len(render(FULL)) > 10


@pytest.mark.parametrize("path", list(objects(FULL)), ids=named)
def test_a_typo_is_refused_by_its_path(path: Path) -> None:
    with pytest.raises(HelmError) as refused:
        render(changed((*path, TYPO), "x"))
    message = str(refused.value)
    if "credentials" in path:  # one of two forms: Helm names both
        assert "/credentials'" in message
    else:
        assert f"at '{named(path)}': additional properties '{TYPO}' not allowed" in message


@pytest.mark.parametrize("path", list(leaves(FULL)), ids=named)
def test_a_list_where_one_value_belongs_is_refused_by_its_path(path: Path) -> None:
    with pytest.raises(HelmError) as refused:
        render(changed(path, [[]]))
    assert f"at '{named(path)}'" in str(refused.value) or "/credentials" in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replica": 2}, "replica"),
        ({"settings": {"pollSecond": 2}}, "pollSecond"),
        ({"settings": {"pollSeconds": 40}}, r"pollSeconds \(40\) must not exceed settings.pollMaxSeconds \(30\)"),
        ({"settings": {"leaseRenewSeconds": 7.6}}, "at most half of settings.leaseSeconds"),
        ({"storageProfiles": [{**INLINE, "namespaces": []}]}, "namespaces"),
        ({"storageProfiles": [{**INLINE, "credentials": {"accessKey": "AK"}}]}, "secretKey"),
        ({"storageProfiles": [{**INLINE, "endpoint": "s3.test"}]}, "endpoint"),
        ({"storageProfiles": [{**INLINE, "buckets": [{"name": "B"}]}]}, "buckets"),
        ({"storageProfiles": [INLINE, INLINE]}, f"two of them have the name {INLINE['name']}"),
        ({"podLabels": {"app.kubernetes.io/name": "x"}}, "podLabels"),
        ({"image": {"digest": "sha256:1"}}, "digest"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(HelmError, match=message):
        render(values)
