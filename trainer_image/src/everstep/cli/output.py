"""One result in three forms: lines for people, JSON and YAML for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console

errors = Console(stderr=True, highlight=False, emoji=False)


class Output(StrEnum):
    table = "table"
    json = "json"
    yaml = "yaml"


def emit(output: Output, data: Any, lines: Iterable[str]) -> None:
    """`data` is what JSON can hold; times and other values become text, and numbers that JSON has not become null."""
    data = _finite(data)
    match output:
        case Output.json:
            print(json.dumps(data, default=str, indent=2))
        case Output.yaml:
            dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            print(yaml.dump(json.loads(json.dumps(data, default=str)), Dumper=dumper, sort_keys=False), end="")
        case Output.table:
            print("\n".join(lines))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def complain(message: str) -> None:
    errors.print(message, style="red", markup=False, soft_wrap=True)
