"""The two faults of the demo, each as hard as they come: SIGKILL of one rank's process, and a pod torn away."""

from __future__ import annotations

from dev.demo.kubectl import Kubectl
from everstep.launch import warm

# The worker is the process that torchrun gave a LOCAL_RANK: its environment says so, or its name where it was forked.
_KILL_RANK = f"""
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        name = open("/proc/" + pid + "/comm").read().strip()
        environment = open("/proc/" + pid + "/environ", "rb").read().split(b"\\0")
    except OSError:
        continue
    if (name == {warm.name("0")!r} or b"LOCAL_RANK=0" in environment) and int(pid) != os.getpid():
        os.kill(int(pid), signal.SIGKILL)
        print(pid)
        break
"""


def kill_rank(kubectl: Kubectl, pod: str) -> str:
    """SIGKILL the first worker process in a pod; returns its pid there."""
    return kubectl("exec", pod, "--", "python", "-c", _KILL_RANK).strip()


def tear_away(kubectl: Kubectl, pod: str) -> None:
    """Delete a pod by force: no SIGTERM, no grace, its object is gone at once."""
    kubectl("delete", "pod", pod, "--force", "--grace-period=0", "--wait=false")
