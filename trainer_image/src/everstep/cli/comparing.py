"""`diff`: two checkpoints compared. What needs torch is imported when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everstep.catalog import Manifest
from everstep.cli import common
from everstep.cli.output import Output, complain, emit
from everstep.cli.tables import table, width

if TYPE_CHECKING:
    from everstep.export.comparing import Difference
    from everstep.export.saved import SavedTensors

Other = Annotated[str, typer.Argument(metavar="OTHER", help="what to compare it with, the same way")]


def compare(
    uri: common.Place,
    other: Other,
    step: common.Step = None,
    other_step: Annotated[int | None, typer.Option(help="the step of the other; without it its latest")] = None,
    values: Annotated[bool, typer.Option("--values", help="read what differs, and say how much")] = False,
    only: Annotated[str, typer.Option(metavar="PREFIX", help="tensors whose names begin so, such as model.")] = "",
    most: Annotated[int, typer.Option(min=1, help="print so many tensors; JSON and YAML have all")] = 20,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Compare two checkpoints: manifests, and the names, shapes, types and bytes of their tensors.

    Without --values no tensor is read: the sums of their blocks are compared. Exit code 4: some tensor differs.
    """
    from everstep.export.comparing import differences, facts

    (first, a), (second, b) = (
        _open(each, at, only, endpoint, region) for each, at in ((uri, step), (other, other_step))
    )
    if only and not (a.specs() or b.specs()):
        raise common.WrongCallError(f"--only {only!r}: no tensor of either has a name that begins so")
    differing = [replace(each, name=only + each.name) for each in differences(a, b, values)]
    said = facts(a.manifest, b.manifest)
    data = {
        "a": first,
        "b": second,
        "manifest": {name: list(pair) for name, pair in said.items()},
        "tensors": [asdict(each) for each in differing],
        "same": len(a.specs()) - sum(each.how != "only in B" for each in differing),
    }
    emit(output, data, _lines(data, differing, most))
    if differing:
        raise typer.Exit(common.DIFFERENT)


def _open(uri: str, step: int | None, only: str, endpoint: str | None, region: str | None) -> tuple[str, SavedTensors]:
    from everstep.export.saved import SavedTensors

    target = common.open_target(uri, endpoint, region)
    entry = target.pick(target.catalog(), step)
    if entry.state != "live":
        complain(f"step {entry.step} of {target.job.store.uri} is {entry.state}: {entry.reason}")
    manifest: Manifest = target.job.manifest(entry)
    return f"{target.job.store.uri}/{entry.location}", SavedTensors(target.job.store, manifest, only)


def _lines(data: dict[str, Any], differing: list[Difference], most: int) -> Iterator[str]:
    room = width()
    yield f"A  {data['a']}"
    yield f"B  {data['b']}"
    yield ""
    if data["manifest"]:
        rows = ([name, _short(one), _short(two)] for name, (one, two) in data["manifest"].items())
        yield from table(("Manifest", "A", "B"), rows, room)
        yield ""
    if differing:
        cells = ([_amount(each), each.how, each.detail, each.name] for each in differing[:most])
        yield from table((">Largest", "Differs by", "In detail", "Tensor"), cells, room)
        if len(differing) > most:
            yield f"and {len(differing) - most} more: --most, --only"
    yield f"{data['same']} tensors are the same, {len(differing)} differ"


def _short(value: Any) -> str:
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"


def _amount(found: Difference) -> str:
    return "" if found.largest is None else f"{found.largest:.3g}"
