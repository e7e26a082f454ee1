"""Edits of a job that runs, on a real API server: who has to stop for them saves first, and nobody else stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from everstep_operator.api.fields import changing
from tests.support.rig import Rig
from tests.support.trainingjobs import full
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

LONG = Options(total_steps=400, seconds_per_step=0.05, save_every=1000, heartbeat_seconds=0.2)
"""It saves only where it is stopped: a step that is resumed was saved for the edit."""

RESTARTS: dict[str, tuple[dict[str, Any], Callable[[Any], Any], Any]] = {
    "nodes": ({"nodes": 3}, lambda env: env["PET_NNODES"], "3"),
    "procPerNode": ({"procPerNode": "cpu"}, lambda env: env["PET_NPROC_PER_NODE"], "cpu"),
    "template": (
        {"template": {"spec": {"containers": [{"name": "trainer", "image": "example.test/lite:9"}]}}},
        lambda env: env["image"],
        "example.test/lite:9",
    ),
    "checkpoint.storage.region": (
        {"checkpoint": {"storage": {"region": "eu-other-1"}}},
        lambda env: env["AWS_REGION"],
        "eu-other-1",
    ),
    "checkpoint.storage.secretName": (
        {"checkpoint": {"storage": {"secretName": "rotated"}}},
        lambda env: env["secret"],
        "rotated",
    ),
    "checkpoint.local.medium": (
        {"checkpoint": {"local": {"medium": "Disk"}}},
        lambda env: env["medium"],
        "",
    ),
    "checkpoint.local.sizeLimit": (
        {"checkpoint": {"local": {"sizeLimit": "2Gi"}}},
        lambda env: (env["EVERSTEP_LOCAL_BYTES"], env["size"]),
        (str(2 << 30), "2Gi"),
    ),
}
LOCAL = {"interval": {"steps": 500}, "medium": "Memory", "sizeLimit": "1Gi"}


def made(rig: Rig, pod: str) -> dict[str, str]:
    """What the pod was made from: variables, image, Secret, the volume of the local tier."""
    spec = rig.core.read_namespaced_pod(pod, rig.namespace).spec
    found = spec.containers[0]
    local = next((each.empty_dir for each in spec.volumes or [] if each.name == "everstep-local"), None)
    sources = [source.secret_ref.name for source in found.env_from or []]
    variables = {item.name: item.value or "" for item in found.env}
    volume = {"medium": local.medium or "", "size": local.size_limit} if local else {}
    return {**variables, **volume, "image": found.image, "secret": ",".join(sources)}


@pytest.mark.parametrize("path", changing("restart"))
def test_a_field_that_needs_a_restart(shared_rig: Rig, path: str) -> None:
    edit, what, expected = RESTARTS[path]
    name = path.rsplit(".", 1)[-1].lower()
    shared_rig.options[name] = LONG
    local: dict[str, Any] = {"local": LOCAL} if ".local." in path else {}
    shared_rig.apply(name, checkpoint=local)
    wait_for("steps", lambda: (shared_rig.status(name).get("progress") or {}).get("step"))
    shared_rig.patch({"spec": edit}, name)
    wait_for("the next attempt", lambda: shared_rig.status(name).get("attempt") == 2)
    stopped = shared_rig.kubelet.container(f"{name}-1-0").run.step
    assert stopped > 0
    environment = made(shared_rig, f"{name}-2-0")
    assert what(environment) == expected
    assert environment["EVERSTEP_RESUME_STEP"] == str(stopped), "it did not save, or not before it was fenced"
    status = shared_rig.status(name)
    assert [(entry["attempt"], entry["reason"]) for entry in status["history"]] == [(1, "Edited")]
    assert status["history"][0]["message"] == f"spec.{path} changed"
    assert status["restarts"]["total"] == 0
    shared_rig.delete(name)


def test_live_fields_and_those_for_the_next_attempt_stop_nobody(shared_rig: Rig) -> None:
    """Each is edited by itself; the gang of the first attempt trains on to the end of the test."""
    shared_rig.options["live"] = LONG
    checkpoint = {"interval": {"steps": 50, "seconds": 500}, "keepBest": {"metric": "loss"}, "local": LOCAL}
    shared_rig.apply("live", checkpoint=checkpoint, elastic={"minNodes": 2, "maxNodes": 2})
    wait_for("it runs", lambda: shared_rig.status("live").get("phase") == "Running")
    uids = {pod.metadata.uid for pod in shared_rig.pods() if pod.metadata.name.startswith("live-")}
    for path in (*changing("live"), *changing("next-attempt")):
        if path == "suspend":  # the one live field that stops the gang
            continue
        value: Any = full()["spec"]
        for part in path.split("."):
            value = value[part]
        edit: Any = value
        for part in reversed(path.split(".")):
            edit = {part: edit}
        shared_rig.patch({"spec": edit}, "live")
        wait_for(f"{path} is seen", lambda: _is_seen(shared_rig.job("live")))
    status = shared_rig.status("live")
    told = next(each for each in status["conditions"] if each["type"] == "SpecApplied")
    assert (told["status"], told["reason"]) == ("False", "NextAttempt")
    assert all(f"spec.{path}" in told["message"] for path in changing("next-attempt"))
    assert (status["attempt"], status["phase"], status.get("history")) == (1, "Running", None)
    assert {pod.metadata.uid for pod in shared_rig.pods() if pod.metadata.name.startswith("live-")} == uids
    assert "NextAttempt" in shared_rig.reasons()
    shared_rig.patch({"spec": {"deletionPolicy": "Retain"}}, "live")
    shared_rig.delete("live")


def _is_seen(job: dict[str, Any]) -> bool:
    return bool(job["metadata"]["generation"] == job["status"].get("observedGeneration"))


def test_a_template_that_the_api_server_refuses_does_not_cost_the_gang(shared_rig: Rig) -> None:
    """The CRD cannot know that a mount names no volume; the API server is asked before anything is stopped."""
    shared_rig.options["bad"] = replace(LONG, total_steps=120, save_every=40)
    shared_rig.apply("bad")
    wait_for("it runs", lambda: shared_rig.status("bad").get("phase") == "Running")
    mount = {"name": "data", "mountPath": "/data"}
    container = {"name": "trainer", "image": "example.test/lite:1", "volumeMounts": [mount]}
    shared_rig.patch({"spec": {"template": {"spec": {"containers": [container]}}}}, "bad")

    def told() -> Any:
        conditions = shared_rig.status("bad").get("conditions", [])
        return next((each for each in conditions if each["type"] == "SpecApplied"), None)

    refused = wait_for("it is refused", told)
    assert (refused["status"], refused["reason"]) == ("False", "PodInvalid")
    assert "attempt 1 goes on without it" in refused["message"]
    assert "volumeMounts[0].name" in refused["message"]
    status = shared_rig.until_phase("Succeeded", name="bad")
    assert status["attempt"] == 1
    assert shared_rig.kubelet.container("bad-1-0").run.state == chain(120)


def test_a_sequence_of_edits_ends_in_the_last_one_and_repeats_no_step(shared_rig: Rig) -> None:
    shared_rig.options["often"] = replace(LONG, total_steps=80, save_every=1000)
    shared_rig.apply("often")
    wait_for("steps", lambda: (shared_rig.status("often").get("progress") or {}).get("step"))
    for tag in range(2, 6):
        container = {"name": "trainer", "image": f"example.test/lite:{tag}"}
        shared_rig.patch({"spec": {"template": {"spec": {"containers": [container]}}}}, "often")
    status = shared_rig.until_phase("Succeeded", name="often")
    last = f"often-{status['attempt']}-0"
    assert made(shared_rig, last)["image"] == "example.test/lite:5"
    assert shared_rig.kubelet.container(last).run.state == chain(80)
    assert status["restarts"]["total"] == 0


def test_kubectl_scale_gives_the_gang_another_size(shared_rig: Rig) -> None:
    shared_rig.options["wide"] = LONG
    shared_rig.apply("wide")
    wait_for("it runs", lambda: shared_rig.status("wide").get("phase") == "Running")
    shared_rig.cluster.kubectl("scale", f"--namespace={shared_rig.namespace}", "tj/wide", "--replicas=1")
    wait_for("a gang of one", lambda: shared_rig.status("wide").get("attempt") == 2)
    assert made(shared_rig, "wide-2-0")["PET_NNODES"] == "1"
    shared_rig.delete("wide")
