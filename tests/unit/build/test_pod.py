"""Pods: the template's own words stay, the operator's are added, and what is reserved cannot be overridden."""

from __future__ import annotations

import json
from typing import Any

import pytest

from everstep_operator.api import TrainingJob
from everstep_operator.build import Launch, names, pod_manifest, pod_name
from tests.support.observations import job

LAUNCH = Launch(
    attempt=3,
    nodes=2,
    epoch=7,
    generation=21,
    resume_path="s3://b/p/checkpoints/x",
    resume_step=900,
    rendezvous="10.0.0.7",
)
FRESH = Launch(attempt=1, nodes=2, epoch=1, generation=1, rendezvous="10.0.0.7")


def trainer(of: TrainingJob, launch: Launch = LAUNCH, index: int = 0) -> dict[str, Any]:
    container: dict[str, Any] = pod_manifest(of, launch, index)["spec"]["containers"][0]
    return container


def variables(of: TrainingJob | None = None, launch: Launch = LAUNCH, index: int = 0) -> dict[str, Any]:
    env = trainer(of or job(), launch, index)["env"]
    assert len({v["name"] for v in env}) == len(env), "a variable is named twice"
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in env}


def test_what_the_library_needs() -> None:
    found = variables()
    assert found["EVERSTEP_NAMESPACE"] == "default"
    assert found["EVERSTEP_JOB"] == "job"
    assert found["EVERSTEP_JOB_UID"] == "uid-1"
    assert found["EVERSTEP_ATTEMPT"] == "3"
    assert found["EVERSTEP_ROOT"] == "s3://bucket/prefix/default/job"
    assert found["EVERSTEP_RESUME_PATH"] == "s3://b/p/checkpoints/x"
    assert found["EVERSTEP_RESUME_STEP"] == "900"


def test_a_fresh_start_has_empty_variables_rather_than_none() -> None:
    found = variables(launch=FRESH)
    assert (found["EVERSTEP_RESUME_PATH"], found["EVERSTEP_RESUME_STEP"]) == ("", "")


def test_the_policy_is_the_checkpoint_section_without_the_storage() -> None:
    policy = json.loads(variables(job(checkpoint__keepEvery=1000))["EVERSTEP_POLICY"])
    assert policy == {"interval": {"seconds": 600}, "async": True, "keepLast": 3, "keepEvery": 1000}


