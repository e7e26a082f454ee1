"""The program `everstep`: its commands, and which exit code an error has."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from everstep.cli import checking, common, comparing, copying, exporting, listing, upkeep
from everstep.cli.output import complain
from everstep.errors import (
    CatalogUnreadableError,
    CheckpointCorruptError,
    CheckpointError,
    StorageUnavailableError,
)

app = typer.Typer(
    name="everstep",
    help="Look at everstep's checkpoints in S3 or a directory, check them, take them elsewhere and mend them. "
    "No cluster is needed. Credentials: the usual AWS variables and files.",
    epilog=common.EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("ls")(listing.list_runs)
app.command()(listing.show)
app.command()(checking.verify)
app.command("diff")(comparing.compare)
app.command()(exporting.export)
app.command()(copying.copy)
app.command()(upkeep.prune)
app.command()(upkeep.pin)
app.command()(upkeep.unpin)
app.command()(upkeep.rebuild)


WITH_THE_TRAINER = ("torch", "numpy", "safetensors")
"""Packages that only some commands need."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"everstep {version('everstep')}")
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it and exit")] = False,
) -> None:
    pass


def main() -> None:
    try:
        app()
    except CheckpointError as error:
        complain(f"everstep: {error}")
        sys.exit(code_of(error))
    except ModuleNotFoundError as error:
        if error.name not in WITH_THE_TRAINER:
            raise
        complain(f"everstep: this command needs {error.name}, which the extra `everstep[trainer]` installs")
        sys.exit(common.REFUSED)


def code_of(error: CheckpointError) -> int:
    if isinstance(error, common.WrongCallError):
        return common.WRONG_CALL
    if isinstance(error, CheckpointCorruptError | CatalogUnreadableError):
        return common.DAMAGED
    return common.UNAVAILABLE if isinstance(error, StorageUnavailableError) else common.REFUSED
