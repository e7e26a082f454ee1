"""Scripts that fail under real torchrun: the job names the script's own last words, not torchrun's exit code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.tenant import Tenant
from tests.support.troubleshooting import explains

ONCE = {"maxRestartsWithoutProgress": 1}
TRAIN = ["torchrun", "-m", "everstep.train", "--steps=10", "--data.sequence=32"]


@pytest.fixture(scope="session")
def image(load_image: Callable[[str], str]) -> str:
    return load_image("trainer")


def job(team: Tenant, image: str, name: str, arguments: list[str], **spec: Any) -> dict[str, Any]:
    manifest = team.job(name, *arguments, nodes=1, **{"failurePolicy": ONCE, **spec})
    manifest["spec"]["template"]["spec"]["containers"][0]["image"] = image
    return manifest


def failure(team: Tenant, name: str, reason: str) -> str:
    """Wait until the job has failed for that reason, after one attempt; returns the message."""
    team.until_phase(name, "Failed", seconds=120)
    failed = team.condition(name, "Failed")
    assert failed["reason"] == reason
    assert explains(reason, failed["message"])
    status = team.status(name)
    assert (len(status["history"]), status["restarts"]["total"], status["restarts"]["inPlace"]) == (1, 0, 0)
    assert failed["message"] in team.told(name, "Failed")
    message: str = failed["message"]
    return message


@pytest.mark.parametrize(
    ("name", "script", "reason", "words"),
    [
        (
            "missing-module",
            "import no_such_module",
            "NoProgress",
            "rank 0 on {node} failed: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        (
            "early-exit",
            "import sys\nprint('no data in /data', file=sys.stderr)\nsys.exit(1)",
            "NoProgress",
            "rank 0 on {node} failed: SystemExit: 1: no data in /data",
        ),
        (
            "misconfigured",
            "import sys\nsys.exit(78)",
            "NotRunnable",
            "rank 0 on {node} failed: SystemExit: 78",
        ),
    ],
    ids=["missing-module", "early-exit", "misconfigured"],
)
def test_a_broken_script(team: Tenant, image: str, name: str, script: str, reason: str, words: str) -> None:
    metadata = {"name": name}
    team.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"train.py": script}})
    manifest = job(team, image, name, ["torchrun", "/scripts/train.py"])
    pod = manifest["spec"]["template"]["spec"]
    pod["volumes"] = [{"name": "scripts", "configMap": metadata}]
    pod["containers"][0]["volumeMounts"] = [{"name": "scripts", "mountPath": "/scripts"}]
    team.apply(manifest)
    message = failure(team, name, reason)
    node = team.status(name)["history"][0]["node"]
    assert words.format(node=node) in message
    assert words.format(node=node) in team.told(name, "GangFailed")
    if name == "missing-module":
        assert 'File "/scripts/train.py", line 1' in team.kubectl("logs", f"{name}-1-0")


@pytest.mark.parametrize(
    ("name", "flags", "variable", "words"),
    [
        ("bad-flag", ["--stepz=10"], None, "there is no flag --stepz"),
        ("bad-value", ["--model.hidden=few"], None, "model.hidden"),
        ("bad-variable", [], {"name": "EVERSTEP_TRAIN_MODEL__LAYERS", "value": "-2"}, "model.layers"),
    ],
    ids=["flag", "value", "variable"],
)
def test_a_recipe_that_is_told_nonsense_is_not_tried_again(
    team: Tenant, image: str, name: str, flags: list[str], variable: dict[str, str] | None, words: str
) -> None:
    manifest = job(team, image, name, [*TRAIN, *flags], failurePolicy={})
    if variable:
        manifest["spec"]["template"]["spec"]["containers"][0]["env"] = [variable]
    team.apply(manifest)
    assert words in failure(team, name, "NotRunnable")


def test_a_checkpoint_of_another_architecture(team: Tenant, image: str) -> None:
    """It ends at once, the checkpoint stays, and a job of the former shape goes on from it."""
    team.apply(job(team, image, "shaped", TRAIN))
    team.until_phase("shaped", "Succeeded", seconds=120)
    team.delete("shaped")
    longer = [TRAIN[0], TRAIN[1], TRAIN[2], "--steps=14", TRAIN[4]]
    team.apply(job(team, image, "shaped", [*longer, "--model.hidden=96"], failurePolicy={}))
    message = failure(team, "shaped", "NotRunnable")
    assert "ArchitectureMismatchError" in message
    assert "checkpoint of another architecture: model.embed_tokens.weight: 384x128 in the checkpoint" in message
    assert message.endswith("to go on from step 10, delete the job and apply it anew")
    assert team.steps("shaped")[-1] == 10
    team.delete("shaped")
    team.apply(job(team, image, "shaped", longer))
    status = team.until_phase("shaped", "Succeeded", seconds=120)
    assert (status["resumedFrom"]["step"], status["lastCheckpoint"]["step"]) == (10, 14)
