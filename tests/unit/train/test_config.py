from __future__ import annotations

from pathlib import Path

import pytest

from everstep.errors import InvalidOperationError
from everstep.train.config import OUTSIDE, TrainConfig, read_config


def test_flags_beat_variables_beat_the_file_beats_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("steps: 7\nseed: 5\nmodel: {layers: 2, hidden: 64}\n")
    monkeypatch.setenv("EVERSTEP_TRAIN_SEED", "6")
    monkeypatch.setenv("EVERSTEP_TRAIN_MODEL__HIDDEN", "32")
    monkeypatch.setenv("EVERSTEP_TRAIN_MODEL__HEADS", "8")
    found = read_config(["--config", str(file), "--model.heads", "2", "--evaluation.every=3"])
    assert (found.steps, found.seed, found.global_batch) == (7, 6, 8)
    assert (found.model.layers, found.model.hidden, found.model.heads) == (2, 32, 2)
    assert found.evaluation.every == 3
    assert read_config([]).steps == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.heads", "3"], r"model: .*heads \(3\) must divide hidden \(128\)"),
        (["--steps", "0"], "steps: Input should be greater"),
        (["--precision", "fp64"], "precision: .*fp64"),
        (["--stepz", "7"], r"no flag --stepz; did you mean --steps\?"),
        (["--optimizer.lr=3"], "no flag --optimizer.lr;"),
        (["--config", "absent.yaml"], "absent.yaml: no such file"),
    ],
)
def test_a_bad_flag_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InvalidOperationError, match=message):
        read_config(arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepz: 7", r"no field stepz; did you mean steps\?"),
        ("model: {layer: 7}", r"no field model\.layer; did you mean model\.layers\?"),
        ("model: [1", r"c\.yaml: not YAML"),
        ("steps: many", "steps: .*many"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InvalidOperationError, match=message):
        read_config(["--config", str(file)])


@pytest.mark.parametrize("name", ["STEPZ", "MODEL__LAYER"])
def test_a_mistyped_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"EVERSTEP_TRAIN_{name}", "7")
    with pytest.raises(InvalidOperationError, match=f"EVERSTEP_TRAIN_{name}: there is no field .*did you mean"):
        read_config([])


def test_what_a_run_does_not_depend_on_are_fields() -> None:
    assert OUTSIDE.issubset(TrainConfig.model_fields)
