"""What the observer makes of the API's JSON and of a register's polls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from everstep.catalog import Catalog, Heartbeat, JobCatalog, Owner, Snapshot, open_store, write_heartbeat
from everstep.catalog.keys import CATALOG, progress_key
from everstep.errors import StorageUnavailableError
from everstep.failure import encode_mark
from everstep_operator.build import names
from everstep_operator.clock import ServerClock
from everstep_operator.kube import ApiError
from everstep_operator.memory import JobMemory
from everstep_operator.observe import Observer, Seen, remember
from everstep_operator.observe.observer import _suspects
from everstep_operator.observe.registers import read_registers, stored
from everstep_operator.observe.views import is_ready, moment, pod_view, service_view
from everstep_operator.reconcile.observation import PodView, ProblemKind, Results, Stored
from everstep_operator.storage import Lanes
from tests.support.observations import UID, ended, job, running

OWNER = Owner(cluster="c", namespace="n", name="j", uid="u")
POD: dict[str, Any] = {
    "metadata": {
        "name": "j-2-1",
        "uid": "p",
        "resourceVersion": "7",
        "labels": {names.JOB: "j", names.JOB_UID: "u", names.ATTEMPT: "2", names.INDEX: "1"},
        "ownerReferences": [{"uid": "u"}],
        "annotations": {names.NODES: "2", "other": "x"},
        "creationTimestamp": "2026-01-02T03:04:05Z",
    },
    "spec": {"nodeName": "a", "containers": [{"name": "log"}, {"name": "trainer"}]},
    "status": {
        "phase": "Failed",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
        "containerStatuses": [
            {"name": "log", "state": {"terminated": {"exitCode": 0}}},
            {
                "name": "trainer",
                "restartCount": 2,
                "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": "m"}},
            },
        ],
    },
}


def test_a_pod_is_seen_by_its_trainer_container() -> None:
    view = pod_view(POD, "j", "u")
    assert view is not None
    assert (view.name, view.attempt, view.index, view.phase, view.node) == ("j-2-1", 2, 1, "Failed", "a")
    assert (view.container.exit_code, view.container.reason, view.container.restarts) == (137, "OOMKilled", 2)
    assert view.condition("DisruptionTarget") is not None
    assert view.annotations == {names.NODES: "2"}
    assert view.created == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert not view.deleting
    assert view.terminal


def test_a_sidecar_that_a_webhook_puts_first_is_not_taken_for_the_trainer() -> None:
    meta = {**POD["metadata"], "annotations": {names.CONTAINER: "main"}}
    statuses = [{"name": "proxy", "state": {"terminated": {"exitCode": 3}}}, {"name": "main", "state": {"running": {}}}]
    injected = {
        "metadata": meta,
        "spec": {"containers": [{"name": "proxy"}, {"name": "main"}]},
        "status": {"phase": "Running", "containerStatuses": statuses},
    }
    view = pod_view(injected, "j", "u")
    assert view is not None
    assert view.container.exit_code is None


def test_by_when_a_pod_is_to_have_stopped() -> None:
    meta = {**POD["metadata"], "deletionTimestamp": "2026-01-02T03:04:35Z", "deletionGracePeriodSeconds": 30}
    view = pod_view({**POD, "metadata": meta}, "j", "u")
    assert view is not None
    assert (view.deleting, view.deletion_grace) == (True, 30)
    assert view.stop_by == datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC)


def test_what_a_pod_said_before_it_went_is_remembered_of_this_job_alone() -> None:
    def gone(step: int, uid: str = "u") -> dict[str, Any]:
        ended = {"terminated": {"exitCode": 137, "message": encode_mark(step).decode()}}
        statuses = [{"name": "trainer", "state": ended}]
        labels = {**POD["metadata"]["labels"], names.JOB_UID: uid}
        return {**POD, "metadata": {**POD["metadata"], "labels": labels}, "status": {"containerStatuses": statuses}}

    memory = JobMemory("u")
    for pod in (POD, gone(17), gone(16), gone(18, uid="former")):
        remember(memory, "j", pod)
    assert memory.parted == {2: 17}


def test_a_copy_of_a_pod_is_not_of_the_gang() -> None:
    for name in ("j-2-1-debug", "k-2-1", "j-02-1", "j-2", "2-1", "j--1", "j-²-1"):
        assert pod_view({**POD, "metadata": {**POD["metadata"], "name": name}}, "j", "u") is None, name


def test_labels_beyond_a_status_field_are_nobodys() -> None:
    labels = {**POD["metadata"]["labels"], names.ATTEMPT: "99999999999"}
    meta = {**POD["metadata"], "name": "j-99999999999-1", "labels": labels}
    assert pod_view({**POD, "metadata": meta}, "j", "u") is None


@pytest.mark.parametrize(
    ("change", "labelled", "owned"),
    [
        ({}, True, True),
        ({"labels": {**POD["metadata"]["labels"], "theirs": "x"}}, True, True),
        ({"labels": {**POD["metadata"]["labels"], names.ATTEMPT: "x"}}, False, True),
        ({"labels": None}, False, True),
        ({"ownerReferences": None}, True, False),
    ],
)
def test_a_pod_is_known_by_its_name_whatever_its_labels_say(
    change: dict[str, Any], labelled: bool, owned: bool
) -> None:
    view = pod_view({**POD, "metadata": {**POD["metadata"], **change}}, "j", "u")
    assert view is not None
    assert (view.attempt, view.index, view.labelled, view.owned) == (2, 1, labelled, owned)


def test_a_pod_without_a_status_is_pending() -> None:
    view = pod_view({**POD, "status": {}}, "j", "u")
    assert view is not None
    assert view.phase == "Pending"
    assert not view.container.terminated


def test_services_and_nodes() -> None:
    meta: dict[str, Any] = {
        "name": "s",
        "uid": "x",
        "labels": names.labels("j", "u", 3),
        "ownerReferences": [{"uid": "u"}],
    }
    spec: dict[str, Any] = {
        "clusterIP": "1.2.3.4",
        "selector": names.service_selector("u", 3),
        "ports": [{"port": 29400}],
    }

    def seen(meta: dict[str, Any], spec: dict[str, Any], applied: str | None = None) -> tuple[str, int]:
        view = service_view({"metadata": meta, "spec": spec}, "j", "u", applied)
        return view.cluster_ip, view.attempt

    assert seen(meta, spec) == ("1.2.3.4", 3)
    assert seen(meta, {**spec, "clusterIP": "None"}) == ("", 3), "a headless one has no address"
    assert seen(meta, {**spec, "selector": {names.ATTEMPT: "3"}}) == ("1.2.3.4", 0)
    assert seen(meta, {**spec, "ports": [{"port": 80}]}) == ("1.2.3.4", 0)
    assert seen({**meta, "labels": {}}, spec) == ("1.2.3.4", 0)
    more = {**spec, "selector": {**names.service_selector("u", 3), "mesh": "in"}}
    assert seen({**meta, "resourceVersion": "8"}, more, applied="7") == ("1.2.3.4", 0), "somebody's hand"
    assert seen({**meta, "resourceVersion": "7"}, more, applied="7") == ("1.2.3.4", 3), (
        "a webhook's, with our own apply"
    )
    less = {**spec, "selector": {names.ATTEMPT: "3", "mesh": "in"}}
    assert seen({**meta, "resourceVersion": "7"}, less, applied="7") == ("1.2.3.4", 0)
    assert is_ready({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    assert not is_ready({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}})
    assert moment(None) is None


def test_nodes_of_failed_pods_are_looked_at() -> None:
    """Their node may be on its way out, though nobody else of the gang runs there."""
    view = pod_view({**POD, "status": {"phase": "Failed"}, "spec": {**POD["spec"], "nodeName": "node-a"}}, "j", "u")
    assert view is not None
    assert _suspects([view], Stored()) == {"node-a"}
    assert _suspects([replace(view, phase="Succeeded")], Stored()) == set()


@dataclass
class Storage:
    """The part of a job's storage that a poll uses, on a directory."""

    catalog: JobCatalog

    def __post_init__(self) -> None:
        self.lane = Lanes(2).lane(None)


