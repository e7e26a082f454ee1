"""`everstep diff` finds just what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from everstep import Checkpointer
from everstep.checkpoint.environment import JobEnvironment
from everstep.cli.app import app, code_of
from everstep.errors import CheckpointError


def save(root: Path, **layers: torch.Tensor) -> None:
    """A model of the given parameters, as the next step of the run."""
    model = torch.nn.Module()
    for name, value in layers.items():
        model.register_buffer(name, value.clone())
    environment = JobEnvironment(root=str(root), heartbeat_seconds=60)
    with Checkpointer(model=model, environment=environment) as checkpointer:
        latest = None if not (root / "catalog.d").exists() else checkpointer.load_latest()
        for name, value in layers.items():
            model.get_buffer(name).copy_(value)
        checkpointer.begin(1 if latest is None else latest.step + 1)
        checkpointer.save_state()
        checkpointer.commit()


def diff(*arguments: str, code: int) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["diff", *arguments, "-o", "json"], catch_exceptions=False)
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    found["tensors"] = {each["name"]: each for each in found["tensors"] if each["name"].startswith("model.")}
    return found


@pytest.fixture
def big() -> torch.Tensor:
    return torch.arange(300_000, dtype=torch.float32)


def test_one_element_of_one_tensor(tmp_path: Path, big: torch.Tensor) -> None:
    save(tmp_path, big=big, small=torch.ones(3))
    changed = big.clone()
    changed[123_456] += 0.5
    save(tmp_path, big=changed, small=torch.ones(3))
    run = str(tmp_path)
    by_sums = diff(run, run, "--step", "1", code=4)
    assert by_sums["tensors"]["model.big"]["how"] == "bytes"
    assert by_sums["tensors"]["model.big"]["detail"].endswith(" of 5 blocks"), (
        "its own, and one that has a neighbour too"
    )
    assert by_sums["manifest"]["step"] == [1, 2]
    by_values = diff(run, run, "--step", "1", "--values", code=4)
    assert list(by_values["tensors"]) == ["model.big"], "what lies beside it in a block is the same"
    assert by_values["tensors"]["model.big"]["largest"] == 0.5
    assert by_values["tensors"]["model.big"]["detail"] == "1 of 300000 elements"


def test_a_checkpoint_is_the_same_as_itself(tmp_path: Path, big: torch.Tensor) -> None:
    save(tmp_path, big=big)
    same = diff(str(tmp_path), str(tmp_path), code=0)
    assert (same["tensors"], same["manifest"]) == ({}, {})
    assert same["same"] > 0


def test_names_shapes_and_types(tmp_path: Path) -> None:
    save(tmp_path / "a", gone=torch.ones(2), shape=torch.ones(2, 3), kind=torch.ones(4))
    save(tmp_path / "b", new=torch.ones(2), shape=torch.ones(3, 2), kind=torch.ones(4, dtype=torch.float64))
    found = diff(str(tmp_path / "a"), str(tmp_path / "b"), code=4)["tensors"]
    assert {name: each["how"] for name, each in found.items()} == {
        "model.gone": "only in A",
        "model.new": "only in B",
        "model.shape": "other shape",
        "model.kind": "other type",
    }


def test_it_fits_a_terminal(tmp_path: Path) -> None:
    save(tmp_path / "a", shape=torch.ones(2, 3), kind=torch.ones(4))
    save(tmp_path / "b", shape=torch.ones(3, 2), kind=torch.zeros(4))
    arguments = ["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--values"]
    text = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"}).stdout
    table = [line for line in text.splitlines() if not line.startswith(("A  ", "B  "))]
    assert max(map(len, table)) <= 80
    assert any(line.split()[:2] == ["1", "values"] for line in table)
    assert "other shape" in text


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.complex64, torch.uint16, torch.bfloat16])
def test_values_of_any_type(tmp_path: Path, dtype: torch.dtype) -> None:
    last = 1j if dtype.is_complex else 1
    save(tmp_path / "a", weight=torch.tensor([0, 1, last]).to(dtype))
    save(tmp_path / "b", weight=torch.tensor([0, 1, 0]).to(dtype))
    found = diff(str(tmp_path / "a"), str(tmp_path / "b"), "--values", code=4)["tensors"]["model.weight"]
    assert (found["detail"], found["largest"]) == ("1 of 3 elements", 1.0)


def test_a_difference_that_is_no_number_is_still_json(tmp_path: Path) -> None:
    save(tmp_path / "a", weight=torch.tensor([1.0, float("nan")]))
    save(tmp_path / "b", weight=torch.tensor([1.0, 2.0]))
    arguments = ["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--values", "-o", "json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    found = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(f"JSON has no {name}"))
    assert next(each for each in found["tensors"] if each["name"] == "model.weight")["largest"] is None


def test_only_some_tensors(tmp_path: Path, big: torch.Tensor) -> None:
    save(tmp_path / "a", big=big, small=torch.ones(3))
    save(tmp_path / "b", big=big, small=torch.zeros(3))
    runs = (str(tmp_path / "a"), str(tmp_path / "b"))
    found = diff(*runs, "--only", "model.s", code=4)
    assert list(found["tensors"]) == ["model.small"], "its whole name"
    assert diff(*runs, "--only", "model.b", "--values", code=0)["same"] == 1
    with pytest.raises(CheckpointError, match="--only 'modell': no tensor of either") as raised:
        diff(*runs, "--only", "modell", code=2)
    assert code_of(raised.value) == 2
