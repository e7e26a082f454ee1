from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from everstep.errors import InvalidOperationError
from everstep.train.config import read_config


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
    ("arguments", "field"),
    [
        (["--model.heads", "3"], "model"),
        (["--steps", "0"], "steps"),
        (["--precision", "fp64"], "precision"),
    ],
)
def test_a_bad_value_names_its_field(arguments: list[str], field: str) -> None:
    with pytest.raises(ValidationError) as found:
        read_config(arguments)
    assert found.value.errors()[0]["loc"][0] == field


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("stepz: 7\n")
    with pytest.raises(ValidationError, match="stepz"):
        read_config(["--config", str(file)])
    with pytest.raises(InvalidOperationError, match=r"^unrecognized arguments: --stepz 7$"):
        read_config(["--stepz", "7"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_config(["--config", str(tmp_path / "absent.yaml")])
