"""From a job to its storage: the profile that allows it, the credentials of that profile, and the job's own store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from everstep.catalog import JobCatalog, S3Access, Store, open_store
from everstep.catalog.ledger import utc_now
from everstep_operator.api import TrainingJob
from everstep_operator.config.profiles import ProfilesFile, StorageAccess
from everstep_operator.storage.lanes import Lane, Lanes, Pace
from everstep_operator.storage.measured import MeasuredStore, Told

T = TypeVar("T")


def _unheard(_kind: str, _result: str, _seconds: float) -> None:
    return None


@dataclass(slots=True)
class JobStorage:
    """One job's root in object storage. `call` runs a blocking function of it in the endpoint's lane."""

    root: str
    access: S3Access
    lane: Lane
    timeout: float
    told: Told = _unheard
    now: Callable[[], datetime] = utc_now
    """The clock of decisions: a hold that is over for them and not for the catalog would be tried for ever."""
    catalog: JobCatalog = field(init=False)

    def __post_init__(self) -> None:
        self.catalog = JobCatalog(MeasuredStore(open_store(self.root, self.access), self.told), clock=self.now)

    @property
    def store(self) -> Store:
        return self.catalog.store

    async def call(self, function: Callable[[], T], seconds: float | None = None, pace: Pace = "fast") -> T:
        return await self.lane.run(function, seconds or self.timeout, pace)


class Storages:
    """The storage of every job, opened once as long as profile and credentials stay the same."""

    def __init__(
        self,
        profiles: ProfilesFile,
        lanes: Lanes,
        request_timeout: float = 15.0,
        told: Told = _unheard,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._profiles = profiles
        self._lanes = lanes
        self._request_timeout = request_timeout
        self._told = told
        self._now = now
        self._open: dict[str, JobStorage] = {}
        self._opening = asyncio.Lock()

    async def of(self, job: TrainingJob) -> JobStorage:
        """Raises the profiles' StorageRefusedError where no profile allows the job's storage, or ProfilesError."""
        granted = self._granted(job, job.root_uri)
        access = self._access(granted)
        root = job.root_uri.rstrip("/")
        known = self._open.get(job.metadata.uid)
        if known is not None and known.root == root and known.access == access:
            return known
        lane = self._lanes.lane(granted.endpoint)
        limit = self._request_timeout * 2
        async with self._opening:  # stores of one access share its clients: make them once
            opened = await asyncio.to_thread(JobStorage, root, access, lane, limit, self._told, self._now)
        self._open[job.metadata.uid] = opened
        return opened

    def opener(self, job: TrainingJob) -> Callable[[str], Store]:
        """Opens other roots at the job's endpoint, as far as a profile allows them; blocking."""

        def opened(uri: str) -> Store:
            return MeasuredStore(open_store(uri, self._access(self._granted(job, uri))), self._told)

        return opened

    def forget(self, uid: str) -> None:
        self._open.pop(uid, None)

    def _granted(self, job: TrainingJob, uri: str) -> StorageAccess:
        storage = job.spec.checkpoint.storage
        return self._profiles.current().access(job.metadata.namespace, uri, storage.endpoint, storage.region)

    def _access(self, granted: StorageAccess) -> S3Access:
        pair = granted.credentials.read() if granted.credentials is not None else None
        return S3Access(
            endpoint=granted.endpoint,
            region=granted.region,
            access_key=pair.access_key if pair else None,
            secret_key=pair.secret_key if pair else None,
            session_token=pair.session_token if pair else None,
            connect_timeout=min(5.0, self._request_timeout),
            read_timeout=self._request_timeout,
            attempts=3,
            whose=f"the credentials of the operator's storage profile {granted.profile}",
        )
