from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import pages

PAGE = pages.DOCS / "training.md"


def test_the_page_on_training_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    assert len(pages.run(PAGE)) == 6
    assert "step 15 is not committed" in capsys.readouterr().out


def test_the_page_names_only_fields_that_exist(tmp_path: Path) -> None:
    from everstep.train.config import read_config

    file = tmp_path / "lm.yaml"
    file.write_text(pages.blocks(PAGE, "yaml")[0])
    assert read_config(["--config", str(file), "--model.layers", "8"]).model.layers == 8
