"""What an attempt needs of storage: the probe, the resume path, the fence. Blocking calls, in the endpoint's lane."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace

from everstep.catalog import Catalog, Owner, Resume, fork
from everstep.catalog.progress import Request, write_request
from everstep.catalog.store.probe import probe
from everstep.errors import FencedError
from everstep_operator.act.status import StaleError
from everstep_operator.memory import JobMemory
from everstep_operator.observe import Seen
from everstep_operator.reconcile.observation import Problem
from everstep_operator.reconcile.plan import Fence, ValidateResumePath
from everstep_operator.storage import JobStorage, Storages, classify, classify_resume_path

log = logging.getLogger(__name__)

_PROBE = re.compile(r"probe-[0-9a-f]+\.json")


async def prove(storage: JobStorage, memory: JobMemory) -> Problem | None:
    """Prove once that the store enforces conditional writes."""
    if memory.probed == storage.root:
        return None
    try:
        await storage.call(lambda: _probe(storage))
    except Exception as error:  # noqa: BLE001 - raised again unless it is storage's
        problem = _known(error, classify)
        # The object's random name would make a new message, and a new status, of each try.
        return replace(problem, message=_PROBE.sub("probe.json", problem.message))
    memory.probed = storage.root
    return None


def _probe(storage: JobStorage) -> None:
    probe(storage.store)
    # What a process that was killed in its probe has left.
    storage.store.delete([info.key for info in storage.store.list("probe-") if _PROBE.fullmatch(info.key)])


async def resolve(
    storages: Storages, storage: JobStorage, seen: Seen, action: ValidateResumePath, cluster: str
) -> Resume | Problem:
    """The committed checkpoint that the path names, held there if it is another job's."""
    opener, holder = storages.opener(seen.job), _holder(seen, cluster)
    try:
        return await storage.call(lambda: fork.resolve(action.path, storage.root, opener, holder))
    except Exception as error:  # noqa: BLE001 - raised again unless it is storage's
        return _known(error, classify_resume_path)


async def keep_source(storages: Storages, storage: JobStorage, seen: Seen, catalog: Catalog, cluster: str) -> None:
    """An attempt that still starts from another job's checkpoint holds it there anew."""
    source = catalog.source
    if source is None or catalog.latest() is not None:
        return
    opener, holder = storages.opener(seen.job), _holder(seen, cluster)
    try:
        await storage.call(lambda: fork.renew(source, opener, holder))
    except Exception as error:  # noqa: BLE001 - raised again unless it is storage's
        log.warning("cannot hold the source of the fork: %s", _known(error, classify_resume_path).message)


def _holder(seen: Seen, cluster: str) -> str:
    meta = seen.job.metadata
    return f"{cluster}/{meta.namespace}/{meta.name}"


async def fence(storage: JobStorage, memory: JobMemory, owner: Owner, action: Fence) -> Catalog | Problem:
    """Begin an attempt. A fence whose answer did not come in time is awaited again, never doubled, unless another
    attempt has come meanwhile; one that comes too late, after another operator's, begins nothing. Raises StaleError for
    that."""

    def swap() -> Catalog:
        return storage.catalog.fence(
            owner, action.at_least, action.resume, action.adopt, action.expect_existing, action.expected
        )

    late = memory.fencing
    future = late[1] if late is not None and late[0] == action.expected else storage.lane.submit(swap)
    memory.fencing = action.expected, future
    try:
        catalog = await storage.lane.wait(future, storage.timeout)
    except FencedError as error:
        raise StaleError(str(error)) from error
    except Exception as error:  # noqa: BLE001 - raised again unless it is storage's
        return _known(error, classify)
    finally:
        if future.done():
            memory.fencing = None
    log.info("fenced attempt %d (epoch %d, generation %d)", catalog.attempt, catalog.epoch, catalog.generation)
    return catalog


async def ask_for_save(storage: JobStorage, attempt: int, value: str) -> Problem | None:
    """Put the request where the workers of an attempt look with each beat."""
    try:
        await storage.call(lambda: write_request(storage.store, attempt, Request(checkpoint=value)))
    except Exception as error:  # noqa: BLE001 - raised again unless it is storage's
        return _known(error, classify)
    return None


def _known(error: Exception, classified: Callable[[Exception], Problem | None]) -> Problem:
    problem = classified(error)
    if problem is None:
        raise error
    return problem
