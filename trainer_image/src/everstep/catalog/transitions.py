"""Every change that the register can see, as pure functions from one document to the next.

Each may be decided again on a newer document after a swap whose answer was lost, so each first looks for its own effect
(fence id, claim id, location) and then returns the document as it is: the same object means "nothing to write".
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from everstep.catalog.documents import (
    MAX_DISPLACED,
    MAX_ENTRIES,
    Beginning,
    Catalog,
    Claim,
    Entry,
    Hold,
    Owner,
    Removal,
    Source,
)
from everstep.catalog.keys import Location
from everstep.errors import (
    CheckpointNotFoundError,
    FencedError,
    InvalidOperationError,
    OwnerConflictError,
)


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a job's first attempt begins. Later attempts always resume what the job itself committed.

    `fresh` sets aside every live entry; `location` those newer than it; `source` forks another job's checkpoint.
    """

    fresh: bool = False
    location: str | None = None
    source: Source | None = None


AUTO = Resume()


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """What to load: a location below `root` (None: the job's own) and the digest of its manifest."""

    step: int
    location: str
    digest: str
    root: str | None = None

    def uri(self, own_root: str) -> str:
        return f"{(self.root or own_root).rstrip('/')}/{self.location}"


def resume_point(catalog: Catalog) -> ResumePoint | None:
    """The newest live entry, else the source of a fork, else None: start afresh."""
    entry = catalog.latest()
    if entry is not None:
        return ResumePoint(entry.step, entry.location, entry.digest)
    if catalog.source is not None:
        source = catalog.source
        return ResumePoint(source.step, source.location, source.digest, source.root)
    return None


def begin_at(catalog: Catalog, resume: Resume) -> Catalog:
    """Apply a user's choice of where to begin: what it passes over is abandoned, never deleted."""
    if resume != AUTO:
        catalog = catalog.model_copy(update={"begun": None})
    if resume.fresh or resume.source is not None:
        return _abandon(catalog, -1, "passed over by resume mode").model_copy(update={"source": resume.source})
    if resume.location is not None:
        entry = catalog.find(resume.location)
        if entry is None or entry.state == "quarantined":
            raise CheckpointNotFoundError(f"{resume.location} is not a committed checkpoint of this job")
        revived = tuple(
            e.model_copy(update={"state": "live", "reason": None}) if e.location == entry.location else e
            for e in catalog.checkpoints
        )
        return _abandon(catalog.model_copy(update={"checkpoints": revived}), entry.seq, f"newer than step {entry.step}")
    return catalog


def _abandon(catalog: Catalog, above: int, reason: str) -> Catalog:
    entries = tuple(
        e.model_copy(update={"state": "abandoned", "reason": reason}) if e.state == "live" and e.seq > above else e
        for e in catalog.checkpoints
    )
    return catalog.model_copy(update={"checkpoints": entries})


def check_owner(catalog: Catalog, owner: Owner, adopt: bool = False) -> None:
    """Raises OwnerConflictError unless the root is this job's, or an earlier incarnation's of the same name.

    An incarnation that was taken over from never comes back: a late fence of a deleted job must not end its successor.
    """
    theirs = catalog.owner
    if theirs is None or adopt:
        return
    if owner.uid in catalog.displaced:
        raise OwnerConflictError(
            f"the checkpoints were taken over from uid {owner.uid} and belong to {theirs} now; to take them back, "
            "annotate the TrainingJob with everstep.dev/adopt=true"
        )
    if (theirs.cluster, theirs.namespace, theirs.name) != (owner.cluster, owner.namespace, owner.name):
        raise OwnerConflictError(
            f"the checkpoints belong to {theirs}; to take them over, "
            "annotate the TrainingJob with everstep.dev/adopt=true"
        )


def fence(
    catalog: Catalog, owner: Owner, fence_id: str, at_least: int = 1, resume: Resume = AUTO, adopt: bool = False
) -> Catalog:
    """Begin an attempt: from here on no older one can commit. Takes over from an earlier incarnation of the name.

    `resume` counts in the first fence of a uid alone. Whether it is the first is decided here, on the document that the
    swap replaces: a second operator may have fenced, and its gang committed, since the caller looked.
    """
    if catalog.fence == fence_id:
        return catalog
    check_owner(catalog, owner, adopt)
    before = catalog.owner
    displaced = tuple(uid for uid in catalog.displaced if uid != owner.uid)
    if before is None or before.uid != owner.uid:
        catalog = begin_at(catalog, resume).model_copy(update={"begun": None})
        displaced = displaced if before is None else (*displaced, before.uid)[-MAX_DISPLACED:]
    return catalog.model_copy(
        update={
            "owner": owner,
            "displaced": displaced,
            "attempt": max(catalog.attempt + 1, at_least),
            "epoch": catalog.epoch + 1,
            "fence": fence_id,
            "claim": None,
        }
    )


