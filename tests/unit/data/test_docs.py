from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support import pages

PAGE = pages.DOCS / "data.md"


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.slow
def test_the_page_on_data_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    blocks = pages.run(PAGE)
    assert len(blocks) == 4
    printed = capsys.readouterr().out
    said = re.findall(r"  # ([\w.(\['].*)$|^    # (restored.*)$", "\n".join(blocks), re.MULTILINE)
    wanted = [first or second for first, second in said if not first.startswith("an augmentation")]
    assert printed.splitlines() == wanted
    assert "page" not in sys.modules
