"""Checks what a job left behind against the contract: `python -m tests.faults.check_history --bucket … --prefix …`.

The bucket must be versioned, so that every version of catalog.json can be read back. --evidence adds what the pods
said (their variables and logs), --reference the same of an uninterrupted run. Exit code 1 lists the violations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tests.faults import rules, timeline
from tests.faults.history import History, Json, read_history


def violations(history: History, root: str, pods: list[Json], reference: list[Json] | None) -> Iterator[str]:
    """Sentences, one a violation. `root`: the job's root URI."""
    told = (pod["environment"].get("EVERSTEP_POLICY") for pod in pods)
    policy: Json | None = json.loads(next(filter(None, told), "null"))
    found = timeline.starts(pods)
    yield from chain(
        rules.generations(history),
        rules.transitions(history, policy),
        rules.objects(history),
        rules.fence_points(history, root, pods),
        timeline.resumes(history, found),
    )
    if reference is not None:
        yield from timeline.same_run(found, timeline.starts(reference))


def read_pods(path: Path) -> list[Json]:
    pods: list[Json] = json.loads(path.read_text())["pods"]
    return pods


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="check_history", description=__doc__)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", required=True, help="of the job: its root without s3://bucket/")
    parser.add_argument("--endpoint", help="default: AWS_ENDPOINT_URL_S3")
    parser.add_argument("--evidence", type=Path)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args(arguments)
    history = read_history(options.bucket, options.prefix, options.endpoint)
    pods = read_pods(options.evidence) if options.evidence else []
    reference = read_pods(options.reference) if options.reference else None
    root = f"s3://{options.bucket}/{options.prefix.rstrip('/')}"
    bad = list(violations(history, root, pods, reference))
    for sentence in bad:
        print(f"VIOLATION {sentence}")
    starts = timeline.starts(pods)
    print(
        f"{len(history.versions)} versions, {len(history.keys)} keys, {len(pods)} pods, resumed: "
        f"{[start.step for start in starts]}: {len(bad)} violations"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
