"""A job's way through its attempts on a real API server and real object storage, with the operator as a process."""

from __future__ import annotations

from tests.support.rig import Rig
from tests.trainers.lite import Options, chain

QUICK = Options(total_steps=30, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)


def test_a_job_runs_to_success(rig: Rig) -> None:
    rig.options[0] = QUICK
    rig.apply()
    status = rig.until_phase("Succeeded")
    assert status["attempt"] == 1
    assert status["lastCheckpoint"]["step"] == 30
    run = rig.kubelet.container("job-1-0").run
    assert run.state == chain(30)
    assert [entry.step for entry in rig.catalog().live()] == [10, 20, 30]