def test_torchrun_finds_its_gang() -> None:
    found = variables(job(procPerNode="gpu"))
    assert found["PET_NNODES"] == "2"
    assert found["PET_NPROC_PER_NODE"] == "gpu"
    assert found["PET_RDZV_BACKEND"] == "c10d"
    assert found["PET_RDZV_ID"] == "uid-1-3"
    assert found["PET_MAX_RESTARTS"] == "3"
    assert found["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    assert found["PET_LOCAL_ADDR"] == {"fieldRef": {"fieldPath": "status.podIP"}}


@pytest.mark.parametrize(
    ("index", "address", "endpoint", "hosts"),
    [
        (0, "10.0.0.7", "localhost:29400", "1"),
        (1, "10.0.0.7", "10.0.0.7:29400", "0"),
        (1, "fd00::7", "[fd00::7]:29400", "0"),
        (0, None, "localhost:29400", "1"),
    ],
)
def test_pod_0_hosts_the_rendezvous(index: int, address: str | None, endpoint: str, hosts: str) -> None:
    launch = Launch(attempt=1, nodes=2 if address else 1, epoch=1, generation=1, rendezvous=address)
    found = variables(launch=launch, index=index)
    conf = dict(item.split("=") for item in found["PET_RDZV_CONF"].split(","))
    assert (found["PET_RDZV_ENDPOINT"], conf["is_host"]) == (endpoint, hosts)


def with_container(**changes: Any) -> TrainingJob:
    return job(template__spec__containers=[{"name": "main", "image": "i", **changes}])


def test_reserved_variables_cannot_be_set_and_others_can() -> None:
    env = [
        {"name": "EVERSTEP_ATTEMPT", "value": "99"},
        {"name": "PET_RDZV_ENDPOINT", "value": "evil:1"},
        {"name": "PET_MAX_RESTARTS", "value": "0"},
        {"name": "OUT", "value": "$(EVERSTEP_ROOT)/out"},
    ]
    found = variables(with_container(env=env))
    assert found["EVERSTEP_ATTEMPT"] == "3"
    assert found["PET_RDZV_ENDPOINT"] == "localhost:29400"
    assert found["PET_MAX_RESTARTS"] == "0"
    assert list(found).index("EVERSTEP_ROOT") < list(found).index("OUT"), "$(EVERSTEP_ROOT) would not be expanded"


def test_storage_becomes_variables_of_the_s3_client() -> None:
    of = job(checkpoint__storage__endpoint="http://s3.test:8333", checkpoint__storage__region="eu-central-1")
    found = variables(of)
    assert found["AWS_ENDPOINT_URL"] == "http://s3.test:8333"
    assert found["AWS_REGION"] == found["AWS_DEFAULT_REGION"] == "eu-central-1"
    assert "AWS_ENDPOINT_URL" not in variables()


def test_the_templates_own_sources_win_over_the_named_secret() -> None:
    of = with_container(envFrom=[{"configMapRef": {"name": "mine"}}])
    spec = of.spec.model_copy(
        update={
            "checkpoint": of.spec.checkpoint.model_copy(
                update={"storage": of.spec.checkpoint.storage.model_copy(update={"secret_name": "s3"})}
            )
        }
    )
    sources = trainer(of.model_copy(update={"spec": spec}))["envFrom"]
    assert sources == [{"secretRef": {"name": "s3"}}, {"configMapRef": {"name": "mine"}}]


@pytest.mark.parametrize(("grace", "seconds"), [(None, "25"), (120, "115"), (3, "1"), (0, "1")])
def test_torchrun_ends_its_workers_before_the_kubelet_ends_torchrun(grace: int | None, seconds: str) -> None:
    of = job() if grace is None else job(template__spec__terminationGracePeriodSeconds=grace)
    assert variables(of)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == seconds


def test_only_the_container_named_trainer_is_equipped() -> None:
    of = job(template__spec__containers=[{"name": "logs", "image": "l"}, {"name": "trainer", "image": "t"}])
    logs, equipped = pod_manifest(of, LAUNCH, 0)["spec"]["containers"]
    assert logs == {"name": "logs", "image": "l"}
    assert equipped["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert any(v["name"] == "EVERSTEP_ROOT" for v in equipped["env"])


def test_a_termination_message_policy_of_the_template_stays() -> None:
    assert trainer(with_container(terminationMessagePolicy="File"))["terminationMessagePolicy"] == "File"


def test_metadata() -> None:
    of = job(template__metadata={"labels": {"team": "a", names.ATTEMPT: "9"}, "annotations": {"note": "b"}})
    manifest = pod_manifest(of, LAUNCH, 1)
    meta = manifest["metadata"]
    assert meta["name"] == "job-3-1" == pod_name("job", 3, 1)
    assert meta["labels"] == {
        "team": "a",
        names.JOB: "job",
        names.JOB_UID: "uid-1",
        names.ATTEMPT: "3",
        names.INDEX: "1",
    }
    assert meta["annotations"]["note"] == "b"
    assert Launch.read(3, meta["annotations"]) == LAUNCH
    (owner,) = meta["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == ("uid-1", True)


def test_the_operators_words_about_the_pod() -> None:
    of = job(template__spec__restartPolicy="Always", template__spec__subdomain="x", template__spec__hostname="y")
    spec = pod_manifest(of, LAUNCH, 0)["spec"]
    assert (spec["restartPolicy"], spec["hostname"], spec.get("subdomain")) == ("Never", "job-3-0", None)


def test_the_template_is_left_as_it_is() -> None:
    of = job()
    before = json.dumps(of.spec.template)
    pod_manifest(of, LAUNCH, 0)
    assert json.dumps(of.spec.template) == before


def test_nothing_is_added_that_pod_security_refuses() -> None:
    spec = pod_manifest(job(), LAUNCH, 0)["spec"]
    assert set(spec) == {"containers", "restartPolicy", "hostname"}
    assert set(spec["containers"][0]) == {"name", "image", "env", "terminationMessagePolicy"}


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {names.NODES: "two"},
        {names.NODES: "2", names.EPOCH: ""},
        *({**FRESH.annotations(), names.NODES: n} for n in ("-1", "0", "1000000000")),
        {**FRESH.annotations(), names.EPOCH: "9" * 30},
        {**FRESH.annotations(), names.RESUME_STEP: "-1"},
        {**FRESH.annotations(), names.RESUME_PATH: "s" * 4096},
        {**FRESH.annotations(), names.RENDEZVOUS: "None"},
    ],
)
def test_annotations_that_were_tampered_with_give_no_launch(broken: dict[str, str]) -> None:
    assert Launch.read(1, broken) is None


def test_a_fresh_launch_makes_the_round_trip() -> None:
    assert Launch.read(1, FRESH.annotations()) == FRESH


LOCAL = {"interval": {"steps": 10}, "sizeLimit": "4Gi"}


@pytest.mark.parametrize(("medium", "volume"), [("Memory", {"medium": "Memory"}), ("Disk", {})])
def test_the_local_tier_is_a_volume_of_the_pod(medium: str, volume: dict[str, str]) -> None:
    """Beside what the template mounts; the size bounds both the volume and what the library writes there."""
    own = {"name": "data", "emptyDir": {}}
    mount = {"name": "data", "mountPath": "/data"}
    container = {"name": "trainer", "image": "example.test/train:1", "volumeMounts": [mount]}
    template = {"spec": {"containers": [container], "volumes": [own]}}
    of = job(template=template, checkpoint__local={**LOCAL, "medium": medium})
    assert pod_manifest(of, LAUNCH, 0)["spec"]["volumes"] == [
        own,
        {"name": "everstep-local", "emptyDir": {"sizeLimit": "4Gi", **volume}},
    ]
    path = variables(of)["EVERSTEP_LOCAL_PATH"]
    assert trainer(of)["volumeMounts"] == [mount, {"name": "everstep-local", "mountPath": path}]
    assert variables(of)["EVERSTEP_LOCAL_BYTES"] == str(4 << 30)
    assert json.loads(variables(of)["EVERSTEP_POLICY"])["local"] == {**LOCAL, "medium": medium}


def test_without_a_local_tier_nothing_is_mounted() -> None:
    assert not {"EVERSTEP_LOCAL_PATH", "EVERSTEP_LOCAL_BYTES"} & set(variables())
    assert "volumes" not in pod_manifest(job(), LAUNCH, 0)["spec"]