def storage(tmp_path: Path) -> Storage:
    return Storage(JobCatalog(open_store(str(tmp_path))))


def beat(number: int, step: int, attempt: int = 1, phase: str = "training") -> Heartbeat:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Heartbeat.model_validate(
        {"attempt": attempt, "epoch": 2, "beat": number, "time": now, "phase": phase, "phase_since": now, "step": step}
    )


async def test_ages_are_counted_from_when_a_value_was_first_seen(tmp_path: Path) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)

    async def look(now: float) -> tuple[float, float] | None:
        seen = await read_registers(root, memory, 0, lambda: now)  # type: ignore[arg-type]
        assert seen.problem is None
        assert seen.catalog is not None
        return None if seen.heartbeat is None else (seen.heartbeat.beat_age, seen.heartbeat.still)

    assert await look(0) is None
    write_heartbeat(root.catalog.store, beat(1, 5))
    assert await look(10) == (0, 0)
    assert await look(14) == (4, 4)
    write_heartbeat(root.catalog.store, beat(2, 5))
    assert await look(20) == (0, 10)
    write_heartbeat(root.catalog.store, beat(3, 5, phase="saving"))
    assert await look(30) == (0, 0)
    assert await look(35) == (5, 5)
    write_heartbeat(root.catalog.store, beat(4, 6))
    assert await look(40) == (0, 0)
    root.catalog.fence(OWNER)
    assert await look(50) is None


