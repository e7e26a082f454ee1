"""Nodes that may be lost. They are asked about only where a job's sign of life is missing: a cluster has many nodes and
most of the time each is fine. A node's Lease ages by our own clock, from when this process first saw that renewal."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from everstep_operator.kube import CORE, Kube
from everstep_operator.observe.views import is_ready
from everstep_operator.reconcile.observation import NodeView

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
FRESH = 5.0
"""Seconds for which an answer serves all jobs."""
SILENT = 40.0
"""Seconds without a renewal of the node's Lease (kubelets renew every 10) after which the node counts as silent."""


@dataclass(slots=True)
class _Known:
    view: NodeView
    asked: float
    renewed: str = ""
    renewed_seen: float = 0.0


class Nodes:
    def __init__(self, kube: Kube, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def look(self, wanted: Iterable[str]) -> tuple[NodeView, ...]:
        """The nodes of these names, at most FRESH seconds old."""
        now = self._clock()
        self._known = {name: known for name, known in self._known.items() if now - known.asked < 10 * SILENT}
        return tuple(await asyncio.gather(*(self._one(name) for name in sorted(set(wanted)))))

    async def _one(self, name: str) -> NodeView:
        now = self._clock()
        known = self._known.get(name)
        if known is not None and now - known.asked < FRESH:
            return known.view
        node, lease = await asyncio.gather(self._kube.find(f"{CORE}/nodes/{name}"), self._kube.find(f"{LEASES}/{name}"))
        renewed = str(((lease or {}).get("spec") or {}).get("renewTime") or "")
        seen = known.renewed_seen if known is not None and known.renewed == renewed else now
        silent = lease is not None and now - seen > SILENT  # without a Lease only the Ready condition tells
        view = NodeView(name, exists=node is not None, ready=node is not None and is_ready(node), lease_silent=silent)
        self._known[name] = _Known(view, now, renewed, seen)
        return view
