"""One release of the operator for the whole tier, and a tenant for each of its namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dev.s3 import S3Endpoint
from tests.plugins.cluster import RunningCluster
from tests.support.installed import Installed, installed
from tests.support.tenant import Tenant, tenants

NAMESPACES = ("team",)


@pytest.fixture(scope="session")
def bucket(cluster_s3: S3Endpoint) -> str:
    return cluster_s3.make_bucket()


@pytest.fixture(scope="session")
def operator(
    cluster: RunningCluster, cluster_s3: S3Endpoint, bucket: str, load_image: Callable[[str], str]
) -> Iterator[Installed]:
    with installed(cluster, cluster_s3, bucket, NAMESPACES, load_image("operator")) as release:
        yield release


@pytest.fixture(scope="session")
def everybody(
    operator: Installed,
    cluster_s3: S3Endpoint,
    bucket: str,
    load_image: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Tenant]:
    """The tenants by the first part of their namespaces' names."""
    directory = tmp_path_factory.mktemp("kubeconfigs")
    made = tenants(operator, cluster_s3, bucket, load_image("tests"), directory)
    return {tenant.namespace.rsplit("-", 1)[0]: tenant for tenant in made}


@pytest.fixture
def team(everybody: dict[str, Tenant]) -> Iterator[Tenant]:
    """Somebody whose namespace has all that it needs."""
    yield everybody["team"]
    everybody["team"].clear()
