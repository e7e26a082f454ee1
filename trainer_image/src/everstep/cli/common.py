"""What the commands share: their options, and the way from a URI to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from everstep.catalog import Catalog, Entry, JobCatalog, S3Access, open_store
from everstep.catalog.keys import split_root
from everstep.cli.output import Output, complain, errors
from everstep.errors import CheckpointNotFoundError, InvalidOperationError

REFUSED, DAMAGED, DIFFERENT, UNAVAILABLE = 1, 3, 4, 5
EXIT_CODES = (
    "Exit codes: 0 done; 1 refused, the message says why; 2 a wrong call; 3 something stored is damaged; "
    "4 the two that were compared differ; 5 storage does not answer."
)

Place = Annotated[str, typer.Argument(metavar="URI", help="s3://bucket/prefix, a path, or a checkpoint inside a run")]
Endpoint = Annotated[str | None, typer.Option(envvar="AWS_ENDPOINT_URL", help="the S3 server, where it is not AWS")]
Region = Annotated[str | None, typer.Option(envvar="AWS_REGION", help="the S3 region")]
Form = Annotated[Output, typer.Option("--output", "-o", help="how to print")]
Step = Annotated[int | None, typer.Option(help="the step; without it the latest committed one")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


@dataclass(frozen=True, slots=True)
class Target:
    """A run, and the checkpoint in it that the URI names itself."""

    job: JobCatalog
    location: str | None

    def pick(self, catalog: Catalog, step: int | None) -> Entry:
        """The checkpoint of the URI, else of the step (the live one, where several are of that step), else the latest.

        Raises CheckpointNotFoundError.
        """
        if self.location is not None:
            found = catalog.find(self.location)
        elif step is not None:
            of_step = (entry for entry in catalog.checkpoints if entry.step == step)
            found = max(of_step, key=lambda entry: (entry.state == "live", entry.seq), default=None)
        else:
            found = catalog.latest()
        if found is None:
            what = self.location or ("any step" if step is None else f"step {step}")
            if any(r.location == self.location or (self.location is None and r.step == step) for r in catalog.removing):
                raise CheckpointNotFoundError(f"{what} is being removed")
            steps = ", ".join(str(entry.step) for entry in catalog.live()) or "none"
            raise CheckpointNotFoundError(f"{what} is not committed here; committed steps: {steps}")
        return found

    def pick_good(self, catalog: Catalog, step: int | None) -> Entry:
        """As `pick`, for who wants to use it. Raises InvalidOperationError for one that was found to be damaged, and
        says so of one that was passed over."""
        found = self.pick(catalog, step)
        if found.state == "quarantined":
            raise InvalidOperationError(
                f"step {found.step} ({found.location}) is damaged and set aside: {found.reason}; "
                "`everstep ls` shows the others"
            )
        if found.state != "live":
            complain(f"step {found.step} is {found.state}: {found.reason}")
        return found


def open_target(uri: str, endpoint: str | None, region: str | None) -> Target:
    try:
        root, location = split_root(uri)
    except ValueError as error:
        raise InvalidOperationError(str(error)) from error
    store = open_store(root, S3Access(endpoint=endpoint, region=region))
    return Target(JobCatalog(store), str(location) if location else None)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """On stderr, so that what a program reads stays clean."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True) as progress:
        yield progress