async def test_who_tells_of_one_phase_anew_is_in_it_all_the_same(tmp_path: Path) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)
    for now in (0, 20, 40):
        told = {"phase_since": datetime(2026, 1, 1, 0, 0, now, tzinfo=UTC), "epoch": 2 + now}
        write_heartbeat(root.catalog.store, beat(now, now, phase="finished").model_copy(update=told))
        seen = await read_registers(root, memory, 1, lambda: float(now))  # type: ignore[arg-type]  # noqa: B023
        assert seen.heartbeat is not None
        assert (seen.heartbeat.still, seen.heartbeat.in_phase) == (0, now)
    write_heartbeat(root.catalog.store, beat(41, 41))
    seen = await read_registers(root, memory, 1, lambda: 50.0)  # type: ignore[arg-type]
    assert seen.heartbeat is not None
    assert seen.heartbeat.in_phase == 0


async def test_the_time_in_which_storage_gave_no_answer_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)
    write_heartbeat(root.catalog.store, beat(1, 5))

    async def look(now: float) -> Stored:
        return await read_registers(root, memory, 1, lambda: now)  # type: ignore[arg-type]

    def down(known: str | None = None) -> Snapshot:
        raise StorageUnavailableError("no answer")

    await look(0)
    await look(10)
    with monkeypatch.context() as outage:
        outage.setattr(root.catalog, "poll", down)
        for now in (20, 300):
            assert (await look(now)).problem is not None
    seen = await look(310)
    assert seen.heartbeat is not None
    assert (seen.heartbeat.beat_age, seen.heartbeat.still) == (10, 10)
    seen = await look(312)
    assert seen.heartbeat is not None
    assert (seen.heartbeat.beat_age, seen.heartbeat.still) == (12, 12)


async def test_an_absent_heartbeat_is_counted_from_the_first_look_at_its_attempt(tmp_path: Path) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)

    async def absent(now: float) -> float | None:
        return (await read_registers(root, memory, 0, lambda: now)).heartbeat_absent  # type: ignore[arg-type]

    assert [await absent(now) for now in (5, 9)] == [0, 4]
    write_heartbeat(root.catalog.store, beat(1, 5))
    assert await absent(20) is None
    root.catalog.fence(OWNER)
    assert [await absent(now) for now in (30, 33)] == [0, 3]


async def test_a_heartbeat_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)
    root.catalog.store.put(progress_key(1), b"{}")
    seen = await read_registers(root, memory, 1, lambda: 0.0)  # type: ignore[arg-type]
    assert seen.problem is None
    assert seen.heartbeat is None


async def test_a_register_that_is_damaged_is_a_problem_and_the_last_version_stays(tmp_path: Path) -> None:
    root, memory = storage(tmp_path), JobMemory("u")
    root.catalog.fence(OWNER)
    assert (await read_registers(root, memory, 1, lambda: 0.0)).problem is None  # type: ignore[arg-type]
    standing = root.catalog.register.read()
    assert standing is not None
    root.catalog.store.swap_register(CATALOG, b"garbage", standing.token)
    seen = await read_registers(root, memory, 1, lambda: 0.0)  # type: ignore[arg-type]
    assert seen.problem is not None
    assert seen.problem.kind is ProblemKind.CATALOG_UNREADABLE
    assert seen.catalog is not None
    assert seen.catalog.attempt == 1


