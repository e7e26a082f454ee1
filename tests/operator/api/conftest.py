"""The CRD of this tree on a real API server, and a client that creates jobs under strict field validation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.plugins.cluster import RunningCluster
from tests.support.trainingjobs import Manifest
from tests.support.waiting import wait_for

CRD = Path(__file__).parents[3] / "crds/trainingjobs.everstep.dev.yaml"


class RefusedError(Exception):
    """What the API server says against an object."""


@dataclass(frozen=True)
class Jobs:
    """TrainingJobs of one namespace, by the raw API."""

    api: Any
    namespace: str

    def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """Creates a job under strict field validation. Raises RefusedError."""
        options = {"dry_run": "All"} if dry_run else {}
        return self._call("create_namespaced_custom_object", body=manifest, field_validation="Strict", **options)

    def replace(self, manifest: Manifest) -> Manifest:
        """Replaces all but the status."""
        return self._call(
            "replace_namespaced_custom_object",
            name=manifest["metadata"]["name"],
            body=manifest,
            field_validation="Strict",
        )

    def replace_status(self, manifest: Manifest) -> Manifest:
        """Replaces the status."""
        return self._call(
            "replace_namespaced_custom_object_status",
            name=manifest["metadata"]["name"],
            body=manifest,
            field_validation="Strict",
        )

    def get(self, name: str) -> Manifest:
        """The job as it is stored."""
        return self._call("get_namespaced_custom_object", name=name)

    def clear(self) -> None:
        self._call("delete_collection_namespaced_custom_object")

    def _call(self, method: str, **arguments: Any) -> Manifest:
        try:
            found: Manifest = getattr(self.api, method)(
                group="everstep.dev",
                version="v1alpha1",
                plural="trainingjobs",
                namespace=self.namespace,
                **arguments,
            )
        except client.ApiException as error:
            raise RefusedError(json.loads(error.body or "{}")["message"]) from error
        return found


@pytest.fixture(scope="session")
def crd_server(api_server: RunningCluster) -> RunningCluster:
    """The API server with this tree's CRD, applied under strict validation."""
    api_server.apply(CRD.read_text(encoding="utf-8"))
    wait_for("the CRD is served", lambda: _served(api_server))
    return api_server


def _served(api_server: RunningCluster) -> bool:
    """Whether jobs can be listed and are described. `kubectl wait` fails on an object that has no conditions yet."""
    try:
        api_server.kubectl("get", "--raw", "/apis/everstep.dev/v1alpha1/trainingjobs?limit=1")
        api_server.kubectl("get", "--raw", "/openapi/v3/apis/everstep.dev/v1alpha1")
    except AssertionError:
        return False
    return True


@pytest.fixture(scope="session")
def crd_jobs(crd_server: RunningCluster) -> Jobs:
    """TrainingJobs in the namespace `default`, for dry runs."""
    api_client = config.new_client_from_config(str(crd_server.kubeconfig))
    return Jobs(client.CustomObjectsApi(api_client), "default")


@pytest.fixture(scope="session")
def jobs_namespace(crd_server: RunningCluster) -> Iterator[str]:
    with crd_server.namespace() as name:
        yield name


@pytest.fixture
def jobs(crd_jobs: Jobs, jobs_namespace: str) -> Iterator[Jobs]:
    """TrainingJobs in a namespace where none are."""
    made = Jobs(crd_jobs.api, jobs_namespace)
    yield made
    made.clear()
