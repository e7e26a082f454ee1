"""Deals a mixed trial's blows to a job, and brings the job to its end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kubernetes import client

from everstep_operator.api import GROUP, PLURAL, VERSION
from everstep_operator.build import names
from tests.faults.mixed import COUNTED, Blow, MixedTrial
from tests.support import pod_processes
from tests.support.followers import Followers, Pod
from tests.support.installed import SELECTOR
from tests.support.site import Site
from tests.support.tenant import ENDED

Json = dict[str, Any]


class TrialError(AssertionError):
    """The job did not get where it had to."""


@dataclass
class Disturber:
    site: Site
    job: str
    trial: MixedTrial
    apply: Callable[[], str]
    """Creates the job; returns its uid."""
    followers: Followers
    seconds: float = 300
    """Limit of the whole trial."""
    uid: str = ""
    dealt: list[str] = field(default_factory=list)
    counted: int = 0
    """Blows that may count as restarts of the job that stands now."""
    began: float = field(default_factory=time.monotonic)

    def run(self) -> Json:
        """The status of the job once it has ended. Raises TrialError."""
        self.uid = self.apply()
        for number, blow in enumerate(self.trial.blows):
            self._until(f"step {blow.after_step} is committed", partial(self._reached_or_ended, blow.after_step))
            if self._ended():
                self.dealt.append(f"{blow}: the job had ended")
                break
            time.sleep(blow.jitter)
            self._deal(blow, number)
            self.dealt.append(str(blow))
        self._until("the end", self._ended)
        return self.site.status(self.job)

    def _deal(self, blow: Blow, number: int) -> None:
        if blow.kind in COUNTED:
            self.counted += 1
        match blow.kind:
            case "kill-container":
                self._kill(blow.pod)
            case "delete-pod":
                self._until(f"pod {blow.pod} runs", lambda: self._ended() or bool(self._running(blow.pod)))
                with contextlib.suppress(client.ApiException):  # it was on its way out already
                    self.site.delete_pod(self._pod(blow.pod))
            case "kill-operator":
                arguments = ("--force", "--grace-period=0", "--wait=false")
                release = self.site.operator.release
                self.site.cluster.kubectl("delete", "pod", "-n", release, "-l", SELECTOR, *arguments)
            case "suspend":
                self._patch(spec={"suspend": True})
                self._until("suspended", lambda: self.site.status(self.job).get("phase") in ("Suspended", *ENDED))
                self._patch(spec={"suspend": False})
            case "change-of-mind":
                self._patch(spec={"suspend": True})
                time.sleep(blow.pause)
                self._patch(spec={"suspend": False})
            case "edit-template":
                self._patch(spec={"template": {"metadata": {"annotations": {"example.test/edit": str(number)}}}})
            case "edit-policy":
                self._patch(spec={"checkpoint": {"keepLast": 3 + number}})
            case "restart-now":
                self._patch(metadata={"annotations": {names.RESTART_NOW: str(number)}})
            case "delete-job":
                self._again()

    def _kill(self, index: int) -> None:
        """SIGKILL the first process of a pod, once it runs."""
        self._until(f"pod {index} runs", lambda: self._ended() or bool(self._running(index)))
        for pod in self._running(index)[-1:]:
            with contextlib.suppress(StopIteration):  # it has ended meanwhile
                pod_processes.first(pod.address, self.uid).send(signal.SIGKILL)

    def _running(self, index: int) -> list[Pod]:
        name = self._pod(index)
        return [pod for pod in list(self.followers.pods.values()) if pod.name == name and pod.phase == "Running"]

    def _pod(self, index: int) -> str:
        return f"{self.job}-{self.site.status(self.job).get('attempt', 1)}-{index}"

    def _again(self) -> None:
        """Delete the job and apply it again under its name: it adopts what it has committed."""
        self.site.delete(self.job)
        self._until("the job is gone", self._gone)
        self.counted = 0
        self.uid = self.apply()

    def _gone(self) -> bool:
        try:
            self.site.status(self.job)
        except client.ApiException as error:
            return bool(error.status == 404)
        return False

    def _patch(self, **body: Json) -> None:
        self.site.api.patch_namespaced_custom_object(GROUP, VERSION, self.site.namespace, PLURAL, self.job, body)

    def _reached_or_ended(self, step: int) -> bool:
        return self._ended() or self._reached(step)

    def _reached(self, step: int) -> bool:
        catalog = self.site.catalog(self.job)
        latest = None if catalog is None else catalog.latest()
        return (0 if latest is None else latest.step) >= step

    def _ended(self) -> bool:
        return self.site.status(self.job).get("phase") in ENDED

    def _until(self, what: str, done: Callable[[], bool]) -> None:
        while not done():
            if time.monotonic() > self.began + self.seconds:
                status = self.site.status(self.job)
                raise TrialError(
                    f"{self.trial}: after {self.seconds:.0f} s still not: {what}; dealt {self.dealt}; {status}"
                )
            time.sleep(0.25)
