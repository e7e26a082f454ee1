"""What the commands share: their options, and the way from a URI to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from everstep.catalog import Catalog, Entry, JobCatalog, S3Access, open_store
from everstep.catalog.keys import CHECKPOINTS, split_root
from everstep.cli.output import Output, complain, errors
from everstep.errors import CatalogMissingError, CheckpointNotFoundError, InvalidOperationError

REFUSED, WRONG_CALL, DAMAGED, DIFFERENT, UNAVAILABLE = 1, 2, 3, 4, 5
EXIT_CODES = (
    "Exit codes: 0 done; 1 refused, the message says why; 2 a wrong call; 3 something stored is damaged; "
    "4 the two that were compared differ; 5 storage does not answer."
)

Place = Annotated[str, typer.Argument(metavar="URI", help="s3://bucket/prefix, a path, or a checkpoint inside a run")]
Endpoint = Annotated[
    str | None, typer.Option(metavar="URL", help="the S3 server; else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS")
]
Region = Annotated[str | None, typer.Option(help="the S3 region; else AWS_REGION, or boto3's own way to it")]
Form = Annotated[Output, typer.Option("--output", "-o", help="how to print")]
Step = Annotated[int | None, typer.Option(help="the step; without it the latest committed one")]
Everything = Annotated[bool, typer.Option("--all", help="every committed checkpoint of the run")]
Yes = Annotated[bool, typer.Option("--yes", help="do not ask")]


class WrongCallError(InvalidOperationError):
    """Options that have no meaning, or none together."""


@dataclass(frozen=True, slots=True)
class Target:
    """A run, and the checkpoint in it that the URI names itself."""

    job: JobCatalog
    location: str | None

    def catalog(self) -> Catalog:
        """Raises CatalogMissingError."""
        catalog = self.job.read()
        if catalog is None:
            raise CatalogMissingError(
                f"{self.job.store.uri} has no catalog.json: `everstep ls` finds the runs below it, and says so of one "
                "whose register is lost"
            )
        return catalog

    def check_everything(self, everything: bool, step: int | None) -> None:
        """Raises WrongCallError where --all and something else name what is meant."""
        if everything and (step is not None or self.location is not None):
            raise WrongCallError("--all is every checkpoint of a run: leave --step out, and name the run")

    def pick(self, catalog: Catalog, step: int | None) -> Entry:
        """The checkpoint of the URI, else of the step (the live one, where several are of that step), else the latest.

        Raises CheckpointNotFoundError, WrongCallError where URI and step both name one.
        """
        if self.location is not None and step is not None:
            raise WrongCallError(f"{self.location} is one checkpoint already: leave --step out, or name its run")
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
    access = S3Access(endpoint=endpoint, region=region)
    job = JobCatalog(open_store(root, access))
    run = root.removesuffix("/" + CHECKPOINTS.rstrip("/"))
    if location is None and run != root and not run.endswith(":/") and job.read() is None:
        above = JobCatalog(open_store(run or "/", access))  # the folder of its checkpoints is as good as a run's name
        job = job if above.read() is None else above
    return Target(job, str(location) if location else None)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """On stderr, so that what a program reads stays clean."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        yield progress
