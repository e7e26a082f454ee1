"""How tests start Python's programs: forked from a process that has imported what they need, which takes seconds.

What runs is what the command runs, in a process, with an environment and a folder of its own. EVERSTEP_COLD=1 starts
all of them as users do; so do the tests in pods.
"""

from __future__ import annotations

import atexit
import functools
import os

from everstep.launch.nursery import Nursery
from tests.support.python_path import python_path

COLD = bool(os.environ.get("EVERSTEP_COLD"))


@functools.cache
def nursery(*modules: str) -> Nursery:
    found = Nursery.start(modules, {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()})
    atexit.register(found.close)
    return found
