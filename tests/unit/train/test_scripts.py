"""The scripts that people start from run as they stand: that of docs/migrating.md and examples/train.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from everstep.catalog import JobCatalog, open_store
from tests.support import pages

PAGE = pages.DOCS / "migrating.md"
POLICY = '{"interval": {"steps": 20}, "keepLast": 3}'


@pytest.fixture(autouse=True)
def rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What torchrun gives the one rank of a gang."""
    ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    for name, value in {**ranks, "EVERSTEP_ROOT": "root", "EVERSTEP_POLICY": POLICY}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def script(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(text, "train.py", "exec"), names)
    return names


def committed() -> list[int]:
    return [entry.step for entry in JobCatalog(open_store("root")).require().live()]


def test_the_script_of_the_page_on_migrating_goes_on_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    assert f"EVERSTEP_POLICY='{POLICY}'" in PAGE.read_text()
    (text,) = pages.blocks(PAGE)
    begun = script(text)
    begun["STEPS"] = 30
    begun["main"]()
    capsys.readouterr()
    script(text)["main"]()
    steps = [int(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert steps == list(range(31, 61))
    assert committed() == [30, 40, 60]


@pytest.mark.slow
def test_the_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVERSTEP_POLICY", '{"interval": {"steps": 500}}')
    script((pages.DOCS.parent / "examples/train.py").read_text())["main"]()
    assert committed() == [500, 1000]
