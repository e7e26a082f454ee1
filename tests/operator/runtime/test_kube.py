"""What the API server answers, as the operator's client understands it."""

from __future__ import annotations

import pytest

from everstep_operator.kube import ApiError, Kube, core_path
from tests.plugins.cluster import RunningCluster


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
