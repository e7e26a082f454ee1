from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "training.md"


def test_the_page_on_training_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    assert "step 15 is not committed" in capsys.readouterr().out


def test_the_page_names_only_fields_that_exist(tmp_path: Path) -> None:
    from everstep.train.config import read_config

    block = re.search(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    file = tmp_path / "lm.yaml"
    file.write_text(block[1])
    assert read_config(["--config", str(file), "--model.layers", "8"]).model.layers == 8
