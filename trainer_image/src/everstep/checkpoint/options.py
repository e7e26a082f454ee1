"""What a Checkpointer is told, as what its parts want to know."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from everstep.catalog import Retention
from everstep.catalog.retention import Best
from everstep.checkpoint.environment import Interval, JobEnvironment, LocalPolicy, Policy, WeightsPolicy
from everstep.checkpoint.local.folder import LocalFolder
from everstep.errors import InvalidOperationError

log = logging.getLogger("everstep")

MOST_CONFIG = 64 << 10
"""Characters of a configuration that is kept whole."""


def check_data(data: Any, ranks: int) -> None:
    """Raises InvalidOperationError for a loader whose state is that of one rank among so many, and does not say so: on
    another number of ranks it would skip samples, or repeat them."""
    module = type(data).__module__
    if ranks > 1 and module.partition(".")[0] == "torchdata":
        raise InvalidOperationError(
            f"data: the state of a {type(data).__name__} is each rank's own: pass data=PerRank(loader), "
            "of everstep.data, and iterate that"
        )


def policy_of(
    environment: JobEnvironment,
    steps: int | None,
    seconds: float | None,
    asynchronous: bool | None,
    weights_steps: int | None = None,
    local_steps: int | None = None,
    local_replicas: int | None = None,
    save_timeout_seconds: float | None = None,
) -> Policy:
    """The environment's, with what was passed in its place."""
    policy = environment.policy or Policy()
    if weights_steps is not None:
        if weights_steps < 1:
            raise InvalidOperationError(f"weights_steps={weights_steps}: publish every so many steps, at least 1")
        kept = (policy.weights or WeightsPolicy()).keep_last
        weights = WeightsPolicy(interval=Interval(steps=weights_steps), keep_last=kept)
        policy = policy.model_copy(update={"weights": weights})
    if local_steps is not None:
        if local_steps < 1:
            raise InvalidOperationError(f"local_steps={local_steps}: save to the local tier every so many steps")
        policy = policy.model_copy(update={"local": LocalPolicy(interval=Interval(steps=local_steps))})
    if local_replicas is not None:
        if policy.local is None or local_replicas not in (0, 1):
            raise InvalidOperationError(f"local_replicas={local_replicas}: 0 or 1, of what local_steps= saves")
        policy = policy.model_copy(update={"local": policy.local.model_copy(update={"replicas": local_replicas})})
    if save_timeout_seconds is not None:
        if save_timeout_seconds <= 0:
            raise InvalidOperationError(f"save_timeout_seconds={save_timeout_seconds}: seconds, more than 0")
        policy = policy.model_copy(update={"save_timeout_seconds": save_timeout_seconds})
    if asynchronous is not None:
        policy = policy.model_copy(update={"asynchronous": asynchronous})
    if steps is None and seconds is None:
        return policy
    try:
        return policy.model_copy(update={"interval": Interval(steps=steps, seconds=seconds)})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidOperationError(f"interval_{first['loc'][0]}={first['input']!r}: {first['msg']}") from None


def local_folder(
    environment: JobEnvironment, policy: Policy, job: str, path: str | Path | None, most: int | None, asked: bool
) -> LocalFolder | None:
    """Where the local tier of the job with the root `job` lies; None without one. `asked`: by the script itself. Raises
    InvalidOperationError."""
    root = environment.local_path if path is None else Path(path)
    if policy.local is None:
        if path is not None:
            raise InvalidOperationError(f"local={str(path)!r}: say how often to save there with local_steps=")
        return None
    if root is None and not asked:
        log.warning("the job has a local tier, but its operator has mounted none: it is older than this library")
        return None
    if root is None:
        raise InvalidOperationError(
            "there is to be a local tier, but no folder for it: set EVERSTEP_LOCAL_PATH or pass local=, a folder of "
            "the node, best in memory such as /dev/shm"
        )
    return LocalFolder(root.absolute(), job, environment.local_bytes if most is None else most)


def retention_of(policy: Policy) -> Retention:
    wanted = policy.keep_best
    best = None if wanted is None else Best(count=wanted.count, mode=wanted.mode, metric=wanted.metric)
    return Retention(last=policy.keep_last, best=best, every=policy.keep_every)


def check_custom(call: str, custom: Mapping[str, Any]) -> None:
    try:
        json.dumps(custom, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidOperationError(f"{call}: {', '.join(custom)}: kept as JSON in the manifest: {error}") from None


def config_of(config: Any) -> Any:
    """As JSON has it; None where it is too large to be kept with each checkpoint."""
    text = json.dumps(config, sort_keys=True, default=str)
    return json.loads(text) if len(text) <= MOST_CONFIG else None


def digest_of(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()
