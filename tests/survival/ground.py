"""Where everstep's cases are tried: a real S3 server, the run that struck ones are compared with, roots to begin in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dev.s3 import S3Endpoint
from everstep.catalog import S3Access
from tests.survival import trial
from tests.survival.everstep_engine import Everstep, Requests
from tests.survival.matrix import Case
from tests.survival.zygote import Zygote


@dataclass(frozen=True)
class Ground:
    server: S3Endpoint
    folder: Path
    straight: Mapping[int, str]
    """Losses of a run that nothing befell, by step."""
    begun: Everstep
    """A root in which steps 2 and 4 are committed."""
    zygote: Zygote | None = None

    def place(self, name: str) -> trial.Place:
        return trial.Place(self.server.url, self.server.environment(), self.folder / name, self.zygote)


def prepare(server: S3Endpoint, folder: Path, zygote: Zygote | None = None) -> Ground:
    """Makes the two runs that others are measured by."""
    ground = Ground(server, folder, {}, root(server), zygote)
    straight = trial.begin(ground.place("straight"), root(server), Requests())
    trial.begin(ground.place("begun"), ground.begun, Requests(), steps=4)
    return Ground(server, folder, straight, ground.begun, zygote)


def root(server: S3Endpoint) -> Everstep:
    access = S3Access(server.url, server.region, server.access_key, server.secret_key)
    return Everstep(f"s3://{server.make_bucket()}/jobs/ns/job", access)


def attempt(ground: Ground, case: Case, seed: int) -> trial.Verdict:
    """One case, in a root of its own."""
    engine = root(ground.server)
    if case.begins_at:
        source = ground.begun.store
        for info in source.list(""):
            engine.store.put(info.key, source.get(info.key))
    return trial.undergo(
        ground.place(f"{case.slug}-{seed}"), engine, (Requests(), Requests()), case, seed, ground.straight
    )
