"""`prune`, `pin`, `unpin` and `rebuild`: what changes a run."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer

from everstep.catalog import Best, Catalog, Entry, Retention
from everstep.catalog.rebuild import Rebuilt, survey
from everstep.catalog.rebuild import rebuild as rebuild_register
from everstep.catalog.retention import best as best_of
from everstep.catalog.retention import expendable, kept, safeguarded
from everstep.cli import common
from everstep.cli import format as written
from everstep.cli.output import Output, complain, emit
from everstep.cli.tables import table, width
from everstep.errors import CatalogFormatError, CatalogUnreadableError, InvalidOperationError


def pin(
    uri: common.Place,
    step: common.Step = None,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Keep a checkpoint whatever the retention policy says."""
    _pin(common.open_target(uri, endpoint, region), step, True, output)


def unpin(
    uri: common.Place,
    step: common.Step = None,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Let the retention policy decide on a checkpoint again."""
    _pin(common.open_target(uri, endpoint, region), step, False, output)


def _pin(target: common.Target, step: int | None, pinned: bool, output: Output) -> None:
    pick = target.pick_good if pinned else target.pick
    entry = pick(target.catalog(), step)
    target.job.pin(entry.location, pinned)
    data = {"step": entry.step, "location": entry.location, "pinned": pinned}
    emit(output, data, [f"step {entry.step} ({entry.location}) is {'' if pinned else 'no longer '}pinned"])


def prune(
    uri: common.Place,
    steps: Annotated[list[int] | None, typer.Option("--step", help="this step; may be given more than once")] = None,
    set_aside: Annotated[bool, typer.Option("--set-aside", help="all that are abandoned or quarantined")] = False,
    keep_last: Annotated[int | None, typer.Option(min=1, help="keep so many newest")] = None,
    keep_best: Annotated[int | None, typer.Option(min=1, help="keep so many with the best scores")] = None,
    highest: Annotated[
        bool | None,
        typer.Option(
            "--highest/--lowest", help="which scores are the best; else as the run's own policy, or the lowest"
        ),
    ] = None,
    keep_every: Annotated[int | None, typer.Option(min=1, help="keep each step that is a multiple")] = None,
    keep_within: Annotated[str | None, typer.Option(help="keep what is younger: 36h, 7d")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would go and what would stay, and why")] = False,
    yes: common.Yes = False,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Remove checkpoints for good: those that are named, or with --keep-… those that none of these options keeps.

    The two newest, and what is pinned, held or being resumed from, always stay.
    """
    target = common.open_target(uri, endpoint, region)
    catalog = target.catalog()
    best = _best(catalog, keep_best, highest, alone=not (keep_last or keep_every or keep_within))
    within = None if keep_within is None else written.seconds_of(keep_within)
    policy = Retention(last=keep_last, best=best, every=keep_every, within=within)
    chosen = _chosen(target, catalog, steps or [], set_aside, policy)
    leaving = [entry for entry in catalog.checkpoints if entry.location in chosen]
    total = sum(entry.bytes for entry in leaving)
    if not dry_run and leaving and not yes:
        typer.echo("\n".join(_plan(catalog, chosen, policy)), err=True)
        question = f"Remove {written.count(len(leaving), 'checkpoint')}, {written.size(total)}?"
        typer.confirm(question, abort=True, err=True)
    if not dry_run and leaving:
        target.job.prune(chosen)
        while target.job.finish_removals():
            pass
    word = "would remove" if dry_run else "removed"
    named = [{"step": e.step, "location": e.location, "bytes": e.bytes} for e in leaving]
    summary = (
        f"{word} {written.count(len(leaving), 'checkpoint')}, {written.size(total)}" if leaving else "nothing to remove"
    )
    data = {word.replace(" ", "_"): named, "bytes": total}
    emit(output, data, [*(_plan(catalog, chosen, policy) if dry_run else ()), summary])


def _best(catalog: Catalog, count: int | None, highest: bool | None, alone: bool) -> Best | None:
    """`alone`: nothing else says what to keep. Raises WrongCallError where it would mean nothing, or too much."""
    if count is None:
        if highest is not None:
            raise common.WrongCallError("--highest and --lowest say which scores --keep-best keeps: it is missing")
        return None
    own = catalog.retention.best if catalog.retention else None
    policy = own.model_copy(update={"count": count}) if own else Best(count=count, mode="min")
    if highest is not None:
        policy = policy.model_copy(update={"mode": "max" if highest else "min"})
    if catalog.live() and not best_of(catalog.live(), policy):
        what = "a score" if policy.metric is None else f"a score of {policy.metric!r}"
        message = f"none of the checkpoints has {what}: --keep-best keeps none of them"
        if alone:
            raise common.WrongCallError(message)
        complain(message)
    return policy


def _chosen(target: common.Target, catalog: Catalog, steps: list[int], set_aside: bool, policy: Retention) -> set[str]:
    """Locations that the options name. Raises CheckpointNotFoundError for a step that is not there, WrongCallError."""
    if target.location is None and not steps and not set_aside and policy.keeps_everything:
        raise common.WrongCallError("say what to remove: --step, --set-aside, --keep-… or a checkpoint's own path")
    named = {common.Target(target.job, None).pick(catalog, step).location for step in steps}
    if target.location is not None:
        named.add(target.pick(catalog, None).location)
    now = datetime.now(UTC)
    if set_aside:
        safe = safeguarded(catalog, now)
        named |= {e.location for e in catalog.checkpoints if e.state != "live" and e.location not in safe}
    if not policy.keeps_everything:
        named |= {entry.location for entry in expendable(catalog, policy, now)}
    return named


def _plan(catalog: Catalog, leaving: Collection[str], policy: Retention) -> Iterator[str]:
    own = catalog.retention or policy
    reasons = kept(catalog, own if policy.keeps_everything else policy, datetime.now(UTC))

    def cells(entry: Entry) -> list[str]:
        goes = entry.location in leaving
        why = "" if goes else ", ".join(reasons.get(entry.location, [entry.reason or entry.state]))
        return [str(entry.step), written.size(entry.bytes), "goes" if goes else "stays", why]

    yield from table((">Step", ">Size", "", "Because"), map(cells, catalog.checkpoints), width())


def rebuild(
    uri: common.Place,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what the register would hold")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="the job is suspended or gone, and I mean it")] = False,
    endpoint: common.Endpoint = None,
    region: common.Region = None,
    output: common.Form = Output.table,
) -> None:
    """Make a lost catalog.json again from saves that are provably committed. The job must be suspended."""
    job = common.open_target(uri, endpoint, region).job
    try:
        if job.read() is not None:
            raise InvalidOperationError(f"{job.store.uri} has a catalog.json: nothing to rebuild")
    except CatalogFormatError:
        raise
    except CatalogUnreadableError as error:
        complain(str(error))
        if not dry_run:
            raise InvalidOperationError(
                "put an older version back, or move the register away and rebuild: in a bucket that is the object "
                "catalog.json, below a path the folder catalog.d/, whose newest file counts. --dry-run shows what a "
                "rebuild would give"
            ) from error
    with common.progress_bar() as progress:
        task = progress.add_task("verifying", total=None)
        rebuilt = survey(job, partial(progress.advance, task))
    if not dry_run and not yes and rebuilt.catalog.checkpoints:  # else it is refused below, whatever is answered
        typer.echo("\n".join(_findings(rebuilt)), err=True)
        typer.confirm("Is the job suspended or gone, and is this what its catalog shall hold?", abort=True, err=True)
    catalog = rebuilt.catalog if dry_run else rebuild_register(job, rebuilt)
    held = written.count(len(catalog.checkpoints), "checkpoint")
    data = {
        "written": not dry_run,
        "epoch": catalog.epoch,
        "checkpoints": [entry.model_dump(mode="json") for entry in catalog.checkpoints],
        "left_out": [{"location": each.location, "reason": each.reason} for each in rebuilt.rejected],
    }
    verb = "would hold" if dry_run else "holds"
    emit(output, data, [*_findings(rebuilt), f"{job.store.uri}/catalog.json {verb} {held}, epoch {catalog.epoch}"])


def _findings(rebuilt: Rebuilt) -> Iterator[str]:
    cells = [[str(e.step), written.size(e.bytes), e.state, e.location] for e in rebuilt.catalog.checkpoints]
    if cells:
        yield from table((">Step", ">Size", "State", "Location"), cells, width())
        yield "pins and the policy went with the register: pin again what must stay, before the run goes on"
    yield from (f"left out, to be swept: {each.location}: {each.reason}" for each in rebuilt.rejected)
