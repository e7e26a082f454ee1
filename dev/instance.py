"""One instance of the embedded cluster: its name, its place, its addresses. Pure data; other modules act on it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from dev.paths import cache, instances


class Level(StrEnum):
    """How much of a cluster: `api` has no nodes and needs no root, `full` runs pods."""

    api = "api"
    full = "full"


class InstanceError(RuntimeError):
    """An instance cannot do what was asked, and why."""


@dataclass(frozen=True)
class Network:
    """Addresses of a full instance, in a network namespace of its own. `slot` (0 to 255) keeps instances apart."""

    slot: int

    @property
    def interface(self) -> str:
        """The host's end of the link to the instance. That it exists is what claims the slot."""
        return f"everstep{self.slot}"

    @property
    def host_address(self) -> str:
        return f"10.245.{self.slot}.1"

    @property
    def link_address(self) -> str:
        return f"10.245.{self.slot}.2"

    @property
    def node_address(self) -> str:
        """The bridge's address: the node's, the API server's, CoreDNS's and the S3 server's."""
        return f"10.244.{self.slot}.1"

    @property
    def pod_subnet(self) -> str:
        return f"10.244.{self.slot}.0/24"

    @property
    def service_range(self) -> str:
        return f"10.96.{self.slot}.0/24"

    @property
    def service_address(self) -> str:
        """Of the Service `kubernetes`."""
        return f"10.96.{self.slot}.1"

    @property
    def dns_address(self) -> str:
        return f"10.96.{self.slot}.10"


@dataclass(frozen=True)
class Instance:
    """What `up` decided, as it stands in `instance.json` of the state directory."""

    name: str
    state: Path
    level: Level
    s3: bool
    address: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    slot: int | None = None

    @property
    def network(self) -> Network:
        if self.slot is None:
            raise InstanceError(f"instance {self.name!r} is of level {self.level}: it has no network of its own")
        return Network(self.slot)

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.api_port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.state / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        """One JSON event a line, level Metadata."""
        return self.state / "audit.log"

    @property
    def processes(self) -> Path:
        return self.state / "processes"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        """Content and snapshots, kept when the instance goes, for the next one in this slot."""
        return containerd_root(self.network.slot)

    def save(self) -> None:
        document = {**asdict(self), "state": str(self.state)}
        (self.state / "instance.json").write_text(json.dumps(document, indent=1))


def containerd_root(slot: int) -> Path:
    """Where the containerd of a slot keeps content and snapshots."""
    return cache() / "containerd" / str(slot)


def directory(name: str, state: Path | None = None) -> Path:
    """The state directory of an instance: the one given, or one below the cache directory."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", name):
        raise InstanceError(f"instance name {name!r}: 1 to 32 lower-case letters, digits and hyphens, a letter first")
    found = (state or instances() / name).absolute()
    if len(str(found)) > 80:  # a Unix socket's path has 107 bytes at most
        raise InstanceError(f"state directory {found}: longer than 80 characters, sockets would not fit; use --state")
    return found


def load(name: str, state: Path | None = None) -> Instance | None:
    """The instance that stands in its state directory, running or not; None where there is none."""
    path = directory(name, state)
    try:
        document = json.loads((path / "instance.json").read_text())
    except FileNotFoundError:
        return None
    return Instance(**{**document, "state": path, "level": Level(document["level"])})
