"""What a pod was built from: digests of the fields that are fixed with it, in an annotation.

Digests by field, and not one of all: an operator that knows more fields than the one before it must not take every
gang for outdated, and whoever edits a job is told which field it was. A pod without the annotation tells nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from everstep_operator.api import TrainingJobSpec
from everstep_operator.api.common import Change
from everstep_operator.api.fields import digests
from everstep_operator.build import names

_FIXED: tuple[Change, ...] = ("restart", "next-attempt")


def write(spec: TrainingJobSpec) -> str:
    """The annotation's value."""
    return json.dumps(digests(spec, *_FIXED), sort_keys=True, separators=(",", ":"))


def differences(spec: TrainingJobSpec, pods: Iterable[Mapping[str, str]], how: Change) -> tuple[str, ...]:
    """Paths of the fields that are not what one of the pods was built from. `pods`: the annotations of each."""
    built = [_read(text) for text in {annotations.get(names.SPEC, "{}") for annotations in pods}]
    return tuple(
        path for path, digest in digests(spec, how).items() if any(digest != each.get(path, digest) for each in built)
    )


def _read(text: str) -> dict[str, object]:
    try:
        built = json.loads(text)
    except ValueError:
        return {}
    return built if isinstance(built, dict) else {}
