"""`python -m benchmarks.checkpoint`: everstep and its peers, in turns, on the same state, servers and links.

    uv run --with 's3torchconnector[dcp]' --with torch-checkpointing --with matplotlib python -m benchmarks.checkpoint

Each round gives each peer a turn in each setting; every measurement is a line in
benchmarks/checkpoint/results/peers.jsonl. The tables and the plot of docs/checkpoint-performance.md are made of them.
"""

from __future__ import annotations

import json
import secrets
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import page
from benchmarks.about import machine
from benchmarks.checkpoint import report
from benchmarks.checkpoint.gang import GangError
from benchmarks.checkpoint.trial import Setting, Turn
from dev.paths import REPOSITORY

RESULTS = Path(__file__).parent / "results" / "peers.jsonl"
PAGE = REPOSITORY / "docs" / "checkpoint-performance.md"
PLOT = REPOSITORY / "docs" / "checkpoint-performance.svg"
NEEDS = {"DCP": "s3torchconnector", "torch-checkpointing": "torch_checkpointing"}
PEERS = {
    "everstep": ("sink", "shaped", "server"),
    "everstep, local tier": ("node",),
    "DCP sync, s3torchconnector": ("sink", "shaped", "server"),
    "DCP async, default": ("sink",),
    "DCP async, tuned": ("sink", "shaped", "server"),
    "torch-checkpointing, local disk": ("sink",),
}
RESTORES = ("everstep", "DCP sync, s3torchconnector")
"""DCP's asynchronous saves are loaded as the synchronous ones are."""
SETTINGS = ("sink", "shaped", "server", "node")
console = Console(highlight=False)


def main(
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; each peer has a turn in each.")] = 7,
    times: Annotated[int, typer.Option(min=1, help="Of each save, window and restore in a turn.")] = 1,
    size: Annotated[int, typer.Option(min=1, help="MiB of state, at least: model and AdamW's moments.")] = 1024,
    only: Annotated[list[str] | None, typer.Option(help="Peers whose names contain this.")] = None,
    settings: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETTINGS)}; by default all.")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Of a window of training, and from save to save.")] = 3,
    nice: Annotated[int | None, typer.Option(help="Of all that is measured while a clock runs; needs root.")] = None,
    server: Annotated[str, typer.Option(help="versitygw (on PATH) or seaweedfs.")] = "versitygw",
    results: Annotated[Path, typer.Option(help="Where the raw results are added.")] = RESULTS,
    report_only: Annotated[bool, typer.Option("--report", help="Make the page from results that stand.")] = False,
    plot: Annotated[bool, typer.Option(help="Draw the plot too; needs matplotlib.")] = False,
) -> None:
    """Measure, and write the page. Peers that are not installed are told of and left out."""
    if not report_only:
        chosen = [Setting(name, server, size << 20, steps, times, nice) for name in settings or SETTINGS]
        measure(repeats, only or [""], chosen, results)
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    console.print(generated := report.page(rows), markup=False, soft_wrap=True)
    if results == RESULTS:
        PAGE.write_text(page.put(PAGE.read_text(), report.BEGIN, report.END, generated))
    if plot:
        from benchmarks.checkpoint.plot import draw

        draw(rows, PLOT if results == RESULTS else results.with_suffix(".svg"))


def measure(repeats: int, only: list[str], settings: list[Setting], path: Path) -> None:
    peers = [peer for peer in PEERS if any(part in peer for part in only) and _installed(peer)]
    run = secrets.token_hex(4)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:

        def note(row: dict[str, object]) -> None:
            file.write(f"{json.dumps({'run': run, **row})}\n")
            file.flush()

        note({"kind": "about", **machine(), "nice": settings[0].nice})
        for repeat in range(repeats):
            for setting in settings:
                for peer in (each for each in peers if setting.name in PEERS[each]):
                    began = time.monotonic()
                    told = {"repeat": repeat, "setting": setting.name, "peer": peer}
                    if setting.name in ("server", "node"):
                        told["server"] = setting.server
                    try:
                        for row in Turn(setting, peer, peer in RESTORES, repeat).run():
                            note({**told, **row})
                            console.print(json.dumps({**told, **row}), soft_wrap=True)
                    except GangError as error:
                        note({**told, "kind": "error", "error": str(error)[-2000:]})
                        console.print(f"{peer}, {setting.name}: {error}", style="red", markup=False)
                    console.print(f"{peer}, {setting.name}: {time.monotonic() - began:.0f} s")


def _installed(peer: str) -> bool:
    missing = next((need for name, need in NEEDS.items() if peer.startswith(name) and find_spec(need) is None), None)
    if missing is not None:
        console.print(f"{peer}: left out, {missing} is not installed")
    return missing is None


if __name__ == "__main__":
    typer.run(main)
