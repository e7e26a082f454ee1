"""Programs are built once for each content, whole or not at all, by one builder at a time."""

import threading
from pathlib import Path

import pytest
from rich.console import Console

from dev import build, golang, prerequisites
from dev.build import BuildError, Toolset

PROGRAM = 'package main\n\nfunc main() { println("one") }\n'


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Go module of one program, which stands for the cluster's."""
    module = tmp_path / "tools" / "tiny"
    module.mkdir(parents=True)
    (module / "go.mod").write_text("module example.com/tiny\n\ngo 1.21\n")
    (module / "main.go").write_text(PROGRAM)
    monkeypatch.setattr(build, "TOOLS", module.parent)
    monkeypatch.setattr(build, "TOOLSETS", (Toolset("tiny", ("tiny",), minutes=1, own_program="tiny"),))
    monkeypatch.setenv("EVERSTEP_CACHE", str(tmp_path / "cache"))
    return module


def test_a_build_is_used_again_until_its_content_changes(tool: Path) -> None:
    first = Path(build.ensure().path("tiny"))
    built_at = first.stat().st_mtime_ns
    assert Path(build.ensure().path("tiny")) == first
    assert first.stat().st_mtime_ns == built_at
    (tool / "main.go").write_text(PROGRAM.replace("one", "two"))
    second = Path(build.ensure().path("tiny"))
    assert second != first
    assert first.exists()


def test_two_builders_build_once(tool: Path) -> None:
    said = [Console(record=True, quiet=False, width=200) for _ in range(2)]
    builders = [threading.Thread(target=build.ensure, kwargs={"console": console}) for console in said]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    words = "".join(console.export_text() for console in said)
    assert words.count("built tiny in") == 1
    assert Path(build.ensure().path("tiny")).exists()


def test_a_failed_build_leaves_nothing_that_looks_built_and_says_why(tool: Path) -> None:
    (tool / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    for _ in range(2):
        with pytest.raises(BuildError, match="undefined: missing"):
            build.ensure()
    (tool / "main.go").write_text(PROGRAM)
    assert Path(build.ensure().path("tiny")).exists()


def test_a_program_that_nobody_builds_is_named(tool: Path) -> None:
    with pytest.raises(BuildError, match="'kubectl'"):
        build.ensure().path("kubectl")


@pytest.mark.parametrize(
    ("found", "enough"),
    [("go1.26.8", True), ("go1.26", True), ("go2.0", True), ("go1.25.9", False), ("devel", False), (None, False)],
)
def test_only_a_go_that_is_new_enough_is_taken(found: str | None, enough: bool) -> None:
    assert golang.new_enough(found) is enough


def test_a_missing_program_is_named_with_the_command_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(prerequisites.MissingError, match=r"sudo apt-get install .* no-such-package"):
        prerequisites.ensure({"no-such-program": "no-such-package"})
    prerequisites.ensure({"sh": "dash"})
