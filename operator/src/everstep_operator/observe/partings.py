"""What pods said last that no list shows any more: the watch's word of their end is all that tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from everstep.failure import reached
from everstep_operator.memory import JobMemory
from everstep_operator.observe.views import pod_view


def remember(memory: JobMemory, job: str, pod: Mapping[str, Any]) -> None:
    """`pod`: as it last was. Of another job, or of another incarnation of this one, it is passed over."""
    view = pod_view(pod, job, memory.uid)
    if view is None or not view.labelled:
        return
    step = reached(view.container.message)
    if step is not None:
        memory.parted[view.attempt] = max(step, memory.parted.get(view.attempt, step))
