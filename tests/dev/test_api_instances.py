"""Instances without nodes: side by side, started and stopped, killed and started again, without a trace."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import api, build, cluster
from dev.instance import Instance, InstanceError, Level, load
from dev.processes import Processes
from dev.traces import snapshot

Start = Callable[[str], Instance]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start instances of level `api` below the test's directory; whatever still stands is taken down."""
    started: list[str] = []

    def starting(name: str) -> Instance:
        started.append(name)
        return cluster.up(name, Level.api, s3=False, state=tmp_path / name)

    yield starting
    for name in started:
        cluster.down(name, state=tmp_path / name)


def names(instance: Instance, kind: str) -> set[str]:
    command = [build.ensure().path("kubectl"), f"--kubeconfig={instance.kubeconfig}", "get", kind, "-o", "name"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def create_namespace(instance: Instance, name: str) -> None:
    command = [build.ensure().path("kubectl"), f"--kubeconfig={instance.kubeconfig}", "create", "namespace", name]
    subprocess.run(command, check=True, capture_output=True)


def own(traces: frozenset[str], *, of: Instance) -> set[str]:
    """Those that can be told to be this instance's, on a machine on which others work too."""
    pids = {line.split()[1] for line in traces if line.startswith("process")}
    mine = {pid for pid in pids if str(of.state) in command_line(pid)}
    return {line for line in traces if of.name in line or (line.startswith("process") and line.split()[1] in mine)}


def command_line(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_two_instances_stand_side_by_side_and_know_nothing_of_each_other(start: Start) -> None:
    first, second = start("side-a"), start("side-b")
    create_namespace(first, "only-in-a")
    assert "namespace/only-in-a" in names(first, "namespaces")
    assert "namespace/only-in-a" not in names(second, "namespaces")
    cluster.down(first.name, state=first.state)
    assert api.ready(second)
    assert not api.ready(first)


def test_up_twice_is_one_instance_and_another_level_is_refused(start: Start, tmp_path: Path) -> None:
    first = start("twice")
    pids = [Processes(first.processes).record(name) for name in Processes(first.processes).names()]
    assert start("twice") == first
    assert [Processes(first.processes).record(name) for name in Processes(first.processes).names()] == pids
    with pytest.raises(InstanceError, match="runs at level api without S3: take it down first"):
        cluster.up("twice", Level.api, s3=True, state=tmp_path / "twice")


def test_down_leaves_nothing(start: Start) -> None:
    instance = start("clean")
    assert {"etcd", "kube-apiserver"} <= set(Processes(instance.processes).names())
    assert own(snapshot(), of=instance)
    assert cluster.down(instance.name, state=instance.state)
    assert own(snapshot(), of=instance) == set()
    assert not instance.state.exists()
    assert load(instance.name, instance.state) is None
    assert not cluster.down(instance.name, state=instance.state)


def test_an_instance_whose_api_server_was_killed_starts_afresh(start: Start) -> None:
    instance = start("killed")
    create_namespace(instance, "before")
    record = Processes(instance.processes).record("kube-apiserver")
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    again = start("killed")
    assert api.ready(again)
    assert "namespace/before" not in names(again, "namespaces")


def test_a_process_that_only_has_the_same_pid_is_not_touched(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    bystander = processes.start("bystander", ["sleep", "60"])
    record = tmp_path / "bystander.json"
    honest = record.read_text()
    record.write_text(honest.replace(str(bystander.start_ticks), str(bystander.start_ticks - 1)))
    processes.stop(["bystander"])
    record.write_text(honest)
    assert processes.alive("bystander")
    processes.stop(["bystander"])
    assert not processes.alive("bystander")


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a" * 33, "a/b", "a_b"])
def test_a_bad_name_is_refused_before_anything_starts(name: str) -> None:
    with pytest.raises(InstanceError, match="instance name"):
        cluster.up(name, Level.api)
