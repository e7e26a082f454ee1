"""A job from apply to its end, with all that may befall it, on pods that really run and really die."""

from __future__ import annotations

from everstep.catalog import JobCatalog
from tests.support.tenant import Tenant
from tests.trainers.lite import SHARD, chain


def result(register: JobCatalog) -> str:
    """The state in the last checkpoint, as hex."""
    last = register.require().latest()
    assert last is not None
    return register.store.get(f"{last.location}/{SHARD}")[:32].hex()


def test_a_job_succeeds_and_its_pods_stay_for_their_logs(team: Tenant) -> None:
    team.run("plain")
    status = team.until_phase("plain", "Succeeded")
    assert status["progress"]["summary"] == "50/50 (100%)"
    assert status["lastCheckpoint"]["step"] == 50
    assert result(team.register("plain")) == chain(50).hex()
    assert sorted(team.pods("plain")) == ["plain-1-0", "plain-1-1"]
    assert "step 50 of 50" in team.kubectl("logs", "plain-1-0")
