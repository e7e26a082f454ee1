"""What an instance could leave on the host: taken before and after, the difference shows what it did leave."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from dev.cgroups import hierarchies
from dev.namespace import KERNEL_SETTINGS

# Directories that the programs would use if they were not told or shown others.
PLACES = (
    *("/etc/cni", "/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes", "/var/lib/cni", "/var/lib/kubelet"),
    *("/var/lib/containerd", "/var/log/containers", "/var/log/pods", "/run/containerd", "/run/netns", "/run/runc"),
    *("/run/everstep", "/run/kubernetes", "/run/flannel", "/var/run/calico"),
)


def snapshot() -> frozenset[str]:
    """One line a trace: mounts, processes, links, routes, rules, cgroups, kernel settings, directories, sockets."""
    return frozenset(_lines())


def _lines() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield f"mount {line.split()[4]}"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[0]:  # kernel threads and zombies have none
                yield f"process {process.name} {words[0].decode(errors='replace')}"
    for kind in ("link", "route", "rule", "address"):
        for line in _output("ip", "-oneline", kind, "show").splitlines():
            # Lifetimes and counters change by themselves.
            yield f"{kind} {line.partition(' valid_lft ')[0].strip()}"
    for line in _output("nft", "list", "ruleset").splitlines():
        yield f"nft {line.strip()}"
    for program in ("iptables-save", "ip6tables-save"):
        for line in _output(program).splitlines():
            if line.startswith(("-A", ":")):
                yield f"{program} {line.partition(' [')[0]}"
    for root in hierarchies():
        for directory in (each for pattern in ("*", "*/*") for each in root.glob(pattern) if each.is_dir()):
            yield f"cgroup {directory}"
    for key in KERNEL_SETTINGS:
        with contextlib.suppress(OSError):
            yield f"setting {key}={Path('/proc/sys', key).read_text().strip()}"
    for place in PLACES:
        if Path(place).exists():
            yield f"directory {place}"
    for socket in Path("/tmp").glob("seaweedfs-*.sock"):
        yield f"socket {socket}"


def _output(*command: str) -> str:
    program = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is None:
        return ""
    return subprocess.run([program, *command[1:]], capture_output=True, text=True).stdout
