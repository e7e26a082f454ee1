"""Upgrade and uninstall with a job that runs: neither costs it a step, and what everstep promised to keep is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.operator.chart.conftest import Release
from tests.support.helm import CHART, previous_chart
from tests.support.waiting import wait_for
from tests.trainers.lite import Options

LONG = Options(total_steps=10_000, seconds_per_step=0.05, save_every=10, heartbeat_seconds=0.2)
TAKE_OVER = "--take-ownership"
"""Of the CRD that a release of another name or namespace has left behind."""

GARBAGE_COLLECTED = 120
"""Seconds: the garbage collector learns of a CRD that has changed twice a minute, and from then on of its objects."""


def committed(release: Release) -> bool:
    return bool(release.rig.status().get("lastCheckpoint"))


@pytest.mark.timeout(240)
def test_an_upgrade_from_the_previous_chart_costs_a_running_job_nothing(
    make_release: Callable[[], Release], tmp_path: Path
) -> None:
    release = make_release()
    rig = release.rig
    rig.options[0] = LONG
    release.upgrade(previous_chart(tmp_path), TAKE_OVER)
    with rig.kubelet:
        release.start()
        rig.apply()
        rig.until_running(1)
        wait_for("a commit", lambda: committed(release))
        before = {pod.metadata.name: pod.metadata.uid for pod in rig.pods()}
        release.upgrade()
        assert rig.operator.stop() == 0
        at = rig.status()["progress"]["step"]
        release.start()
        wait_for("it commits on", lambda: rig.status()["lastCheckpoint"]["step"] > at + 20)
        assert {pod.metadata.name: pod.metadata.uid for pod in rig.pods()} == before
        assert rig.status()["attempt"] == 1
        rig.core.delete_namespaced_pod("job-1-0", rig.namespace, grace_period_seconds=0)
        rig.until_running(2)
        rig.delete()
        wait_for("no pods", lambda: not rig.pods(), GARBAGE_COLLECTED)
    release.uninstall()


@pytest.mark.timeout(240)
def test_an_uninstall_keeps_jobs_checkpoints_and_gangs_and_a_new_release_takes_them_over(
    make_release: Callable[[], Release],
) -> None:
    release = make_release()
    rig = release.rig
    rig.options[0] = LONG
    release.upgrade(CHART, TAKE_OVER)
    with rig.kubelet:
        release.start()
        rig.apply()
        rig.until_running(1)
        wait_for("a commit", lambda: committed(release))
        pods = {pod.metadata.name: pod.metadata.uid for pod in rig.pods()}
        rig.operator.kill()
        said = release.uninstall()
        assert "kept" in said
        assert "trainingjobs.everstep.dev" in said

        left = rig.cluster.kubectl("get", "all,configmap,secret,role,rolebinding,serviceaccount", "-n", rig.namespace)
        assert f"{release.name}-" not in left.replace(f"sh.helm.release.v1.{release.name}", "")
        assert rig.status()["attempt"] == 1, "the job is there"
        step = rig.catalog().live()[-1].step
        wait_for("the gang commits without an operator", lambda: rig.catalog().live()[-1].step > step)

        release.upgrade(CHART, TAKE_OVER)
        release.start()
        wait_for("it is followed again", lambda: rig.status()["lastCheckpoint"]["step"] > step + 20)
        assert {pod.metadata.name: pod.metadata.uid for pod in rig.pods()} == pods
        rig.core.delete_namespaced_pod("job-1-0", rig.namespace, grace_period_seconds=0)
        rig.delete()
        wait_for("no pods", lambda: not rig.pods(), GARBAGE_COLLECTED)
    release.uninstall()
    assert rig.catalog().live(), "checkpoints outlive job and release"
