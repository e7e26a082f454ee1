"""One result in three forms: a table for people, JSON and YAML for programs."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


class Output(StrEnum):
    table = "table"
    json = "json"
    yaml = "yaml"


def emit(output: Output, data: Any, *tables: Table | str) -> None:
    match output:
        case Output.json:
            console.print_json(json.dumps(data, default=str))
        case Output.yaml:
            print(yaml.safe_dump(json.loads(json.dumps(data, default=str)), sort_keys=False), end="")
        case Output.table:
            for table in tables:
                console.print(table)


def complain(message: str) -> None:
    errors.print(message, style="red", markup=False, soft_wrap=True)
