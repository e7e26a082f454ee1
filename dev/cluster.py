"""Brings an instance up and down: the order of things, and nothing left behind."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dev import api, build, control_plane, network, node, prerequisites
from dev.build import Binaries
from dev.containerd import Containerd
from dev.instance import Instance, InstanceError, Level, Network, containerd_root, directory, load
from dev.namespace import HOLDER, Namespace
from dev.paths import SLOTS_LOCK, instances
from dev.ports import free_ports
from dev.processes import Processes
from dev.s3 import S3Server

# Consumers before what they need.
STOP_ORDER = (
    *("coredns", "kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager"),
    *("kube-apiserver", "etcd"),
)
S3_PORT = 8333  # of a full instance, at its own address


def up(name: str, level: Level, *, s3: bool = True, state: Path | None = None) -> Instance:
    """Start an instance and return when it is ready. One that already runs at this level is returned as it is."""
    path = directory(name, state)
    if level is Level.full:
        prerequisites.require_root("a cluster that runs pods")
    prerequisites.ensure(prerequisites.FULL if level is Level.full else prerequisites.API)
    binaries = build.ensure()
    with locked(name):
        standing = load(name, state)
        if standing and healthy(standing):
            if (standing.level, standing.s3 or not s3) != (level, True):
                has = "with" if standing.s3 else "without"
                raise InstanceError(f"instance {name!r} runs at level {standing.level} {has} S3: take it down first")
            return standing
        if standing:
            remove(standing)  # what a crash of the machine or of an `up` left
        path.mkdir(parents=True, exist_ok=True)
        starting = start_full if level is Level.full else start_api
        return starting(name, path, s3, binaries)


def start_api(name: str, path: Path, s3: bool, binaries: Binaries) -> Instance:
    """etcd, API server and a few controllers on loopback."""
    api_port, etcd, peer = free_ports(3)
    instance = Instance(name, path, Level.api, s3, "127.0.0.1", api_port, etcd, peer)
    instance.save()
    with undone_on_failure(instance), ThreadPoolExecutor() as beside:
        storage = beside.submit(s3_server(instance).start) if s3 else None
        control_plane.start(instance, binaries)
        if storage:
            storage.result()
    return instance


def start_full(name: str, path: Path, s3: bool, binaries: Binaries) -> Instance:
    """Everything, in namespaces of its own."""
    with file_locked(SLOTS_LOCK):
        slot = choose_slot(name)
        address = Network(slot).node_address
        instance = Instance(name, path, Level.full, s3, address, 6443, 2379, 2380, slot)
        instance.save()
        namespace = Namespace(instance)
        with undone_on_failure(instance):
            network.create(instance.network, namespace, namespace.create())
    with undone_on_failure(instance), ThreadPoolExecutor() as beside:
        storage = beside.submit(s3_server(instance).start) if s3 else None
        runtime = beside.submit(Containerd(instance, binaries).start, namespace)
        control_plane.start(instance, binaries, namespace.prefix)
        runtime.result()
        node.start(instance, binaries, namespace)
        if storage:
            storage.result()
    return instance


def choose_slot(name: str) -> int:
    """A free slot: the one that this instance had last, whose containerd has its images, else the first."""
    free = list(network.free_slots())
    if not free:
        raise InstanceError("no free addresses: 10.244.0.0/16, 10.245.0.0/16 or 10.96.0.0/16 is all routed elsewhere")
    notes = {slot: containerd_root(slot) / "last-instance" for slot in free}
    had = [slot for slot, note in notes.items() if note.exists() and note.read_text() == name]
    slot = next(iter(had), free[0])
    notes[slot].parent.mkdir(parents=True, exist_ok=True)
    notes[slot].write_text(name)
    return slot


def down(name: str, *, state: Path | None = None) -> bool:
    """Stop an instance and remove all that it made, except caches. False where there is none."""
    with locked(name):
        standing = load(name, state)
        if standing:
            remove(standing)
        return standing is not None


def s3_server(instance: Instance) -> S3Server:
    """The S3 server of an instance that runs."""
    place = instance.state / "s3"
    if instance.level is Level.api:
        return S3Server(place, address=instance.address)
    return S3Server(place, address=instance.address, port=S3_PORT, prefix=Namespace(instance).prefix)


def healthy(instance: Instance) -> bool:
    """True when the daemons of the instance run and its API server answers."""
    expected = {"etcd", "kube-apiserver", "kube-controller-manager"}
    if instance.level is Level.full:
        expected |= {*STOP_ORDER, "containerd", HOLDER}
    return all(map(Processes(instance.processes).alive, expected)) and api.ready(instance)


def stop(instance: Instance) -> None:
    """Stop its daemons, in order, and everything that they started."""
    processes = Processes(instance.processes)
    if instance.level is Level.full:
        stop_pods(instance)
    S3Server(instance.state / "s3").stop()
    for name in STOP_ORDER:
        processes.stop([name])
    if instance.level is Level.full:
        processes.stop(["containerd"])
        Containerd.clean_root(instance)
        Namespace(instance).destroy()
        network.remove(instance)


def stop_pods(instance: Instance) -> None:
    """End all pods without further ado: their storage and their objects go as well."""
    processes = Processes(instance.processes)
    processes.stop(["kubelet"], grace=2)
    Namespace(instance).cgroup.kill("kubepods")
    if processes.alive("containerd"):
        Containerd(instance, build.ensure()).forget_containers()


def remove(instance: Instance) -> None:
    """Stop it and remove its state."""
    stop(instance)
    shutil.rmtree(instance.state)


@contextmanager
def undone_on_failure(instance: Instance) -> Iterator[None]:
    """Stop an instance whose start failed. Its logs stay in the state directory."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            stop(instance)
        raise


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One command at a time changes an instance."""
    with file_locked(instances() / f".{name}.lock"):
        yield


@contextmanager
def file_locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
