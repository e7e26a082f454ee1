"""`copy`: checkpoints taken elsewhere as they are."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from everstep.catalog import S3Access, open_store
from everstep.catalog.copying import copy as write
from everstep.cli import common
from everstep.cli import format as written
from everstep.cli.output import Output, emit
from everstep.cli.tables import facts, width
from everstep.errors import CheckpointNotFoundError


def copy(
    uri: common.Place,
    to: Annotated[str, typer.Option(metavar="URI", help="an empty or new folder, or s3://bucket/prefix")],
    step: common.Step = None,
    everything: common.Everything = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="reads at the same time")] = 8,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Take checkpoints to another place, where they are a run of their own: to download, to back up, to move a run.

    Every byte is verified on its way.
    """
    target = common.open_target(uri, endpoint, region)
    target.check_everything(everything, step)
    catalog = target.catalog()
    entries = catalog.live() if everything else [target.pick_good(catalog, step)]
    if not entries:
        raise CheckpointNotFoundError(f"nothing is committed in {target.job.store.uri}")
    store = open_store(to, S3Access(endpoint=endpoint, region=region))
    total = sum(entry.bytes for entry in entries)
    with common.progress_bar() as progress:
        task = progress.add_task("copying", total=total)
        copied = write(target.job, entries, store, partial(progress.advance, task), jobs)
    data = {
        "to": store.uri,
        "checkpoints": [{"step": e.step, "location": e.location, "bytes": e.bytes} for e in copied.checkpoints],
        "bytes": total,
    }
    said = (
        ("Steps", ", ".join(str(entry.step) for entry in entries)),
        ("Size", written.size(total)),
        ("Latest", entries[-1].location),
    )
    emit(output, data, [store.uri, *facts(said, width())])
