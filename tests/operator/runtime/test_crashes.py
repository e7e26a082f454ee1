"""The operator is killed just before and just after each kind of write that it makes, and started again.

Whatever the moment: one gang an attempt, no attempt number lost or used twice, the resume point that the fence wrote,
and nothing left behind, neither in the cluster nor in storage. Once each kind; EVERSTEP_ALL_CRASHES=1 takes minutes and
kills at the further writes of each kind, too.
"""

from __future__ import annotations

import os
import re
import ssl
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from dev import kubeconfig
from dev.s3 import S3Endpoint
from everstep.catalog.keys import CATALOG, PROGRESS
from tests.plugins.cluster import RunningCluster
from tests.support.proxy import Proxy, Trap
from tests.support.rig import Rig
from tests.support.waiting import wait_for
from tests.trainers.lite import Options, chain

RUN = Options(total_steps=60, seconds_per_step=0.02, save_every=10, heartbeat_seconds=0.2)
CRASH = Options(**{**vars(RUN), "crash_step": 25})

KINDS = {
    "dry run of a pod": [1],
    "create pods": [2, 1, 3, 4],
    "delete pods": [1],
    "patch services": [2, 1],
    "patch trainingjobs/status": [4, 1, 2, 3, 5, 6],
    "create events": [2, 1, 3, 4],
    "swap catalog": [2, 1, 3, 4],
    "delete objects": [2, 1, 3],
    "write probe": [2],
}
"""Kinds of writes, and which ones of a run, the most telling first."""
ALL = bool(os.environ.get("EVERSTEP_ALL_CRASHES"))
TOLD = {"GangFailed": 1, "Succeeded": 1}
"""Events of a run, whoever died before or after it told of them."""
WRITES = [(kind, nth) for kind, numbers in KINDS.items() for nth in (numbers if ALL else numbers[:1])]


@dataclass
class Watched:
    """A rig whose operator reaches both servers through proxies."""

    rig: Rig
    api: Proxy
    s3: Proxy


def of_the_api(method: str, path: str) -> str | None:
    """Kind of a write to the API server; the Lease is not counted, it is renewed at any time."""
    found = re.match(r"/apis?/(?:[a-z0-9.]+/)?v1[a-z0-9]*/namespaces/[^/]+/([a-z]+)(?:/[^/?]+(?:/([a-z]+))?)?", path)
    assert found, path
    if found[1] == "leases":
        return None
    if "dryRun=All" in path:
        return "dry run of a pod"
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]
    return f"{verb} {found[1]}" + (f"/{found[2]}" if found[2] else "")


def of_storage(method: str, path: str) -> str | None:
    """Kind of a write to storage."""
    key = path.partition("?")[0]
    if method == "PUT" and key.endswith(CATALOG):
        return "swap catalog"
    if method == "PUT" and "/probe-" in key:
        return "write probe"
    if method in ("POST", "DELETE"):
        return "delete objects"
    return f"{method} {key}"


@pytest.fixture
def watched(
    crd_server: RunningCluster, s3_server: S3Endpoint, make_rig: Callable[..., Rig], tmp_path: Path
) -> Iterator[Watched]:
    admin = crd_server.instance.state / "pki"
    tls = ssl.create_default_context(cafile=str(admin / "ca.crt"))
    tls.load_cert_chain(admin / "admin.crt", admin / "admin.key")
    with ExitStack() as stack:
        api = stack.enter_context(Proxy(crd_server.instance.server, of_the_api, tls))
        s3 = stack.enter_context(Proxy(s3_server.url, of_storage))
        plain = kubeconfig.write(
            tmp_path / "proxied.kubeconfig", server=api.url, authority=admin / "ca.crt", user={"token": "none"}
        )
        rig = make_rig(endpoint=s3.url, kubeconfig=plain)
        api.kill = s3.kill = rig.operator.kill
        rig.options[1] = CRASH
        rig.options[0] = RUN
        stack.enter_context(rig.kubelet)
        yield Watched(rig, api, s3)


def test_the_table_names_each_kind_of_write(watched: Watched) -> None:
    watched.rig.operator.start()
    watched.rig.apply(checkpoint={"keepLast": 2})
    watched.rig.until_phase("Succeeded")
    settled(watched.rig)
    counts = Counter(watched.api.writes + watched.s3.writes)
    assert counts.keys() == KINDS.keys()
    assert all(max(numbers) <= counts[kind] for kind, numbers in KINDS.items()), counts


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("kind", "nth"), WRITES)
def test_a_kill_at_a_write_loses_nothing(
    watched: Watched, kind: str, nth: int, when: Literal["before", "after"]
) -> None:
    rig = watched.rig
    watched.api.trap = watched.s3.trap = Trap(kind, nth, when)
    rig.operator.start()
    rig.apply(checkpoint={"keepLast": 2})
    proxy = watched.s3 if kind in ("swap catalog", "delete objects", "write probe") else watched.api
    if not proxy.sprung.wait(40):
        pytest.fail(f"no write to kill at; so far {watched.api.writes} {watched.s3.writes}\n{rig.operator.tail()}")
    rig.operator.start()
    status = rig.until_phase("Succeeded")
    settled(rig)

    assert status["attempt"] == 2
    assert [each["attempt"] for each in status["history"]] == [1, 2]
    assert status["restarts"]["total"] == 1
    catalog = rig.catalog()
    assert (catalog.attempt, catalog.epoch) == (2, 4), "each attempt is fenced once and claimed once"
    ran = list(rig.kubelet.containers.values())
    assert sorted(each.pod for each in ran) == ["job-1-0", "job-1-1", "job-2-0", "job-2-1"]
    first, second = ([each for each in ran if each.attempt == number] for number in (1, 2))
    assert max(each.ended for each in first) < min(each.began for each in second), "two gangs at once"
    assert {each.environment["EVERSTEP_RESUME_STEP"] for each in second} == {"20"}
    assert rig.kubelet.container("job-2-0").run.state == chain(60)
    told = Counter(rig.reasons())
    assert {reason: told[reason] for reason in TOLD} == TOLD


def settled(rig: Rig) -> None:
    """Nothing is left but what is to stay."""
    wait_for("removals are done", lambda: [e.step for e in rig.catalog().live()] == [50, 60])
    wait_for("no intents are left", lambda: not rig.catalog().removing)
    locations = {entry.location for entry in rig.catalog().live()}

    def leaked() -> list[str]:
        keys = [info.key for info in rig.store().list("")]
        named = (key.rpartition("/")[0] in locations or key == CATALOG or key.startswith(PROGRESS) for key in keys)
        return [key for key, known in zip(keys, named, strict=True) if not known]

    wait_for(f"nothing is leaked in storage: {leaked()}", lambda: not leaked())
    wait_for("only the last gang's pods are left", lambda: names(rig) == ["job-2-0", "job-2-1"])
    services = rig.core.list_namespaced_service(rig.namespace).items
    assert [service.metadata.name for service in services] == ["job-rendezvous"]


def names(rig: Rig) -> list[str]:
    return sorted(pod.metadata.name for pod in rig.pods())
