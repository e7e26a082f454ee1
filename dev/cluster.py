"""Brings an instance up and down: the order of things, and nothing left behind."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dev import build, control_plane
from dev.instance import Instance, InstanceError, Level, directory, load
from dev.paths import instances
from dev.ports import free_ports
from dev.processes import Processes
from dev.s3 import S3Server

# Consumers before what they need. Whatever else stands in the process directory is stopped last.
STOP_ORDER = ("coredns", "kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")


def up(name: str, level: Level, *, s3: bool = True, state: Path | None = None) -> Instance:
    """Start an instance and return when it is ready. One that already runs at this level is returned as it is."""
    path = directory(name, state)
    binaries = build.ensure()
    with locked(name):
        standing = load(name, state)
        if standing and healthy(standing):
            if standing.level is not level:
                raise InstanceError(
                    f"instance {name!r} runs at level {standing.level}, not {level}: take it down first, or use another"
                )
            return standing
        if standing:
            remove(standing)  # what a crash of the machine or of an `up` left
        path.mkdir(parents=True, exist_ok=True)
        instance = plan(name, path, level, s3)
        instance.save()
        try:
            control_plane.start(instance, binaries)
            if s3:
                s3_server(instance).start()
        except BaseException:
            stop(instance)  # the logs stay in the state directory
            raise
        return instance


def down(name: str, *, state: Path | None = None) -> bool:
    """Stop an instance and remove all that it made, except caches. False where there is none."""
    with locked(name):
        standing = load(name, state)
        if standing:
            remove(standing)
        return standing is not None


def plan(name: str, path: Path, level: Level, s3: bool) -> Instance:
    """Choose addresses."""
    api, etcd, peer = free_ports(3)
    return Instance(name, path, level, s3, "127.0.0.1", api, etcd, peer)


def s3_server(instance: Instance) -> S3Server:
    return S3Server(instance.state / "s3", address=instance.address)


def healthy(instance: Instance) -> bool:
    """True when every daemon of the instance runs and the API server answers."""
    processes = Processes(instance.processes)
    expected = {"etcd", "kube-apiserver", "kube-controller-manager"}
    return all(map(processes.alive, expected)) and control_plane.ready(instance)


def stop(instance: Instance) -> None:
    """Stop its daemons, in order."""
    processes = Processes(instance.processes)
    if (instance.state / "s3").exists():
        s3_server(instance).stop()
    for name in STOP_ORDER:
        processes.stop([name])
    processes.stop(processes.names())


def remove(instance: Instance) -> None:
    """Stop it and remove its state."""
    stop(instance)
    shutil.rmtree(instance.state)


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One command at a time changes an instance."""
    instances().mkdir(parents=True, exist_ok=True)
    with (instances() / f".{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
