"""The end of the process."""

from __future__ import annotations

import subprocess
import sys
import time

PROCESS = """
import asyncio, time
from everstep_operator import main
from everstep_operator.storage import Lanes

async def ends(_settings):
    lanes = Lanes()
    lanes.lane("slow").submit(lambda: time.sleep(120), "slow")
    await asyncio.sleep(0.1)
    lanes.close()
    print("ending")
    return 1

main.run = ends
main.main([])
"""


def test_no_call_that_storage_keeps_holds_the_end_up() -> None:
    """A process that lost its Lease is replaced when it is gone, and not before."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, check=False, timeout=119)
    assert (done.returncode, done.stdout) == (1, "ending\n")
    assert time.monotonic() - began < 100
