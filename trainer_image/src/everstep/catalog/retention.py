"""Which entries stay, and why: the union of the user's policies and of what safety demands. Pure."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from everstep.catalog.documents import Catalog, Entry
from everstep.catalog.policy import Best, Retention

__all__ = ["Best", "Retention", "best", "expendable", "kept", "safeguarded", "unscored"]

ALWAYS_NEWEST = 2
"""So many newest live entries stay whatever the policy says: the latest, and one to fall back to."""


def kept(catalog: Catalog, policy: Retention, now: datetime) -> dict[str, list[str]]:
    """Location to the reasons why it stays, for every live entry that stays."""
    live = catalog.live()
    reasons = defaultdict(list, safeguarded(catalog, now))

    def keep(entries: list[Entry], reason: str) -> None:
        for entry in entries:
            reasons[entry.location].append(reason)

    if policy.keeps_everything:
        keep(live, "no policy")
    if policy.last:
        keep(live[-policy.last :], f"last {policy.last}")
    if policy.best and policy.best.count:
        keep(best(live, policy.best), f"best {policy.best.count}")
    if policy.every:
        keep([entry for entry in live if entry.step % policy.every == 0], f"every {policy.every}")
    if policy.within:
        young = [entry for entry in live if (now - entry.committed).total_seconds() <= policy.within]
        keep(young, f"within {span(policy.within)}")
    return {entry.location: reasons[entry.location] for entry in live if entry.location in reasons}


def safeguarded(catalog: Catalog, now: datetime) -> dict[str, list[str]]:
    """Location to the reasons why it stays whatever the policy says; set-aside entries have pins and holds alone."""
    live = catalog.live()
    reasons: dict[str, list[str]] = defaultdict(list)
    for entry in live[-1:]:
        reasons[entry.location].append("latest")
    for entry in live[-ALWAYS_NEWEST:-1]:
        reasons[entry.location].append("fallback")
    held = {hold.location: hold.by for hold in catalog.holds if hold.until > now}
    for entry in catalog.checkpoints:
        if entry.pinned:
            reasons[entry.location].append("pinned")
        if entry.location in held:
            reasons[entry.location].append(f"held by {held[entry.location]}")
    for entry in in_use(catalog, live):
        reasons[entry.location].append("resumed from")
    return dict(reasons)


def best(live: list[Entry], policy: Best) -> list[Entry]:
    """The entries with the best scores; of equals the newer. Entries without a score of that metric never count."""
    sign = 1.0 if policy.mode == "min" else -1.0
    known = (entry for entry in live if policy.metric is None or entry.score_of in (None, policy.metric))
    scored = [(sign * entry.score, -entry.seq, entry) for entry in known if entry.score is not None]
    return [entry for _, _, entry in sorted(scored, key=lambda item: item[:2])[: policy.count]]


def unscored(catalog: Catalog, policy: Retention) -> bool:
    """Whether the best are all that is to be kept, and nothing has a score: nobody knows then which are the worse."""
    if policy.best is None or policy.last or policy.every or policy.within:
        return False
    return not best(catalog.live(), policy.best)


def in_use(catalog: Catalog, live: list[Entry]) -> list[Entry]:
    """What the live worker group resumed from, until it has committed two entries of its own."""
    claim = catalog.claim
    if claim is None or claim.resumed is None:
        return []
    own = sum(entry.epoch == claim.epoch for entry in live)
    return [entry for entry in live if entry.location == claim.resumed] if own < ALWAYS_NEWEST else []


def expendable(catalog: Catalog, policy: Retention, now: datetime) -> list[Entry]:
    """Live entries that nothing keeps, oldest first."""
    stay = kept(catalog, policy, now)
    return [entry for entry in catalog.live() if entry.location not in stay]


def span(seconds: float) -> str:
    """Seconds in the largest unit that they are a whole number of: 7d, 36h, 90s."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"
