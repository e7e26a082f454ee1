from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
def test_the_page_on_data_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    said = re.findall(r"  # ([\w.(\['].*)$|^    # (restored.*)$", "\n".join(blocks), re.MULTILINE)
    wanted = [first or second for first, second in said if not first.startswith("an augmentation")]
    assert printed.splitlines() == wanted
    assert "page" not in sys.modules
