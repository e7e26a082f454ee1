"""One case from its first gang to the verdict. Knows nothing of the engine but what `Engine` says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from everstep.launch.nursery import Forked
from tests.support.python_path import python_path
from tests.survival.matrix import Case
from tests.survival.state import STARTS, STEPS
from tests.survival.striker import Reader, Striker, children, lives
from tests.survival.zygote import Zygote

END_SECONDS = 75.0
"""How long a gang may live on that has lost a rank: torchrun gives the others 30 s after SIGTERM."""
WEATHER_SECONDS = 120.0
"""How long a run may go on that was struck by storage alone."""
RUN_SECONDS = 240.0
ORPHAN_SECONDS = 10.0
OUTAGE_SECONDS = 90.0


class Engine(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def launcher(self) -> Sequence[str]: ...

    @property
    def script(self) -> str: ...

    @property
    def modules(self) -> Sequence[str]:
        """What the script imports, for a zygote to import once."""

    def environment(self) -> Mapping[str, str]:
        """Variables of a gang. To those come SURVIVAL_RESUME, the step to train on from instead of the latest, and
        SURVIVAL_KEEP, how many steps stay, where the case needs it."""

    def newest(self) -> int:
        """The newest step that is whole by the engine's own account, 0 for none; past the proxy."""

    def problems(self) -> list[str]:
        """What is wrong with what a run that ended well has left."""


