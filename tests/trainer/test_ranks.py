from __future__ import annotations

from pathlib import Path

from . import gang

SCRIPT = str(Path(__file__).parent / "ranks.py")


def test_what_is_each_ranks_own_comes_back_and_no_disagreement_hangs(tmp_path: Path) -> None:
    ended = gang.run(tmp_path, [SCRIPT], str(tmp_path / "root"))
    assert ended.log.count("all ranks agree") == 2