def test_our_own_fence_stands_in_for_a_poll() -> None:
    memory = JobMemory("u")
    fenced = Catalog(attempt=4, epoch=7)
    assert stored(memory, 0.0, fenced=fenced).catalog is fenced


class Server:
    """Lists of pods as they were told to come out, and the objects that can be asked for by name."""

    def __init__(self, *lists: tuple[list[Any], str] | ApiError, **objects: Any) -> None:
        self.lists = list(lists)
        self.objects = objects
        self.versions: list[int] = []
        self.clock = ServerClock(lambda: 0.0, lambda: 0.0)
        self.asked: list[str] = []

    async def list_at(self, _path: str, version: int, **_query: str) -> tuple[list[Any], str]:
        self.versions.append(version)
        found = self.lists.pop(0)
        if isinstance(found, ApiError):
            raise found
        return found

    async def get(self, _path: str) -> Any:
        return {"metadata": {"uid": "cluster"}}

    async def find(self, path: str) -> Any:
        name = path.rsplit("/", 1)[1]
        self.asked.append(name)
        return self.objects.get(name.replace("-", "_"))


async def looked(server: Server, memory: JobMemory, status: dict[str, Any] | None = None) -> list[PodView]:
    observer = Observer(cast(Any, server), cast(Any, None), poll_seconds=lambda: 5.0, progress_seconds=15.0)
    of = job(status)
    return list(await observer.belongings(Seen({}, of), memory))


async def test_now_is_the_servers_whose_stamps_it_is_compared_with() -> None:
    server = Server(([], "7"))
    server.clock.told("Thu, 01 Jan 2026 12:00:00 GMT", 0.0)
    observer = Observer(cast(Any, server), cast(Any, None), poll_seconds=lambda: 5.0, progress_seconds=15.0)
    seen = await observer.observe(Seen({}, job()), JobMemory(UID), Stored(), Results())
    assert seen.now == datetime(2026, 1, 1, 12, tzinfo=UTC)


AHEAD = ApiError(504, "Timeout", "Too large resource version", {"causes": [{"reason": "ResourceVersionTooLarge"}]})


async def test_a_server_of_another_past_is_believed() -> None:
    """One whose etcd was restored counts from a smaller number."""
    memory, server = JobMemory(UID, version=900), Server(AHEAD, ([], "20"), ([], "21"))
    await looked(server, memory)
    await looked(server, memory)
    assert (server.versions, memory.version) == ([900, 0, 20], 21)


async def test_a_server_that_is_busy_is_not_asked_for_something_dearer_at_once() -> None:
    memory, server = JobMemory(UID, version=900), Server(ApiError(429, "TooManyRequests", "later"))
    with pytest.raises(ApiError):
        await looked(server, memory)
    assert (server.versions, memory.version) == ([900], 900)


async def test_a_pod_that_no_label_finds_is_found_by_its_name() -> None:
    def made(index: int, **meta: Any) -> dict[str, Any]:
        return {"metadata": {"name": f"job-1-{index}", "uid": f"p{index}", **meta}, "status": {"phase": "Running"}}

    owner = [{"uid": UID}]
    listed = made(0, labels=names.pod_labels("job", UID, 1, 0), ownerReferences=owner)
    server = Server(([listed], "7"), job_1_1=made(1, ownerReferences=owner))
    found = await looked(server, JobMemory(UID), running())
    assert [(view.index, view.labelled) for view in found] == [(0, True), (1, False)]
    stranger = Server(([listed], "7"), job_1_1=made(1, ownerReferences=[{"uid": "other"}]))
    assert [view.index for view in await looked(stranger, JobMemory(UID), running())] == [0]
    over = Server(([listed], "7"))
    assert [view.index for view in await looked(over, JobMemory(UID), ended())] == [0]
    assert over.asked == ["job-rendezvous"], "of an attempt that has ended none is asked for"
