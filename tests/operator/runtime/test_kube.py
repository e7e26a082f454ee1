"""What the API server answers, as the operator's client understands it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from everstep_operator.act import StaleError
from everstep_operator.act.pods import Pods
from everstep_operator.build import service_manifest
from everstep_operator.clock import ServerClock
from everstep_operator.kube import ApiError, Kube, core_path
from everstep_operator.memory import JobMemory
from everstep_operator.observe import Seen
from everstep_operator.reconcile.plan import EnsureService
from tests.plugins.cluster import RunningCluster
from tests.support.observations import UID, job


async def test_a_list_that_the_server_cannot_give_yet_is_told_apart_from_other_refusals(
    api_server: RunningCluster,
) -> None:
    path = core_path("default", "pods")
    async with await Kube.connect(api_server.kubeconfig, user_agent="tests") as kube:
        _, version = await kube.list_at(path, 0)
        assert await kube.list_at(path, int(version))
        with pytest.raises(ApiError) as ahead:
            await kube.list_at(path, int(version) + 10**9)
        with pytest.raises(ApiError) as refused:
            await kube.list_at(path, int(version), labelSelector="not a selector!")
    assert (ahead.value.version_unknown, refused.value.version_unknown) == (True, False)


@pytest.mark.parametrize("minutes", [20, -20])
async def test_a_clock_that_is_off_is_set_by_the_servers_answers(api_server: RunningCluster, minutes: int) -> None:
    async with await Kube.connect(api_server.kubeconfig, user_agent="tests") as kube:
        kube.clock = ServerClock(wall=lambda: time.time() + 60 * minutes)
        assert abs(kube.clock.now() - datetime.now(UTC)) > timedelta(minutes=19)
        await kube.get(core_path("default", "services", "kubernetes"))
        assert abs(kube.clock.now() - datetime.now(UTC)) < timedelta(seconds=10), "the server runs on this machine"


async def test_a_service_is_applied_only_onto_the_one_that_was_looked_at(api_server: RunningCluster) -> None:
    seen, memory = Seen({}, job()), JobMemory(UID)
    manifest = service_manifest(seen.job, 1)
    del manifest["metadata"]["ownerReferences"]  # the garbage collector knows no such job
    ensure = EnsureService("job-rendezvous", manifest)
    path = core_path("default", "services", ensure.name)
    async with await Kube.connect(api_server.kubeconfig, user_agent="tests") as kube:
        pods = Pods(kube)
        assert await pods.ensure_service(seen, memory, ensure) is None
        version = memory.applied
        assert await pods.ensure_service(seen, memory, ensure) is None
        assert memory.applied == version, "to apply the same again is no change"
        await kube.delete(path)
        with pytest.raises(StaleError):
            await pods.ensure_service(seen, memory, ensure)
        seen.service = None
        assert await pods.ensure_service(seen, memory, ensure) is None
        await kube.delete(path)
