"""One result in three forms: lines for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console

errors = Console(stderr=True, highlight=False)


class Output(StrEnum):
    table = "table"
    json = "json"
    yaml = "yaml"


def emit(output: Output, data: Any, lines: Iterable[str]) -> None:
    """`data` is what JSON can hold; times and other values become text."""
    match output:
        case Output.json:
            print(json.dumps(data, default=str, indent=2))
        case Output.yaml:
            dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            print(yaml.dump(json.loads(json.dumps(data, default=str)), Dumper=dumper, sort_keys=False), end="")
        case Output.table:
            print("\n".join(lines))


def complain(message: str) -> None:
    errors.print(message, style="red", markup=False, soft_wrap=True)
