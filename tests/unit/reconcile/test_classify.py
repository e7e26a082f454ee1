"""The cause that people read: one row for each way in which a pod ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everstep.failure import decode as read
from everstep_operator.reconcile import classify
from everstep_operator.reconcile.classify import CONSEQUENCE, POD, ROOT, UNEXPLAINED
from everstep_operator.reconcile.observation import ConditionView, ContainerView, NodeView, PodView
from tests.support.observations import at, failed, pod, record
from tests.unit.reconcile.test_torchrun import IMPORT, SUMMARY

DRAINED = (ConditionView("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting", at(-5)),)


@pytest.mark.parametrize(
    ("view", "reason", "message", "code", "rank", "weight"),
    [
        pytest.param(
            failed(1, code=137, reason="OOMKilled"),
            "OOMKilled",
            "pod 1 (job-1-1) on node-b ran out of memory",
            -9,
            None,
            POD,
            id="out of memory",
        ),
        pytest.param(
            failed(1, message=record(rank=1, exit_code=1, exception="ValueError", message="bad shape", step=7)),
            "ValueError",
            "rank 1 on node-b failed: ValueError: bad shape",
            1,
            1,
            ROOT,
            id="record of an exception",
        ),
        pytest.param(
            failed(0, message=record(rank=0, exit_code=3, exception="SystemExit", message="3")),
            "SystemExit",
            "rank 0 on node-a failed: SystemExit: 3",
            3,
            0,
            ROOT,
            id="record of an exit code",
        ),
        pytest.param(
            failed(
                0, message=record(rank=0, exit_code=76, exception="FencedError", message="attempt 3 has taken over")
            ),
            "Fenced",
            "rank 0 on node-a was fenced: attempt 3 has taken over",
            76,
            0,
            ROOT,
            id="record of a fence",
        ),
        pytest.param(
            failed(0, message=record(rank=0, exit_code=143, signal="SIGTERM", message="saved step 9")),
            "Stopped",
            "rank 0 on node-a was stopped by SIGTERM",
            143,
            0,
            CONSEQUENCE,
            id="record of a stop",
        ),
        pytest.param(
            failed(0, message=record(rank=0, exit_code=1, exception="RuntimeError", message="x", peer_lost=True)),
            "RuntimeError",
            "rank 0 on node-a failed: RuntimeError: x",
            1,
            0,
            CONSEQUENCE,
            id="record of a lost peer",
        ),
        pytest.param(
            failed(
                1,
                message=record(rank=2, exit_code=1, exception="RuntimeError", peer_lost=True),
            ),
            "RuntimeError",
            "rank 2 on node-b failed: RuntimeError",
            1,
            2,
            CONSEQUENCE,
            id="record of a lost peer without words",
        ),
        pytest.param(
            failed(1, message=SUMMARY),
            "SIGKILL",
            "rank 1 on node-b was killed by SIGKILL (out of memory?)",
            -9,
            1,
            ROOT,
            id="torchrun's summary in the message",
        ),
        pytest.param(
            failed(0, message=SUMMARY.replace("-9", "3")),
            "Error",
            "rank 1 on node-a exited with code 3",
            3,
            1,
            UNEXPLAINED,
            id="an exit code in the summary",
        ),
        pytest.param(
            failed(0, code=137),
            "SIGKILL",
            "pod 0 (job-1-0) on node-a was killed by SIGKILL (out of memory?)",
            -9,
            None,
            ROOT,
            id="a killed container",
        ),
        pytest.param(
            failed(0, code=143),
            "Stopped",
            "pod 0 (job-1-0) on node-a was stopped by SIGTERM",
            -15,
            None,
            CONSEQUENCE,
            id="a stopped container",
        ),
        pytest.param(
            failed(0, code=2, message="usage: train.py\nunknown flag --x\n"),
            "Error",
            "pod 0 (job-1-0) on node-a exited with code 2: unknown flag --x",
            2,
            None,
            UNEXPLAINED,
            id="a program of other make",
        ),
        pytest.param(
            failed(0, code=128, reason="StartError", message='exec: "torchrn": not found'),
            "StartError",
            'pod 0 (job-1-0) on node-a failed: exec: "torchrn": not found',
            128,
            None,
            POD,
            id="a container that cannot start",
        ),
        pytest.param(
            pod(
                0,
                phase="Failed",
                reason="Evicted",
                message="The node was low on resource: memory.",
                container=ContainerView(),
            ),
            "Evicted",
            "pod 0 (job-1-0) on node-a was evicted: The node was low on resource: memory",
            None,
            None,
            POD,
            id="evicted by the kubelet",
        ),
        pytest.param(
            replace(failed(0, code=143), conditions=DRAINED, deleting=True),
            "EvictionByEvictionAPI",
            "pod 0 (job-1-0) on node-a was disrupted: Eviction API: evicting",
            None,
            None,
            POD,
            id="drained",
        ),
        pytest.param(
            replace(failed(0, code=137), deleting=True),
            "PodDeleted",
            "pod 0 (job-1-0) on node-a was deleted",
            None,
            None,
            POD,
            id="deleted",
        ),
        pytest.param(
            pod(
                0,
                phase="Failed",
                reason="UnexpectedAdmissionError",
                message="no GPU",
                container=ContainerView(),
                node=None,
            ),
            "UnexpectedAdmissionError",
            "pod 0 (job-1-0) failed: no GPU",
            None,
            None,
            POD,
            id="refused by the kubelet",
        ),
    ],
)
def test_cause(view: PodView, reason: str, message: str, code: int | None, rank: int | None, weight: int) -> None:
    cause = classify.pod_failure(view)
    assert (cause.reason, cause.message, cause.code, cause.rank, cause.weight) == (reason, message, code, rank, weight)
    assert (cause.pod, cause.node) == (view.name, view.node)
    assert reason in cause.reasons


@pytest.mark.parametrize(
    ("message", "log", "expected"),
    [
        pytest.param(
            record(rank=0, exit_code=1, peer_lost=True),
            SUMMARY,
            "rank 1 on node-b was killed by SIGKILL (out of memory?)",
            id="a signal in the log explains more than a lost peer",
        ),
        pytest.param(
            SUMMARY.replace("-9", "1"),
            IMPORT + SUMMARY.replace("-9", "1"),
            "rank 1 on node-b failed: ModuleNotFoundError: No module named 'missing_module'",
            id="the last line of the script's traceback",
        ),
        pytest.param(
            None,
            IMPORT,
            "pod 1 (job-1-1) on node-b failed: ModuleNotFoundError: No module named 'missing_module'",
            id="plain",
        ),
    ],
)
def test_cause_with_a_log(message: str | None, log: str, expected: str) -> None:
    cause = classify.pod_failure(failed(1, message=message), log)
    assert (cause.message, cause.weight) == (expected, ROOT)


def test_the_root_cause_counts_and_not_the_first_report() -> None:
    late_root = failed(1, message=record(rank=1, exit_code=1, exception="ValueError", time=at(-1).isoformat()))
    early_echo = failed(
        0, message=record(rank=0, exit_code=1, exception="RuntimeError", peer_lost=True, time=at(-2).isoformat())
    )
    first = classify.first(classify.pod_failure(view) for view in (early_echo, late_root))
    assert first is not None
    assert first.reason == "ValueError"


def test_of_equal_causes_the_earliest_counts() -> None:
    views = [failed(i, message=record(rank=i, exit_code=1, time=at(-i).isoformat())) for i in (0, 1)]
    first = classify.first(map(classify.pod_failure, views))
    assert first is not None
    assert first.rank == 1


@pytest.mark.parametrize(("exists", "word"), [(True, "stopped answering"), (False, "is gone")])
def test_a_lost_node(exists: bool, word: str) -> None:
    cause = classify.node_lost([pod(0), pod(1)], NodeView("node-a", exists=exists, ready=False))
    assert cause.message == f"node-a {word}, with job-1-0, job-1-1"
    assert (cause.reason, cause.node) == ("NodeLost", "node-a")


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        "plain words",
        "{",
        "[]",
        '{"time": "yesterday"}',
        '{"time": "2026-01-01T00:00:00"}',
        '{"rank": 1}',
        "{" * 9000,
    ],
)
def test_what_is_no_record(message: str | None) -> None:
    assert read(message) is None


def test_a_hostile_record_stays_within_bounds() -> None:
    cause = classify.pod_failure(failed(0, message=record(exit_code=10**9, exception="x" * 3000, message="y" * 3000)))
    assert len(cause.message) < 1024
    assert cause.code is None
    assert len(cause.reason) <= 128
