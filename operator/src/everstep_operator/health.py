"""The HTTP server for probes and metrics: /healthz, /readyz, /metrics.

Healthy means that the event loop turns and, where this process holds the Lease, that no job's pass has been stuck for
minutes; a standby is healthy and ready too, or a rollout of two replicas would wait for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from everstep_operator.metrics import Metrics

STUCK_SECONDS = 300.0


class CannotListenError(Exception):
    """The address of the HTTP server is taken, forbidden or nobody's."""


@dataclass(slots=True)
class Health:
    """What the probes ask. `passes` maps what is being worked on to when it began."""

    leading: Callable[[], bool]
    clock: Callable[[], float] = time.monotonic
    synced: bool = False
    """Whether the first list of jobs was read."""
    passes: dict[tuple[str, str], float] = field(default_factory=dict)

    def problems(self) -> list[str]:
        now = self.clock()
        return [
            f"the pass over {namespace}/{name} has taken {now - since:.0f} s"
            for (namespace, name), since in self.passes.items()
            if now - since > STUCK_SECONDS
        ]


async def serve(health: Health, metrics: Metrics, host: str, port: int, bound: Callable[[int], None]) -> None:
    """Answer until cancelled; `bound` is told the port."""

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        text = "\n".join(problems) or ("leading" if health.leading() else "standing by")
        return web.Response(text=text + "\n", status=500 if problems else 200)

    async def readyz(_: web.Request) -> web.Response:
        ready = health.synced
        return web.Response(text="ready\n" if ready else "reading the jobs\n", status=200 if ready else 503)

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", show)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise CannotListenError(
                f"cannot listen on {host} port {port}: {error.strerror or error}; set "
                "EVERSTEP_OPERATOR_HTTP_PORT, EVERSTEP_OPERATOR_HTTP_HOST (in the chart http.port)"
            ) from error
        bound(runner.addresses[0][1])
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
