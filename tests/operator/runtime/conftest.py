"""A namespace with the operator, a kubelet that is played, and jobs: all that the operator's own tests need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.s3 import S3Endpoint
from everstep.catalog import S3Access
from tests.plugins.cluster import RunningCluster
from tests.support.kubelet import Kubelet
from tests.support.operator_process import OperatorProcess
from tests.support.rig import Rig, write_profiles
from tests.support.waiting import wait_for
from tests.trainers.lite import Job, Options

CRD = Path(__file__).parents[3] / "crds/trainingjobs.everstep.dev.yaml"


@pytest.fixture(scope="session")
def crd_server(api_server: RunningCluster) -> RunningCluster:
    """The API server with this tree's CRD."""
    api_server.apply(CRD.read_text(encoding="utf-8"))

    def served() -> bool:
        try:
            return bool(api_server.kubectl("get", "--raw", "/apis/everstep.dev/v1alpha1/trainingjobs"))
        except AssertionError:
            return False

    wait_for("the CRD is served", served)
    return api_server


@pytest.fixture
def rig(
    crd_server: RunningCluster, s3_server: S3Endpoint, tmp_path: Path, make_rig: Callable[..., Rig]
) -> Iterator[Rig]:
    """An operator that runs, with a kubelet."""
    made = make_rig()
    made.operator.start()
    with made.kubelet:
        yield made


@pytest.fixture(scope="session")
def bucket(s3_server: S3Endpoint) -> str:
    """One bucket for all: roots differ by namespace, and a bucket takes its share of the server's volumes."""
    return s3_server.make_bucket()


@pytest.fixture
def make_rig(
    crd_server: RunningCluster, s3_server: S3Endpoint, bucket: str, tmp_path: Path
) -> Iterator[Callable[..., Rig]]:
    """Makes rigs whose operator and kubelet are not yet started; stops the operators afterwards."""
    with _rigs(crd_server, s3_server, bucket, tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def shared_rig(
    crd_server: RunningCluster, s3_server: S3Endpoint, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rig]:
    """One operator with a kubelet for all tests of a module, each with a job of its own name."""
    with _rigs(crd_server, s3_server, bucket, tmp_path_factory.mktemp("rig")) as make:
        made = make()
        made.operator.start()
        with made.kubelet:
            yield made


@contextmanager
def _rigs(
    crd_server: RunningCluster, s3_server: S3Endpoint, bucket: str, directory: Path
) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []
    spaces: list[Any] = []

    def make(endpoint: str | None = None, kubeconfig: Path | None = None) -> Rig:
        space = crd_server.namespace()
        namespace = space.__enter__()
        spaces.append(space)
        here = directory / namespace
        here.mkdir()
        url = endpoint or s3_server.url
        profiles = write_profiles(here, s3_server, bucket, url)
        operator = OperatorProcess(kubeconfig or crd_server.kubeconfig, here, namespace, profiles)
        access = S3Access(s3_server.url, s3_server.region, s3_server.access_key, s3_server.secret_key)
        options: dict[int | str, Options] = {}

        def choose(job: Job) -> Options:
            name = job.root.rsplit("/", 1)[-1]
            return options.get(name) or options.get(job.attempt) or options.get(0) or Options()

        kubelet = Kubelet(crd_server.kubeconfig, namespace, access, choose)
        rig = Rig(crd_server, namespace, s3_server, bucket, here, operator, kubelet, options, url)
        made.append(rig)
        return rig

    try:
        yield make
    finally:
        for rig in made:
            rig.operator.kill()
        for space in spaces:
            space.__exit__(None, None, None)
