"""A whole cluster: pods run, find each other and the S3 server, and nothing is left of any of it."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev import build, cluster
from dev.cgroups import Cgroup
from dev.containerd import PAUSE, Containerd
from dev.instance import Instance, Level
from dev.traces import snapshot

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a cluster that runs pods needs root")

Start = Callable[[str], Instance]
# What may come and go on a machine on which others work too; processes are looked for in the instance's cgroup.
OTHERS = ("process ", "mount /var/lib/containers", "link ", "route ", "address ", "cgroup ", "socket ")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start full instances; whatever still stands is taken down."""
    started: list[str] = []

    def starting(name: str) -> Instance:
        started.append(name)
        return cluster.up(name, Level.full, s3=True)

    yield starting
    for name in started:
        cluster.down(name)


def kubectl(instance: Instance, *arguments: str, stdin: str | None = None) -> str:
    command = [build.ensure().path("kubectl"), f"--kubeconfig={instance.kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def busybox(name: str, script: str, **metadata: object) -> dict[str, object]:
    """A pod of the one image that every instance has."""
    container = {"name": "main", "image": PAUSE, "command": ["/busybox", "sh", "-c", script]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **metadata}, "spec": spec}


def service(name: str) -> dict[str, object]:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def run_pods(instance: Instance, *objects: dict[str, object]) -> None:
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl(instance, "apply", "-f", "-", stdin=document)
    kubectl(instance, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s")


WEB = "/busybox mkdir /w; echo found >/w/index.html; exec /busybox httpd -f -p 8080 -h /w"
IDLE = "while :; do /busybox sleep 1; done"


def inside(instance: Instance, *command: str) -> str:
    return kubectl(instance, "exec", "client", "--", "/busybox", *command)


def test_pods_find_services_and_the_s3_server_and_down_leaves_nothing(start: Start) -> None:
    before = snapshot()
    instance = start("whole")
    network = instance.network
    run_pods(instance, service("web"), busybox("web", WEB, labels={"app": "web"}), busybox("client", IDLE))
    assert inside(instance, "wget", "-qO-", "http://web") == "found\n"
    assert "NXDOMAIN" in kubectl(instance, "exec", "client", "--", "/busybox", "sh", "-c", "nslookup late; true")
    inside(instance, "wget", "-qO-", f"{cluster.s3_server(instance).endpoint.url}/healthz")
    bucket = cluster.s3_server(instance).endpoint.make_bucket()
    assert bucket in str(cluster.s3_server(instance).endpoint.client().list_buckets()["Buckets"])
    pod_cgroup = Cgroup(instance).members("kubepods")
    assert pod_cgroup

    cluster.down("whole")
    assert Cgroup(instance).members() == set()
    assert {pid for pid in pod_cgroup if Path(f"/proc/{pid}").exists()} == set()
    after = snapshot()
    assert {line for line in after - before if not line.startswith(OTHERS)} == set()
    mine = (
        "everstep/whole",
        f"{network.interface} ",
        f"{network.interface}@",
        network.pod_subnet,
        network.service_range,
    )
    assert {line for line in after if any(word in line for word in mine)} == set()
    assert not instance.state.exists()


def test_two_whole_clusters_stand_side_by_side_though_they_have_one_name(start: Start, tmp_path: Path) -> None:
    first = cluster.up("left", Level.full, s3=True, state=tmp_path / "elsewhere")
    try:
        _side_by_side(first, start("left"))
    finally:
        cluster.down("left", state=first.state)


def _side_by_side(first: Instance, second: Instance) -> None:
    assert first.network.slot != second.network.slot
    for each in (first, second):
        run_pods(each, service("web"), busybox("web", WEB, labels={"app": "web"}), busybox("client", IDLE))
    cluster.down(first.name, state=first.state)
    assert inside(second, "wget", "-qO-", "http://web") == "found\n"


def test_images_outlive_an_instance_and_containers_do_not(start: Start) -> None:
    first = start("again")
    run_pods(first, busybox("client", IDLE))
    root, blobs = first.containerd_root, set(Containerd(first, build.ensure()).blobs.iterdir())
    cluster.down("again")
    snapshots = root / "io.containerd.snapshotter.v1.overlayfs" / "snapshots"
    kept = {each.name: each.stat().st_ino for each in snapshots.iterdir()}
    second = start("again")
    if second.containerd_root != root:
        pytest.skip("another instance took the slot meanwhile")
    containerd = Containerd(second, build.ensure())
    assert PAUSE in containerd.images()
    assert set(containerd.blobs.iterdir()) >= blobs
    assert containerd.ctr("containers", "ls", "-q").stdout == ""
    assert {each.name: each.stat().st_ino for each in snapshots.iterdir()} == kept


def test_an_instance_whose_daemons_were_all_killed_comes_up_again(start: Start) -> None:
    first = start("crashed")
    run_pods(first, busybox("client", IDLE))
    Cgroup(first).kill()
    second = start("crashed")
    run_pods(second, busybox("client", IDLE))
    assert len(kubectl(second, "get", "pods", "-o", "name").split()) == 1
