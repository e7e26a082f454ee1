"""`python -m dev.demo [embedded|current]`"""

from __future__ import annotations

import sys

from rich.console import Console

from dev.build import BuildError
from dev.demo.install import InstallError
from dev.demo.jobs import JobError
from dev.demo.kubectl import KubectlError
from dev.demo.play import Demo
from dev.demo.target import TargetError, current, embedded
from dev.golang import GoMissingError
from dev.instance import InstanceError
from dev.prerequisites import MissingError
from dev.processes import ProcessError

REFUSALS = (
    *(BuildError, GoMissingError, InstanceError, MissingError, ProcessError),
    *(InstallError, JobError, KubectlError, TargetError),
)


def main(where: str) -> int:
    console = Console(soft_wrap=not sys.stdout.isatty())
    try:
        if where not in ("embedded", "current"):
            raise TargetError(f"CLUSTER={where}: embedded or current")
        Demo(current() if where == "current" else embedded(console), console).play()
    except REFUSALS as error:
        console.print(f"demo: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "embedded"))
