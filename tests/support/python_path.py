"""Where processes that tests start in other folders find this checkout."""

from __future__ import annotations

import os

from dev.paths import REPOSITORY


def python_path() -> str:
    """For PYTHONPATH: what stands here, whatever else is installed."""
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "trainer_image/src"), *([given] if given else [])])
