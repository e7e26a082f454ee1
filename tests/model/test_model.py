"""The catalog against its model: many random interleavings of the real code, and proof that the model would notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from everstep.catalog import job as job_module
from everstep.catalog import register as register_module
from everstep.catalog import retention, transitions
from everstep.catalog.documents import Catalog, Owner
from everstep.catalog.job import Claimed, JobCatalog
from everstep.catalog.keys import Location
from everstep.catalog.register import Register, Snapshot
from everstep.catalog.retention import Retention, expendable
from everstep.catalog.store import SwapRefused, SwapUnanswered
from everstep.catalog.transitions import AUTO, Resume, begin_at, resume_point
from everstep.errors import CheckpointError
from tests.model import machine

QUICK: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": False,
    "suppress_health_check": list(HealthCheck),
}
LEAST_STEPS = int(os.environ.get("EVERSTEP_MODEL_STEPS", "20000"))


@pytest.mark.timeout(900)
def test_no_interleaving_breaks_the_contract(record_property: Callable[[str, object], None]) -> None:
    machine.steps_taken = 0
    rounds = 0
    while machine.steps_taken < LEAST_STEPS:
        options = settings(**QUICK, max_examples=100, stateful_step_count=60, phases=(Phase.generate, Phase.shrink))
        run_state_machine_as_test(machine.CatalogMachine, settings=options)
        rounds += 1
    record_property("steps", machine.steps_taken)
    print(f"{machine.steps_taken} requests of interleaved actors in {rounds} rounds, no violation")


def no_claim_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks may commit."""
    real = transitions.require_claim

    def require_claim(catalog: Catalog | None, claim_id: str) -> Catalog:
        return real(None, claim_id) if catalog is None else catalog

    monkeypatch.setattr(transitions, "require_claim", require_claim)


def resume_before_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The resume point is read first, then older writers are shut out."""
    real = JobCatalog.claim

    def claim(
        self: JobCatalog, attempt: int | None = None, uid: str | None = None, resume: Resume = AUTO, local: bool = False
    ) -> Claimed:
        early = self.read()
        claimed = real(self, attempt, uid, resume, local)
        claimed.resume = None if early is None else resume_point(early)
        return claimed

    monkeypatch.setattr(JobCatalog, "claim", claim)


def blind_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """After silence or refusal the same body is forced in under whatever token stands there now."""

    def write(
        self: Register, body: bytes, swap: str, token: str | None, deadline: float
    ) -> tuple[bool, Snapshot | None]:
        for _ in range(5):
            try:
                self.store.swap_register(self.key, body, token)
                return True, None
            except (SwapRefused, SwapUnanswered):
                now = self._read_again(deadline)
                token = now.token if now else None
        raise CheckpointError("gave up")

    monkeypatch.setattr(register_module.Register, "_write", write)


def delete_before_the_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys go first, the register follows."""
    real = JobCatalog.retire

    def retire(self: JobCatalog, policy: Retention, owner: Owner | None = None) -> Catalog | None:
        catalog = self.require()
        for entry in expendable(catalog, policy, self._clock()):
            self._delete(Location.parse(entry.location))
        return real(self, policy, owner)

    monkeypatch.setattr(JobCatalog, "retire", retire)


def create_over_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A register that is missing is simply made."""
    monkeypatch.setattr(job_module.JobCatalog, "_created", lambda self, expect_existing: Catalog())


def sweep_by_an_old_document(monkeypatch: pytest.MonkeyPatch) -> None:
    """The register is read before the listing: a save that commits between the two is swept."""

    def sweep(self: JobCatalog) -> list[str]:
        catalog = self.require()
        for folder in list(self.store.list_folders("checkpoints/")):
            location = Location.parse(folder)
            if catalog.find(folder) is None and location.epoch <= catalog.epoch:
                self._delete(location)
        return []

    monkeypatch.setattr(JobCatalog, "sweep", sweep)


def a_late_choice_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to begin is applied by whatever fence brings it, however late."""
    real = transitions.fence

    def fence(
        catalog: Catalog, owner: Owner, fence_id: str, at_least: int = 1, resume: Resume = AUTO, adopt: bool = False
    ) -> Catalog:
        return real(begin_at(catalog, resume), owner, fence_id, at_least, AUTO, adopt)

    monkeypatch.setattr(transitions, "fence", fence)


def the_displaced_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fence of a job that was deleted and applied again takes the root back."""
    monkeypatch.setattr(transitions, "check_owner", lambda catalog, owner, adopt=False: None)


def delete_all_that_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's end deletes every save that it finds, whoever committed it."""

    def delete_everything(self: JobCatalog, owner: Owner) -> None:
        self.fence(owner)
        for folder in list(self.store.list_folders("checkpoints/")):
            self._delete(Location.parse(folder))

    monkeypatch.setattr(JobCatalog, "delete_everything", delete_everything)


def holds_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fork or an export reads is removed under it."""
    real = retention.safeguarded

    def safeguarded(catalog: Catalog, now: datetime) -> dict[str, list[str]]:
        return real(catalog.model_copy(update={"holds": ()}), now)

    monkeypatch.setattr(retention, "safeguarded", safeguarded)
    monkeypatch.setattr(job_module, "safeguarded", safeguarded)


def no_group_without_a_tier_ends_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nodes had before a group without a local tier has trained counts again after it."""
    real = transitions.claim

    def claim(
        catalog: Catalog, claim_id: str, now: datetime, attempt: int, uid: str, resume: Resume, local: bool
    ) -> Catalog:
        return real(catalog, claim_id, now, attempt, uid, resume, local=True)

    monkeypatch.setattr(transitions, "claim", claim)


MUTATIONS = [
    no_claim_check,
    resume_before_the_fence,
    blind_retry,
    delete_before_the_swap,
    create_over_checkpoints,
    sweep_by_an_old_document,
    a_late_choice_counts,
    the_displaced_come_back,
    delete_all_that_is_listed,
    holds_are_ignored,
    no_group_without_a_tier_ends_the_line,
]


@pytest.fixture(params=MUTATIONS, ids=lambda mutation: mutation.__name__)
def mutation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    request.param(monkeypatch)
    return str(request.param.__doc__)


@pytest.mark.timeout(600)
def test_each_mutation_is_caught(mutation: str) -> None:
    # The rarest shows once in some 600 examples; whatever changes the actors draws others.
    options = settings(**QUICK, max_examples=10_000, stateful_step_count=60, phases=(Phase.generate,), derandomize=True)
    with pytest.raises(BaseException) as caught:
        run_state_machine_as_test(machine.CatalogMachine, settings=options)
    assert "Violation" in repr(caught.value) or "Violation" in repr(getattr(caught.value, "exceptions", ())), (
        caught.value
    )
    print(f"{mutation} Caught: {caught.value}")
