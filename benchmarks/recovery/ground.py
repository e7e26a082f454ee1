"""Where gangs are injured, and where what was measured goes: of all benchmarks of recovery."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from benchmarks import page
from benchmarks.about import machine
from dev import cluster, images
from dev.instance import Level
from dev.paths import REPOSITORY
from tests.plugins.cluster import shared
from tests.support.site import Site, opened

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

RESULTS = Path(__file__).parent / "results"
PAGE = REPOSITORY / "docs" / "recovery.md"
IMAGES = {image.short_name: image for image in images.IMAGES}
ENDLESS = 1_000_000
console = Console(highlight=False)


@contextmanager
def prepared(instance: str, needed: Collection[str]) -> Iterator[Site]:
    """The embedded cluster, started if it is not up, with the operator and these images in it."""
    with ExitStack() as stack:
        running = stack.enter_context(shared(instance, Level.full, s3=True))
        images.load(running.instance, [IMAGES[name] for name in sorted({"operator", *needed})], console=console)
        s3 = cluster.s3_server(running.instance).endpoint
        yield stack.enter_context(opened(running, s3, s3.make_bucket(), IMAGES["operator"].name))


def about(site: Site, **versions: str) -> dict[str, Any]:
    """Where and of what it was measured."""
    server = json.loads(site.cluster.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
    return {**machine(), "kubernetes": server, **versions}


def record(path: Path, told: dict[str, Any], results: Iterable[DataclassInstance]) -> None:
    """A run more in the raw results, which are written anew after each trial."""
    document = json.loads(path.read_text()) if path.exists() else {"runs": []}
    done: list[dict[str, Any]] = []
    document["runs"].append({"about": told, "results": done})
    path.parent.mkdir(parents=True, exist_ok=True)
    for result in results:
        done.append(asdict(result))
        path.write_text(json.dumps(document, indent=1) + "\n")


def show(generated: str, begin: str, end: str, published: bool) -> None:
    """Print the tables, and put them between their marks in the page where they are the published results'."""
    console.print(generated, markup=False)
    if published:
        PAGE.write_text(page.put(PAGE.read_text(), begin, end, generated))
