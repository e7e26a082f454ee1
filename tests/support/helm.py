"""The pinned helm, and the chart as it renders."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from dev import build
from dev.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "everstep"

INLINE: dict[str, Any] = {
    "name": "inline",
    "namespaces": ["team-a"],
    "endpoint": "http://s3.test:8333",
    "region": "us-east-1",
    "buckets": [{"name": "bucket-a", "prefixes": ["{namespace}"]}],
    "credentials": {"accessKey": "AK", "secretKey": "a secret: value"},
}
EXISTING: dict[str, Any] = {
    "name": "existing",
    "namespaces": ["*"],
    "buckets": [{"name": "bucket-b"}],
    "credentials": {"existingSecret": "theirs", "sessionTokenName": "TOKEN"},
}
IDENTITY: dict[str, Any] = {"name": "identity", "namespaces": ["c"], "buckets": [{"name": "bucket-c"}]}
PROFILES = {"storageProfiles": [INLINE, EXISTING, IDENTITY]}

Manifest = dict[str, Any]


class HelmError(Exception):
    """What helm says when it fails."""


def helm(*arguments: str, values: dict[str, Any] | None = None) -> str:
    extra = ["--values", "-"] if values is not None else []
    command = [build.ensure().path("helm"), *arguments, *extra]
    done = subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True, check=False)
    if done.returncode:
        raise HelmError(done.stderr)
    return done.stdout


def render(values: dict[str, Any] | None = None, *options: str, chart: Path = CHART) -> list[Manifest]:
    """What `helm template es` makes in the namespace ops."""
    text = helm("template", "es", str(chart), "--namespace", "ops", *options, values=values or {})
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]  # five times as fast


def one(documents: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


def pod_spec(documents: list[Manifest]) -> Manifest:
    """The operator's pod."""
    spec: Manifest = one(documents, "Deployment", "es-everstep")["spec"]["template"]["spec"]
    return spec


def previous_chart(directory: Path) -> Path:
    """The chart as it was before the commit that changed it, or its CRD, last."""
    git = ["git", "-C", str(REPOSITORY)]
    paths = ["charts/everstep", "crds"]
    found = subprocess.run(
        [*git, "log", "-n1", "--format=%H^", "--", *paths], capture_output=True, text=True, check=False
    )
    revision = found.stdout.strip()
    archive = subprocess.run([*git, "archive", revision, *paths], capture_output=True, check=False)
    if not revision or archive.returncode:
        pytest.skip("no history of the chart: not a git checkout, or a shallow one")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory / "charts" / "everstep"
