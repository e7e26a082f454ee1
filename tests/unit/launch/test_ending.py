"""A process that skips the interpreter's last steps is, from outside, one that took them."""

from __future__ import annotations

import gzip
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.support.python_path import python_path

pytestmark = pytest.mark.slow

SCRIPT = """
import atexit, ctypes, gzip, sys, threading, time, zipfile

def todo():
    atexit.register(print, "exit handler")
    threading.Thread(target=lambda: (time.sleep(0.2), print("other thread"))).start()
    ctypes.CDLL(None).printf(b"of a library\\n")
    globals()["left_open"] = open("left-open", "w")
    left_open.write("last lines")
    globals()["packed"] = [gzip.open("packed.gz", "wt"), zipfile.ZipFile("packed.zip", "w")]
    packed[0].write("last lines")
    packed[1].writestr("a", "last lines")
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
    return python(folder, textwrap.dedent(SCRIPT).format(end=end, how=how))


def python(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    environment = {"PYTHONPATH": python_path()}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def outcome(folder: Path, end: str, how: str) -> tuple[int, list[str], str, list[str]]:
    """Exit code, what was printed, the end of what was said against it, and what stands in files."""
    for each in folder.iterdir():
        each.unlink()
    done = run(folder, end, how)
    printed = sorted(done.stdout.replace("done", "").split("\n"))
    with gzip.open(folder / "packed.gz", "rt") as packed, zipfile.ZipFile(folder / "packed.zip") as archive:
        written = [(folder / "left-open").read_text(), str(packed.read()), archive.read("a").decode()]
    return done.returncode, printed, done.stderr[-12:], written


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_an_interpreter_does(tmp_path: Path, end: str) -> None:
    ended = outcome(tmp_path, end, SHORT)
    assert ended == outcome(tmp_path, end, "todo()")
    assert ended[3] == ["last lines"] * 3


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


STUCK = """
import os, threading, time
import everstep.launch.ending as ending

ending._PATIENCE = 2

def todo():
    globals()["left_open"] = open("left-open", "w")
    left_open.write("last lines")
    pipe = os.fdopen(os.pipe()[1], "wb")
    threading.Thread(target=pipe.write, args=(bytes(1 << 20),), daemon=True).start()
    globals()["others"] = [pipe, open("left-open-too", "w")]
    others[1].write("last lines")
    time.sleep(0.2)

ending.end_after(todo)
"""


def test_a_file_that_another_thread_cannot_write_holds_up_no_other(tmp_path: Path) -> None:
    assert python(tmp_path, STUCK).returncode == 0
    assert [(tmp_path / name).read_text() for name in ("left-open", "left-open-too")] == ["last lines"] * 2


FROZEN = """
import os
from everstep.launch.ending import before_forking, end_after

shared = open("shared", "w")
shared.write("once\\n")
before_forking()
if child := os.fork():
    os.waitpid(child, 0)
    shared.write("parent\\n")
else:
    shared.write("child\\n")
end_after(lambda: None)
"""


def test_what_was_open_before_a_fork_is_written_by_all_after_it(tmp_path: Path) -> None:
    assert python(tmp_path, FROZEN).returncode == 0
    assert (tmp_path / "shared").read_text() == "once\nchild\nparent\n"
