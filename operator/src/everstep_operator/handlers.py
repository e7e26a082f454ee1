"""kopf as the informer: its events say which job to look at, and what a pod that is gone said last.

They may be late, repeated, or about objects that are gone; a pass reads anew all that is there. No handler patches
anything, so kopf writes neither annotations nor finalizers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf
from kubernetes.aio import client

from everstep_operator.api import GROUP, PLURAL, VERSION
from everstep_operator.build import names
from everstep_operator.memory import Key

Look = Callable[[Key, str | None, bool], None]
"""Called with a job's key, the resourceVersion of what has changed, and whether that is the job itself."""

Part = Callable[[Key, Mapping[str, Any]], None]
"""Called with a job's key and a pod of it that is gone, as it last was."""


def registry(look: Look, part: Part, configuration: client.Configuration) -> kopf.OperatorRegistry:
    """Handlers that call `look` with the key of a job to be looked at."""
    found = kopf.OperatorRegistry()

    @kopf.on.login(registry=found)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await connection(configuration)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=found)
    async def job_changed(namespace: str | None, name: str | None, meta: Any, **_: Any) -> None:
        if namespace and name:
            look((namespace, name), meta.get("resourceVersion"), True)

    @kopf.on.event("", "v1", "pods", labels={names.JOB: kopf.PRESENT}, registry=found)
    async def pod_changed(namespace: str | None, labels: Any, meta: Any, body: Any, type: str | None, **_: Any) -> None:
        job = labels.get(names.JOB)
        if namespace and job:
            if type == "DELETED":
                part((namespace, job), body)
            look((namespace, job), meta.get("resourceVersion"), False)

    @kopf.on.event("", "v1", "services", labels={names.JOB: kopf.PRESENT}, registry=found)
    async def service_changed(namespace: str | None, labels: Any, type: str | None, **_: Any) -> None:
        job = labels.get(names.JOB)
        if namespace and job and type in ("MODIFIED", "DELETED"):  # what is new is our own doing
            look((namespace, job), None, False)

    return found


def settings(request_timeout: float) -> kopf.OperatorSettings:
    found = kopf.OperatorSettings()
    found.posting.enabled = False
    found.scanning.disabled = True
    found.networking.request_timeout = request_timeout
    found.watching.label_selectors["", "v1", "pods"] = names.JOB
    found.watching.label_selectors["", "v1", "services"] = names.JOB
    found.process.ultimate_exiting_timeout = None
    found.queueing.exit_timeout = 1.0
    return found


async def connection(configuration: client.Configuration) -> kopf.ConnectionInfo:
    """The same server and credentials as our own client; asked again after each 401, when a token was rotated."""
    header = await configuration.get_api_key_with_prefix("BearerToken")
    scheme, _, token = (header or "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        scheme=scheme if token else None,
        token=token or None,
    )
