"""Prints this distribution's requirements with the named extras: `requirements.py pyproject.toml trainer`."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
wanted = [
    *project["dependencies"],
    *(line for extra in sys.argv[2:] for line in project["optional-dependencies"][extra]),
]
print("\n".join(sorted(wanted)))
