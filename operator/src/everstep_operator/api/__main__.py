"""`python -m everstep_operator.api [crd | docs | pod-template]` prints a generated file; `crd` without a word."""

from __future__ import annotations

import json
import sys

from everstep_operator.api import pod_template
from everstep_operator.api.crd import crd, to_yaml
from everstep_operator.api.docs import markdown


def main(arguments: list[str]) -> int:
    """Prints what is asked for; 2 for an unknown word."""
    match arguments:
        case [] | ["crd"]:
            sys.stdout.write(to_yaml(crd()))
        case ["docs"]:
            sys.stdout.write(markdown())
        case ["pod-template"]:
            schema = pod_template.from_openapi(json.load(sys.stdin))
            sys.stdout.write(json.dumps(schema, indent=1, sort_keys=True) + "\n")
        case _:
            sys.stderr.write(f"{__doc__}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
