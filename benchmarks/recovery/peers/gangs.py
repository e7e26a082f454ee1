"""One gang of sleepers under each way to run it: what a user would apply, with the same pods in all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.recovery.ground import ENDLESS
from benchmarks.recovery.trial import Patient, Workload, until
from tests.support.followers import Followers, Labels, Pod
from tests.support.site import Site
from tests.support.tenant import LOCKED_DOWN, RESTRICTED

Json = dict[str, Any]
T = TypeVar("T")
EVERSTEP, JOBSET, JOB, JOB_ANEW = "everstep", "JobSet", "Indexed Job, the lost pod alone", "Indexed Job, made anew"
SLEEP = "trap 'exit 143' TERM; sleep 1000000 & wait"
STUBBORN = "trap '' TERM; sleep 1000000 & wait"
# Where there is a contract to keep, pod 0 keeps it: an attempt that commits nothing would soon be the last.
TRAIN = "python3 /opt/lite/lite.py --total-steps=1000000 --seconds-per-step=0.1 --save-every=10"
JOB_LABELS = Labels("batch.kubernetes.io/job-name", "", "batch.kubernetes.io/job-completion-index")
JOBSET_LABELS = Labels(
    "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/restart-attempt", "batch.kubernetes.io/job-completion-index"
)
# As one would type it: whoever wants a whole gang from a Job must make the Job anew.
ANEW = """
while kubectl --namespace="$2" wait --for=condition=Failed "job/$1" --timeout=1h; do
  kubectl --namespace="$2" delete "job/$1" && kubectl create -f "$0"
