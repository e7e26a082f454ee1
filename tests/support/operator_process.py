"""The operator as a process of its own, as it runs in a cluster, with its output kept for a failing test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from everstep.launch.nursery import Forked
from tests.support import starting


@dataclass
class OperatorProcess:
    """`identity` stays over restarts, as a pod's does: a restarted operator takes its own Lease again at once."""

    kubeconfig: Path
    directory: Path
    namespace: str
    profiles: Path
    identity: str = "operator-0"
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | Forked | None = None

    @property
    def log(self) -> Path:
        return self.directory / f"{self.identity}.log"

    def start(self) -> OperatorProcess:
        variables = {
            "KUBECONFIG": str(self.kubeconfig),
            "PROFILES_FILE": str(self.profiles),
            "WATCH_NAMESPACES": self.namespace,
            "LEASE_NAMESPACE": self.namespace,
            "IDENTITY": self.identity,
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": "0",
            "LOG_FORMAT": "console",
            "LOG_LEVEL": "DEBUG",
            "LEASE_SECONDS": "6",
            "LEASE_RENEW_SECONDS": "1.5",
            "POLL_SECONDS": "0.5",
            "PROGRESS_SECONDS": "1",
            **self.settings,
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "EVERSTEP_", "KUBE"))}
        environment = kept | {f"EVERSTEP_OPERATOR_{name}": value for name, value in variables.items()}
        environment["TMPDIR"] = str(self.directory)  # where the client leaves its keys when it is killed
        with self.log.open("ab") as output:
            if starting.COLD:
                command = [sys.executable, "-m", "everstep_operator.main"]
                self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            else:
                outputs = [output.fileno(), output.fileno()]
                nursery = starting.nursery("everstep_operator.main", "everstep.catalog.store.s3")
                self.process = nursery.fork("everstep_operator.main:main", [], environment, os.getcwd(), outputs)
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""
