"""A process that skips the interpreter's last steps is, from outside, one that took them."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from tests.support.python_path import python_path

pytestmark = pytest.mark.slow

SCRIPT = """
import atexit, ctypes, sys, threading, time

def todo():
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("other thread"))).start()
    ctypes.CDLL(None).printf(b"of a library\\n")
    print("done", end="")
    {end}

{how}
"""
ENDS = [
    "pass",
    "sys.exit(0)",
    "sys.exit(3)",
    "sys.exit(300)",
    "sys.exit('why')",
    "raise OSError(7, 'no')",
    "raise KeyboardInterrupt",
]


def outcome(end: str, how: str) -> tuple[int, list[str], str]:
    """Exit code, what was printed, and the last line of what was said against it."""
    script = textwrap.dedent(SCRIPT).format(end=end, how=how)
    environment = {"PYTHONPATH": python_path()}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, sorted(done.stdout.replace("done", "").split("\n")), done.stderr[-12:]


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_an_interpreter_does(end: str) -> None:
    short = "import everstep.launch.ending; everstep.launch.ending.end_after(todo)"
    assert outcome(end, short) == outcome(end, "todo()")
