"""What the ranks said: where each worker group started from, and each step's loss and samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.faults.history import History, Json

_RESUMED = re.compile(r"^everstep: resumed step (\d+) from (\S+) ")
_FRESH = re.compile(r"^everstep: fresh start in ")


@dataclass(frozen=True)
class Step:
    step: int
    loss_hex: str
    samples: tuple[int, int]


@dataclass
class Start:
    """One worker group, from its rank 0's log: what it resumed (location None: nothing) and the steps that it did."""

    pod: str
    attempt: int
    at: float
    step: int
    location: str | None
    steps: list[Step] = field(default_factory=list)


def starts(pods: list[Json]) -> list[Start]:
    """In the order of time. Only rank 0 speaks of its start and of its steps."""
    found: list[Start] = []
    for pod in pods:
        current: Start | None = None
        for at, text in pod["lines"]:
            resumed = _RESUMED.match(text)
            if resumed or _FRESH.match(text):
                step, location = (int(resumed[1]), resumed[2]) if resumed else (0, None)
                current = Start(pod["name"], pod["attempt"], at, step, location)
                found.append(current)
            elif text.startswith('{"step": ') and current is not None:
                line = json.loads(text)
                current.steps.append(Step(line["step"], line["loss_hex"], tuple(line["samples"])))
    return sorted(found, key=lambda start: start.at)


def resumes(history: History, found: list[Start]) -> Iterator[str]:
    """Each worker group loaded what its claim named, or the local save that it told of, and trained on from the step
    after it without a gap."""
    claims: dict[str, Json] = {}
    for version in history.versions:
        claim, begun = version.document["claim"], version.document.get("begun")
        if claim is not None:
            claims.setdefault(claim["id"], dict(claim))
        if begun is not None and begun["local"] is not None and begun["claim"] in claims:
            claims[begun["claim"]]["resumed"] = begun["local"]
    left = sorted(claims.values(), key=lambda claim: int(claim["epoch"]))
    for start in found:
        # A group may die between its claim and its start: claims without a start are passed over.
        while left and (left[0]["attempt"], left[0]["resumed"]) != (start.attempt, start.location):
            left.pop(0)
        if not left:
            yield f"{start.pod} resumed {start.location}, which no claim of its attempt left to it names"
            return
        left.pop(0)
        for number, step in enumerate(start.steps, start.step + 1):
            if step.step != number:
                yield f"{start.pod} resumed step {start.step} and then did step {step.step} where {number} was due"
                break


def survivors(found: list[Start]) -> list[Step]:
    """The steps that count: of each start those up to the point that the next one resumed."""
    kept: list[Step] = []
    for start in found:
        kept = [step for step in kept if step.step <= start.step] + start.steps
    return kept


def same_run(found: list[Start], reference: list[Start]) -> Iterator[str]:
    """Every step ever done has the reference's loss to the last bit; the surviving samples have no gap or repeat."""
    if len(reference) != 1:
        yield f"the reference run started {len(reference)} times: something interrupted it"
        return
    expected = {step.step: step for step in reference[0].steps}
    for start in found:
        for step in start.steps:
            if step != expected.get(step.step):
                yield f"{start.pod}: {step} where the uninterrupted run had {expected.get(step.step)}"
    surviving = survivors(found)
    position = 0
    for step in surviving:
        if step.samples[0] != position:
            yield f"step {step.step} begins at sample {step.samples[0]}, the one before ended at {position}"
        position = step.samples[1]
    if [step.step for step in surviving] != sorted(expected):
        missing = sorted(expected.keys() - {step.step for step in surviving})
        yield f"the surviving timeline is not steps 1 to {max(expected)}; missing: {missing}"
