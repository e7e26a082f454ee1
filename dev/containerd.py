"""containerd of one instance: its configuration, its images, and what is left of containers when it stops.

Its content and snapshots stay in the cache by slot, so that the next instance there finds the images it had.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from dev import oci
from dev.build import Binaries
from dev.instance import Instance, InstanceError
from dev.namespace import Namespace
from dev.processes import Processes

PAUSE = "localhost/everstep/pause:1"
UNUSED = (
    *("io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper"),
    *("io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile"),
    *("io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri"),
)


def configuration(instance: Instance, binaries: Binaries) -> str:
    """The OOM setting is for hosts that are containers; an AppArmor profile would stay in the kernel when it stops."""
    unused = ", ".join(f'"{name}"' for name in UNUSED)
    return f"""version = 3
root = "{instance.containerd_root}"
state = "/run/containerd"
disabled_plugins = [{unused}]
[grpc]
address = "{instance.containerd_socket}"
[ttrpc]
address = "{instance.containerd_socket}.ttrpc"
[plugins.'io.containerd.internal.v1.opt']
path = "{instance.state}/opt"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{PAUSE}"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{binaries.directories["node"]}"]
conf_dir = "{instance.state}/cni"
"""


class Containerd:
    """The container runtime of a running instance."""

    def __init__(self, instance: Instance, binaries: Binaries) -> None:
        self.instance = instance
        self.binaries = binaries
        self.processes = Processes(instance.processes)

    def start(self, namespace: Namespace) -> None:
        """Start it and load the pause image, which every pod needs."""
        self.instance.containerd_root.mkdir(parents=True, exist_ok=True)
        config = self.instance.state / "containerd.toml"
        config.write_text(configuration(self.instance, self.binaries))
        self.processes.start(
            "containerd",
            [self.binaries.path("containerd"), f"--config={config}"],
            environment={"PATH": self.binaries.search_path()},
            prefix=namespace.prefix,
        )
        self.processes.wait("containerd", self.answers, seconds=60)
        busybox = shutil.which("busybox", path=f"{os.environ.get('PATH', '')}:/bin:/usr/bin")
        if busybox is None:
            raise InstanceError("busybox is missing: install Debian's busybox-static")
        blobs = oci.one_file_image(Path(busybox), "/busybox", ["/busybox", "sleep", "1000000000"], os.uname().machine)
        manifest = list(blobs.values())[-1]
        if self.images().get(PAUSE) != oci.sha256(manifest):
            with self.importing() as pipe:
                oci.write_archive(pipe, oci.index(PAUSE, manifest), blobs)

    def answers(self) -> bool:
        return self.ctr("version", check=False).returncode == 0

    def images(self) -> dict[str, str]:
        """Digest of the manifest by image name, of complete images."""
        rows = self.ctr("images", "check").stdout.splitlines()[1:]
        listed = [row.split() for row in rows]
        return {fields[0]: fields[2] for fields in listed if "complete" in fields and fields[-1] == "true"}

    def has_blob(self, digest: str) -> bool:
        return (self.blobs / digest.removeprefix("sha256:")).exists()

    @property
    def blobs(self) -> Path:
        """Where blobs lie, one file a digest."""
        return self.instance.containerd_root / "io.containerd.content.v1.content" / "blobs" / "sha256"

    @contextmanager
    def importing(self) -> Iterator[IO[bytes]]:
        """A pipe that takes an OCI archive; the image is there, unpacked, when the block ends."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.command("images", "import", "-"), stdin=subprocess.PIPE, stdout=said, stderr=said
            )
            assert process.stdin is not None
            try:
                yield process.stdin
            except BrokenPipeError:
                pass  # it ended early: its own words below say why
            finally:
                with suppress(BrokenPipeError):
                    process.stdin.close()
                code = process.wait()
            if code != 0:
                said.seek(0)
                raise InstanceError(f"containerd did not take an image: {said.read().decode(errors='replace').strip()}")

    def ctr(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ctr in the kubelet's namespace of images and containers."""
        done = subprocess.run(self.command(*arguments), capture_output=True, text=True)
        if check and done.returncode != 0:
            raise InstanceError(f"ctr {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def command(self, *arguments: str) -> list[str]:
        where = (f"--address={self.instance.containerd_socket}", "--namespace=k8s.io")
        return [self.binaries.path("ctr"), *where, *arguments]

    def forget_containers(self) -> None:
        """Remove the records and the writable layers of all containers; their processes must have ended."""
        deadline = time.monotonic() + 20
        for kind in ("tasks", "containers"):
            while (listed := self.ctr(kind, "ls", "-q").stdout.split()) and time.monotonic() < deadline:
                self.ctr(kind, "rm", *listed, check=False)
        for each in self.ctr("sandboxes", "ls", check=False).stdout.splitlines()[1:]:
            self.ctr("sandboxes", "rm", each.split()[0], check=False)

    @staticmethod
    def clean_root(instance: Instance) -> None:
        """Remove what the CRI plugin noted about containers. containerd must have stopped."""
        shutil.rmtree(instance.containerd_root / "io.containerd.grpc.v1.cri", ignore_errors=True)
