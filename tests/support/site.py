"""Where real gangs run: a namespace with its operator on a whole cluster, and the store that both write to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from kubernetes import client, config

from dev.s3 import S3Endpoint
from everstep.catalog import Catalog, JobCatalog, S3Access, job_root, open_store
from everstep_operator.api import GROUP, PLURAL, VERSION
from tests.plugins.cluster import RunningCluster
from tests.support.followers import Followers
from tests.support.installed import SECRET, Installed, installed
from tests.support.tenant import ENDED, LOCKED_DOWN, RESTRICTED

Json = dict[str, Any]


@dataclass
class Site:
    """`endpoint` is where pods and operator reach the store; the site itself reads it at `s3`."""

    operator: Installed
    s3: S3Endpoint
    endpoint: str
    bucket: str

    def __post_init__(self) -> None:
        self.api = client.CustomObjectsApi(config.new_client_from_config(str(self.cluster.kubeconfig)))

    @property
    def cluster(self) -> RunningCluster:
        return self.operator.cluster

    @property
    def namespace(self) -> str:
        return self.operator.namespaces[0]

    def apply(
        self, job: str, image: str, args: Sequence[str], checkpoint: Json, command: Sequence[str] = (), **spec: Any
    ) -> str:
        """Create a job of two pods; returns its uid. `command` replaces the image's own, `spec` adds to its spec."""
        container: Json = {"name": "trainer", "image": image, "args": list(args), "securityContext": LOCKED_DOWN}
        if command:
            container["command"] = list(command)
        storage = {"uri": f"s3://{self.bucket}/jobs", "endpoint": self.endpoint, "region": self.s3.region}
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TrainingJob",
            "metadata": {"name": job, "namespace": self.namespace},
            "spec": {
                "nodes": 2,
                "procPerNode": 1,
                "template": {"spec": {**RESTRICTED, "containers": [container]}},
                "checkpoint": {"storage": {**storage, "secretName": SECRET}, **checkpoint},
                **spec,
            },
        }
        made: Any = self.api.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        return str(made["metadata"]["uid"])

    def status(self, job: str) -> Json:
        found: Any = self.api.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, job)
        return dict(found.get("status") or {})

    def delete(self, job: str) -> None:
        """The resource goes, the checkpoints stay."""
        self.api.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, job)

    def delete_pod(self, pod: str) -> None:
        """By force: no grace, its object is gone at once."""
        self.cluster.core.delete_namespaced_pod(pod, self.namespace, grace_period_seconds=0)

    def followers(self, job: str) -> Followers:
        return Followers(self.cluster.kubeconfig, self.namespace, job)

    def finish(self, job: str, followers: Followers, seconds: float = 180) -> Json:
        """Wait until it has succeeded; its status."""
        try:
            followers.until("the end", lambda: self.status(job).get("phase") in ENDED, seconds)
            status = self.status(job)
            assert status["phase"] == "Succeeded", f"{job} failed"
        except AssertionError as error:
            shown = json.dumps(self.status(job), indent=1)
            raise AssertionError(f"{error}\n{followers.tails()}\n{shown}\n{self.operator.tail()}") from None
        return status

    def prefix(self, job: str) -> str:
        """Of the job's keys in the bucket."""
        return f"jobs/{self.namespace}/{job}"

    def catalog(self, job: str) -> Catalog | None:
        access = S3Access(self.s3.url, self.s3.region, self.s3.access_key, self.s3.secret_key)
        return JobCatalog(open_store(job_root(f"s3://{self.bucket}/jobs", self.namespace, job), access)).read()


@contextmanager
def opened(
    cluster: RunningCluster, s3: S3Endpoint, bucket: str, operator_image: str, endpoint: str | None = None
) -> Iterator[Site]:
    """Installs the operator with the chart's own settings. `endpoint`: another way to the same store."""
    seen = replace(s3, url=endpoint or s3.url)
    with installed(cluster, seen, bucket, ["gangs"], operator_image, settings={"logFormat": "console"}) as operator:
        yield Site(operator, s3, seen.url, bucket)
