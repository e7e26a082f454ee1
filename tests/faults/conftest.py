"""One operator, one gate and one uninterrupted run for all trials of a session."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from dev.s3 import S3Endpoint
from everstep.catalog import Catalog, JobCatalog, S3Access, open_store
from tests.faults.trials import SAVE_EVERY, STEPS
from tests.plugins.cluster import RunningCluster
from tests.support import release
from tests.support.followers import Followers
from tests.support.gate import Gate

KEEP = {"keepLast": 2, "keepBest": {"count": 1, "metric": "loss", "mode": "min"}, "keepEvery": 20}


@dataclass
class Site:
    """Where jobs run: their namespace, the gate that they and their operator write through, the bucket behind it."""

    cluster: RunningCluster
    name: str
    namespace: str
    image: str
    s3: S3Endpoint
    bucket: str
    gate: Gate
    directory: Path

    def __post_init__(self) -> None:
        self.api = client.CustomObjectsApi(config.new_client_from_config(str(self.cluster.kubeconfig)))

    def followers(self, job: str) -> Followers:
        return Followers(self.cluster.kubeconfig, self.namespace, job)

    def apply(self, job: str, steps: int = STEPS) -> str:
        """Create a job of the recipe; returns its uid."""
        args = ["torchrun", "-m", "everstep.train", f"--steps={steps}", "--evaluation.every=20"]
        checkpoint = {"interval": {"steps": SAVE_EVERY}, **KEEP}
        body = release.training_job(job, self.namespace, self.image, args, self.gate.url, self.bucket, checkpoint)
        made = self.api.create_namespaced_custom_object(
            "everstep.dev", "v1alpha1", self.namespace, "trainingjobs", body
        )
        return str(made["metadata"]["uid"])

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get_namespaced_custom_object(
            "everstep.dev", "v1alpha1", self.namespace, "trainingjobs", job
        )
        return found

    def status(self, job: str) -> dict[str, Any]:
        return dict(self.job(job).get("status") or {})

    def phase(self, job: str) -> str:
        return str(self.status(job).get("phase") or "")

    def finish(self, job: str, followers: Followers, seconds: float = 180) -> dict[str, Any]:
        """Wait until it has succeeded; its status."""
        ends = ("Succeeded", "Failed")
        try:
            followers.until("the end", lambda: self.phase(job) in ends, seconds)
            status = self.status(job)
            assert status["phase"] == "Succeeded", f"{job} failed"
        except AssertionError as error:
            log = release.operator_log(self.cluster, self.name)
            shown = json.dumps(self.status(job), indent=1)
            raise AssertionError(f"{error}\n{followers.tails()}\n{shown}\n{log}") from None
        return status

    def delete(self, job: str) -> None:
        """The resource goes, the checkpoints stay."""
        self.api.delete_namespaced_custom_object("everstep.dev", "v1alpha1", self.namespace, "trainingjobs", job)

    def delete_pod(self, pod: str) -> None:
        self.cluster.kubectl("delete", "pod", pod, f"--namespace={self.namespace}", "--force", "--grace-period=0")

    def prefix(self, job: str) -> str:
        return f"jobs/{self.namespace}/{job}"

    def catalog(self, job: str) -> Catalog | None:
        """Read past the gate."""
        access = S3Access(self.s3.url, self.s3.region, self.s3.access_key, self.s3.secret_key)
        return JobCatalog(open_store(f"s3://{self.bucket}/{self.prefix(job)}", access)).read()

    def write_evidence(self, job: str, followers: Followers) -> Path:
        """What the pods said, for check_history; kept with the session's temporary files."""
        path = self.directory / f"{job}.json"
        path.write_text(json.dumps({"pods": [pod.evidence() for pod in followers.pods.values()]}, indent=1))
        return path


@pytest.fixture(scope="session")
def site(
    cluster: RunningCluster,
    cluster_s3: S3Endpoint,
    load_image: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    operator, trainer = load_image("operator"), load_image("trainer")
    name = f"faults-{secrets.token_hex(3)}"
    bucket = cluster_s3.make_bucket(versioned=True)
    with Gate(cluster_s3.url, cluster.instance.network.host_address) as gate, cluster.namespace() as namespace:
        cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
        release.install(cluster, name, namespace, operator, gate.url, cluster_s3, bucket)
        try:
            directory = tmp_path_factory.mktemp("evidence")
            yield Site(cluster, name, namespace, trainer, cluster_s3, bucket, gate, directory)
        finally:
            release.uninstall(cluster, name)


@pytest.fixture(scope="session")
def reference(site: Site) -> Path:
    """The evidence of a run that nothing interrupts."""
    with site.followers("reference") as followers:
        site.apply("reference")
        site.finish("reference", followers)
    path = site.write_evidence("reference", followers)
    site.delete("reference")
    return path
