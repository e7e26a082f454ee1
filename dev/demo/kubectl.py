"""kubectl as the demo's only way to the cluster: what it does, its reader can type."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any


class KubectlError(RuntimeError):
    """kubectl refused; the text is its own."""


@dataclass(frozen=True)
class Kubectl:
    program: str
    kubeconfig: str | None
    """None: kubectl's own choice."""
    namespace: str

    def __call__(self, *arguments: str, stdin: str | None = None, namespaced: bool = True) -> str:
        where = [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        where += [f"--namespace={self.namespace}"] if namespaced else []
        done = subprocess.run([self.program, *where, *arguments], input=stdin, capture_output=True, text=True)
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self("get", *arguments, "--output=json"))

    def apply(self, manifest: dict[str, Any]) -> None:
        self("apply", "--server-side", "--validate=strict", "--filename=-", stdin=json.dumps(manifest))
