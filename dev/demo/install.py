"""What a user does before the first job: install the chart, make a namespace and the Secret of the storage."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import yaml

from dev.demo.target import NAMESPACE, Target, repository

RELEASE = "everstep"
SYSTEM = "everstep-system"
SECRET = "s3-credentials"
PROFILE = "demo"


class InstallError(RuntimeError):
    """helm refused; the text is its own."""


def install(target: Target) -> None:
    """Raises InstallError, also where the cluster has an everstep that is in use: its profiles would be gone."""
    _refuse_to_replace(target)
    repo, _, tag = target.operator_image.rpartition(":")
    values = {
        "image": {"repository": repo, "tag": tag},
        "storageProfiles": [
            {
                "name": PROFILE,
                "namespaces": [NAMESPACE],
                "endpoint": target.s3.url,
                "region": target.s3.region,
                "buckets": [{"name": target.bucket}],
                "credentials": {"accessKey": target.s3.access_key, "secretKey": target.s3.secret_key},
            }
        ],
    }
    chart = str(repository() / "charts" / "everstep")
    command = [target.helm, "upgrade", "--install", RELEASE, chart, f"--namespace={SYSTEM}", "--create-namespace"]
    command += ["--values=-", "--wait", "--timeout=3m"]
    done = subprocess.run(
        command, input=json.dumps(values), env=target.helm_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise InstallError(f"{' '.join(command)}: {done.stderr.strip()}")


def _refuse_to_replace(target: Target) -> None:
    command = [target.helm, "get", "values", RELEASE, f"--namespace={SYSTEM}", "--output=json"]
    done = subprocess.run(command, env=target.helm_environment(), capture_output=True, text=True)
    if done.returncode:  # there is none
        return
    found = [str(profile.get("name")) for profile in (json.loads(done.stdout) or {}).get("storageProfiles") or []]
    if found != [PROFILE]:
        raise InstallError(
            f"the release {RELEASE} in {SYSTEM} is not the demo's (storage profiles: {', '.join(found) or 'none'}), "
            "and the demo would replace its values: use another cluster, or uninstall it first"
        )


def prepare_namespace(target: Target) -> None:
    kubectl = target.kubectl
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }
    )
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET},
            "stringData": {
                "AWS_ACCESS_KEY_ID": target.s3.access_key,
                "AWS_SECRET_ACCESS_KEY": target.s3.secret_key,
            },
        }
    )


def job(target: Target, name: str) -> dict[str, Any]:
    """examples/stdlib-lm.yaml with this target's storage and image."""
    manifest: dict[str, Any] = yaml.safe_load((repository() / "examples" / "stdlib-lm.yaml").read_text())
    manifest["metadata"]["name"] = name
    storage = manifest["spec"]["checkpoint"]["storage"]
    storage.update(uri=f"s3://{target.bucket}/jobs", endpoint=target.s3.url, region=target.s3.region, secretName=SECRET)
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = target.trainer_image
    return manifest
