"""Asks the API server of an instance, as its administrator, without a client library."""

from __future__ import annotations

import http.client
import json
import ssl
from typing import Any

from dev.instance import Instance


def get(instance: Instance, path: str, *, seconds: float = 2.0) -> tuple[int, bytes]:
    """Status and body of a GET; status 0 where there was no answer."""
    try:
        context = ssl.create_default_context(cafile=str(instance.state / "pki" / "ca.crt"))
        context.load_cert_chain(instance.state / "pki" / "admin.crt", instance.state / "pki" / "admin.key")
        connection = http.client.HTTPSConnection(instance.address, instance.api_port, timeout=seconds, context=context)
    except OSError:
        return 0, b""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def ready(instance: Instance) -> bool:
    """True when the API server says so."""
    return get(instance, "/readyz")[0] == 200


def node_ready(instance: Instance) -> bool:
    """True when the node takes pods: it is Ready, and the taint of its first moments is gone."""
    status, body = get(instance, f"/api/v1/nodes/{instance.name}")
    if status != 200:
        return False
    node: dict[str, Any] = json.loads(body)
    conditions = {each["type"]: each["status"] for each in node["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")