def claim(
    catalog: Catalog,
    claim_id: str,
    now: datetime,
    attempt: int | None = None,
    uid: str | None = None,
    resume: Resume = AUTO,
    local: bool = False,
) -> Catalog:
    """A worker group takes the right to commit. With an operator (`attempt`, `uid`) only in the attempt that it fenced.

    `local`: it has a local tier, and tells by `begin` where it has begun. What a group without one leaves behind is in
    the register alone. Raises FencedError for an older attempt or incarnation.
    """
    if catalog.claim is not None and catalog.claim.id == claim_id:
        return catalog
    if attempt is None:
        if catalog.owner is not None:
            raise OwnerConflictError(
                f"the checkpoints belong to {catalog.owner}: resume from its path into a root of your own instead"
            )
        catalog = begin_at(catalog, resume).model_copy(update={"attempt": catalog.attempt + 1})
    elif catalog.owner is None or catalog.owner.uid != uid:
        raise FencedError(f"attempt {attempt} of uid {uid} is fenced: the job now belongs to {catalog.owner}")
    elif catalog.attempt != attempt:
        raise FencedError(f"attempt {attempt} is fenced: attempt {catalog.attempt} has taken over")
    taken = Claim(
        id=claim_id,
        attempt=catalog.attempt,
        epoch=catalog.epoch + 1,
        resumed=_resumed(catalog),
        at=now,
    )
    begun = catalog.begun if local else None
    return catalog.model_copy(update={"epoch": taken.epoch, "claim": taken, "begun": begun})


def begin(catalog: Catalog | None, claim_id: str, local: str | None) -> Catalog:
    """The claim's holder is about to train, from a save of the local tier or (None) from what its claim names.

    Until then its predecessor's local saves count. Raises FencedError.
    """
    catalog = require_claim(catalog, claim_id)
    begun = Beginning(claim=claim_id, epoch=catalog.epoch, local=local)
    return catalog if catalog.begun == begun else catalog.model_copy(update={"begun": begun})


def _resumed(catalog: Catalog) -> str | None:
    point = resume_point(catalog)
    if point is None:
        return None
    return point.location if point.root is None else point.uri("")


def require_claim(catalog: Catalog | None, claim_id: str) -> Catalog:
    """Raises FencedError where somebody else holds the claim, or the register is gone."""
    if catalog is None:
        raise FencedError("the catalog is gone: nothing can be committed")
    if catalog.claim is None or catalog.claim.id != claim_id:
        claim = catalog.claim
        holder = "nobody yet" if claim is None else f"attempt {claim.attempt}, epoch {claim.epoch}"
        raise FencedError(f"this worker group is fenced: attempt {catalog.attempt} has begun, claimed by {holder}")
    return catalog


def commit(catalog: Catalog | None, claim_id: str, entry: Entry) -> Catalog:
    """The commit. Gives the entry its seq.

    Raises FencedError, or InvalidOperationError where the step does not rise: then it is not committed, and never will
    be (it may have been, in silence, and have been removed since by who took over).
    """
    if catalog is not None and catalog.find(entry.location) is not None:
        return catalog
    catalog = require_claim(catalog, claim_id)
    newest = catalog.latest()
    if newest is not None and entry.step <= newest.step:
        raise InvalidOperationError(f"step {entry.step} is not above the latest committed step {newest.step}")
    return _append(catalog, entry)


def publish(catalog: Catalog | None, claim_id: str, entry: Entry) -> Catalog:
    """The commit of a set of weights. Nothing resumes from one, so its step may fall where training went back."""
    if catalog is not None and catalog.find(entry.location) is not None:
        return catalog
    return _append(require_claim(catalog, claim_id), entry)


def take(catalog: Catalog | None, jobs: Catalog, claim: Claim) -> Catalog:
    """The register of weights follows the job's: who holds the claim there, holds it here."""
    catalog = catalog or Catalog()
    if catalog.claim is not None and catalog.claim.id == claim.id:
        return catalog
    update = {"owner": jobs.owner, "attempt": claim.attempt, "epoch": claim.epoch}
    return catalog.model_copy(update={**update, "claim": claim.model_copy(update={"resumed": None})})


def _append(catalog: Catalog, entry: Entry) -> Catalog:
    if len(catalog.checkpoints) >= MAX_ENTRIES:
        raise InvalidOperationError(f"the catalog holds {MAX_ENTRIES} checkpoints: remove some with `everstep prune`")
    seq = catalog.sequence + 1
    entries = (*catalog.checkpoints, entry.model_copy(update={"seq": seq}))
    return catalog.model_copy(update={"sequence": seq, "checkpoints": entries})


