"""What a nursery answers, also where it cannot fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everstep.launch import nursery
from everstep.launch.nursery import Forked, Nursery
from tests.support.python_path import python_path

pytestmark = pytest.mark.slow

FORKS_ONCE = """
import os, signal
real, first = os.fork, os.getpid()
def fork():
    if os.getpid() != first:
        {does}
    return real()
os.fork = fork
"""
TOLD = """
import json, os, sys
def main():
    print(json.dumps([os.environ.get("SET_BY_AN_IMPORT"), os.getsid(0), os.getppid(), sys.argv[1:]]))
"""
Start = Callable[[str], Nursery]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A nursery that imports a module with the text."""
    started = []
    (tmp_path / "told.py").write_text(TOLD)

    def begin(text: str) -> Nursery:
        (tmp_path / "ahead.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{python_path()}"}
        started.append(Nursery.start(["ahead"], environment))
        return started[-1]

    yield begin
    for each in started:
        each.kill()
        each.close()


def fork(asked: Nursery, output: Path) -> Forked:
    with output.open("a") as file:
        return asked.fork("told:main", ["x"], dict(os.environ), str(output.parent), [file.fileno()] * 2)


def test_it_finds_what_the_imports_left(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = start("import os; os.environ['SET_BY_AN_IMPORT'] = 'yes'; print('imported')")
    for _ in range(2):
        child = fork(asked, tmp_path / "said")
        assert os.getpgid(child.pid) == child.pid, "its group can be signalled from the first moment"
        assert child.wait(20) == 0
        said = (tmp_path / "said").read_text()
        (tmp_path / "said").unlink()
        assert json.loads(said) == ["yes", child.pid, os.getpid(), ["x"]]
    assert capfd.readouterr().out == "imported\n", "said once, by the one that imported"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise BlockingIOError(11, 'no')", "temporarily unavailable"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    ],
)
def test_it_says_that_it_could_not_fork(does: str, said: str, start: Start, tmp_path: Path) -> None:
    asked = start(FORKS_ONCE.format(does=does))
    for _ in range(2):
        with pytest.raises(OSError, match=said):
            fork(asked, tmp_path / "said")


def test_nothing_is_forked_from_what_has_threads(
    start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = start("import threading, time; threading.Thread(target=time.sleep, args=(9,)).start()")
    with pytest.raises(OSError, match=r"has ended|reset|Broken pipe"):
        fork(asked, tmp_path / "said")
    assert "started threads (ahead)" in capfd.readouterr().err


def test_nobody_waits_for_ever(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "PATIENCE", 0.5)
    asked = start("import time; time.sleep(1000)")
    for _ in range(2):  # where an answer to the first could still come it would be taken for the second's
        with pytest.raises(OSError, match=r"timed out|Bad file descriptor"):
            fork(asked, tmp_path / "said")
    asked.close()


def test_a_request_of_one_that_is_gone_is_not_done(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nursery, "PATIENCE", 0.2)
    monkeypatch.setattr(Nursery, "kill", lambda self: self._connection.close())  # as its own end does
    asked = start("import time; time.sleep(1)")
    with pytest.raises(OSError, match="timed out"):
        fork(asked, tmp_path / "said")
    asked.close()
    time.sleep(0.3)
    assert (tmp_path / "said").read_text() == ""


def test_a_process_that_nobody_can_wait_for_has_failed() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert Forked(pid, []).wait(5) == 1


SPLITS = """
import os, sys
from everstep.launch.nursery import Nursery
split = Nursery.split_off(["beside"], sys.argv[1])
child = split.fork("beside:main", [], {**os.environ, "CODE": "7"}, "/", [1, 2])
print(child.wait(20))
split.close()
"""


def test_what_stands_beside_the_script_is_imported_ahead(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("import os\ndef main(): raise SystemExit(int(os.environ['CODE']))\n")
    command = [sys.executable, "-c", SPLITS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("7\n", "")
