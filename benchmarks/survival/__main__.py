"""`python -m benchmarks.survival`: the matrix of tests/survival, one engine after the other, against a real S3 server.

The question is the same for all: after the fault, does the next start find a whole checkpoint, none older than the last
one that the engine had reported, and never one of pieces of two saves? For everstep the marks of its own tests come on
top. Results go to benchmarks/survival/results/{engine}.jsonl, a line a case; `--report` makes the tables of
docs/guarantees.md of what stands there. Peers are not among the project's dependencies; fairseq2 gets an environment of
its own, and needs `apt-get install libsndfile1 libtbb12`:

    uv run --with 's3torchconnector[dcp]' python -m benchmarks.survival --engine dcp --engine fairseq2
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.about import machine
from dev.s3 import S3Endpoint, S3Server
from tests.survival import ground as grounds
from tests.survival import matrix, trial
from tests.survival.everstep_engine import Everstep
from tests.survival.matrix import Case, Phase
from tests.survival.striker import Reader
from tests.survival.zygote import Zygote

RESULTS = Path(__file__).parent / "results"
Attempt = Callable[[Case, int], trial.Verdict]


def everstep(server: S3Endpoint, folder: Path, zygote: Zygote) -> tuple[list[Case], Attempt]:
    ground = grounds.prepare(server, folder, zygote)
    return matrix.whole(), lambda case, seed: grounds.attempt(ground, case, seed)


def dcp(server: S3Endpoint, folder: Path, zygote: Zygote, beside: bool = False) -> tuple[list[Case], Attempt]:
    from benchmarks.survival.dcp_engine import PHASES, Dcp, Requests

    def root() -> Dcp:
        return Dcp(f"s3://{server.make_bucket()}/run", server.url, server.environment(), beside)

    return peer_cases(PHASES), partial(attempt_of_peer, root, Requests, server, folder, zygote)


def fairseq2(server: S3Endpoint, folder: Path, zygote: Zygote) -> tuple[list[Case], Attempt]:
    from benchmarks.survival.fairseq2_engine import PHASES, Fairseq2, Requests

    def root() -> Fairseq2:
        return Fairseq2(server.make_bucket(), server, server.environment())

    return peer_cases(PHASES), partial(attempt_of_peer, root, Requests, server, folder, zygote)


def peer_cases(phases: Collection[Phase]) -> list[Case]:
    """A peer has no uploader, and no limit after which a save is given up."""
    cases = [case for case in matrix.whole() if case.phase in phases]
    return [case for case in cases if "uploader" not in case.fault and case.fault != "outage"]


def attempt_of_peer(
    root: Callable[[], trial.Engine],
    requests: Callable[[], Reader],
    server: S3Endpoint,
    folder: Path,
    zygote: Zygote,
    case: Case,
    seed: int,
) -> trial.Verdict:
    place = trial.Place(server.url, server.environment(), folder / f"{case.slug}-{seed}", zygote)
    engine = root()
    if case.begins_at:
        trial.begin(place, engine, requests(), steps=4)
    return trial.undergo(place, engine, (requests(), requests()), case, seed, None)


@dataclass(frozen=True)
class Contender:
    prepare: Callable[[S3Endpoint, Path, Zygote], tuple[list[Case], Attempt]]
    modules: tuple[str, ...] = ()
    """What its gangs import."""
    python: tuple[str, ...] = (sys.executable,)


FAIRSEQ2 = ("uv", "run", "--no-project", "--python=3.11", "--with=fairseq2==0.8.1", "python")
"""It needs an older torch than the project has."""
ENGINES = {
    "everstep": Contender(everstep, Everstep.modules),
    "dcp": Contender(dcp, ("benchmarks.survival.s3_steps",)),
    "dcp-async": Contender(partial(dcp, beside=True), ("benchmarks.survival.s3_steps",)),
    "fairseq2": Contender(fairseq2, ("fairseq2.checkpoint.manager", "s3fs"), FAIRSEQ2),
}


def main(
    engine: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(ENGINES)}")] = None,
    only: Annotated[str, typer.Option(help="cases whose name this regular expression matches")] = "",
    seed: int = 1,
    go_on: Annotated[bool, typer.Option(help="keep what stands in the results, try what is missing")] = False,
    report: Annotated[bool, typer.Option(help="write the tables; without --engine nothing is tried")] = False,
) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends with this
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # each connection that is cut on purpose
    for name in engine or ([] if report else ["everstep"]):
        run(name, only, seed, go_on)
    if report:
        from benchmarks.survival.report import write

        write(RESULTS)


def run(name: str, only: str, seed: int, go_on: bool) -> None:
    path = RESULTS / f"{name}.jsonl"
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not go_on:
        path.unlink(missing_ok=True)
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(each["phase"], each["fault"]) for each in known}
    with tempfile.TemporaryDirectory() as folder, path.open("a") as out:
        server = S3Server(Path(folder) / "s3")
        contender = ENGINES[name]
        zygote = Zygote(contender.modules, contender.python)
        try:
            cases, attempt = contender.prepare(server.start(), Path(folder), zygote)
            left = [case for case in cases if re.search(only, case.name) and (case.phase, case.fault) not in done]
            for number, case in enumerate(matrix.shuffled(left, seed), 1):
                verdict: dict[str, Any] = {**attempt(case, seed).as_dict(), "of": len(cases), "about": machine()}
                if verdict["outcome"] != "not struck":  # it did not come to its phase in time: nothing was tried
                    out.write(json.dumps(verdict) + "\n")
                    out.flush()
                print(
                    f"{time.strftime('%H:%M:%S')} {name} {number}/{len(left)} {case.name}: {verdict['outcome']}"
                    f"{' (hung)' if verdict['hung'] else ''} {verdict['seconds']} s",
                    *(f"    {problem}" for problem in verdict["problems"]),
                    sep="\n",
                    flush=True,
                )
        finally:
            zygote.end()
            server.remove()


if __name__ == "__main__":
    typer.run(main)