def quarantine(catalog: Catalog | None, claim_id: str, location: str, reason: str) -> Catalog:
    """Set a damaged entry aside, so that nothing resumes from it; only the claim's holder may."""
    catalog = require_claim(catalog, claim_id)
    aside = _update_entry(catalog, location, {"state": "quarantined", "reason": reason[:1024]})
    if aside is catalog or aside.claim is None:
        return aside
    return aside.model_copy(update={"claim": aside.claim.model_copy(update={"resumed": _resumed(aside)})})


def pin(catalog: Catalog, location: str, pinned: bool) -> Catalog:
    return _update_entry(catalog, location, {"pinned": pinned})


def _update_entry(catalog: Catalog, location: str, update: dict[str, object]) -> Catalog:
    entry = catalog.find(location)
    if entry is None:
        raise CheckpointNotFoundError(f"{location} is not in the catalog")
    if all(getattr(entry, key) == value for key, value in update.items()):
        return catalog
    entries = tuple(e.model_copy(update=update) if e.location == location else e for e in catalog.checkpoints)
    return catalog.model_copy(update={"checkpoints": entries})


def hold(catalog: Catalog, location: str, by: str, until: datetime, now: datetime) -> Catalog:
    """Keep an entry until a time; renewing replaces. Drops holds that have run out.

    Raises CheckpointNotFoundError where the entry is not live.
    """
    entry = catalog.find(location)
    if entry is None or entry.state != "live":
        raise CheckpointNotFoundError(f"{location} is not a committed checkpoint")
    others = tuple(h for h in catalog.holds if (h.location, h.by) != (location, by) and h.until > now)
    if len(others) >= MAX_ENTRIES:
        raise InvalidOperationError(f"the catalog has {MAX_ENTRIES} holds already")
    return catalog.model_copy(update={"holds": (*others, Hold(location=location, by=by, until=until))})


def release(catalog: Catalog, location: str, by: str) -> Catalog:
    rest = tuple(h for h in catalog.holds if (h.location, h.by) != (location, by))
    return catalog if len(rest) == len(catalog.holds) else catalog.model_copy(update={"holds": rest})


def retire(catalog: Catalog, locations: Collection[str], now: datetime) -> Catalog:
    """Move entries to the removal intents: from here on nobody can resume from them. Drops holds that have run out."""
    room = MAX_ENTRIES - len(catalog.removing)
    gone = sorted((e for e in catalog.checkpoints if e.location in locations), key=lambda e: e.seq)[:room]
    holds = tuple(h for h in catalog.holds if h.until > now)
    if not gone and len(holds) == len(catalog.holds):
        return catalog
    leaving = {e.location for e in gone}
    intents = tuple(Removal(location=e.location, step=e.step, bytes=e.bytes, since=now) for e in gone)
    return catalog.model_copy(
        update={
            "checkpoints": tuple(e for e in catalog.checkpoints if e.location not in leaving),
            "removing": (*catalog.removing, *intents),
            "holds": holds,
        }
    )


def dissolve(catalog: Catalog, owner: Owner, fence_id: str, now: datetime) -> Catalog:
    """The end of a job whose checkpoints go with it: no claim stands any more, and every entry becomes an intent.

    Raises OwnerConflictError unless the root is this very incarnation's. Where the intents have no room for all, the
    rest follows when it is called again.
    """
    theirs = catalog.owner
    if theirs is None or theirs.uid != owner.uid or theirs.cluster != owner.cluster:
        raise OwnerConflictError(f"nothing is deleted: the checkpoints belong to {theirs}, not to {owner}")
    if catalog.fence != fence_id:
        update = {"attempt": catalog.attempt + 1, "epoch": catalog.epoch + 1, "fence": fence_id, "claim": None}
        catalog = catalog.model_copy(update=update)
    return retire(catalog, {entry.location for entry in catalog.checkpoints}, now)


def forget(catalog: Catalog, locations: Collection[str]) -> Catalog:
    """Drop intents whose keys are gone."""
    rest = tuple(r for r in catalog.removing if r.location not in locations)
    return catalog if len(rest) == len(catalog.removing) else catalog.model_copy(update={"removing": rest})


def sweepable(catalog: Catalog, location: Location) -> bool:
    """Whether a location that was listed *before* this document was read can never be committed any more.

    A lower epoch lost its claim for ever; in the present one, a save at or below the latest commit has failed.
    """
    text = str(location)
    if catalog.find(text) is not None or any(r.location == text for r in catalog.removing):
        return False
    if location.epoch < catalog.epoch:
        return True
    latest = catalog.latest()
    if latest is None or not location.epoch == latest.epoch == catalog.epoch:
        return False
    return location.step <= latest.step
