"""One release of the operator for the whole tier, and a tenant for each of its namespaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from tests.plugins.cluster import RunningCluster
from tests.support.installed import Installed, installed
from tests.support.loose_s3 import LooseS3
from tests.support.tenant import Tenant, tenants

NAMESPACES = ("team", "crowded", "wrong-keys", "no-keys", "no-bucket", "far-away", "loose", "nobody")
"""What each of them has to live with; `nobody` has no storage profile."""
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="session")
def bucket(cluster_s3: S3Endpoint) -> str:
    return cluster_s3.make_bucket()


@pytest.fixture(scope="session")
def loose_s3(cluster: RunningCluster, cluster_s3: S3Endpoint) -> Iterator[str]:
    """The address of a server that ignores preconditions."""
    with LooseS3(cluster_s3, cluster.instance.network.host_address) as url:
        yield url


@pytest.fixture(scope="session")
def operator(
    cluster: RunningCluster, cluster_s3: S3Endpoint, bucket: str, loose_s3: str, load_image: Callable[[str], str]
) -> Iterator[Installed]:
    s3 = cluster_s3
    keys = {"accessKey": s3.access_key, "secretKey": s3.secret_key}

    def profile(namespace: str, **changes: Any) -> dict[str, Any]:
        buckets = [{"name": bucket, "prefixes": ["jobs"]}]
        usual = {"endpoint": s3.url, "region": s3.region, "buckets": buckets, "credentials": keys}
        return {"name": namespace, "namespaces": [namespace], **usual, **changes}

    profiles = [
        profile("wrong-keys", credentials={**keys, "secretKey": "mistyped"}),
        profile("no-keys", credentials={"existingSecret": "no-such-secret"}),
        profile("no-bucket", buckets=[{"name": "no-such-bucket"}]),
        profile("far-away", endpoint=CLOSED),
        profile("loose", endpoint=loose_s3),
        profile("nobody", namespaces=["somebody-else"]),
    ]
    with installed(cluster, s3, bucket, NAMESPACES, load_image("operator"), profiles) as release:
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
def tenant(everybody: dict[str, Tenant]) -> Iterator[Callable[[str], Tenant]]:
    """The tenant of one of the namespaces; their jobs go after the test."""
    used: list[Tenant] = []

    def of(namespace: str) -> Tenant:
        used.append(everybody[namespace])
        return used[-1]

    yield of
    for each in used:
        each.clear()


@pytest.fixture
def team(tenant: Callable[[str], Tenant]) -> Tenant:
    """Somebody whose namespace has all that it needs."""
    return tenant("team")
