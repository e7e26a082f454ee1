"""The Lease object in the Kubernetes API, for the election."""

from __future__ import annotations

from typing import Any

from everstep_operator.kube import ApiError, Kube
from everstep_operator.lease import LeaseConflictError

GROUP = "/apis/coordination.k8s.io/v1"


class KubeLease:
    """Writes are not guarded by the leadership that they establish."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self._kube = kube
        self._name = name
        self._namespace = namespace
        self._leases = f"{GROUP}/namespaces/{namespace}/leases"

    async def get(self, limit: float) -> dict[str, Any] | None:
        try:
            return await self._kube.request("GET", f"{self._leases}/{self._name}", limit=limit)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def create(self, spec: dict[str, Any], limit: float) -> None:
        meta = {"name": self._name, "namespace": self._namespace}
        await self._write("POST", self._leases, {"metadata": meta, "spec": spec}, limit)

    async def replace(self, lease: dict[str, Any], limit: float) -> None:
        await self._write("PUT", f"{self._leases}/{self._name}", lease, limit)

    async def _write(self, method: str, path: str, body: dict[str, Any], limit: float) -> None:
        try:
            await self._kube.request(method, path, body=body, limit=limit)
        except ApiError as error:
            if error.status == 409:
                raise LeaseConflictError(str(error)) from error
            raise
