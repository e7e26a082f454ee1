"""What the pods said, for the checker, and the checker itself: a program of its own, which shares no code with what it
checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.followers import Followers
from tests.support.site import Site


def write(path: Path, followers: Followers, without: tuple[str, ...] = ()) -> Path:
    """`without`: variables that are left out."""
    pods = [pod.evidence() for pod in followers.pods.values()]
    for pod in pods:
        pod["environment"] = {name: value for name, value in pod["environment"].items() if name not in without}
    path.write_text(json.dumps({"pods": pods}, indent=1))
    return path


def check(site: Site, job: str, evidence: Path, reference: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Judge what the job left behind; `reference`: the evidence of a run that nothing interrupted."""
    command = [sys.executable, "-m", "tests.faults.check_history", f"--bucket={site.bucket}"]
    command += [f"--prefix={site.prefix(job)}", f"--evidence={evidence}"]
    command += [f"--reference={reference}"] if reference else []
    environment = {**os.environ, **site.s3.environment()}
    return subprocess.run(command, env=environment, capture_output=True, text=True)
