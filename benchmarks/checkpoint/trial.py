"""One peer's turn in one setting: its saves, its training windows, its restores; a row of numbers for each."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.checkpoint.gang import Gang, GangError
from benchmarks.checkpoint.link import Link, linked
from benchmarks.checkpoint.measuring import Peak, cpu_seconds, memory, outranking
from benchmarks.checkpoint.peers import Place
from benchmarks.checkpoint.rank import Task
from benchmarks.checkpoint.servers import SERVERS, sink

Json = dict[str, Any]
RANKS = 2
MEMORY = "/dev/shm"  # noqa: S108 - the folder below it is made for each turn
REGISTER = 1 << 20
"""Bytes over the link from which on more than registers must have come by it."""


@dataclass(frozen=True)
class Setting:
    """`sink`: saves into a server that keeps no shards, and training beside them. `shaped`: saves into the same by a
    link of 1 Gbit/s and 30 ms. `server`: saves to a real server on loopback, restores from it directly and by the link.
    `node`: restores from the node's memory and by the link, of the same state; the register is beyond the link in both.
    """

    name: str
    server: str
    size: int
    every: int
    times: int
    """Of each save, window and restore in a turn."""
    nice: int | None
    """Of all that is measured, while a clock runs."""


class Turn:
    """Gangs follow each other, so that two of them never need the machine's memory at a time."""

    def __init__(self, setting: Setting, peer: str, restores: bool, number: int) -> None:
        self._setting = setting
        self._peer = peer
        self._restores = restores
        self._number = number

    def run(self) -> Iterator[Json]:
        """Rows; `setting` in a row is where it belongs."""
        name = self._setting.name
        with ExitStack() as stack:
            real = name in ("server", "node")
            endpoint = stack.enter_context(SERVERS[self._setting.server]() if real else sink())
            link = None if name == "sink" else stack.enter_context(linked(endpoint.url))
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY if name == "node" else None))
            bucket = endpoint.make_bucket("checkpoints")

            def place(part: str, url: str) -> Place:
                return Place(replace(endpoint, url=url), f"s3://{bucket}/{part}", f"{folder}/{part}")

            if name == "sink":
                yield from self._saves(place("two", endpoint.url), "sink", None, windows=True)
            elif link is not None and name == "shaped":
                yield from self._saves(place("two", link.url), "shaped", link)
            elif link is not None and name == "node":
                yield from self._from_node(place("two", endpoint.url), link)
            elif link is not None:
                yield from self._round_trips(place, endpoint.url, link)

    def _gang(self, world: int, place: Place) -> Gang:
        return Gang(world, Task(self._peer, place, self._setting.size, self._setting.every))

    def _saves(self, place: Place, setting: str, link: Link | None, windows: bool = False) -> Iterator[Json]:
        with self._gang(RANKS, place) as gang:
            yield from self._saved(gang, setting, link, windows)

    def _saved(self, gang: Gang, setting: str, link: Link | None, windows: bool = False) -> Iterator[Json]:
        gang.call("warm")
        before = memory(gang.pids)
        with Peak(gang.pids) as peak:
            gang.call("first_save")
        told = {"setting": setting, "bytes": gang.call("fingerprint")[0]["bytes"]}
        yield {"kind": "memory", "before": before, "peak": peak.bytes, **told}
        for number in range(self._setting.times):
            yield self._measured(gang, link, "save") | {"kind": "save", **told}
            gang.call("skip")
            if windows:
                yield self._windows(gang, bool((self._number + number) % 2)) | told

    def _round_trips(self, place: Callable[[str, str], Place], url: str, link: Link) -> Iterator[Json]:
        with self._gang(RANKS, place("two", url)) as gang:
            yield from self._saved(gang, "loopback", None)
            if not self._restores:
                return
            saved = gang.call("fingerprint")[0]
            for _ in range(self._setting.times):
                yield self._restored(gang, saved, place("two", url), None) | {"from": RANKS, "to": RANKS}
                yield self._restored(gang, saved, place("two", link.url), link) | {"from": RANKS, "to": RANKS}
        with self._gang(1, place("one", url)) as gang:
            for _ in range(self._setting.times):
                yield self._restored(gang, saved, place("two", url), None) | {"from": RANKS, "to": 1}
            yield self._restored(gang, saved, place("two", link.url), link) | {"from": RANKS, "to": 1}
            gang.call("first_save")
        with self._gang(RANKS, place("two", url)) as gang:
            for _ in range(self._setting.times):
                yield self._restored(gang, saved, place("one", url), None) | {"from": 1, "to": RANKS}
            yield self._restored(gang, saved, place("one", link.url), link) | {"from": 1, "to": RANKS}

    def _from_node(self, place: Place, link: Link) -> Iterator[Json]:
        """One save is on the node, and committed too: to those who look into an empty folder it comes by the link."""
        with self._gang(RANKS, place) as gang:
            gang.call("warm")
            gang.call("first_save")
            saved = gang.call("fingerprint")[0]
            there = replace(place, endpoint=replace(place.endpoint, url=link.url))
            empty = replace(there, folder=f"{place.folder}-empty")
            gang.call("restore", empty)  # then the server has it in its memory, as it has for the other settings
            for _ in range(self._setting.times):
                local = self._restored(gang, saved, there, link) | {"setting": "node's memory"}
                if local["received"] > REGISTER:
                    raise GangError(f"{local['received']} bytes came by the link: not from the node's memory")
                yield local | {"from": RANKS, "to": RANKS}
                yield self._restored(gang, saved, empty, link) | {"from": RANKS, "to": RANKS}

    def _windows(self, gang: Gang, late: bool) -> Json:
        """A window of training with a save at its beginning, and one without: which is first changes."""
        found: Json = {"kind": "train", "steps": self._setting.every, "load": os.getloadavg()[0]}
        for saving in (False, True) if late else (True, False):
            with outranking(self._setting.nice):
                answers = gang.call("train", saving)
            wall = max(answer["wall"] for answer in answers)
            found["with" if saving else "without"] = wall
            if saving:
                found["blocked"] = max(answer["boundary"] + answer["gate"] for answer in answers)
                found["boundary"] = max(answer["boundary"] for answer in answers)
                found["committed"] = _committed(answers)
        return found

    def _restored(self, gang: Gang, saved: Json, place: Place, link: Link | None) -> Json:
        """What was saved as `saved`, loaded again, and the same to the last bit."""
        found = self._measured(gang, link, "restore", place)
        state = gang.call("fingerprint")[0]
        if state != saved:
            raise GangError(f"{self._peer} restored another state: {state} instead of {saved}")
        setting = "loopback" if link is None else "shaped"
        return found | {"kind": "restore", "setting": setting, "bytes": state["bytes"]}

    def _measured(self, gang: Gang, link: Link | None, command: str, *arguments: object) -> Json:
        """A command with what it has cost: seconds, CPU seconds of the clients, bytes over the link."""
        load, at = os.getloadavg()[0], time.time()
        with outranking(self._setting.nice), nullcontext() if link is None else link.shaped():
            moved = (0, 0) if link is None else link.bytes
            cpu = cpu_seconds(gang.pids)
            answers = gang.call(command, *arguments)
            cpu = cpu_seconds(gang.pids) - cpu
            total = (0, 0) if link is None else link.bytes
        found: Json = {"cpu": cpu, "load": load, "at": at, "committed": _committed(answers)}
        if link is not None:
            found |= {"sent": total[0] - moved[0], "received": total[1] - moved[1]}
        if "gate" in answers[0]:
            found["boundary"] = max(answer["boundary"] for answer in answers)
            found["blocked"] = max(answer["boundary"] + answer["gate"] for answer in answers)
        return found


def _committed(answers: list[Json]) -> float:
    """Seconds from when the first rank began to when the last knew of the commit."""
    return max(float(answer["committed"]) for answer in answers) - min(float(answer["began"]) for answer in answers)
