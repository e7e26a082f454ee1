"""Kubeconfig files, for certificates and for ServiceAccount tokens, with everything embedded."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from dev.pki import Pair


def write(path: Path, *, server: str, authority: Path, user: dict[str, Any], namespace: str = "default") -> Path:
    """Write a kubeconfig of one context. JSON is YAML, so no YAML writer is needed; 0600, since it holds a key."""
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "everstep", "cluster": {"server": server, "certificate-authority-data": encoded(authority)}}
        ],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "everstep", "context": {"cluster": "everstep", "user": "user", "namespace": namespace}}],
        "current-context": "everstep",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=1))
    return path


def certificate_user(pair: Pair) -> dict[str, str]:
    """The user part for a client certificate."""
    return {"client-certificate-data": encoded(pair.certificate), "client-key-data": encoded(pair.key)}


def for_service_account(
    path: Path, *, kubectl: str, admin: Path, namespace: str, name: str, seconds: int = 86400
) -> Path:
    """Write a kubeconfig that acts as a ServiceAccount, with a token of its own that the API server issues."""
    command = [kubectl, f"--kubeconfig={admin}", f"--namespace={namespace}", "create", "token", name]
    done = subprocess.run([*command, f"--duration={seconds}s"], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"no token for ServiceAccount {namespace}/{name}: {done.stderr.strip()}")
    cluster = json.loads(admin.read_text())["clusters"][0]["cluster"]
    authority = path.with_suffix(".ca")
    path.parent.mkdir(parents=True, exist_ok=True)
    authority.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    try:
        user = {"token": done.stdout.strip()}
        return write(path, server=cluster["server"], authority=authority, user=user, namespace=namespace)
    finally:
        authority.unlink()


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
