"""docs/coming-from.md: what its right-hand columns name is there, and its program runs."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from everstep import Checkpointer, errors
from everstep.checkpoint.restoring.model_weights import load_weights
from everstep.cli.app import app
from everstep.data import Batches, verify
from everstep.train.config import read_config
from everstep.weights import WeightsWatcher
from everstep.weights.assets import tokenizer_files
from everstep_operator.api.fields import spec_fields
from tests.support import pages

PAGE = pages.DOCS / "coming-from.md"
NAMES: dict[str, Any] = {
    "checkpointer": Checkpointer,
    "Checkpointer": Checkpointer,
    "data": Batches,
    "Batches": Batches,
    "WeightsWatcher": WeightsWatcher,
    "load_weights": load_weights,
    "tokenizer_files": tokenizer_files,
    "verify": verify,
}
SPEC = {f"spec.{field.path}" for field in spec_fields()}
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
CODES = sorted({code for row in ROWS for code in re.findall(r"`([^`]+)`", row.strip("| ").rpartition(" | ")[2])})


def named(kind: str) -> list[str]:
    found = [code for code in CODES if re.match(kind, code)]
    assert found
    return found


@pytest.mark.parametrize("code", named(r"\w+(\.\w+)*\("))
def test_every_call_fits_a_signature(code: str) -> None:
    for call in ast.walk(ast.parse(code)):
        if not isinstance(call, ast.Call) or code == "init_process_group()" or code.startswith("sys."):
            continue
        target = call.func
        if isinstance(target, ast.Attribute):
            assert isinstance(target.value, ast.Name)
            found = inspect.signature(getattr(NAMES[target.value.id], target.attr))
            arguments: list[object] = [None, *call.args]
        else:
            assert isinstance(target, ast.Name)
            found = inspect.signature(NAMES[target.id])
            arguments = list(call.args)
        if target in (call.func,) and getattr(target, "id", "") == "Checkpointer":
            found = inspect.signature(Checkpointer.__mro__[1].__init__)  # type: ignore[misc]
            arguments = [None, *arguments]
        found.bind(*arguments, **{str(word.arg): None for word in call.keywords})


@pytest.mark.parametrize("code", named(r"(checkpointer|data)\.\w+$"))
def test_every_attribute_is_there(code: str) -> None:
    owner, _, name = code.partition(".")
    assert hasattr(NAMES[owner], name)


@pytest.mark.parametrize("code", named("everstep "))
def test_every_command_has_its_options(code: str) -> None:
    _, name, *words = shlex.split(code)
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("code", named("--"))
def test_every_flag_is_the_recipe_s(code: str) -> None:
    read_config(shlex.split(code))


@pytest.mark.parametrize("code", named(r"spec\."))
def test_every_field_is_the_job_s(code: str) -> None:
    assert code in SPEC


@pytest.mark.parametrize("code", named(r"\w+Error$"))
def test_every_error_is_there(code: str) -> None:
    assert issubclass(getattr(errors, code), errors.CheckpointError)


def test_its_program_prints_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EVERSTEP_ROOT", raising=False)
    [block] = pages.run(PAGE)
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