done >/dev/null
"""


@dataclass
class Gang(ABC):
    """Pods of one owner. `stubborn`: they ignore SIGTERM, and have the usual 30 s to do so."""

    site: Site
    image: str
    nodes: int
    stubborn: bool
    mark: str = field(default_factory=lambda: str(uuid.uuid4()))
    """Tells its processes from those of others."""

    kind = ""
    slug = ""
    labels = Labels()
    whole = True
    """Whether it comes back as a whole: none of the old pods is among the new."""

    @property
    def name(self) -> str:
        return f"{'stubborn' if self.stubborn else 'gang'}-{self.nodes}-{self.slug}"

    @contextmanager
    def existing(self) -> Iterator[None]:
        self.followers = Followers(self.site.cluster.kubeconfig, self.site.namespace, self.name, labels=self.labels)
        with self.followers:
            self.create()
            try:
                yield
            finally:
                self.remove()

    @abstractmethod
    def create(self) -> None: ...

    @abstractmethod
    def remove(self) -> None: ...

    def settle(self) -> None:
        """Wait until nothing is left to do of an earlier recovery."""
        self.until("all pods run, and none else is left", lambda: self._complete() or None)

    def live(self) -> list[Pod]:
        """Pods that run and that nobody has told to stop."""
        gone = ("ended", "deleting", "deleted")
        pods = list(self.followers.pods.values())
        return [pod for pod in pods if "running" in pod.stamps and not any(word in pod.stamps for word in gone)]

    def back(self, before: list[Pod], lost: Pod) -> list[Pod] | None:
        """The pods that have come in place of those before, once all of them run."""
        old = {pod.uid for pod in before}
        fresh = [pod for pod in self.live() if pod.uid not in old]
        if self.whole:
            return fresh if len(fresh) == self.nodes else None
        return [pod for pod in fresh if pod.index == lost.index] or None

    def until(self, what: str, check: Callable[[], T | None], seconds: float = 150) -> T:
        return until(f"{self.name}: {what}", check, seconds, self.followers.tails)

    def template(self, script: str) -> Json:
        """Of the pods, in the JobSet and in the Jobs."""
        address = {"fieldRef": {"fieldPath": "status.podIP"}}
        environment = [
            {"name": "EVERSTEP_JOB_UID", "value": self.mark},
            {"name": "PET_LOCAL_ADDR", "valueFrom": address},
        ]
        spec = self.pod(script)
        return {
            "spec": {**spec, "restartPolicy": "Never", "containers": [{**spec["containers"][0], "env": environment}]}
        }

    def pod(self, script: str) -> Json:
        container = {
            "name": "trainer",
            "image": self.image,
            "command": ["sh", "-c", script],
            "securityContext": LOCKED_DOWN,
        }
        return {"securityContext": RESTRICTED["securityContext"], "containers": [container]}

    def _complete(self) -> bool:
        left = [
            pod
            for pod in list(self.followers.pods.values())
            if "ended" not in pod.stamps and "deleted" not in pod.stamps
        ]
        return len(left) == self.nodes == len(self.live())

    def _apply(self, document: Json) -> None:
        self.site.cluster.kubectl("create", "-f", "-", f"--namespace={self.site.namespace}", stdin=json.dumps(document))

    def _delete(self, kind: str) -> None:
        where = f"--namespace={self.site.namespace}"
        self.site.cluster.kubectl("delete", kind, self.name, where, "--ignore-not-found", "--cascade=foreground")

    def _job(self, **spec: Any) -> Json:
        return {
            "parallelism": self.nodes,
            "completions": self.nodes,
            "completionMode": "Indexed",
            "template": self.template(STUBBORN if self.stubborn else SLEEP),
            **spec,
        }

    def _metadata(self) -> Json:
        return {"name": self.name, "namespace": self.site.namespace}


class EverstepGang(Gang):
    kind, slug = EVERSTEP, "everstep"

    def create(self) -> None:
        train = f"exec {TRAIN} --ignore-sigterm={'yes' if self.stubborn else 'no'}"
        sleep = STUBBORN if self.stubborn else SLEEP
        script = f'case "$PET_RDZV_CONF" in is_host=1*) {train} ;; esac; {sleep}'
        self.mark = self.site.apply(
            self.name,
            self.image,
            (),
            {"interval": {"steps": 10}, "keepLast": 2},
            nodes=self.nodes,
            template={"spec": self.pod(script)},
            failurePolicy={"maxRestarts": ENDLESS},
        )
        workload = Workload(self.kind, self.nodes, self.image, (), (), 10, False, ())
        self._patient = Patient(self.site, workload, self.name, self.mark, self.followers)

    def remove(self) -> None:
        self.site.delete(self.name)

    def settle(self) -> None:
        super().settle()
        self._patient.settle()


class JobSetGang(Gang):
    """One replicated Job of all pods, started anew as a whole when one of them fails."""

    kind, slug = JOBSET, "jobset"
    labels = JOBSET_LABELS

    def create(self) -> None:
        job = {"name": "gang", "replicas": 1, "template": {"spec": self._job(backoffLimit=0)}}
        self._apply(
            {
                "apiVersion": "jobset.x-k8s.io/v1alpha2",
                "kind": "JobSet",
                "metadata": self._metadata(),
                "spec": {"failurePolicy": {"maxRestarts": ENDLESS}, "replicatedJobs": [job]},
            }
        )

    def remove(self) -> None:
        self._delete("jobset")


class JobGang(Gang):
    """The Job replaces the lost pod once it is gone, and leaves the others alone."""

    kind, slug = JOB, "job"
    labels = JOB_LABELS
    whole = False

    def create(self) -> None:
        spec = self._job(backoffLimit=ENDLESS, podReplacementPolicy="Failed")
        self._apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": self._metadata(), "spec": spec})

    def remove(self) -> None:
        self._delete("job")

    def settle(self) -> None:
        """A Job of its own for each fault: its back-off doubles with every failure."""
        self.remove()
        with self.followers.changed:
            self.followers.pods.clear()
        self.create()
        super().settle()


class JobAnewGang(Gang):
    """The Job fails with its first pod, and a loop in a shell deletes and creates it."""

    kind, slug = JOB_ANEW, "job-anew"
    labels = JOB_LABELS

    def create(self) -> None:
        document = {"apiVersion": "batch/v1", "kind": "Job", "metadata": self._metadata()}
        self._file = Path(tempfile.mkstemp(suffix=".json")[1])
        self._file.write_text(json.dumps({**document, "spec": self._job(backoffLimit=0)}))
        self._apply(json.loads(self._file.read_text()))
        cluster = self.site.cluster
        path = f"{Path(cluster.kubectl_path).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(cluster.kubeconfig)}
        command = ["sh", "-c", ANEW, str(self._file), self.name, self.site.namespace]
        self._loop = subprocess.Popen(command, env=environment, start_new_session=True)

    def remove(self) -> None:
        os.killpg(self._loop.pid, signal.SIGTERM)
        self._loop.wait()
        self._delete("job")
        self._file.unlink()
