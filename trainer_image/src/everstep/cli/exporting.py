"""`export`: a checkpoint's model for other libraries. What needs torch is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from everstep.catalog import S3Access, open_store
from everstep.cli import common
from everstep.cli import format as written
from everstep.cli.output import Output, complain, emit
from everstep.cli.tables import facts, width

if TYPE_CHECKING:
    from everstep.export import Exported


def export(
    uri: common.Place,
    to: Annotated[str, typer.Option(metavar="URI", help="an empty or new folder, or s3://bucket/prefix")],
    step: common.Step = None,
    max_file_size: Annotated[str, typer.Option(help="of one safetensors file: 500MB, 2GiB")] = "1GiB",
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Write a checkpoint's model as Hugging Face safetensors that from_pretrained loads. Every byte is verified."""
    from everstep.export import export as write

    largest = written.bytes_of(max_file_size)
    target = common.open_target(uri, endpoint, region)
    entry = target.pick_good(target.catalog(), step)
    store = open_store(to, S3Access(endpoint=endpoint, region=region))
    with common.progress_bar() as progress:
        task = progress.add_task(f"step {entry.step}", total=None)
        exported = write(target.job, entry, store, largest, partial(progress.advance, task))
    emit(output, {"to": store.uri, **asdict(exported)}, _lines(store.uri, exported))
    if "config.json" not in exported.assets:
        complain("the run kept no config.json: put the model's own beside the weights before you load them")


def _lines(to: str, exported: Exported) -> Iterator[str]:
    yield to
    yield from facts(
        (
            ("Step", exported.step),
            ("Tensors", exported.tensors),
            ("Size", written.size(exported.bytes)),
            ("Files", ", ".join(exported.files)),
            ("Beside", ", ".join(exported.assets)),
        ),
        width(),
    )
