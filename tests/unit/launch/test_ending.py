"""A process that skips the interpreter's last steps is, from outside, one that took them."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.python_path import python_path

pytestmark = pytest.mark.slow

SCRIPT = """
import atexit, ctypes, sys, threading, time

def todo():
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("other thread"))).start()
    ctypes.CDLL(None).printf(b"of a library\\n")
    globals()["left_open"] = open("left-open", "w")
    left_open.write("last lines")
    print("done", end="")
    {end}

{how}
"""
SHORT = "import everstep.launch.ending; everstep.launch.ending.end_after(todo)"
ENDS = [
    "pass",
    "sys.exit(0)",
    "sys.exit(3)",
    "sys.exit(300)",
    "sys.exit(130)",
    "sys.exit('why')",
    "raise OSError(7, 'no')",
    "raise KeyboardInterrupt",
]


def run(folder: Path, end: str, how: str) -> subprocess.CompletedProcess[str]:
    script = textwrap.dedent(SCRIPT).format(end=end, how=how)
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": python_path()}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def outcome(folder: Path, end: str, how: str) -> tuple[int, list[str], str, str]:
    """Exit code, what was printed, the end of what was said against it, and what stands in a file."""
    (folder / "left-open").unlink(missing_ok=True)
    done = run(folder, end, how)
    printed = sorted(done.stdout.replace("done", "").split("\n"))
    return done.returncode, printed, done.stderr[-12:], (folder / "left-open").read_text()


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_an_interpreter_does(tmp_path: Path, end: str) -> None:
    assert outcome(tmp_path, end, SHORT) == outcome(tmp_path, end, "todo()")


BEFORE = ["sys.excepthook = lambda *_: 1 / 0", "sys.excepthook = lambda *_: sys.exit(3)", "sys.stdout = None"]
# The main thread counts as ended from when the others are waited for.
MEANWHILE = """
def strike():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGALRM)
signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
threading.Thread(target=strike).start()
"""


@pytest.mark.parametrize("spoil", [*BEFORE, MEANWHILE])
def test_nothing_above_it_goes_on(tmp_path: Path, spoil: str) -> None:
    """Hooks that fail, and a signal while another thread is waited for."""
    how = f"import os, signal\n{spoil}\ntry:\n    {SHORT}\nexcept BaseException:\n    os._exit(99)"
    done = run(tmp_path, "raise OSError(7, 'no')", how)
    assert done.returncode == 1
    assert "[Errno 7] no" in done.stderr
    assert (tmp_path / "left-open").read_text() == "last lines"
