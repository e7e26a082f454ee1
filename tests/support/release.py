"""The operator in a whole cluster, as a user installs it: helm, a namespace for jobs, the Secret of their storage."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from dev import build
from dev.s3 import S3Endpoint
from tests.plugins.cluster import RunningCluster

ROOT = Path(__file__).parents[2]
SECRET = "s3-credentials"


def install(
    cluster: RunningCluster, name: str, namespace: str, image: str, endpoint: str, s3: S3Endpoint, bucket: str
) -> None:
    """Release `name`, in its own namespace `name`, for the jobs of `namespace` alone; they reach `bucket` at
    `endpoint`. The CRD is applied beside it: several releases may share it.
    """
    crd = (ROOT / "crds" / "trainingjobs.everstep.dev.yaml").read_text(encoding="utf-8")
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=crd)
    repository, _, tag = image.rpartition(":")
    values = {
        "fullnameOverride": name,
        "image": {"repository": repository, "tag": tag},
        "crd": {"install": False},
        "watchNamespaces": [namespace],
        "settings": {"logFormat": "console", "logLevel": "DEBUG"},
        "storageProfiles": [
            {
                "name": "tests",
                "namespaces": [namespace],
                "endpoint": endpoint,
                "region": s3.region,
                "buckets": [{"name": bucket}],
                "credentials": {"accessKey": s3.access_key, "secretKey": s3.secret_key},
            }
        ],
    }
    chart = str(ROOT / "charts" / "everstep")
    command = ["upgrade", "--install", name, chart, f"--namespace={name}", "--create-namespace", "--values=-"]
    _helm(cluster, [*command, "--wait", "--timeout=3m"], json.dumps(values))
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": namespace},
        "stringData": {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key},
    }
    cluster.apply(json.dumps(secret))


def uninstall(cluster: RunningCluster, name: str) -> None:
    _helm(cluster, ["uninstall", name, f"--namespace={name}", "--ignore-not-found"])
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def operator_log(cluster: RunningCluster, name: str, lines: int = 80) -> str:
    return cluster.kubectl("logs", f"--namespace={name}", f"deployment/{name}", f"--tail={lines}")


def training_job(
    name: str, namespace: str, image: str, args: list[str], endpoint: str, bucket: str, checkpoint: dict[str, Any]
) -> dict[str, Any]:
    """A TrainingJob of two pods under Pod Security's `restricted` level."""
    return {
        "apiVersion": "everstep.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "nodes": 2,
            "procPerNode": 1,
            "template": {
                "spec": {
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [
                        {
                            "name": "trainer",
                            "image": image,
                            "imagePullPolicy": "IfNotPresent",
                            "args": args,
                            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        }
                    ],
                }
            },
            "checkpoint": {
                "storage": {
                    "uri": f"s3://{bucket}/jobs",
                    "endpoint": endpoint,
                    "region": "us-east-1",
                    "secretName": SECRET,
                },
                **checkpoint,
            },
        },
    }


def _helm(cluster: RunningCluster, arguments: list[str], stdin: str | None = None) -> None:
    done = subprocess.run(
        [build.ensure().path("helm"), *arguments],
        input=stdin,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
