"""A network and a mount namespace for one instance, so that all it does to links, rules and mounts goes with it.

A process that sleeps holds the namespaces; every daemon of the instance enters them before it becomes itself. Inside,
/run, /var/lib and /var/log are the instance's own, and a few kernel settings that a kubelet insists on are files that
it may write without changing the host's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dev.cgroups import Cgroup
from dev.instance import Instance, InstanceError
from dev.processes import Processes

HOLDER = "namespace"
HIDDEN = ("/run", "/var/lib", "/var/log")  # replaced inside
# What a kubelet sets unless it is set already.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
# Join the instance's cgroup first, so that there is no moment in which a child could escape it.
JOIN = 'echo $$ >"$0/cgroup.procs" && exec "$@"'
# -n: otherwise the first mount would leave a note in the host's /run.
MOUNTS = """
set -e
mount -n -t tmpfs -o mode=755 everstep /run
mkdir -p /run/lock "$STATE/log"
mount -n -t tmpfs -o mode=755 everstep /var/lib
mount -n --bind "$STATE/log" /var/log
for each in $SETTINGS; do
  key=${each%=*}; file=/run/settings/$key
  [ -e "/proc/sys/$key" ] || continue
  mkdir -p "${file%/*}"; echo "${each#*=}" >"$file"; mount -n --bind "$file" "/proc/sys/$key"
done
mount -n --make-rshared /
"""


class Namespace:
    """The namespaces of one instance."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.processes = Processes(instance.processes)
        self.cgroup = Cgroup(instance)

    def create(self) -> int:
        """Make them and return the pid of their holder."""
        for path in (self.instance.state, self.instance.containerd_root):
            if any(path.is_relative_to(hidden) for hidden in HIDDEN):
                raise InstanceError(f"{path} is below one of {', '.join(HIDDEN)}: set EVERSTEP_CACHE to another place")
        self.cgroup.create()
        join = ["sh", "-c", JOIN, str(self.cgroup.daemons)]
        unshare = ["unshare", "--net", "--mount", "--propagation", "private"]
        holder = self.processes.start(HOLDER, ["sleep", "infinity"], prefix=[*join, *unshare])
        self.processes.wait(HOLDER, lambda: separate(holder.pid), seconds=10, interval=0.01)
        settings = " ".join(f"{key}={value}" for key, value in KERNEL_SETTINGS.items())
        self.run(MOUNTS, {"STATE": str(self.instance.state), "SETTINGS": settings})
        return holder.pid

    @property
    def prefix(self) -> tuple[str, ...]:
        """The words before a command that put it into the instance's cgroup and namespaces; the pid stays."""
        holder = self.processes.record(HOLDER)
        if holder is None:
            raise InstanceError(f"the namespaces of instance {self.instance.name!r} are gone: take it down")
        join = ("sh", "-c", JOIN, str(self.cgroup.daemons))
        return (*join, "nsenter", f"--target={holder.pid}", "--net", "--mount", "--")

    def run(self, script: str, environment: Mapping[str, str] | None = None) -> None:
        """Run a shell script inside; raise with its own words when it fails."""
        command = [*self.prefix, "sh", "-c", script]
        done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
        if done.returncode != 0:
            raise InstanceError(f"setting up instance {self.instance.name!r} failed: {done.stderr.strip()}")

    def destroy(self) -> None:
        """End whatever is still inside and remove the cgroup; the namespaces go with their last process."""
        self.cgroup.kill()
        self.processes.stop([HOLDER])
        self.cgroup.remove()


def separate(pid: int) -> bool:
    """True when a process has left our network and mount namespaces and has become what it should be."""
    ours, its = Path("/proc/self/ns"), Path(f"/proc/{pid}/ns")
    try:
        apart = all((its / kind).readlink() != (ours / kind).readlink() for kind in ("net", "mnt"))
        return apart and Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
    except OSError:
        return False
