"""Where the demo runs: the embedded cluster with its S3 server, or the cluster of the current kubeconfig."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dev import build, cluster, images, prerequisites, space
from dev.demo.kubectl import Kubectl, KubectlError
from dev.instance import Level
from dev.s3 import S3Endpoint

NAMESPACE = "everstep-demo"
BUCKET = "everstep-demo"
INSTANCE = "demo"


class TargetError(RuntimeError):
    """The demo cannot run there; the text says what is missing."""


@dataclass(frozen=True)
class Target:
    kubectl: Kubectl
    helm: str
    s3: S3Endpoint
    bucket: str
    operator_image: str
    trainer_image: str

    def helm_environment(self) -> dict[str, str]:
        kubeconfig = {"KUBECONFIG": self.kubectl.kubeconfig} if self.kubectl.kubeconfig else {}
        return {**os.environ, **kubeconfig}


def embedded(console: Console) -> Target:
    """Start (or reuse) the instance `demo`, build the images and load them into it."""
    prerequisites.ensure(prerequisites.FULL, console=console)
    space.ensure(space.costs(), *space.free())
    programs = build.ensure(console=console)
    instance = cluster.up(INSTANCE, Level.full, s3=True)
    images.load(instance, console=console)
    s3 = cluster.s3_server(instance).endpoint
    s3.make_bucket(BUCKET, versioned=True)
    kubectl = Kubectl(programs.path("kubectl"), str(instance.kubeconfig), NAMESPACE)
    return Target(
        kubectl, programs.path("helm"), s3, BUCKET, "docker.io/everstep/operator:dev", "docker.io/everstep/trainer:dev"
    )


def current() -> Target:
    """The cluster that kubectl talks to now, and the S3 storage and images that the environment names."""
    wanted = {
        "AWS_ENDPOINT_URL": "the S3 server, as the pods reach it",
        "AWS_ACCESS_KEY_ID": "its key",
        "AWS_SECRET_ACCESS_KEY": "and secret",
        "DEMO_BUCKET": "a bucket that exists",
        "OPERATOR_IMAGE": "the operator's image, as the cluster pulls it",
        "TRAINER_IMAGE": "the trainer's image",
    }
    missing = [f"{name} ({meaning})" for name, meaning in wanted.items() if not os.environ.get(name)]
    if missing:
        raise TargetError(f"CLUSTER=current needs in the environment: {'; '.join(missing)}")
    programs = {name: shutil.which(name) for name in ("kubectl", "helm")}
    for name, path in programs.items():
        if path is None:
            raise TargetError(f"CLUSTER=current needs {name} on the PATH")
    s3 = S3Endpoint(
        os.environ["AWS_ENDPOINT_URL"],
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_REGION", "us-east-1"),
    )
    kubectl = Kubectl(str(programs["kubectl"]), None, NAMESPACE)
    try:
        kubectl("get", "--raw", "/readyz", namespaced=False)
    except KubectlError as error:
        raise TargetError(f"CLUSTER=current: the cluster does not answer: {error}") from error
    environ = os.environ
    return Target(
        kubectl, str(programs["helm"]), s3, environ["DEMO_BUCKET"], environ["OPERATOR_IMAGE"], environ["TRAINER_IMAGE"]
    )


def repository() -> Path:
    return Path(__file__).parents[2]
