"""Waits until the API server tells of TrainingJobs: kopf asks once what there is, and never again."""

from __future__ import annotations

import asyncio
import logging

from everstep_operator.api import GROUP, PLURAL
from everstep_operator.kube import JOBS, ApiError, Kube

log = logging.getLogger(__name__)

PAUSE = 0.5
"""Seconds between two questions. A new CRD is listed a moment after it is served, on a busy machine seconds."""


async def until_listed(kube: Kube, pause: float = PAUSE) -> None:
    """Asked of the group's own document and of the list of groups, which the API server makes at different times."""
    told = ""
    while why := await _missing(kube):
        if why != told:
            log.info("waiting until the API server lists %s.%s: %s", PLURAL, GROUP, why)
            told = why
        await asyncio.sleep(pause)


async def _missing(kube: Kube) -> str:
    """Why they cannot be watched yet; empty where they can."""
    try:
        groups, kinds = await kube.get("/apis"), await kube.get(JOBS)
    except ApiError as error:
        return str(error)
    if not any(each.get("name") == GROUP for each in groups.get("groups") or []):
        return f"no group {GROUP} yet"
    return "" if any(each.get("name") == PLURAL for each in kinds.get("resources") or []) else f"no {PLURAL} yet"