@dataclass
class Verdict:
    engine: str
    phase: str
    fault: str
    seed: int
    outcome: str = "passed"
    """passed, or what is wrong in a word: torn, lost, stuck, …"""
    problems: list[str] = field(default_factory=list)
    ended: float | None = None
    """Seconds from the strike to the end of the gang that was struck."""
    interrupted: bool = False
    """Whether the run that was struck did not reach its last step."""
    hung: bool = False
    """Whether it had to be ended from outside."""
    orphans: int = 0
    """Processes that outlived it."""
    newest: int | None = None
    restored: int | None = None
    late: int | None = None
    seconds: float = 0.0

    def wrong(self, outcome: str, problem: str) -> None:
        if not self.problems:
            self.outcome = outcome
        self.problems.append(problem)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Gang:
    """A torchrun of two ranks in a folder, and what rank 0 says."""

    def __init__(
        self,
        folder: Path,
        engine: Engine,
        striker: Striker,
        variables: Mapping[str, str],
        zygote: Zygote | None = None,
    ) -> None:
        self.folder = folder
        self.striker = striker
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EVERSTEP_", "PET_", "AWS_", "SURVIVAL_"))}
        environment = {
            **kept,
            **variables,
            "SURVIVAL_PROXY": striker.url,
            "AWS_ENDPOINT_URL_S3": striker.url,
            "AWS_ENDPOINT_URL": striker.url,
            "EVERSTEP_TERMINATION_LOG": str(folder / "termination"),
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": "1",
        }
        self._path = folder / f"log-{len(list(folder.glob('log-*.txt')))}.txt"
        self.process: Forked | subprocess.Popen[bytes]
        if zygote is not None:
            self.process = zygote.start(engine.script, folder, self._path, environment)
            return
        command = [*engine.launcher, "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", engine.script]
        with self._path.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
            )

    @property
    def log(self) -> str:
        return self._path.read_text(errors="replace") if self._path.exists() else ""

    @property
    def lines(self) -> list[dict[str, Any]]:
        found = []
        for line in self.log.splitlines():
            with contextlib.suppress(ValueError):
                if line.startswith("{"):
                    found.append(json.loads(line))
        return found

    def losses(self) -> dict[int, str]:
        return {line["step"]: line["loss"] for line in self.lines if "step" in line}

    def saved(self) -> list[int]:
        """Steps of which the engine has said that they stand."""
        return [line["saved"] for line in self.lines if "saved" in line]

    def restored(self) -> dict[str, Any] | None:
        return next((line for line in self.lines if "restored" in line), None)

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None where it hangs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> None:
        for pid in [*self.striker.ranks.values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Place:
    """Where cases are tried. `variables`: credentials. `zygote`: what starts the gangs, where that is not torchrun's
    own command."""

    server: str
    variables: Mapping[str, str]
    folder: Path
    zygote: Zygote | None = None

    def start(self, engine: Engine, striker: Striker, case: Case | None, **more: str) -> Gang:
        variables = {**self.variables, **engine.environment(), **more}
        if case is not None and case.phase == "step saved again":
            variables["SURVIVAL_RESUME"] = "2"
        if case is not None and case.phase == "removal":
            variables["SURVIVAL_KEEP"] = "2"
        return Gang(self.folder, engine, striker, variables, self.zygote)


def begin(place: Place, engine: Engine, read: Reader, steps: int = STEPS) -> dict[int, str]:
    """A run that nothing befalls; returns its losses by step."""
    with Striker(place.server, read) as quiet:
        gang = place.start(engine, quiet, None, SURVIVAL_STEPS=str(steps))
        try:
            code = gang.wait(RUN_SECONDS)
            assert code == 0, f"{engine.name}: {code}\n{gang.log[-4000:]}"
        finally:
            gang.kill()
        return gang.losses()


def undergo(
    place: Place, engine: Engine, reads: Sequence[Reader], case: Case, seed: int, straight: Mapping[int, str] | None
) -> Verdict:
    """`straight`: losses that the run must have, by step; None where nothing promises them. `reads`: for the gang that
    is struck and for the next one."""
    began = time.monotonic()
    verdict = Verdict(engine.name, case.phase, case.fault, seed)
    with Striker(place.server, reads[0], case, seed) as striker:
        struck = place.start(engine, striker, case)
        try:
            _befall(struck, striker, case, verdict)
        finally:
            struck.kill()
        if striker.struck is not None:
            _after(place, engine, reads[1], striker, struck, case, straight, verdict)
    verdict.seconds = round(time.monotonic() - began, 1)
    return verdict


def _befall(gang: Gang, striker: Striker, case: Case, verdict: Verdict) -> None:
    """Until the gang is over."""
    if case.fault == "outage":
        _await(lambda: "was not saved" in gang.log or gang.process.poll() is not None, OUTAGE_SECONDS)
        striker.outage = False
    helpers: set[int] = set()
    deadline = time.monotonic() + RUN_SECONDS
    while gang.process.poll() is None and time.monotonic() < deadline:
        if striker.struck is not None:
            deadline = striker.struck + (END_SECONDS if case.kills_rank else WEATHER_SECONDS)
        helpers.update(child for pid in list(striker.ranks.values()) for child in children(pid))
        time.sleep(0.1)
    code = gang.process.poll()
    verdict.hung = code is None
    gang.kill()
    if striker.struck is None:
        verdict.wrong("not struck", f"the fault never struck; exit code {code}\n{gang.log[-3000:]}")
        return
    verdict.ended = round(time.monotonic() - striker.struck, 1)
    verdict.interrupted = code != 0
    helpers.update(striker.helpers)
    if not _await(lambda: not any(map(lives, helpers)), ORPHAN_SECONDS):
        verdict.orphans = sum(map(lives, helpers))


def _after(
    place: Place,
    engine: Engine,
    read: Reader,
    striker: Striker,
    struck: Gang,
    case: Case,
    straight: Mapping[int, str] | None,
    verdict: Verdict,
) -> None:
    """What is restored, and whether training goes on from it as if nothing had happened."""
    gangs = [struck]
    if verdict.interrupted:
        verdict.newest = engine.newest()
        striker.clear_up(read)
        again = place.start(engine, striker, None)
        gangs.append(again)
        try:
            code = again.wait(RUN_SECONDS)
        finally:
            again.kill()
        verdict.late = striker.late
        if code is None:
            verdict.wrong("stuck", "the next gang hangs")
        elif code != 0:
            errors = [line.strip() for line in again.log.splitlines() if "Error: " in line]
            verdict.wrong("unusable", f"the next gang ended with {code}: {(errors or [again.log[-1000:]])[0]}")
        _judge_restore(again, struck, verdict)
        if code != 0:
            return
    if straight is not None:
        losses = [gang.losses() for gang in gangs]
        wrong = [step for each in losses for step, loss in each.items() if straight[step] != loss]
        missing = [step for step in straight if step > case.begins_at and not any(step in each for each in losses)]
        if wrong or missing:
            verdict.wrong("another run", f"steps {wrong or missing} are not those of a run that nothing befell")
    for problem in engine.problems():
        verdict.wrong("left over", problem)


def _judge_restore(again: Gang, struck: Gang, verdict: Verdict) -> None:
    found = again.restored()
    verdict.restored = 0 if found is None else found["restored"]
    if found is not None:
        steps = {stamp // STARTS for stamp in found["stamps"]}
        if len(found["stamps"]) != 1 or steps != {verdict.restored}:
            verdict.wrong("torn", f"step {verdict.restored} has bytes of {found['stamps']} (step * {STARTS} + start)")
    if verdict.restored != verdict.newest:
        verdict.wrong("lost", f"step {verdict.newest} is the newest that stands, step {verdict.restored} was restored")
    told = [step for step in struck.saved() if step > (verdict.restored or 0)]
    if told:
        verdict.wrong("lost", f"step {told} had been told to stand, step {verdict.restored} was restored")


def _await(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
